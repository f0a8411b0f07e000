"""A token chooses a node, then an expert of that node.

Shape letters: N tokens (no padding), E experts, I nodes, J experts of a node, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_nmt.errors import UserError
from moe_nmt.moe.routers import ROUTERS, Gate, Router
from moe_nmt.moe.routing import Routing, RoutingContext, drop_overflow, expert_capacity, expert_load


@ROUTERS.register("bilevel", paper="He et al. 2022 (SMILE, 2212.05191)")
class BilevelRouter(Router):
    """Each token goes to its best node and, there, to its best expert; I + J scores instead of I * J.

    The weight is the product of the node's and the expert's probability, so at first about as small as 1 / E. Node i
    has the experts i * J to (i + 1) * J - 1. `prob_NE` is the product for every pair, and `logit_NE` its logarithm, on
    which `z_loss` has no hold. With one node this is `top_k(k=1)`; for several there is the loss `bilevel_balancing`.
    Experts that the context rules out leave both softmaxes, and so does a node that has no others.

    Args:
        dim: D.
        num_experts: E.
        nodes: I, a divisor of E.
        shared: whether all nodes score their experts with the same J rows of weights, as SMILE does, or each with its
            own.
        capacity_factor: None is dropless. Otherwise the nodes, if there are several, take ceil(factor * N / I) tokens
            each, then the experts ceil(factor * N / E), the first tokens first; who finds either full is dropped.
        eval_capacity_factor: the same in evaluation; None, the default, is dropless.
        init_scale: see `Gate`.
    """

    experts_per_token = 1

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        nodes: int,
        shared: bool = True,
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        init_scale: float | None = None,
    ):
        super().__init__()
        if nodes < 1 or num_experts % nodes:
            raise UserError(f"nodes must divide the number of experts, {num_experts}; {nodes} does not.")
        for name, factor in (("capacity_factor", capacity_factor), ("eval_capacity_factor", eval_capacity_factor)):
            if factor is not None and factor <= 0:
                raise UserError(f"{name} must be above 0, or None for dropless routing, not {factor}.")
        self.nodes, self.experts_per_node = nodes, num_experts // nodes
        self.node_gate = Gate(dim, nodes, init_scale)
        self.expert_gate = Gate(dim, self.experts_per_node if shared else num_experts, init_scale)
        self.capacity_factor, self.eval_capacity_factor = capacity_factor, eval_capacity_factor

    def forward(self, x_ND: Tensor, context: RoutingContext) -> Routing:
        logit_NI = self.node_gate(x_ND)
        logit_NIJ = self.expert_gate(x_ND).unflatten(1, (-1, self.experts_per_node)).expand(-1, self.nodes, -1)
        prob_NIJ = logit_NI.softmax(-1)[..., None] * logit_NIJ.softmax(-1)
        log_prob_NIJ = logit_NI.log_softmax(-1)[..., None] + logit_NIJ.log_softmax(-1)
        if context.allowed_E is not None:
            logit_NI, logit_NIJ = self._rule_out(logit_NI, logit_NIJ, context.allowed_E)
        token_N = torch.arange(x_ND.shape[0], device=x_ND.device)
        node_N = logit_NI.argmax(-1)
        logit_NJ = logit_NIJ[token_N, node_N]
        place_N = logit_NJ.argmax(-1)
        weight_N = logit_NI.softmax(-1)[token_N, node_N] * logit_NJ.softmax(-1)[token_N, place_N]
        expert_N = node_N * self.experts_per_node + place_N
        routing = Routing(token_N, expert_N, weight_N, prob_NIJ.flatten(1), log_prob_NIJ.flatten(1))
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        return routing if factor is None else self._drop_overflow(routing, factor)

    def _rule_out(self, logit_NI: Tensor, logit_NIJ: Tensor, allowed_E: Tensor) -> tuple[Tensor, Tensor]:
        if not allowed_E.any():
            raise UserError("no expert may be chosen: rule out fewer.")
        ruled_out_IJ = ~allowed_E.view(self.nodes, -1).to(logit_NI.device)
        never = float("-inf")
        return logit_NI.masked_fill(ruled_out_IJ.all(-1), never), logit_NIJ.masked_fill(ruled_out_IJ, never)

    def _drop_overflow(self, routing: Routing, factor: float) -> Routing:
        tokens, experts = routing.prob_NE.shape
        chosen_E = expert_load(routing)
        if self.nodes > 1:
            prob_NI = routing.prob_NE.view(-1, self.nodes, self.experts_per_node).sum(-1)
            to_node = routing._replace(expert_A=routing.expert_A // self.experts_per_node, prob_NE=prob_NI)
            token_A = drop_overflow(to_node, expert_capacity(tokens, self.nodes, 1, factor)).token_A
            routing = routing._replace(
                token_A=token_A, expert_A=routing.expert_A[token_A], weight_A=routing.weight_A[token_A]
            )
        routing = drop_overflow(routing, expert_capacity(tokens, experts, 1, factor))
        return routing._replace(dropped_E=chosen_E - expert_load(routing))
