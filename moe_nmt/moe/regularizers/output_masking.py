"""EOM and FOM: masking what experts, or the whole layer, say of a token (Elbayad, Sun & Bhosale 2023, section 3).

Shape letters: N tokens (no padding), A assignments, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_nmt.moe.regularizers import REGULARIZERS, RateRegularizer
from moe_nmt.moe.routing import Routing, RoutingContext, keep, with_weight
from moe_nmt.schedules import Schedule


class OutputMasking(RateRegularizer):
    """Masked with probability p in training, and as it is; in evaluation all of it, multiplied by 1 - p.

    Args:
        p: probability of being masked, 0 <= p < 1, a number or a schedule.
        rescale: divide by 1 - p in training instead, and leave evaluation alone, as ordinary dropout does.
    """

    def __init__(self, *, p: float | Schedule = 0.2, rescale: bool = False):
        super().__init__(p)
        self.rescale = rescale

    def factor(self) -> float:
        """What the outputs that are there are multiplied with."""
        if self.training == self.rescale:
            return 1 / (1 - self.rate()) if self.rescale else 1 - self.rate()
        return 1.0

    def kept(self, like: Tensor) -> Tensor:
        """bool, of the shape of `like`, False with probability p, drawn independently."""
        return torch.rand_like(like, dtype=torch.float32) >= self.rate()


@REGULARIZERS.register("eom", paper="Elbayad, Sun & Bhosale 2023 (2212.07571)")
class ExpertOutputMasking(OutputMasking):
    """EOM: masks the output of each chosen expert for each token, independently, before they are combined.

    A masked assignment is taken away before the expert computes it: the same values and gradients for less work.
    """

    def on_routing(self, routing: Routing, context: RoutingContext) -> Routing:
        if self.rate() == 0:
            return routing
        if self.training:
            routing = keep(routing, self.kept(routing.weight_A))
        return with_weight(routing, routing.weight_A * self.factor())


@REGULARIZERS.register("fom", paper="Elbayad, Sun & Bhosale 2023 (2212.07571)")
class FinalOutputMasking(OutputMasking):
    """FOM: masks the combined output of the layer for each token, before the residual sum."""

    def on_output(self, y_ND: Tensor) -> Tensor:
        if self.rate() == 0:
            return y_ND
        y_ND = y_ND * self.factor()
        return y_ND * self.kept(y_ND[:, :1]).to(y_ND.dtype) if self.training else y_ND
