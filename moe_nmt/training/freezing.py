"""Freezing: which parameters of a model are trained, and which stay as a checkpoint had them.

A recipe is written as a part: `ft_enc_attn`, `train_only(parts=[adapters, layer_norms])`. It sets `requires_grad`,
which is all that fairseq and torch need: no gradient is computed for frozen parameters, and an optimizer built of the
others neither keeps moments for them nor decays them. A parameter with several names, as tied embeddings have, is
trained only if the recipe trains all of them.

The named recipes are those of Cooper Stickland et al. 2021, and LNA. In all of them embeddings are frozen and adapters,
where there are any, are trained. They follow the paper's abstract and figure 2; what those leave open is chosen here;
each recipe says how.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import nn

from moe_nmt.errors import UserError, suggest
from moe_nmt.registry import Registry

PARTS = {
    "encoder": r"^encoder\.(layers|layer_norm)\.",
    "decoder": r"^decoder\.(layers|layer_norm)\.",
    "embeddings": r"^(encoder|decoder)\.embedding\.|^decoder\.output_projection\.",
    "self_attention": r"^(encoder|decoder)\.layers\.\d+\.self_attn\.",
    "cross_attention": r"^decoder\.layers\.\d+\.encoder_attn\.",
    "feed_forward": r"^(encoder|decoder)\.layers\.\d+\.feed_forward\.fc[12]\.",
    "layer_norms": r"^(encoder|decoder)\.(layers\.\d+\.\w+_)?layer_norm\.",
    "routers": r"^(encoder|decoder)\.layers\.\d+\.feed_forward\.moe\.router\.",
    "experts": r"^(encoder|decoder)\.layers\.\d+\.feed_forward\.moe\.experts\.",
    "branches": r"^(encoder|decoder)\.layers\.\d+\.feed_forward\.moe\.branch\.",
    "adapters": r"^adapters\.",
}
"""The parts of a model, each as a pattern of its parameters' names.

`encoder`, `decoder`: all layers of the side with all that is in them, and the layer norm after the last one.
`embeddings`: of tokens and of learned positions, the layer norm after them, and the output projection; in neither side.
Of both sides: `self_attention`, `cross_attention`, `feed_forward`: the linear maps of these blocks, of dense ones only;
`layer_norms`: those of all blocks, cross-attention too, and the one after the last layer; `routers`, `experts`,
`branches`: those of mixtures, a CMR's gate with its branch. `adapters`: all of theirs, layer norms too; in no side.
"""

WHOLE_ROWS = ("adapters", "embeddings", "experts", "routers", "branches")
SIDE_ROWS = ("self_attention", "cross_attention", "feed_forward", "layer_norms")
"""The parts that no parameter is in two of; the second have a row in reports for each side."""


def in_parts(names: Sequence[str], *parts: str) -> set[str]:
    """The names of parameters that are in at least one of the parts."""
    return {name for name in names if any(re.search(PARTS[part], name) for part in parts)}


class Freezing:
    """A freezing recipe.

    Args:
        dropout: whether frozen modules have dropout in training as all others do. False: they compute as in evaluation,
            for which whoever trains calls `rest_frozen` whenever the model is set to training.
    """

    registry: ClassVar[Registry[Freezing]] = Registry("freezing recipe")

    def __init__(self, *, dropout: bool = True):
        self.dropout = dropout

    def trained(self, names: Sequence[str]) -> set[str]:
        """Which of all names of a model's parameters are trained.

        Raises:
            UserError: if the model lacks what the recipe asks for.
        """
        raise NotImplementedError

    def apply(self, model: nn.Module) -> None:
        """Set `requires_grad` of every parameter of the model.

        Raises:
            UserError: if the model lacks what the recipe asks for, or nothing is left to train; nothing is set then.
        """
        names = names_of_parameters(model)
        trained = self.trained([name for shared in names.values() for name in shared])
        if not any(trained.issuperset(shared) for shared in names.values()):
            raise UserError(f"nothing is left to train{_half_trained(names, trained)}; freeze less.")
        for parameter, shared in names.items():
            parameter.requires_grad_(trained.issuperset(shared))


FREEZING = Freezing.registry


def names_of_parameters(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every parameter once, with all names that it has in the model."""
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    return names


