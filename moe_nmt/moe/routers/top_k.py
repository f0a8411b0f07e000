"""Every token chooses its k best experts.

Shape letters: N tokens (no padding), E experts, K experts per token, A assignments, D model width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from moe_nmt.errors import UserError
from moe_nmt.moe.routers import ROUTERS, Gate, Router
from moe_nmt.moe.routing import (
    CapacityFormula,
    Routing,
    RoutingContext,
    drop_overflow,
    expert_capacity,
    keep,
    normalize_per_token,
)


@ROUTERS.register("top_k", paper="Fedus et al. 2022 (Switch, k=1); Lepikhin et al. 2021 (GShard, k=2); NLLB Team 2022")
class TopKRouter(Router):
    """Each token goes to the k experts of highest probability; k = 1 is Switch, k = 2 is GShard and NLLB.

    Args:
        dim: D.
        num_experts: E.
        causal: whether the layer lies in an autoregressive decoder.
        k: experts per token.
        normalize: which weights sum to 1 per token. `after_dropping` (GShard, NLLB): those of the assignments that
            capacity left. `before_dropping`: those of the k chosen experts. `none` (Switch): the plain probabilities.
            None: `none` at k = 1 (where 1 would leave the gate without a gradient), else `after_dropping`.
        second_expert: whether, in training, the experts after the first are always used (`all`, NLLB), used with
            probability min(1, 2 * weight) (`random`, GShard), or drawn with Gumbel noise (`sampling`, fairseq's
            default). In evaluation always `all`.
        capacity_factor: None is dropless. Otherwise an expert takes as many tokens as `capacity_formula` makes of it.
        eval_capacity_factor: the same in evaluation; None, the default, is dropless.
        capacity_formula: see `expert_capacity`.
        min_capacity: no expert takes fewer.
        priority: who is served first when capacity is short. First choices come before second choices; within them
            `position` goes by the order of the tokens, `probability` by the best probability of the token
            (batch-prioritised routing, Riquelme et al. 2021), which looks at later tokens: a decoder refuses it.
        jitter: in training the router's input is multiplied by uniform noise from [1 - jitter, 1 + jitter].
        init_scale: draw the gate from a truncated normal distribution of variance init_scale / D (Switch: 0.1); None:
            as `nn.Linear` does.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        causal: bool = False,
        *,
        k: int = 2,
        normalize: Literal["none", "before_dropping", "after_dropping"] | None = None,
        second_expert: Literal["all", "random", "sampling"] = "all",
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        capacity_formula: CapacityFormula = "nllb",
        min_capacity: int = 1,
        priority: Literal["position", "probability"] = "position",
        jitter: float = 0.0,
        init_scale: float | None = None,
    ):
        super().__init__()
        if not 1 <= k <= num_experts:
            raise UserError(f"k must be between 1 and the number of experts, {num_experts}, not {k}.")
        if priority == "probability" and causal:
            raise UserError("priority=probability lets a decoder see later tokens; use priority=position there.")
        if not 0 <= jitter < 1:
            raise UserError(f"jitter must be at least 0 and below 1, not {jitter}.")
        for name, factor in (("capacity_factor", capacity_factor), ("eval_capacity_factor", eval_capacity_factor)):
            if factor is not None and factor <= 0:
                raise UserError(f"{name} must be above 0, or None for dropless routing, not {factor}.")
        self.gate = Gate(dim, num_experts, init_scale)
        self.k = self.experts_per_token = k
        self.normalize = normalize or ("none" if k == 1 else "after_dropping")
        self.second_expert = second_expert
        self.capacity_factor, self.eval_capacity_factor = capacity_factor, eval_capacity_factor
        self.capacity_formula, self.min_capacity = capacity_formula, min_capacity
        self.priority = priority
        self.jitter = jitter

    def forward(self, x_ND: Tensor, context: RoutingContext) -> Routing:
        if self.training and self.jitter > 0:
            x_ND = x_ND.float() * torch.empty_like(x_ND, dtype=torch.float32).uniform_(1 - self.jitter, 1 + self.jitter)
        logit_NE = self.gate(x_ND)
        prob_NE = logit_NE.softmax(-1)
        if context.allowed_E is None:
            expert_NK = self._choose(logit_NE)
            weight_NK = prob_NE.gather(1, expert_NK)
        else:
            allowed_NE = self._rule_out(logit_NE, context.allowed_E)
            expert_NK = self._choose(allowed_NE)
            weight_NK = allowed_NE.softmax(-1).gather(1, expert_NK)
        drops = self._may_drop()
        if self.normalize == "before_dropping" or (self.normalize == "after_dropping" and not drops):
            weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
        routing = self._in_order_of_priority(expert_NK, weight_NK, prob_NE, logit_NE)
        if not drops:
            return routing
        if self.training and self.second_expert == "random" and self.k > 1:
            routing = self._drop_later_choices_at_random(routing)
        routing = self._drop_overflow(routing)
        return normalize_per_token(routing) if self.normalize == "after_dropping" else routing

    def _may_drop(self) -> bool:
        if self.training:
            return self.capacity_factor is not None or (self.second_expert == "random" and self.k > 1)
        return self.eval_capacity_factor is not None

    def _rule_out(self, logit_NE: Tensor, allowed_E: Tensor) -> Tensor:
        left = int(allowed_E.sum())
        if left < self.k:
            raise UserError(f"only {left} experts may be chosen, but k is {self.k}: rule out fewer, or lower k.")
        return logit_NE.masked_fill(~allowed_E.to(logit_NE.device), float("-inf"))

    def _choose(self, logit_NE: Tensor) -> Tensor:
        if not (self.training and self.second_expert == "sampling" and self.k > 1):
            return logit_NE.topk(self.k).indices
        first_N1 = logit_NE.argmax(-1, keepdim=True)
        gumbel_NE = -torch.empty_like(logit_NE).exponential_().log()
        noisy_NE = (logit_NE.detach() + gumbel_NE).scatter(1, first_N1, float("-inf"))
        return torch.cat([first_N1, noisy_NE.topk(self.k - 1).indices], dim=1)

    def _in_order_of_priority(self, expert_NK: Tensor, weight_NK: Tensor, prob_NE: Tensor, logit_NE: Tensor) -> Routing:
        token_N = torch.arange(expert_NK.shape[0], device=expert_NK.device)
        if self.priority == "probability" and expert_NK.shape[0] > 0:
            token_N = prob_NE.detach().amax(-1).argsort(descending=True, stable=True)
            expert_NK, weight_NK = expert_NK[token_N], weight_NK[token_N]
        return Routing(token_N.repeat(self.k), expert_NK.T.reshape(-1), weight_NK.T.reshape(-1), prob_NE, logit_NE)

    def _drop_later_choices_at_random(self, routing: Routing) -> Routing:
        weight_A = normalize_per_token(routing).weight_A.detach()
        first_A = torch.arange(weight_A.numel(), device=weight_A.device) < routing.prob_NE.shape[0]
        return keep(routing, first_A | (2 * weight_A > torch.rand_like(weight_A)))

    def _drop_overflow(self, routing: Routing) -> Routing:
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        if factor is None:
            return routing
        tokens, experts = routing.prob_NE.shape
        return drop_overflow(
            routing, expert_capacity(tokens, experts, self.k, factor, self.capacity_formula, self.min_capacity)
        )
