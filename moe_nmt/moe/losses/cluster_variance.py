"""MoEC's routing loss: it makes clusters of experts.

Shape letters: N tokens (no padding), E experts, M clusters, C experts per cluster.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from moe_nmt.errors import UserError
from moe_nmt.moe.losses import LOSSES, LayerwiseLoss
from moe_nmt.moe.routing import MoERecord, num_experts
from moe_nmt.schedules import Schedule


@LOSSES.register("cluster_variance", paper="Xie et al. 2023 (MoEC, 2207.09094)")
class ClusterVarianceLoss(LayerwiseLoss):
    """Probabilities alike within the chosen cluster of experts, and unlike between clusters.

    E * (mean over tokens of the variance of the probabilities in the cluster of the most probable expert, minus
    `between` times the variance of the clusters' mean probabilities); population variances. The factor keeps the first
    term the same where a cluster of any size has one expert that takes all. The paper's formula could not be checked;
    this is built from its description.

    Args:
        weight, combine, all_ranks: see `LayerwiseLoss`.
        clusters: M; clusters are equal parts of the experts, in order.
        between: factor of the variance between clusters.
    """

    def __init__(
        self,
        *,
        clusters: int,
        weight: float | Schedule = 0.01,
        combine: Literal["sum", "mean"] = "sum",
        between: float = 1.0,
        all_ranks: bool = False,
    ):
        super().__init__(weight=weight, combine=combine, all_ranks=all_ranks)
        if clusters < 1:
            raise UserError(f"clusters must be at least 1, not {clusters}.")
        self.clusters = clusters
        self.between = between

    def sums(self, record: MoERecord) -> Tensor:
        experts = num_experts(record.routing)
        if experts % self.clusters:
            raise UserError(
                f"cluster_variance: clusters must divide the number of experts, {experts}; {self.clusters} does not."
            )
        prob_NMC = record.routing.prob_NE.view(-1, self.clusters, experts // self.clusters)
        chosen_N = record.routing.prob_NE.argmax(-1) // (experts // self.clusters)
        within_N = _variance(prob_NMC).gather(1, chosen_N[:, None])
        between_N = _variance(prob_NMC.mean(-1))
        return experts * (within_N.sum() - self.between * between_N.sum())

    def of_sums(self, sums: Tensor, tokens: int | Tensor) -> Tensor:
        return sums / tokens


def _variance(x: Tensor) -> Tensor:
    """Population variance over the last dimension, of no rows too."""
    return (x - x.mean(-1, keepdim=True)).square().mean(-1)
