"""MoEC's expert dropout: in every step some experts of each cluster cannot be chosen.

Shape letters: E experts.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from moe_nmt.errors import UserError
from moe_nmt.moe.regularizers import REGULARIZERS, RateRegularizer
from moe_nmt.moe.routing import RoutingContext
from moe_nmt.schedules import Schedule


@REGULARIZERS.register("cluster_dropout", paper="Xie et al. 2023 (MoEC, 2207.09094)")
class ClusterDropout(RateRegularizer):
    """In each step the same share p of every cluster's experts is ruled out, so a token goes to a sibling instead.

    Clusters are equal parts of the experts, in order. One draw holds for all tokens and ranks; evaluation is untouched.
    Of the paper only the idea could be checked: dropping `within` clusters, and p = 0.5, are our reading of it. Pairs
    with the loss `cluster_variance`, which makes the experts of a cluster siblings.

    Args:
        num_experts: E.
        layer: see `RateRegularizer`.
        clusters: number of clusters; 1 is dropout over all experts.
        p: share of the experts that is ruled out, rounded down, at least one staying; a number or a schedule.
        mode: `within`: p of the experts of every cluster. `whole`: p of the clusters, each with all its experts.
    """

    def __init__(
        self,
        num_experts: int,
        layer: int = 0,
        *,
        clusters: int,
        p: float | Schedule = 0.5,
        mode: Literal["within", "whole"] = "within",
    ):
        super().__init__(p, layer)
        if clusters < 1 or num_experts % clusters:
            raise UserError(f"clusters must divide the number of experts, {num_experts}; {clusters} does not.")
        self.clusters, self.cluster_size = clusters, num_experts // clusters
        self.mode = mode

    def on_context(self, context: RoutingContext) -> RoutingContext:
        if not self.training or self.rate() == 0:
            return context
        allowed_E = self.draw()
        return context._replace(allowed_E=allowed_E if context.allowed_E is None else allowed_E & context.allowed_E)

    def draw(self) -> Tensor:
        """bool [E], True = may be chosen."""
        source = self.agreed_draw()

        def survivors(count: int) -> Tensor:
            allowed = torch.ones(count, dtype=torch.bool)
            allowed[source.sample(range(count), int(self.rate() * count))] = False
            return allowed

        if self.mode == "whole":
            return survivors(self.clusters).repeat_interleave(self.cluster_size)
        return torch.cat([survivors(self.cluster_size) for _ in range(self.clusters)])
