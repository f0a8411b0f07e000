"""How weights are drawn."""

from __future__ import annotations

import math

from torch import Tensor, nn

from moe_nmt.errors import UserError

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal distribution cut off at two of them."""


def truncated_normal_(weight: Tensor, scale: float, fan_in: int) -> None:
    """Draw from a normal distribution, cut off at two standard deviations, whose rest has sqrt(scale / fan_in).

    Fedus et al. 2022 (Switch), section 2.4: a scale of 0.1, where 1 is usual, makes the training of sparse models
    stable.

    Raises:
        UserError: if the scale is not above 0.
    """
    if scale <= 0:
        raise UserError(f"init_scale must be above 0, not {scale}.")
    std = math.sqrt(scale / fan_in) / TRUNCATED_STD
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
