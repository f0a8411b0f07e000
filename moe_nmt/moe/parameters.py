"""How many parameters a model has, and how many of them compute a token."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from moe_nmt.moe.layer import MoELayer


class ParameterCounts(NamedTuple):
    """`total`: all parameters, shared ones once. `expert`: those of experts. `active`: those that compute one token."""

    total: int
    expert: int
    active: int


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count the parameters of a model, which may lie on the meta device."""
    total = sum(p.numel() for p in model.parameters())
    expert = idle = 0
    for layer in (m for m in model.modules() if isinstance(m, MoELayer)):
        size = sum(p.numel() for p in layer.experts.parameters())
        expert += size
        idle += round(size * (1 - layer.router.experts_per_token / layer.experts.num_experts))
    return ParameterCounts(total, expert, total - idle)
