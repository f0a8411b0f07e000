"""Bottleneck adapters: a small feed-forward network with a residual connection after every layer.

Shape letters: T positions, R rows, A adapted rows, G groups, D model width, H bottleneck width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from moe_nmt.adapters import ADAPTERS, SIDES, Adapters, Host, LayerAdapter, Side
from moe_nmt.adapters.groups import NONE, SentenceGroups, chosen_languages, group_sentences, group_table
from moe_nmt.errors import UserError, suggest
from moe_nmt.moe.feed_forward import grouped_feed_forward

By = Literal["language", "source", "target", "pair", "family"]


class BottleneckWeights(NamedTuple):
    """The adapters of one layer, one per group."""

    norm_weight_GD: Tensor
    norm_bias_GD: Tensor
    down_GDH: Tensor
    down_bias_GH: Tensor
    up_GHD: Tensor
    up_bias_GD: Tensor


class Bottleneck(LayerAdapter):
    """`x + relu(norm(x) down + down_bias) up + up_bias`, with the weights of each row's group (Bapna & Firat 2019)."""

    def __init__(self, weights: BottleneckWeights, groups: SentenceGroups):
        self.weights, self.groups = weights, groups

    def on_output(self, x: Tensor) -> Tensor:
        weights = self.weights
        row_A, group_A = self.groups.rows(x.shape[1], x.device)
        z = x if row_A is None else x.transpose(0, 1).index_select(0, row_A)
        scale, shift = weights.norm_weight_GD[group_A, None], weights.norm_bias_GD[group_A, None]
        z = torch.addcmul(shift, functional.layer_norm(z, z.shape[-1:]), scale)
        places_A = torch.full_like(group_A, z[..., 0].numel() // group_A.numel())
        places_G = group_A.new_zeros(weights.up_GHD.shape[0]).scatter_add(0, group_A, places_A)
        y = grouped_feed_forward(
            z.reshape(-1, z.shape[-1]),
            (weights.down_GDH, weights.down_bias_GH),
            (weights.up_GHD, weights.up_bias_GD),
            places_G,
            "relu",
        )
        y = y.view(z.shape).to(x.dtype)  # they differ under autocast
        return x + y if row_A is None else add_rows(x, row_A, y.transpose(0, 1))


def add_rows(x: Tensor, row_A: Tensor, y: Tensor) -> Tensor:
    """`x.index_add(1, row_A, y)`, without keeping `y` for the backward pass."""
    added: Tensor = _AddRows.apply(x, row_A, y)  # type: ignore[no-untyped-call]
    return added


class _AddRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, row_A: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(row_A)
        return x.index_add(1, row_A, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (row_A,) = ctx.saved_tensors
        return grad, None, grad.index_select(1, row_A) if ctx.needs_input_grad[2] else None


class LayerBottlenecks(nn.Module):
    """The parameters of one layer's adapters.

    The layer norm starts as none, `down` as Xavier draws it, biases at 0; `up` starts at 0 (`identity`: the model is as
    it was without adapters) or as Xavier draws it.
    """

    def __init__(self, groups: int, dim: int, bottleneck: int, init: Literal["identity", "xavier"]):
        super().__init__()
        self.norm_weight_GD = nn.Parameter(torch.ones(groups, dim))
        self.norm_bias_GD = nn.Parameter(torch.zeros(groups, dim))
        self.down_GDH = nn.Parameter(torch.empty(groups, dim, bottleneck))
        self.down_bias_GH = nn.Parameter(torch.zeros(groups, bottleneck))
        self.up_GHD = nn.Parameter(torch.zeros(groups, bottleneck, dim))
        self.up_bias_GD = nn.Parameter(torch.zeros(groups, dim))
        bound = math.sqrt(6 / (dim + bottleneck))
        nn.init.uniform_(self.down_GDH, -bound, bound)
        if init == "xavier":
            nn.init.uniform_(self.up_GHD, -bound, bound)
        for parameter in self.parameters():
            parameter.num_experts = groups  # type: ignore[attr-defined]  # to the optimizer a group is an expert

    def weights(self) -> BottleneckWeights:
        return BottleneckWeights(*(getattr(self, name) for name in BottleneckWeights._fields))


@ADAPTERS.register("bottleneck", paper="Bapna & Firat 2019 (1909.08478); Philip et al. 2020 (by=language)")
class BottleneckAdapters(Adapters):
    """x + up(relu(down(norm(x)))) after every layer, with weights of its own for every language, pair or family.

    Args:
        host: the model.
        dim: width of the bottleneck.
        by: what has its own adapters. `language`: in the encoder the source language, in the decoder the target
            language. `source`, `target`: that language on both sides. `pair`: the direction. `family`: as `language`,
            with one adapter for all languages of a family.
        languages: those that have adapters; of a pair one of the two must be named. All other sentences pass through
            unchanged. None: all languages.
        directions: with `by=pair` the directions that have adapters, `[eng-deu]` written as `['eng-deu']`; None: those
            trained.
        families: with `by=family` the families, as lists of languages; a language in none is a family by itself.
        init: `identity`: adapters start without effect. `xavier`: as linear maps do.

    Raises:
        UserError: for an unknown language or direction, or an option that another excludes.
    """

    def __init__(
        self,
        host: Host,
        *,
        dim: int,
        by: By = "language",
        languages: list[str] | None = None,
        directions: list[str] | None = None,
        families: list[list[str]] | None = None,
        init: Literal["identity", "xavier"] = "identity",
    ):
        super().__init__()
        if dim < 1:
            raise UserError(f"dim must be at least 1, not {dim}.")
        if directions is not None and by != "pair":
            raise UserError(f"directions={directions} goes with by=pair, not by={by}.")
        if (families is not None) != (by == "family"):
            raise UserError("by=family needs families=[[…], […]], lists of languages, and nothing else takes them.")
        adapted = chosen_languages(languages, host.languages)
        self.recorded = {"languages": adapted}
        if by == "pair":
            self.groups = _pairs(directions, adapted, host)
            self.recorded = {"languages": adapted, "directions": self.groups}
        elif by == "family":
            self.groups = _families(families or [], adapted, host.languages)
        else:
            self.groups = adapted
        for side in SIDES:
            layers = (LayerBottlenecks(len(self.groups), shape.dim, dim, init) for shape in getattr(host, side))
            self.add_module(side, nn.ModuleList(layers))
            self.register_buffer(f"{side}_table", self._table(side, by, host.languages), persistent=False)

    def _table(self, side: Side, by: By, languages: Sequence[str]) -> Tensor:
        number = {name: index for index, group in enumerate(self.groups) for name in group.split("+")}

        def group_of(source: int, target: int) -> int:
            if by == "pair":
                return number.get(f"{languages[source]}-{languages[target]}", NONE)
            looks_at_source = by == "source" or (by in ("language", "family") and side == "encoder")
            return number.get(languages[source if looks_at_source else target], NONE)

        return group_table(len(languages), group_of)

    def open(self, side: Side, source_language_B: Tensor, target_language_B: Tensor) -> Sequence[LayerAdapter | None]:
        layers = getattr(self, side)
        groups = group_sentences(getattr(self, f"{side}_table"), source_language_B, target_language_B)
        return [None if groups is None else Bottleneck(layer.weights(), groups) for layer in layers]


def _pairs(directions: list[str] | None, adapted: list[str], host: Host) -> list[str]:
    """The directions that have an adapter."""
    chosen = list(host.directions if directions is None else directions)
    for direction in chosen:
        sides = direction.split("-")
        for language in sides:
            if len(sides) != 2 or language not in host.languages:
                raise UserError(f"directions: '{direction}' is no direction of {', '.join(host.languages)}.")
        if chosen.count(direction) > 1:
            raise UserError(f"directions: '{direction}' is named twice; name it once.")
    pairs = [direction for direction in chosen if not set(direction.split("-")).isdisjoint(adapted)]
    if not pairs:
        raise UserError("by=pair finds no direction to adapt; name some with directions=['eng-deu'].")
    return pairs


def _families(families: list[list[str]], adapted: list[str], known: Sequence[str]) -> list[str]:
    """The families that have an adapter, each as its languages joined by +."""
    named = [language for family in families for language in family]
    for language in named:
        if language not in known:
            raise UserError(f"families: no language is called '{language}'{suggest(language, known)}")
        if named.count(language) > 1:
            raise UserError(f"families: the language '{language}' is in two of them; put it into one.")
    chosen = [[language for language in family if language in adapted] for family in families]
    alone = [[language] for language in adapted if language not in named]
    return ["+".join(family) for family in [*chosen, *alone] if family]
