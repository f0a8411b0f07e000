"""Regularizers of the layer: they change assignments or outputs in training. One file, one idea.

Shape letters: N tokens (no padding), A assignments, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from moe_nmt.moe.routing import Routing
from moe_nmt.registry import Registry


class Regularizer(nn.Module):
    """The contract of every regularizer: override one of the two, the other leaves what it gets untouched.

    `on_routing` sees the assignments before dispatch; `on_output` sees the layer's output before the residual sum.
    """

    def on_routing(self, routing: Routing) -> Routing:
        return routing

    def on_output(self, y_ND: Tensor) -> Tensor:
        return y_ND


REGULARIZERS: Registry[Regularizer] = Registry("regularizer", __name__)
