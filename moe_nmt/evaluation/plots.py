"""The pictures: expert load, learning curves, over-fitting, similarity of languages, gates; drawn by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_nmt.data import Direction, is_english
from moe_nmt.evaluation.curves import Curve
from moe_nmt.evaluation.expert_load import ExpertLoad, language_side, layer_title
from moe_nmt.evaluation.report_runs import Run, by_similarity, losses_at, shown_layers, similarity
from moe_nmt.evaluation.results import BUCKETS

BUCKET_TITLES = {"high": "high-resource", "low": "low-resource", "very_low": "very low-resource"}
LINE_STYLES: dict[str, Any] = {"valid": "-", "train": "--"}
COURSE = {
    "moe_entropy": "entropy of the routing, nats",
    "moe_balance": "load of the experts (1: even)",
    "wps": "target tokens per second",
    "memory_gb": "peak memory so far, GB",
}
"""The figures of a training that `plot_course` shows, by the names of their scalars."""


def plot_expert_load(load: ExpertLoad, path: Path) -> None:
    """Draw a heat map per layer: a row per language, a column per expert, each row's shares summing to 100 %."""
    from matplotlib.ticker import PercentFormatter

    panels = {layer: load.shares(layer) for layer in load.used}
    experts = max(len(next(iter(shares.values()))) for shares in panels.values())
    width, height = 1.8 + 0.42 * experts, 1.6 + 0.26 * len(load.languages)
    figure, axes = grid(len(panels), width, height)
    top = max(max(row) for shares in panels.values() for row in shares.values())
    for axis, (layer, shares) in zip(axes, panels.items(), strict=True):
        image = axis.imshow(list(shares.values()), aspect="auto", cmap="viridis", vmin=0, vmax=top)
        axis.set_title(layer_title(layer), fontsize=10)
        axis.set_xticks(range(experts), [str(e + 1) for e in range(experts)], fontsize=8)
        axis.set_yticks(range(len(shares)), list(shares), fontsize=8)
        axis.set_xlabel("expert", fontsize=9)
        axis.set_ylabel(f"{language_side(layer)} language", fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1, decimals=0))
    bar.set_label("share of the language's tokens", fontsize=9)
    figure.suptitle(f"Expert load per language (even: {100 / experts:.3g}%)", fontsize=12)
    save(figure, path)


def plot_learning_curves(runs: Sequence[Run], path: Path) -> None:
    """Draw a panel per resource bucket: mean loss over its directions on valid (solid) and train (dashed) by run."""
    from matplotlib.lines import Line2D

    buckets = [bucket for bucket in BUCKETS if any(run.members(bucket) for run in runs)]
    colours = colours_of(runs)
    figure, axes = grid(len(buckets), 5.2, 4.2, columns=3)
    for axis, bucket in zip(axes, buckets, strict=True):
        directions = {direction: run.pairs[direction] for run in runs for direction in run.members(bucket)}
        for run in runs:
            for split, style in LINE_STYLES.items():
                curve = run.mean(split, bucket)
                draw(axis, curve, linestyle=style, color=colours[run.name])
        axis.set_title(
            f"{BUCKET_TITLES[bucket]}: {len(directions)} directions, {span(directions.values())} pairs", fontsize=10
        )
        over_updates(axis)
        axis.set_ylabel("loss, bits per token", fontsize=9)
        axis.set_ylim(0, settled(axis) * 1.08)
        mark_phases(axis, runs, colours)
        tidy(axis)
    handles = [Line2D([], [], color=colour, label=name, linewidth=2) for name, colour in colours.items()]
    handles += [Line2D([], [], color="0.3", linestyle=style, label=split) for split, style in LINE_STYLES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(7, len(handles)), fontsize=9, frameon=False)
    save(figure, path)


