"""States of models and optimizers whose experts are spread over ranks: whole for a file, in parts for a rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from moe_nmt.distributed.groups import ExpertGroup


def gather_parts(part: Tensor, group: ExpertGroup) -> Tensor | None:
    """What the ranks of the first group have of a stacked tensor, [E, …] on the CPU of rank 0; None on other ranks.

    All ranks call it alike. One part after the other is taken off the device, so that it holds no more than one more.
    """
    rank = distributed.get_rank()
    if rank >= group.size:
        return None
    device = torch.device("cuda") if distributed.get_backend() == "nccl" else torch.device("cpu")
    part = part.detach().to(device).contiguous()
    if rank > 0:
        distributed.send(part, 0)
        return None
    whole = torch.empty(group.size, *part.shape, dtype=part.dtype)
    whole[0] = part
    buffer = torch.empty_like(part)
    for source in range(1, group.size):
        distributed.recv(buffer, source)
        whole[source] = buffer
    return whole.flatten(0, 1)


def own_part(whole: Tensor, group: ExpertGroup) -> Tensor:
    """This rank's part of a stacked tensor of all experts, [E / G, …]."""
    size = whole.shape[0] // group.size
    return whole[group.rank * size : (group.rank + 1) * size]


def is_stacked(value: Any, num_experts: int) -> bool:
    """Whether part of an optimizer's state has one slice for each of so many experts."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == num_experts
