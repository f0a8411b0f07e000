"""EOM and FOM: masking what experts, or the whole layer, say of a token (Elbayad, Sun & Bhosale 2023, section 3).

Shape letters: N tokens (no padding), A assignments, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_nmt.errors import UserError
from moe_nmt.moe.regularizers import REGULARIZERS, Regularizer
from moe_nmt.moe.routing import Routing, with_weight
from moe_nmt.schedules import Schedule, at_step


class OutputMasking(Regularizer):
    """Zero with probability p in training; in evaluation multiply by 1 - p instead. Nothing is rescaled in training.

    Args:
        p: probability of being masked, 0 <= p < 1, a number or a schedule.
    """

    def __init__(self, *, p: float | Schedule = 0.2):
        super().__init__()
        self.p = p
        self.step = 0
        self._rate()

    def set_num_updates(self, num_updates: int) -> None:
        """Called with the number of updates done, before every step."""
        self.step = num_updates

    def get_extra_state(self) -> Tensor:
        """The step, kept in the checkpoint so that evaluation uses the rate that training had reached."""
        return torch.tensor(self.step)

    def set_extra_state(self, state: Tensor) -> None:
        self.step = int(state)

    def _rate(self) -> float:
        p = at_step(self.p, self.step)
        if not 0 <= p < 1:
            raise UserError(f"p must be at least 0 and below 1, not {p}.")
        return p

    def mask(self, like: Tensor) -> Tensor:
        """Factors of the shape and dtype of `like`: in training 0 with probability p, else 1, drawn independently.

        At p = 0 no random number is drawn, so that a model without masking is reproduced exactly.
        """
        p = self._rate()
        if not self.training or p == 0:
            return torch.full_like(like, 1 - p)
        return (torch.rand_like(like, dtype=torch.float32) >= p).to(like.dtype)


@REGULARIZERS.register("eom", paper="Elbayad, Sun & Bhosale 2023 (2212.07571)")
class ExpertOutputMasking(OutputMasking):
    """EOM: masks the output of each chosen expert for each token, independently, before they are combined."""

    def on_routing(self, routing: Routing) -> Routing:
        return with_weight(routing, routing.weight_A * self.mask(routing.weight_A))


@REGULARIZERS.register("fom", paper="Elbayad, Sun & Bhosale 2023 (2212.07571)")
class FinalOutputMasking(OutputMasking):
    """FOM: masks the combined output of the layer for each token, before the residual sum."""

    def on_output(self, y_ND: Tensor) -> Tensor:
        return y_ND * self.mask(y_ND[:, :1])
