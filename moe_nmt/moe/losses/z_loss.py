"""The router z-loss.

Shape letters: N tokens (no padding), E experts.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from moe_nmt.moe.losses import LOSSES, LayerwiseLoss
from moe_nmt.moe.routing import MoERecord, num_tokens
from moe_nmt.schedules import Schedule


@LOSSES.register("z_loss", paper="Zoph et al. 2022 (ST-MoE, eq. 5)")
class ZLoss(LayerwiseLoss):
    """Mean over tokens of logsumexp(logits) squared: keeps the router's logits small."""

    def __init__(self, *, weight: float | Schedule = 0.001, combine: Literal["sum", "mean"] = "sum"):
        super().__init__(weight=weight, combine=combine)

    def of_layer(self, record: MoERecord) -> Tensor:
        return record.routing.logit_NE.logsumexp(-1).square().sum() / max(num_tokens(record.routing), 1)
