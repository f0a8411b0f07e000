"""Routers decide who goes where. One file, one router.

Shape letters: N tokens (no padding), E experts, A assignments, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_nmt.moe.routing import Routing, RoutingContext
from moe_nmt.registry import Registry


class Router(nn.Module):
    """The contract of every router.

    `forward(x_ND, context)`: `x_ND` float of any dtype, tokens without padding, N may be 0. Returns a `Routing` whose
    scores and weights are float32 whatever the dtype of `x_ND`. In evaluation the same input gives the same routing,
    and the route of a token depends on that token and `context` alone unless the class says otherwise.
    `experts_per_token` is how many experts compute a token when none is dropped (for counting active parameters).
    """

    experts_per_token: float

    def forward(self, x_ND: Tensor, context: RoutingContext) -> Routing:
        raise NotImplementedError


class Gate(nn.Linear):
    """The linear map from a token to one score per expert, without bias.

    It multiplies in float32 whatever the dtype of weights and input (selective precision: Fedus et al. 2022, 2.4).
    """

    def __init__(self, dim: int, num_experts: int):
        super().__init__(dim, num_experts, bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        with torch.autocast(x_ND.device.type, enabled=False):
            return nn.functional.linear(x_ND.float(), self.weight.float())


ROUTERS: Registry[Router] = Registry("router", __name__)
