"""The mixture-of-experts layer.

Shape letters: N tokens (no padding), E experts, A assignments, D model width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from moe_nmt.moe.branches import Branch
from moe_nmt.moe.dispatch import Dispatcher
from moe_nmt.moe.experts import Experts
from moe_nmt.moe.regularizers import Regularizer
from moe_nmt.moe.routers import Router
from moe_nmt.moe.routing import MoERecord, RoutingContext


class MoELayer(nn.Module):
    """A sparse mixture of experts, in the place of a feed-forward block.

    The forward pass:
      1. The router assigns tokens to experts; regularizers may rule out experts before, and change assignments after.
      2. A branch may open or shut the way to the experts, token by token.
      3. The dispatcher brings each token to its experts, and sums their weighted outputs.
      4. The branch mixes that with what it computes beside it; regularizers may change the result.

    `record_routing` sees the record of every call; the layer knows neither losses nor statistics.
    """

    def __init__(
        self,
        router: Router,
        experts: Experts,
        dispatcher: Dispatcher,
        regularizers: Iterable[Regularizer] = (),
        branch: Branch | None = None,
    ):
        super().__init__()
        self.router = router
        self.experts = experts
        self.dispatcher = dispatcher
        self.regularizers = nn.ModuleList(regularizers)
        self.branch = branch

    def forward(self, x_ND: Tensor, context: RoutingContext | None = None) -> tuple[Tensor, MoERecord]:
        """`x_ND`: float, tokens without padding (N may be 0). Returns the output, like `x_ND`, and the record."""
        context = context or RoutingContext()
        gate = None
        regularizers = cast(Iterable[Regularizer], self.regularizers)
        for regularizer in regularizers:
            context = regularizer.on_context(context)
        routing = self.router(x_ND, context)
        for regularizer in regularizers:
            routing = regularizer.on_routing(routing, context)
        if self.branch is not None:
            routing, gate = self.branch.open(x_ND, routing)
        y_ND = self.dispatcher(x_ND, routing, self.experts)
        if self.branch is not None:
            y_ND = self.branch(x_ND, y_ND, gate)
        for regularizer in regularizers:
            y_ND = regularizer.on_output(y_ND)
        return y_ND, MoERecord(routing, context, gate)