def plot_course(runs: Sequence[Run], path: Path) -> None:
    """Draw a panel for each figure of COURSE that a run logged, over the updates, with a line per run."""
    shown = [name for name in COURSE if any(run.trained(name).steps for run in runs)]
    colours = colours_of(runs)
    figure, axes = grid(len(shown), 5.2, 3.2, columns=2)
    for axis, name in zip(axes, shown, strict=True):
        for run in runs:
            curve = run.trained(name)
            draw(axis, curve, color=colours[run.name], label=run.name)
        axis.set_title(COURSE[name], fontsize=10)
        over_updates(axis)
        axis.yaxis.set_major_formatter("{x:,.6g}")
        axis.set_ylim(bottom=1 if name == "moe_balance" else 0)
        mark_phases(axis, runs, colours)
        tidy(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(runs)), fontsize=9, frameon=False)
    save(figure, path)


def draw(axis: Any, curve: Curve, **how: Any) -> None:
    """Draw a curve as a line, or as a dot if it has but one reading."""
    axis.plot(curve.steps, curve.values, marker="o" if len(curve.steps) == 1 else None, linewidth=1.4, **how)


def over_updates(axis: Any) -> None:
    """Whole numbers of updates along the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("updates", fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axis.xaxis.set_major_formatter("{x:,.0f}")


def mark_phases(axis: Any, runs: Sequence[Run], colours: Mapping[str, Any]) -> None:
    """Draw a dotted line where each phase of a run's curriculum after the first begins, its number above the curves."""
    low, high = axis.get_ylim()
    if any(run.phases for run in runs):
        axis.set_ylim(low, high + 0.15 * (high - low))
    where = {"transform": axis.get_xaxis_transform(), "rotation": 90, "ha": "right", "va": "top", "fontsize": 7}
    for run in runs:
        for phase, start in run.phases.items():
            axis.axvline(start, color=colours[run.name], linestyle=":", linewidth=1.2, zorder=1)
            axis.text(start, 0.99, f"phase {phase}", color=colours[run.name], **where)


def plot_gaps(runs: Sequence[Run], path: Path) -> None:
    """Draw the loss on valid minus that on train: a row per direction, the largest first, and a dot per run, at the
    run's best update and at its end."""
    pairs = {direction: run.pairs[direction] for run in runs for direction in run.pairs}
    directions = sorted(pairs, key=lambda direction: (-pairs[direction], is_english(direction.target), direction))
    colours = colours_of(runs)
    figure, axes = grid(
        2, 5.2, 1.4 + max(0.26, 0.035 * len(runs)) * len(directions), columns=2, sharex=True, sharey=True
    )
    moments: dict[str, Callable[[Run], int]] = {
        "at the best update": lambda run: run.best_update,
        "at the end": lambda run: run.last_update,
    }
    for axis, (title, moment) in zip(axes, moments.items(), strict=True):
        for number, run in enumerate(runs):
            gaps = [gap_at(run, direction, moment(run)) for direction in directions]
            heights = [row + 0.7 * ((number + 0.5) / len(runs) - 0.5) for row in range(len(directions))]
            axis.plot(gaps, heights, "o", color=colours[run.name], markersize=4.5, label=run.name)
        for row in range(0, len(directions), 2):
            axis.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0)
        axis.axvline(0, color="0.4", linewidth=0.8, zorder=1)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("valid − train, bits per token", fontsize=9)
        axis.set_yticks(range(len(directions)), [f"{d}  {pairs[d]:,}" for d in directions], fontsize=8)
        axis.set_ylim(len(directions) - 0.5, -0.5)
        tidy(axis, "x")
    axes[0].set_ylabel("direction and its training pairs", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(runs)), fontsize=9, frameon=False)
    save(figure, path)


def gap_at(run: Run, direction: Direction, update: int) -> float:
    """The gap of a direction at an update, NaN where it is unknown."""
    losses = losses_at(update, run.train.get(direction), run.valid[direction]) if direction in run.valid else None
    return math.nan if losses is None or losses.gap is None else losses.gap


