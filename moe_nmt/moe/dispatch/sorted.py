"""Sort the assignments by expert and compute each expert on one contiguous block.

Shape letters: N tokens (no padding), E experts, A assignments, D model width.
"""

from __future__ import annotations

from torch import Tensor

from moe_nmt.moe import kernels
from moe_nmt.moe.dispatch import DISPATCHERS, Dispatcher
from moe_nmt.moe.experts import Experts
from moe_nmt.moe.routing import Routing


@DISPATCHERS.register("sorted", paper="Gale et al. 2023 (MegaBlocks, dropless)")
class SortedDispatcher(Dispatcher):
    """Dropless: one stable sort, one gather, the experts' matrix products without padding, one weighted sum back."""

    def __call__(self, x_ND: Tensor, routing: Routing, experts: Experts) -> Tensor:
        order_A, count_E = kernels.sort_by_expert(routing.expert_A, experts.num_experts)
        token_A = routing.token_A[order_A]
        y_AD = experts(kernels.gather(x_ND, token_A), count_E)
        return kernels.combine(y_AD, token_A, routing.weight_A[order_A], x_ND.shape[0]).to(x_ND.dtype)
