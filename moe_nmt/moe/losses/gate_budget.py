"""CMR's budget loss: how much of the work may go to the experts.

Shape letters: N tokens (no padding).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_nmt.moe.losses import LOSSES, RoutingLoss, ranks_meet, sum_over_ranks
from moe_nmt.moe.routing import MoERecord
from moe_nmt.schedules import Schedule


@LOSSES.register("gate_budget", paper="Elbayad, Sun & Bhosale 2023 (2212.07571); NLLB Team 2022")
class GateBudgetLoss(RoutingLoss):
    """Distance of the mean gate, over the tokens of all layers that have one, from the budget of the branch.

    Args:
        weight: factor in the objective, a number or a schedule; 0.1 is NLLB's.
        all_ranks: take the mean over all data-parallel ranks before the absolute value, gradients included. Ranks must
            then call it alike; in evaluation, where they need not, each takes its own mean.
    """

    def __init__(self, *, weight: float | Schedule = 0.1, all_ranks: bool = True):
        self.weight = weight
        self.all_ranks = all_ranks

    def __call__(self, records: Sequence[MoERecord]) -> Tensor:
        gates = [record.gate for record in records if record.gate is not None]
        if not gates:
            return torch.zeros(())
        above = torch.stack([(gate_N.float() - budget).sum() for gate_N, budget in gates]).sum()
        count = above.new_full((), sum(gate.gate_N.numel() for gate in gates))
        if self.all_ranks and ranks_meet():
            above, count = sum_over_ranks([above, count])
        return above.abs() / count.detach().clamp(min=1)
