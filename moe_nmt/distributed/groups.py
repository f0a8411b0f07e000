"""Which ranks share one set of experts.

Shape letters: G ranks of an expert group.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from moe_nmt.errors import UserError


def world_size() -> int:
    """The number of ranks, 1 where torch.distributed is not in use."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


@dataclass(frozen=True)
class Level:
    """One hop of rows between ranks: `size` ranks, this one at place `rank`, that talk through `process_group`.

    `nodes`: the node of each of them; `node`: that of this rank.
    """

    size: int
    rank: int
    process_group: Any = field(repr=False)
    nodes: tuple[int, ...]
    node: int


@dataclass(frozen=True)
class ExpertGroup:
    """G adjacent ranks that have one set of experts between them, in equal parts, in order of the ranks.

    Where there are more ranks, there are `replicas` such groups. `replica_group` are the ranks that hold the same part
    as this one, None if it is alone with it. `rank` is the place of this rank in its group. `levels` are the hops of a
    row to its expert: none (G = 1), one (to the rank), or two (to the node, then to the rank).

    Build one with `expert_group`; it is shared, and no copy of a model copies it.
    """

    size: int = 1
    rank: int = 0
    replicas: int = 1
    levels: tuple[Level, ...] = ()
    process_group: Any = field(default=None, repr=False)
    replica_group: Any = field(default=None, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExpertGroup:
        return self


def expert_group(
    num_experts: int, ranks: int | None = None, ranks_per_node: int | None = None, by_node: bool = False
) -> ExpertGroup:
    """The group of this rank. All ranks must call it alike, for it makes process groups.

    Args:
        num_experts: E.
        ranks: G, a divisor of E and of the number of ranks; None: their greatest common divisor.
        ranks_per_node: how many adjacent ranks are one node; None: as torchrun says (LOCAL_WORLD_SIZE), or all.
        by_node: rows go to the node first, then to the rank in it.

    Raises:
        UserError: if `ranks` or `ranks_per_node` do not divide what they should.
    """
    world = world_size()
    ranks = math.gcd(num_experts, world) if ranks is None or world == 1 else ranks
    if ranks < 1 or num_experts % ranks or world % ranks:
        raise UserError(
            f"ranks={ranks} must divide the number of experts, {num_experts}, and of processes, {world}; "
            f"leave it out for {math.gcd(num_experts, world)}."
        )
    per_node = ranks_per_node or int(os.environ.get("LOCAL_WORLD_SIZE", world)) if world > 1 else 1
    if per_node < 1 or (ranks % per_node and per_node % ranks) or world % per_node:
        raise UserError(
            f"--moe-ranks-per-node {per_node} must divide the number of processes, {world}, and divide, or be a "
            f"multiple of, the number of those that share the experts, {ranks}; give another, or another ranks= in "
            "--moe-dispatch."
        )
    return _make_group(distributed.group.WORLD if world > 1 else None, ranks, per_node, by_node and per_node < ranks)


@functools.cache
def _make_group(everyone: Any, size: int, per_node: int, by_node: bool) -> ExpertGroup:
    world = world_size()
    replicas = world // size
    if size == 1:
        return ExpertGroup(replicas=replicas)
    rank = distributed.get_rank()
    groups = [range(first, first + size) for first in range(0, world, size)]
    process_group = _own(groups)
    replica_group = _own([range(place, world, size) for place in range(size)]) if replicas > 1 else None
    if by_node:
        across = [group[place::per_node] for group in groups for place in range(per_node)]
        within = [group[first : first + per_node] for group in groups for first in range(0, size, per_node)]
        levels = tuple(_level(ranks, per_node, _own(ranks)) for ranks in (across, within))
    else:
        levels = (_level(groups, per_node, process_group),)
    return ExpertGroup(size, rank % size, replicas, levels, process_group, replica_group)


def _level(groups: list[range], per_node: int, process_group: Any) -> Level:
    rank = distributed.get_rank()
    ranks = next(group for group in groups if rank in group)
    return Level(
        len(ranks), ranks.index(rank), process_group, tuple(other // per_node for other in ranks), rank // per_node
    )


def _own(groups: Sequence[range]) -> Any:
    """The process group of this rank, made by all ranks together with those of the others."""
    if len(groups) == 1:
        return distributed.group.WORLD
    ranks = [list(group) for group in groups]
    own, _ = distributed.new_subgroups_by_enumeration(ranks, timeout=_timeout())  # type: ignore[no-untyped-call]
    return own


def _timeout() -> timedelta:
    """The time after which a collective of the default group gives up."""
    device = torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
    timeout: timedelta = distributed.group.WORLD._get_backend(device).options._timeout  # type: ignore[union-attr]
    return timeout
