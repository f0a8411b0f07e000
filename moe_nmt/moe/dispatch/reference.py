"""The oracle: one expert after the other, nothing clever.

Shape letters: N tokens (no padding), E experts, A assignments, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_nmt.moe.dispatch import DISPATCHERS, Dispatcher
from moe_nmt.moe.experts import Experts
from moe_nmt.moe.routing import Routing


@DISPATCHERS.register("reference")
class ReferenceDispatcher(Dispatcher):
    """A loop over the experts, each on its own tokens; slow, and the measure of the others."""

    def __call__(self, x_ND: Tensor, routing: Routing, experts: Experts) -> Tensor:
        y_ND = torch.zeros_like(x_ND)
        for expert in range(experts.num_experts):
            mine_A = routing.expert_A == expert
            token_A, weight_A = routing.token_A[mine_A], routing.weight_A[mine_A]
            count_E = torch.zeros(experts.num_experts, dtype=torch.int64, device=x_ND.device)
            count_E[expert] = token_A.numel()
            output_AD = experts(x_ND[token_A], count_E)
            weighted_AD = output_AD * weight_A.to(output_AD.dtype)[:, None]
            y_ND = y_ND.index_add(0, token_A, weighted_AD.to(y_ND.dtype))
        return y_ND
