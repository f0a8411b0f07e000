"""Regularizers of the layer: they change choices, assignments or outputs in training. One file, one idea.

Shape letters: N tokens (no padding), E experts, A assignments, D model width.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from moe_nmt.errors import UserError
from moe_nmt.moe.routing import Routing, RoutingContext
from moe_nmt.registry import Registry
from moe_nmt.schedules import Schedule, at_step


class Regularizer(nn.Module):
    """The contract of every regularizer: override what it changes, the others leave what they get untouched.

    `on_context` may rule out experts before the router chooses (`allowed_E`); `on_routing` sees the assignments before
    dispatch; `on_output` sees the layer's output before the residual sum.
    """

    def on_context(self, context: RoutingContext) -> RoutingContext:
        return context

    def on_routing(self, routing: Routing, context: RoutingContext) -> Routing:
        return routing

    def on_output(self, y_ND: Tensor) -> Tensor:
        return y_ND


class RateRegularizer(Regularizer):
    """A regularizer with a rate that may be a schedule, and so with a step.

    Args:
        p: the rate, 0 <= p < 1, a number or a schedule. At 0 nothing is drawn from torch's generator and nothing is
            changed, so that a model without the regularizer is reproduced exactly.
        layer: number of the layer in the model; layers draw differently in `agreed_draw`.
    """

    def __init__(self, p: float | Schedule, layer: int = 0):
        super().__init__()
        self.p = p
        self.layer = layer
        self.step = 0
        self.rate()

    def set_num_updates(self, num_updates: int) -> None:
        """Called with the number of updates done, before every step."""
        self.step = num_updates

    def get_extra_state(self) -> Tensor:
        """The step, kept in the checkpoint so that evaluation uses the rate that training had reached."""
        return torch.tensor(self.step)

    def set_extra_state(self, state: Tensor) -> None:
        self.step = int(state)

    def rate(self) -> float:
        """The rate at this step."""
        p = at_step(self.p, self.step)
        if not 0 <= p < 1:
            raise UserError(f"p must be at least 0 and below 1, not {p}.")
        return p

    def agreed_draw(self) -> random.Random:
        """A source of random numbers, the same on every rank and in recomputation, another for each step and layer.

        It follows from torch's seed, the step and the layer alone, so nothing is communicated. Ranks must have called
        `torch.manual_seed` with the same number, as fairseq does in every update.
        """
        return random.Random(f"{torch.initial_seed()} {self.step} {self.layer}")


REGULARIZERS: Registry[Regularizer] = Registry("regularizer", __name__)
