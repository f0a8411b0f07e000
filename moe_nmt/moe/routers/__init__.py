"""Routers decide who goes where. One file, one router.

Shape letters: N tokens (no padding), E experts, A assignments, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from moe_nmt.moe.initialization import truncated_normal_
from moe_nmt.moe.linear import Float32Linear
from moe_nmt.moe.routing import Routing, RoutingContext
from moe_nmt.registry import Registry


class Router(nn.Module):
    """The contract of every router.

    `forward(x_ND, context)`: `x_ND` float of any dtype, tokens without padding, N may be 0. Returns a `Routing` whose
    scores and weights are float32 whatever the dtype of `x_ND`. In evaluation the same input gives the same routing,
    and the route of a token depends on that token and `context` alone unless the class says otherwise. No assignment
    goes to an expert that `context.allowed_E` rules out; the scores are those of all experts all the same.
    `experts_per_token` is how many experts compute a token when none is dropped (for counting active parameters).
    """

    experts_per_token: float

    def forward(self, x_ND: Tensor, context: RoutingContext) -> Routing:
        raise NotImplementedError


class Gate(Float32Linear):
    """The linear map from a token to one float32 score per expert, without bias.

    Args:
        dim: D.
        num_experts: E.
        init_scale: see `truncated_normal_`; None: as `nn.Linear` draws its weights.
    """

    def __init__(self, dim: int, num_experts: int, init_scale: float | None = None):
        super().__init__(dim, num_experts, bias=False)
        if init_scale is not None:
            truncated_normal_(self.weight, init_scale, fan_in=dim)


ROUTERS: Registry[Router] = Registry("router", __name__)