def _half_trained(names: dict[nn.Parameter, list[str]], trained: set[str]) -> str:
    for shared in names.values():
        frozen = [name for name in shared if name not in trained]
        if len(frozen) < len(shared):
            name = next(name for name in shared if name in trained)
            return f", since {' and '.join(frozen)}, which the recipe freezes, are other names of {name}"
    return ""


class _ByName(Freezing):
    """Recipes that name parameters, by parts and by a pattern."""

    def __init__(self, *, parts: list[str] | None = None, match: str | None = None, dropout: bool = True):
        super().__init__(dropout=dropout)
        for part in parts or ():
            if part not in PARTS:
                raise UserError(f"no part of a model is called '{part}'{suggest(part, PARTS)}")
        try:
            self.match = None if match is None else re.compile(match)
        except re.error as error:
            raise UserError(
                f"match={match!r} is no regular expression ({error}); write one as match=r'decoder[.]layers[.]0[.]'."
            ) from None
        self.parts = parts or []

    def named(self, names: Sequence[str]) -> set[str]:
        """The names that are in one of the parts, or in which the pattern is found."""
        if not self.parts and self.match is None:
            raise UserError(f"a recipe of this kind needs parts=[…], of {', '.join(PARTS)}, or match='…', or both.")
        for part in self.parts:
            if not in_parts(names, part):
                present = ", ".join(known for known in PARTS if in_parts(names, known))
                raise UserError(f"the model has no {part}; leave them out, or build it with them. It has: {present}.")
        matched = {name for name in names if self.match is not None and self.match.search(name)}
        if self.match is not None and not matched:
            near = difflib.get_close_matches(self.match.pattern, names, n=1, cutoff=0.0)
            raise UserError(
                f"match={self.match.pattern!r} is found in no parameter's name; change it to fit names such as "
                f"{' '.join(near)}."
            )
        return in_parts(names, *self.parts) | matched


@FREEZING.register("train_only")
class TrainOnly(_ByName):
    """Trains the named parts and the parameters whose names match, and freezes all else.

    Args:
        parts: of `PARTS`; each must have parameters in the model.
        match: a regular expression, found anywhere in a parameter's name; written raw, as in `match=r'\\.fc1\\.'`.
        dropout: see `Freezing`.

    Raises:
        UserError: for an unknown part or a malformed pattern; when applied, for one that the model has nothing of.
    """

    def trained(self, names: Sequence[str]) -> set[str]:
        return self.named(names)


@FREEZING.register("freeze")
class Freeze(_ByName):
    """Freezes the named parts and the parameters whose names match, and trains all else.

    Args: see `TrainOnly`.
    """

    def trained(self, names: Sequence[str]) -> set[str]:
        return set(names) - self.named(names)


PAPER = "Cooper Stickland et al. 2021 (2004.14911)"


@FREEZING.register("freeze_encoder", paper=PAPER)
class FreezeEncoder(Freezing):
    """Trains the decoder and adapters."""

    def trained(self, names: Sequence[str]) -> set[str]:
        return in_parts(names, "decoder", "adapters")


@FREEZING.register("freeze_decoder", paper=PAPER)
class FreezeDecoder(Freezing):
    """Trains the encoder, the decoder's cross-attention and adapters.

    So the paper's figure 2. Chosen here: the decoder's layer norms are frozen. All of the decoder is frozen with
    `freeze(parts=[decoder, embeddings])`.
    """

    def trained(self, names: Sequence[str]) -> set[str]:
        return in_parts(names, "encoder", "cross_attention", "adapters")


@FREEZING.register("ft_enc_attn", paper=PAPER)
class CrossAttentionOnly(Freezing):
    """Trains the decoder's cross-attention and layer norms, and adapters.

    All of the encoder is frozen, as in the abstract: "with the encoder, and most of the decoder, frozen". Chosen here:
    all layer norms of the decoder are trained.
    """

    def trained(self, names: Sequence[str]) -> set[str]:
        decoder = in_parts(names, "decoder")
        return decoder & in_parts(names, "cross_attention", "layer_norms") | in_parts(names, "adapters")


