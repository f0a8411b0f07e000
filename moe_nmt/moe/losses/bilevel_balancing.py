"""SMILE's loss: balanced nodes, and balanced experts in each of them.

Shape letters: N tokens (no padding), E experts, I nodes, J experts of a node.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from moe_nmt.errors import UserError
from moe_nmt.moe.losses import LOSSES, LayerwiseLoss
from moe_nmt.moe.routing import MoERecord, num_experts
from moe_nmt.schedules import Schedule


@LOSSES.register("bilevel_balancing", paper="He et al. 2022 (SMILE, 2212.05191)")
class BilevelBalancingLoss(LayerwiseLoss):
    """I * sum of f_i * P_i over nodes, plus J * sum of f_j * Q_j over the experts of each node: 2 when uniform.

    f_i is the share of tokens whose most probable node is i, before any drop (no gradient); P_i is the mean probability
    of node i. f_j and Q_j are the same over the tokens of one node, and the probability of an expert given that node;
    nodes count by their tokens. One node: 1 + `within` * `load_balancing`. SMILE's alpha is `weight`, its beta is
    `weight` * `within`.

    Args:
        weight, combine, all_ranks: see `LayerwiseLoss`; SMILE's alpha is 0.005.
        nodes: I, as in the router `bilevel`; nodes are equal parts of the experts, in order.
        within: factor of the second sum.
    """

    def __init__(
        self,
        *,
        nodes: int,
        weight: float | Schedule = 0.005,
        combine: Literal["sum", "mean"] = "sum",
        within: float = 1.0,
        all_ranks: bool = False,
    ):
        super().__init__(weight=weight, combine=combine, all_ranks=all_ranks)
        if nodes < 1:
            raise UserError(f"nodes must be at least 1, not {nodes}.")
        self.nodes = nodes
        self.within = within

    def sums(self, record: MoERecord) -> Tensor:
        """float32 [I, 1 + 2 J]: probability of the node, then tokens and probability of each of its experts."""
        experts = num_experts(record.routing)
        if experts % self.nodes:
            raise UserError(
                f"bilevel_balancing: nodes must divide the number of experts, {experts}; {self.nodes} does not."
            )
        prob_NIJ = record.routing.prob_NE.view(-1, self.nodes, experts // self.nodes)
        prob_NI = prob_NIJ.sum(-1)
        node_N1 = prob_NI.detach().argmax(-1, keepdim=True)
        prob_NJ = prob_NIJ.take_along_dim(node_N1[..., None], 1).squeeze(1) / prob_NI.gather(1, node_N1)
        chosen_NJ = torch.zeros_like(prob_NJ).scatter(1, prob_NJ.detach().argmax(-1, keepdim=True), 1.0)
        of_node = prob_NI.new_zeros(self.nodes, 2 * prob_NJ.shape[1])
        of_node = of_node.index_add(0, node_N1.squeeze(1), torch.cat([chosen_NJ, prob_NJ], dim=1))
        return torch.cat([prob_NI.sum(0)[:, None], of_node], dim=1)

    def of_sums(self, sums: Tensor, tokens: int | Tensor) -> Tensor:
        experts = sums.shape[1] // 2
        prob_I1, chosen_IJ, prob_IJ = torch.split(sums, [1, experts, experts], dim=1)
        chosen_I = chosen_IJ.sum(1)
        between = self.nodes * (chosen_I / tokens * prob_I1.squeeze(1) / tokens).sum()
        within_I = experts * (chosen_IJ * prob_IJ).sum(1) / chosen_I.clamp(min=1)
        return between + self.within * within_I.sum() / tokens
