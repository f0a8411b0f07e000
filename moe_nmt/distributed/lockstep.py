"""Ranks that have different amounts of work, and yet must take part in one another's collectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed


class LockStep:
    """Ranks that go through stages with collectives inside, each as often as its own work asks for.

    A rank calls `enter(stage)` before it does a stage. All ranks agree on one stage at a time, the highest that one of
    them wants: who wants it does it with its own work, and the others serve it, that is they take part in its
    collectives with nothing of their own. After its last work a rank calls `finish`, and serves until all have done so.

    Args:
        process_group: the ranks.
        serve: what a rank does in each stage that it serves.
    """

    def __init__(self, process_group: Any, serve: Sequence[Callable[[], None]]):
        self.process_group, self.serve = process_group, serve
        on_gpu = distributed.get_backend(process_group) == "nccl"
        self.device = torch.device("cuda" if on_gpu else "cpu")

    def enter(self, stage: int) -> None:
        """Return when it is the turn of this stage, which all ranks then do at once."""
        self._serve_until(stage)

    def finish(self) -> None:
        """Return when no rank has work left; new work may begin then."""
        self._serve_until(-1)

    def _serve_until(self, wanted: int) -> None:
        while (stage := self._next(wanted)) != wanted:
            self.serve[stage]()

    def _next(self, wanted: int) -> int:
        stage = torch.tensor(wanted, device=self.device)
        distributed.all_reduce(stage, distributed.ReduceOp.MAX, group=self.process_group)
        return int(stage)
