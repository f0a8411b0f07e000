"""Gating dropout: now and then every token stays at the experts of its own machine.

Shape letters: N tokens (no padding), E experts, A assignments.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from moe_nmt.distributed.groups import ExpertGroup
from moe_nmt.errors import UserError
from moe_nmt.moe.regularizers import REGULARIZERS, RateRegularizer
from moe_nmt.moe.routing import Routing, RoutingContext, keep, num_experts, num_tokens
from moe_nmt.schedules import Schedule


@REGULARIZERS.register("gating_dropout", paper="Liu et al. 2022 (2205.14336)")
class GatingDropout(RateRegularizer):
    """With probability p per step and layer, all tokens stay at the experts of their own machine, or skip them.

    All ranks decide alike, without a word between them. The weights of the assignments and what the losses see are the
    router's own; evaluation is untouched. The paper reports p = 0.3 for `gate` and 0.2 for `gate_expert`.

    Where experts are spread over ranks, a machine is a rank: in a drop nothing travels at all, and all ranks are spared
    the exchange, which they need not agree on (`Routing.local`).

    Args:
        num_experts: E.
        layer: see `RateRegularizer`.
        group: the ranks that the experts are spread over; None: every rank has them all.
        p: probability of a drop, 0 <= p < 1, a number or a schedule.
        mode: `gate` (Gate-Drop): a token goes to local experts. `gate_expert` (Gate-Expert-Drop): to none, and the
            layer leaves it to the residual connection.
        local_groups: how many machines are simulated on this device, for mode=gate: each has the same share of the
            experts (in order) and of the sentences (in turn). Experts that are spread over ranks need none.
        scope: whether each `layer` of a step decides for itself (NLLB's code) or the whole `step` together.
    """

    def __init__(
        self,
        num_experts: int,
        layer: int = 0,
        group: ExpertGroup | None = None,
        *,
        p: float | Schedule = 0.2,
        mode: Literal["gate", "gate_expert"] = "gate_expert",
        local_groups: int = 1,
        scope: Literal["layer", "step"] = "layer",
    ):
        super().__init__(p, layer if scope == "layer" else 0)
        if local_groups < 1 or num_experts % local_groups:
            raise UserError(f"local_groups must divide the number of experts, {num_experts}; {local_groups} does not.")
        if mode == "gate" and local_groups == 1 and group is None:
            raise UserError(
                "mode=gate changes nothing where all experts are local: spread them over processes with --moe-dispatch "
                "all_to_all, give local_groups=G to simulate G machines, or choose mode=gate_expert."
            )
        self.mode = mode
        self.group = group or ExpertGroup()
        self.local_groups = local_groups

    def on_routing(self, routing: Routing, context: RoutingContext) -> Routing:
        if not self.training or self.agreed_draw().random() >= self.rate():
            return routing
        if self.mode == "gate_expert":
            return keep(routing, torch.zeros_like(routing.expert_A, dtype=torch.bool))._replace(local=True)
        if self.group.size == 1:
            return keep_local(routing, self.simulated_group(routing, context), self.local_groups)
        own_N = torch.full((num_tokens(routing),), self.group.rank, device=routing.token_A.device)
        return keep_local(routing, own_N, self.group.size)._replace(local=True)

    def simulated_group(self, routing: Routing, context: RoutingContext) -> Tensor:
        """int64 [N]: which simulated machine each token is on."""
        if context.sentence_N is not None:
            return context.sentence_N % self.local_groups
        rows = num_tokens(routing)
        return torch.arange(rows, device=routing.token_A.device) * self.local_groups // max(rows, 1)


def keep_local(routing: Routing, group_N: Tensor, groups: int) -> Routing:
    """Each assignment goes to the expert of the token's own group that has the same place there as the chosen one.

    `group_N`: int64, the group of each token, below `groups`; group g has experts g * E / groups and on. With the
    expert e chosen and L experts per group that is g * L + e mod L, as in NLLB's code; weights stay those of the chosen
    expert. Two assignments of a token may meet at one expert, which then has the sum of their weights.
    """
    local = num_experts(routing) // groups
    return routing._replace(expert_A=group_N[routing.token_A] * local + routing.expert_A % local)
