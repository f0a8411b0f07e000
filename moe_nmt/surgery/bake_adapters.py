"""Hyper-adapters to bottleneck adapters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from moe_nmt.adapters import ADAPTERS, ADAPTERS_PREFIX, SIDES, Host, LayerShape, Side
from moe_nmt.adapters.bottleneck import BottleneckWeights, By
from moe_nmt.adapters.groups import NONE
from moe_nmt.adapters.hyper import HyperAdapters, Input
from moe_nmt.data import Direction
from moe_nmt.data.directions import unknown
from moe_nmt.errors import UserError
from moe_nmt.registry import Spec
from moe_nmt.surgery import SURGERY, Checkpoint, Operation, languages_of, split_adapters

LOOKS_AT: dict[By, dict[Side, Input]] = {
    "language": {"encoder": "source", "decoder": "target"},
    "source": {"encoder": "source", "decoder": "source"},
    "target": {"encoder": "target", "decoder": "target"},
}
"""Which language of a sentence chooses the bottleneck adapter, where it is one alone."""


@SURGERY.register("bake_adapters", paper="Baziotis et al. 2022 (2205.10835)")
class BakeAdapters(Operation):
    """Hyper-adapters become the bottleneck adapters that they generate, which need no network and ship one by one.

    They are made by language, source or target, whichever determines what the network is asked for; else by pair, one
    for each direction, float32. In the directions chosen the model is the same function as before; sentences in others
    are translated without adapters if it is by pair, or if their language is in none of the directions.

    Args:
        directions: those that keep their adapters, `['eng-deu']`; None: all that the model was trained on.
    """

    def __init__(self, *, directions: list[str] | None = None):
        self.directions = None if directions is None else [Direction.parse(direction) for direction in directions]

    def __call__(self, checkpoint: Checkpoint) -> Checkpoint:
        spec = checkpoint.adapters
        if spec is None or spec.name != "hyper":
            raise UserError(f"bake_adapters needs a checkpoint with hyper-adapters; this one has {spec or 'none'}.")
        trained = [Direction.parse(direction) for direction in checkpoint.directions]
        languages = list(dict.fromkeys([*languages_of(spec), *_languages(trained)]))
        directions = trained if self.directions is None else self.directions
        for language in _languages(directions):
            if language not in languages:
                raise unknown("language", language, languages, "the checkpoint")
        hyper = rebuild(checkpoint, spec, languages)
        by = grouping(hyper)
        number = {language: index for index, language in enumerate(languages)}
        groups = {
            name: {side: int(getattr(hyper, f"{side}_table")[number[source], number[target]]) for side in SIDES}
            for name, source, target in representatives(by, directions)
        }
        groups = {name: group for name, group in groups.items() if set(group.values()) != {NONE}}
        if not groups:
            raise UserError(
                "bake_adapters finds no adapters in these directions; name others with directions=['eng-deu']."
            )
        options = {"dim": hyper.network.bottleneck, "by": by, "languages": list(groups)}
        if by == "pair":
            options |= {"languages": _languages(map(Direction.parse, groups)), "directions": list(groups)}
        tensors: dict[str, Tensor] = {}
        for side in SIDES:
            tensors |= bake(hyper, side, [group[side] for group in groups.values()])
        return checkpoint.with_adapters(Spec("bottleneck", options), tensors)


def rebuild(checkpoint: Checkpoint, spec: Spec, languages: Sequence[str]) -> HyperAdapters:
    """The hyper-adapters of a checkpoint, in evaluation and float32."""
    options = checkpoint.options
    encoder, decoder = (
        [LayerShape(options[f"{side}_embed_dim"], options[f"{side}_attention_heads"], {})] * options[f"{side}_layers"]
        for side in SIDES
    )
    hyper = ADAPTERS.build(spec, host=Host(encoder, decoder, languages))
    assert isinstance(hyper, HyperAdapters)
    tensors = split_adapters(checkpoint.tensors)[1]
    hyper.load_state_dict({name.removeprefix(ADAPTERS_PREFIX): tensor for name, tensor in tensors.items()})
    return hyper.eval()


def grouping(hyper: HyperAdapters) -> By:
    """What bottleneck adapters must depend on to do what hyper-adapters do: on no more than needed."""

    def suffices(by: By) -> bool:
        return all({*hyper.inputs[side]} <= {LOOKS_AT[by][side], "layer"} for side in SIDES)

    return next(filter(suffices, LOOKS_AT), "pair")


def representatives(by: By, directions: Iterable[Direction]) -> Iterable[tuple[str, str, str]]:
    """The name of each adapter that the directions need, and source and target of a sentence that has it.

    Where only one language chooses the adapter, the other does not matter and is the same.
    """
    if by == "pair":
        return [(str(direction), direction.source, direction.target) for direction in directions]
    sides = sorted(set(LOOKS_AT[by].values()))
    names = dict.fromkeys(getattr(direction, side) for direction in directions for side in sides)
    return [(name, name, name) for name in names]


@torch.no_grad()
def bake(hyper: HyperAdapters, side: Side, groups: Sequence[int]) -> dict[str, Tensor]:
    """The bottleneck adapters of all layers of a side, one for each group of sentences, idle for `NONE`.

    Each is generated by itself, as the model does it in evaluation, so that not a bit differs.
    """
    made = [hyper.generate(side, [max(group, 0)]) for group in groups]
    idle_G = torch.tensor([group == NONE for group in groups])
    tensors = {}
    for field in BottleneckWeights._fields:
        for layer, part_G in enumerate(torch.cat([getattr(one, field) for one in made], 1)):
            if field in ("up_GHD", "up_bias_GD"):
                part_G = part_G.masked_fill(idle_G.view(-1, *[1] * (part_G.dim() - 1)), 0)
            tensors[f"{ADAPTERS_PREFIX}{side}.{layer}.{field}"] = part_G.clone()
    return tensors


def _languages(directions: Iterable[Direction]) -> list[str]:
    return list(dict.fromkeys(language for d in directions for language in (d.source, d.target)))
