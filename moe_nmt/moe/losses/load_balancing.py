"""The load-balancing loss.

Shape letters: N tokens (no padding), E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_nmt.moe.losses import LOSSES, LayerwiseLoss
from moe_nmt.moe.routing import MoERecord, num_experts


@LOSSES.register("load_balancing", paper="Lepikhin et al. 2021 (GShard); Fedus et al. 2022 (Switch, eq. 4)")
class LoadBalancingLoss(LayerwiseLoss):
    """E * sum over experts of f_e * p_e: 1 when the probabilities are uniform, E when one expert gets everything.

    f_e is the share of tokens whose most probable expert is e, before any drop (no gradient); p_e is the mean
    probability of e. Both are over real tokens only, so that padding changes neither.
    """

    def sums(self, record: MoERecord) -> Tensor:
        """float32 [2, E]: tokens whose most probable expert it is, and probability."""
        prob_NE = record.routing.prob_NE
        count_E = prob_NE.new_zeros(num_experts(record.routing))
        first_N = prob_NE.detach().argmax(-1)
        count_E = count_E.scatter_add(0, first_N, prob_NE.new_ones(first_N.shape))
        return torch.stack([count_E, prob_NE.sum(0)])

    def of_sums(self, sums: Tensor, tokens: int | Tensor) -> Tensor:
        count_E, prob_E = sums.unbind()
        return sums.shape[1] * (count_E / tokens * prob_E / tokens).sum()