@FREEZING.register("ft_self_attn", paper=PAPER)
class SelfAttentionOnly(Freezing):
    """Trains the decoder's self-attention and layer norms, and adapters.

    Chosen here, as the counterpart of `ft_enc_attn`: all of the encoder is frozen. That of both sides is trained by
    `train_only(parts=[self_attention, layer_norms])`.
    """

    def trained(self, names: Sequence[str]) -> set[str]:
        decoder = in_parts(names, "decoder")
        return decoder & in_parts(names, "self_attention", "layer_norms") | in_parts(names, "adapters")


@FREEZING.register("last_layers", paper=PAPER)
class LastLayers(Freezing):
    """Trains the last `count` layers of the decoder, the layer norm after them, and adapters.

    Chosen here, as the counterpart of `ft_enc_attn`: all of the encoder is frozen.

    Raises:
        UserError: if `count` is below 1; if it is more than the decoder has, when applied.
    """

    def __init__(self, *, count: int = 3, dropout: bool = True):
        super().__init__(dropout=dropout)
        if count < 1:
            raise UserError(f"count must be at least 1, not {count}.")
        self.count = count

    def trained(self, names: Sequence[str]) -> set[str]:
        matches = ((name, re.match(r"decoder\.layers\.(\d+)\.", name)) for name in names)
        layer_of = {name: int(match[1]) for name, match in matches if match}
        layers = len(set(layer_of.values()))
        if self.count > layers:
            raise UserError(f"count={self.count} is more than the decoder's {layers} layers; give at most that.")
        last = {name for name, layer in layer_of.items() if layer >= layers - self.count}
        return last | (in_parts(names, "decoder") - layer_of.keys()) | in_parts(names, "adapters")


@FREEZING.register("lna", paper="Li et al. 2021 (2010.12829)")
class LNA(Freezing):
    """LNA: trains all layer norms, the encoder's self-attention, the decoder's cross-attention, and adapters.

    The layer norm after embeddings counts as theirs, and is frozen.
    """

    def trained(self, names: Sequence[str]) -> set[str]:
        encoder_attention = in_parts(names, "encoder") & in_parts(names, "self_attention")
        return encoder_attention | in_parts(names, "layer_norms", "cross_attention", "adapters")


def rest_frozen(module: nn.Module) -> None:
    """Let modules whose parameters are all frozen compute as in evaluation, without dropout; to be called after
    `train()`.

    Mixtures of experts then route as in evaluation too. A module that is trained in part stays in training, with the
    dropout that it applies itself.
    """
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
    else:
        for child in module.children():
            rest_frozen(child)


class TrainedCount(NamedTuple):
    """How many numbers are in the trained parameters, and in all."""

    trained: int
    total: int

    @property
    def percent(self) -> str:
        return f"{100 * self.trained / max(self.total, 1):.1f} %"


def count_trained(model: nn.Module) -> dict[str, TrainedCount]:
    """The counts of every part that the model has, in the order of reports; each parameter is in one row, once.

    Rows are `adapters`, …, `encoder self_attention`, …, and `other` for what is in no part.
    """
    per_side = [f"{side} {part}" for side in ("encoder", "decoder") for part in SIDE_ROWS]
    counts = {row: [0, 0] for row in (*WHOLE_ROWS, *per_side, "other")}
    for name, parameter in model.named_parameters():
        count = counts[_row(name)]
        count[0] += parameter.numel() if parameter.requires_grad else 0
        count[1] += parameter.numel()
    return {row: TrainedCount(*count) for row, count in counts.items() if count[1]}


def _row(name: str) -> str:
    part = next((part for part in (*WHOLE_ROWS, *SIDE_ROWS) if re.search(PARTS[part], name)), "other")
    return f"{name.partition('.')[0]} {part}" if part in SIDE_ROWS else part


def describe_trained(model: nn.Module) -> str:
    """`trained 1,234 of 5,678 parameters (21.7 %)`, and a line for every row of `count_trained`."""
    rows = count_trained(model)
    total = TrainedCount(*(sum(column) for column in zip(*rows.values(), strict=True)))
    width, digits = max(map(len, rows)), len(f"{total.total:,}")
    lines = [f"trained {total.trained:,} of {total.total:,} parameters ({total.percent})"]
    for row, count in rows.items():
        lines.append(f"  {row:{width}}  {count.trained:{digits},} of {count.total:{digits},}  {count.percent:>7}")
    return "\n".join(lines)
