"""Expert load and gates per language, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from moe_nmt.data.text import write_text
from moe_nmt.errors import UserError


@dataclass(frozen=True)
class ExpertLoad:
    """`layers[name][l][e]`: how many assignments of tokens of language `languages[l]` expert e had in that layer.

    `gates[name][l]`, of the layers whose branch has a gate: mean gate over the language's tokens, 0 to 1, None where it
    has none. Encoder layers are counted by source language, decoder layers by target language.
    """

    languages: Sequence[str]
    layers: Mapping[str, Sequence[Sequence[int]]]
    gates: Mapping[str, Sequence[float | None]] = field(default_factory=dict)

    @property
    def used(self) -> list[str]:
        """The layers of which an expert had a token; where gates are shut it may have none."""
        return [layer for layer, counts in self.layers.items() if any(map(any, counts))]

    def shares(self, layer: str) -> dict[str, list[float]]:
        """Each language's shares of the load by expert, summing to 1; languages without a token are left out."""
        rows = zip(self.languages, self.layers[layer], strict=True)
        return {language: [count / sum(row) for count in row] for language, row in rows if sum(row)}


def write_expert_load(load: ExpertLoad, path: Path) -> None:
    """Write the counts as JSON."""
    write_text(path, json.dumps(asdict(load)) + "\n")


def read_expert_load(path: Path) -> ExpertLoad:
    """Read what `write_expert_load` wrote, also before there were gates; UserError if the file is something else."""
    try:
        return ExpertLoad(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError):
        raise UserError(f"{path} holds no expert load: write it with moe-nmt routing CHECKPOINT DATA --json.") from None


def layer_title(layer: str) -> str:
    """`encoder layer 2` for `encoder.layers.1.feed_forward.moe`."""
    stack, _, number, *_ = layer.split(".")
    return f"{stack} layer {int(number) + 1}"


def language_side(layer: str) -> str:
    """By which language the tokens of a layer are counted: `source` in the encoder, `target` in the decoder."""
    return "source" if layer.startswith("encoder") else "target"
