"""Who goes where: the one currency between routers, regularizers, dispatchers, losses and statistics.

Shape letters: N tokens (no padding), E experts, A assignments, D model width.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

CapacityFormula = Literal["nllb", "deepspeed", "megablocks"]


class RoutingContext(NamedTuple):
    """What is known of the N tokens beside their vectors. None: not known in this model or batch.

    `token_N`: int64, dictionary index. `source_language_N`, `target_language_N`: int64, index into the language list.
    `sentence_N`: int64, row of the batch. `allowed_E`: bool, in the host's memory, True = the router may choose that
    expert; None: all of them.
    """

    token_N: Tensor | None = None
    source_language_N: Tensor | None = None
    target_language_N: Tensor | None = None
    sentence_N: Tensor | None = None
    allowed_E: Tensor | None = None


class Routing(NamedTuple):
    """A list of assignments (edges token -> expert) and the scores that they came from.

    `token_A`: int64, which token. `expert_A`: int64, to which expert; the order of the assignments is their priority
    when capacity is short. `weight_A`: float32, the factor of that expert's output; it carries the router's gradient.
    `prob_NE`: float32, routing probabilities. `logit_NE`: float32, scores before the softmax. `dropped_E`: int64, how
    many assignments each expert lost for lack of capacity; None: capacity was not limited. `local`: every assignment,
    on all ranks, is to an expert of the token's own rank, so that nothing need travel.
    """

    token_A: Tensor
    expert_A: Tensor
    weight_A: Tensor
    prob_NE: Tensor
    logit_NE: Tensor
    dropped_E: Tensor | None = None
    local: bool = False


class BranchGate(NamedTuple):
    """How a branch mixes: `gate_N`, float32, the factor of the experts' output; `budget`, the mean that it aims at."""

    gate_N: Tensor
    budget: float


class MoERecord(NamedTuple):
    """One call of one `MoELayer`: the routing that was carried out, its context, and the gate of the branch, if any."""

    routing: Routing
    context: RoutingContext
    gate: BranchGate | None = None


def num_tokens(routing: Routing) -> int:
    """N, the number of tokens that were routed."""
    return routing.prob_NE.shape[0]


def num_experts(routing: Routing) -> int:
    """E, the number of experts to choose from."""
    return routing.prob_NE.shape[1]


def keep(routing: Routing, keep_A: Tensor) -> Routing:
    """Only the assignments where `keep_A` (bool, True = keep) holds, in their order."""
    index = keep_A.nonzero().squeeze(-1)
    return routing._replace(
        token_A=routing.token_A[index], expert_A=routing.expert_A[index], weight_A=routing.weight_A[index]
    )


def with_weight(routing: Routing, weight_A: Tensor) -> Routing:
    """The same assignments with other weights."""
    return routing._replace(weight_A=weight_A)


def expert_load(routing: Routing) -> Tensor:
    """How many assignments each expert has: int64 [E]."""
    return torch.bincount(routing.expert_A, minlength=num_experts(routing))


def expert_capacity(
    tokens: int, experts: int, k: int, factor: float, formula: CapacityFormula = "nllb", minimum: int = 1
) -> int:
    """How many assignments an expert takes, as the code bases of the field count it.

    `nllb`: k * ceil(factor * tokens / experts), fairseq's top-2 and, at k = 1, Switch. `deepspeed`:
    ceil(factor * k * tokens / experts). `megablocks`: the same, rounded down. Never less than `minimum`.
    """
    exact = factor * tokens / experts
    capacity = {
        "nllb": k * math.ceil(exact),
        "deepspeed": math.ceil(exact * k),
        "megablocks": math.floor(exact * k),
    }[formula]
    return max(capacity, minimum)


def drop_overflow(routing: Routing, capacity: int) -> Routing:
    """Take away what exceeds `capacity` assignments per expert, the last in order first. Weights stay as they are.

    A dropped token is carried by the residual connection alone (Lepikhin et al. 2020, GShard, algorithm 1).
    """
    order_A = torch.argsort(routing.expert_A, stable=True)
    load_E = expert_load(routing)
    start_E = torch.cumsum(load_E, 0) - load_E
    rank_A = torch.empty_like(order_A)
    rank_A[order_A] = torch.arange(order_A.numel(), device=order_A.device) - start_E[routing.expert_A[order_A]]
    dropped_E = (load_E - capacity).clamp(min=0)
    return keep(routing, rank_A < capacity)._replace(dropped_E=dropped_E)


def normalize_per_token(routing: Routing) -> Routing:
    """Scale the weights so that those of a token's assignments sum to 1; a token without any stays without.

    Called after `drop_overflow`, a token whose other expert was full gives its whole weight to the one that is left.
    """
    sum_N = routing.weight_A.new_zeros(num_tokens(routing)).index_add(0, routing.token_A, routing.weight_A)
    floor = torch.finfo(sum_N.dtype).eps
    return with_weight(routing, routing.weight_A / sum_N.clamp(min=floor)[routing.token_A])
