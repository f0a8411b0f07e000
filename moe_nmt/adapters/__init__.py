"""Adapters: small modules on a Transformer that depend on the languages of a sentence. One file, one kind.

Shape letters: T positions, B sentences, R rows (sentences, or hypotheses of them), D model width, L languages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from moe_nmt.registry import Registry

ADAPTERS_PREFIX = "adapters."
"""What the names of all parameters of adapters begin with in a model, and of no others."""

Side = Literal["encoder", "decoder"]
SIDES: tuple[Side, ...] = ("encoder", "decoder")


class LayerShape(NamedTuple):
    """A layer that is adapted: its width D, its attention heads, and the size (inputs, outputs) of each linear map that
    can be adapted, by name: `self_attn.q_proj`, `encoder_attn.k_proj`, `feed_forward.fc1` …"""

    dim: int
    heads: int
    linear: Mapping[str, tuple[int, int]]


class Host(NamedTuple):
    """The model that is adapted.

    `encoder`, `decoder`: its layers. `languages`: all languages by name, at the place that batches number them by.
    `directions`: those it is trained on, as `source-target`.
    """

    encoder: Sequence[LayerShape]
    decoder: Sequence[LayerShape]
    languages: Sequence[str]
    directions: Sequence[str] = ()


class LayerAdapter:
    """What adapters do in one layer, to one batch; the layer calls it at its sites. Here: nothing."""

    def on_linear(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """After a linear map, of input `x` [..., R, I] and output `y` [..., R, O]: the output to go on with."""
        return y

    def on_inner(self, h: Tensor) -> Tensor:
        """After the activation of a dense feed-forward network, [T, R, F]."""
        return h

    def on_output(self, x: Tensor) -> Tensor:
        """At the end of the layer, [T, R, D]."""
        return x


class Adapters(nn.Module):
    """The contract of every kind: the adapters of all layers and languages of a model.

    `recorded` are the options that the surroundings of the training decided (its languages and directions); written
    into the checkpoint, they make the adapters the same wherever they are loaded.
    """

    recorded: Mapping[str, Any] = {}

    def open(self, side: Side, source_language_B: Tensor, target_language_B: Tensor) -> Sequence[LayerAdapter | None]:
        """What is done to a batch in each layer of the side; None: nothing.

        Languages: int64 [B], index into the host's list. The rows of the layers' activations are B, or R, a multiple of
        B, with the hypotheses of a sentence in adjacent rows.
        """
        raise NotImplementedError


ADAPTERS: Registry[Adapters] = Registry("kind of adapter", __name__)
