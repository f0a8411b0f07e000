"""Expert load per language: as JSON, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from moe_nmt.data.text import write_text


@dataclass(frozen=True)
class ExpertLoad:
    """`layers[name][l][e]`: how many assignments of tokens of language `languages[l]` expert e had in that layer.

    Encoder layers are counted by source language, decoder layers by target language.
    """

    languages: Sequence[str]
    layers: Mapping[str, Sequence[Sequence[int]]]


def write_expert_load(load: ExpertLoad, path: Path) -> None:
    """Write the counts as JSON."""
    write_text(path, json.dumps(asdict(load)) + "\n")


def plot_expert_load(load: ExpertLoad, path: Path) -> None:
    """Draw a heat map per layer: a row per language, a column per expert, each row's shares summing to 100 %."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    panels = {layer: _shares(load.languages, counts) for layer, counts in load.layers.items()}
    experts = max(len(next(iter(shares.values()))) for shares in panels.values())
    width, height = 1.8 + 0.42 * experts, 1.6 + 0.26 * len(load.languages)
    columns = min(len(panels), max(1, round(14 / width)))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns + 1.2, height * rows + 0.5), squeeze=False, layout="constrained"
    )
    top = max(max(row) for shares in panels.values() for row in shares.values())
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (layer, shares) in zip(axes.flat, panels.items(), strict=False):
        image = axis.imshow(list(shares.values()), aspect="auto", cmap="viridis", vmin=0, vmax=top)
        side = "source" if layer.startswith("encoder") else "target"
        stack, _, number, *_ = layer.split(".")
        axis.set_title(f"{stack} layer {int(number) + 1}", fontsize=10)
        axis.set_xticks(range(experts), [str(e + 1) for e in range(experts)], fontsize=8)
        axis.set_yticks(range(len(shares)), list(shares), fontsize=8)
        axis.set_xlabel("expert", fontsize=9)
        axis.set_ylabel(f"{side} language", fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1, decimals=0))
    bar.set_label("share of the language's tokens", fontsize=9)
    figure.suptitle(f"Expert load per language (even: {100 / experts:.3g}%)", fontsize=12)
    draft = path.with_name(f".{path.stem}.tmp{path.suffix}")
    figure.savefig(draft, dpi=150)
    draft.replace(path)
    plt.close(figure)


def _shares(languages: Sequence[str], counts: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """Each language's shares per expert; languages without a token are left out."""
    return {
        language: [count / sum(row) for count in row]
        for language, row in zip(languages, counts, strict=True)
        if sum(row)
    }
