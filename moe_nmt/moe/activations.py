"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from moe_nmt.errors import UserError, suggest

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "swish": functional.silu,
    "tanh": functional.tanh,
}


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """The function called `name`.

    Raises:
        UserError: if there is none.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"no activation is called '{name}'{suggest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]