def plot_similarity(routing: ExpertLoad, path: Path) -> None:
    """Draw for each of `shown_layers` the cosine similarity of the languages' shares of the experts."""
    layers = {layer: similarity(routing, layer) for layer in shown_layers(routing)}
    size = 1.3 + 0.34 * max(len(names) for names, _ in layers.values())
    figure, axes = grid(len(layers), size + 0.4, size, columns=2)
    lowest = min(min(row) for _, matrix in layers.values() for row in matrix)
    for axis, (layer, (names, matrix)) in zip(axes, layers.items(), strict=True):
        order = by_similarity(names, matrix)
        labels = [names[i] for i in order]
        image = heat_map(axis, [[matrix[i][j] for j in order] for i in order], labels, labels, lowest, 1)
        axis.set_title(f"{layer_title(layer)}, by {language_side(layer)} language", fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("cosine similarity of expert use", fontsize=9)
    save(figure, path)


def plot_gates(routing: ExpertLoad, path: Path) -> None:
    """Draw the mean gate of each language (row) in each layer whose branch has one (column)."""
    rows = [[math.nan if g is None else g for g in gates] for gates in zip(*routing.gates.values(), strict=True)]
    titles = [layer_title(layer).replace(" layer ", "\n") for layer in routing.gates]
    figure, axes = grid(1, 2.4 + 0.75 * len(titles), 1.6 + 0.3 * len(rows))
    image = heat_map(axes[0], rows, routing.languages, titles, 0, 1)
    axes[0].set_ylabel("source language in the encoder,\ntarget language in the decoder", fontsize=9)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("mean gate: share of the experts in the output", fontsize=9)
    save(figure, path)


def heat_map(
    axis: Any,
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    low: float,
    high: float,
    digits: int = 2,
) -> Any:
    """Draw a map with a label per row and column and a number in each cell that has one; returns matplotlib's image."""
    image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=low, vmax=high)
    upright = max(map(len, columns)) > 3 and "\n" not in "".join(columns)
    axis.set_xticks(range(len(columns)), columns, fontsize=8, rotation=90 if upright else 0)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if not math.isnan(value):
                ink = "black" if value > low + 0.6 * (high - low) else "white"
                axis.text(j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=7, color=ink)
    return image


def grid(panels: int, width: float, height: float, columns: int | None = None, **shared: Any) -> tuple[Any, list[Any]]:
    """A figure of equal panels of so many inches, in at most so many columns, or as many as fit a page."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-panels // (columns or max(1, round(14 / width))))
    columns = -(-panels // rows)
    size = (width * columns + 1.2, height * rows + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **shared)
    for axis in axes.flat[panels:]:
        axis.remove()
    return figure, list(axes.flat[:panels])


def colours_of(runs: Sequence[Run]) -> dict[str, Any]:
    """A colour for each run by its name: 10 that differ well, or 20."""
    import matplotlib

    palette = matplotlib.colormaps["tab10" if len(runs) <= 10 else "tab20"]
    return {run.name: palette(number % palette.N) for number, run in enumerate(runs)}


def settled(axis: Any) -> float:
    """The highest loss of any line after the first tenth of its updates, so that the first fall takes no room."""
    tops = [1e-3]
    for line in axis.get_lines():
        steps, values = line.get_data()
        tops += [value for step, value in zip(steps, values, strict=True) if step >= steps[-1] / 10]
    return max(tops)


def span(counts: Iterable[int]) -> str:
    """`500`, or `500 to 6,000`."""
    low, *_, high = sorted([*counts, *counts])
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def tidy(axis: Any, grid_axis: str = "both") -> None:
    """A light grid, and no frame above and on the right."""
    axis.grid(axis=grid_axis, color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """Write the figure under its name in one step, and close it."""
    import matplotlib.pyplot as plt

    draft = path.with_name(f".{path.stem}.tmp{path.suffix}")
    figure.savefig(draft, dpi=150)
    draft.replace(path)
    plt.close(figure)
