"""Losses on what the routers decided. One file, one loss.

Shape letters: N tokens (no padding), E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from moe_nmt.moe.routing import MoERecord
from moe_nmt.registry import Registry
from moe_nmt.schedules import Schedule


class RoutingLoss:
    """The contract of every routing loss; it has no parameters and is no module.

    `weight` is its factor in the objective, in units of the task loss per target token. `loss(records)` with the
    records of all layers of a batch (at least one) returns a float32 scalar that carries gradients.
    """

    weight: float | Schedule

    def __call__(self, records: Sequence[MoERecord]) -> Tensor:
        raise NotImplementedError


class LayerwiseLoss(RoutingLoss):
    """A loss that is computed layer by layer, then summed or averaged over the layers.

    Args:
        weight: factor in the objective, a number or a schedule.
        combine: `sum` over the layers (NLLB) or `mean`.
    """

    def __init__(self, *, weight: float | Schedule = 0.01, combine: Literal["sum", "mean"] = "sum"):
        self.weight = weight
        self.combine = combine

    def __call__(self, records: Sequence[MoERecord]) -> Tensor:
        total = torch.stack([self.of_layer(record) for record in records]).sum()
        return total / len(records) if self.combine == "mean" else total

    def of_layer(self, record: MoERecord) -> Tensor:
        """The loss of one layer: a float32 scalar, 0 if it saw no token."""
        raise NotImplementedError


LOSSES: Registry[RoutingLoss] = Registry("routing loss", __name__)
