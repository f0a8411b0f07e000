"""The router z-loss.

Shape letters: N tokens (no padding), E experts.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from moe_nmt.moe.losses import LOSSES, LayerwiseLoss
from moe_nmt.moe.routing import MoERecord
from moe_nmt.schedules import Schedule


@LOSSES.register("z_loss", paper="Zoph et al. 2022 (ST-MoE, eq. 5)")
class ZLoss(LayerwiseLoss):
    """Mean over tokens of logsumexp(logits) squared: keeps the router's logits small."""

    def __init__(
        self,
        *,
        weight: float | Schedule = 0.001,
        combine: Literal["sum", "mean"] = "sum",
        all_ranks: bool = False,
    ):
        super().__init__(weight=weight, combine=combine, all_ranks=all_ranks)

    def sums(self, record: MoERecord) -> Tensor:
        return record.routing.logit_NE.logsumexp(-1).square().sum()

    def of_sums(self, sums: Tensor, tokens: int | Tensor) -> Tensor:
        return sums / tokens
