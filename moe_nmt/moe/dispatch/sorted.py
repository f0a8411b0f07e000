"""Sort the assignments by expert and compute each expert on one contiguous block.

Shape letters: N tokens (no padding), E experts, A assignments, D model width.
"""

from __future__ import annotations

from torch import Tensor

from moe_nmt.moe.dispatch import DISPATCHERS, Dispatcher
from moe_nmt.moe.experts import Experts
from moe_nmt.moe.routing import Routing, expert_load


@DISPATCHERS.register("sorted", paper="Gale et al. 2023 (MegaBlocks, dropless)")
class SortedDispatcher(Dispatcher):
    """Dropless: one stable sort, one gather, the experts' matrix products without padding, one weighted sum back."""

    def __call__(self, x_ND: Tensor, routing: Routing, experts: Experts) -> Tensor:
        order_A = routing.expert_A.argsort(stable=True)
        token_A = routing.token_A[order_A]
        output_AD: Tensor = experts(x_ND[token_A], expert_load(routing))
        weighted_AD = output_AD * routing.weight_A[order_A].to(output_AD.dtype)[:, None]
        y_ND = weighted_AD.new_zeros(x_ND.shape).index_add(0, token_A, weighted_AD)
        return y_ND.to(x_ND.dtype)
