"""How many bytes are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from moe_nmt.distributed.groups import Level


class Bytes(NamedTuple):
    """Bytes sent to other ranks of the own node, and to other nodes; what a rank keeps for itself is not sent."""

    within: int = 0
    across: int = 0


class Traffic:
    """The bytes that a rank has `sent`, counted by whoever sends them."""

    def __init__(self) -> None:
        self.sent = Bytes()
        self._taken: dict[str, Bytes] = {}

    def add(self, level: Level, bytes_to: Sequence[int]) -> None:
        """Count what was sent: so many bytes to each rank of a level."""
        within, across = self.sent
        for rank, (node, count) in enumerate(zip(level.nodes, bytes_to, strict=True)):
            if node != level.node:
                across += count
            elif rank != level.rank:
                within += count
        self.sent = Bytes(within, across)

    def take(self, reader: str = "") -> Bytes:
        """What was sent since the last call by this reader."""
        within, across = self._taken.get(reader, Bytes())
        self._taken[reader] = self.sent
        return Bytes(self.sent.within - within, self.sent.across - across)
