"""The pictures of an evaluation: quality by direction, bucket and training size, and off-target rates."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_nmt.data import Direction, is_english
from moe_nmt.evaluation.plots import BUCKET_TITLES, grid, heat_map, save, tidy
from moe_nmt.evaluation.results import BUCKETS, GROUPS, Results
from moe_nmt.evaluation.tables import TITLES

COLOURS = {"high": "tab:blue", "low": "tab:orange", "very_low": "tab:red", None: "0.4"}
MARKERS = {"into English": "<", "out of English": ">", "without English": "o"}
ROWS = 45  # of a column of languages
LABELLED = 40  # points that can have names
TICKS = 6
CLOSE = 0.035  # of the height, for labels
NUMBERED = 25  # languages whose map can have a number in each cell


def is_many_to_many(results: Results) -> bool:
    """Whether a map shows the directions best: most have no English side."""
    return 2 * len(results.group("without English")) > len(results.scores)


def plot_quality(results: Results, metric: str, path: Path) -> None:
    """Draw the score of every direction: a map of source and target, or a row for each language besides English."""
    if is_many_to_many(results):
        plot_map(results, metric, path)
    else:
        plot_languages(results, metric, path)


def plot_map(results: Results, metric: str, path: Path) -> None:
    """Draw a map with a row per source and a column per target language."""
    sources = sorted({direction.source for direction in results.scores})
    targets = sorted({direction.target for direction in results.scores})
    score = {(d.source, d.target): score.values[metric] for d, score in results.scores.items()}
    values = [[score.get((source, target), math.nan) for target in targets] for source in sources]
    few = max(len(sources), len(targets)) <= NUMBERED
    cell = 0.36 if few else 0.16
    figure, (axis,) = grid(1, 1.6 + cell * len(targets), 1.2 + 0.7 * cell * len(sources) * (1 if few else 1.4))
    low, high = min(score.values()), max(score.values())
    if few:
        image = heat_map(axis, values, sources, targets, low, high, digits=0)
    else:
        image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=low, vmax=high)
        axis.set_xticks(range(len(targets)), targets, fontsize=6, rotation=90)
        axis.set_yticks(range(len(sources)), sources, fontsize=6)
    axis.set_xlabel("target language", fontsize=9)
    axis.set_ylabel("source language", fontsize=9)
    figure.colorbar(image, ax=axis, shrink=0.8).set_label(TITLES[metric], fontsize=9)
    save(figure, path)


def plot_languages(results: Results, metric: str, path: Path) -> None:
    """Draw a row per direction or per language besides English, the best first, coloured by bucket."""
    rows: dict[str, list[Direction]] = {}
    for direction in results.scores:
        rows.setdefault(row_of(direction), []).append(direction)
    best = {row: max(results.scores[d].values[metric] for d in members) for row, members in rows.items()}
    names = sorted(rows, key=lambda row: -best[row])
    columns = -(-len(names) // ROWS)
    height = -(-len(names) // columns)
    figure, axes = grid(columns, 4.2 if columns > 1 else 7, 1.3 + 0.2 * height, columns=columns, sharex=True)
    buckets, used = results.buckets, {group_of(direction) for direction in results.scores}
    for number, axis in enumerate(axes):
        shown = names[number * height : (number + 1) * height]
        for row, name in enumerate(shown):
            values = [results.scores[direction].values[metric] for direction in rows[name]]
            axis.plot([min(values), max(values)], [row, row], color="0.8", linewidth=2, zorder=1)
            for direction, value in zip(rows[name], values, strict=True):
                colour = COLOURS[buckets.get(direction)]
                axis.plot(value, row, MARKERS[group_of(direction)], color=colour, markersize=5.5)
        axis.set_yticks(range(len(shown)), shown, fontsize=8)
        axis.set_ylim(max(height, 1) - 0.5, -0.5)
        axis.set_xlabel(TITLES[metric], fontsize=9)
        tidy(axis)
    legend(figure, results, [group for group in MARKERS if group in used])
    save(figure, path)


def row_of(direction: Direction) -> str:
    """The other language of a direction with English, else the direction."""
    if is_english(direction.source) != is_english(direction.target):
        return direction.target if is_english(direction.source) else direction.source
    return str(direction)


def group_of(direction: Direction) -> str:
    return next(group for group in MARKERS if GROUPS[group](direction))


def legend(figure: Any, results: Results, groups: Sequence[str]) -> None:
    """Name the colours of the buckets and the markers of the groups that are drawn."""
    from matplotlib.lines import Line2D

    shown = [bucket for bucket in BUCKETS if bucket in results.buckets.values()]
    handles = [Line2D([], [], linestyle="", marker=MARKERS[group], color="0.4", label=group) for group in groups]
    handles += [
        Line2D([], [], linestyle="", marker="s", color=COLOURS[bucket], label=BUCKET_TITLES[bucket]) for bucket in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)


def plot_buckets(results: Results, path: Path) -> None:
    """Draw the mean of every metric over the directions of a bucket, by group of directions."""
    groups = [group for group in MARKERS if results.group(group)]
    buckets = [bucket for bucket in BUCKETS if results.group("all", bucket)]
    figure, axes = grid(len(results.metrics), 4.2, 3.2, columns=len(results.metrics))
    width = 0.8 / len(groups)
    for axis, metric in zip(axes, results.metrics, strict=True):
        for place, group in enumerate(groups):
            for number, bucket in enumerate(buckets):
                directions = results.group(group, bucket)
                if directions:
                    value = results.mean(directions)[metric]
                    left = number + (place - (len(groups) - 1) / 2) * width
                    shade = 1 - 0.28 * place
                    axis.bar(left, value, 0.92 * width, color=COLOURS[bucket], alpha=shade)
                    axis.text(left, value, f"{value:.1f}", ha="center", va="bottom", fontsize=8)
        axis.set_xticks(
            range(len(buckets)),
            [f"{BUCKET_TITLES[bucket]}\n{len(results.group('all', bucket))} directions" for bucket in buckets],
            fontsize=8,
        )
        axis.set_title(TITLES[metric], fontsize=10)
        tidy(axis, "y")
    figure.supxlabel(f"bars from left to right: {', '.join(groups)}" if len(groups) > 1 else groups[0], fontsize=9)
    save(figure, path)


def plot_sizes(results: Results, metric: str, path: Path) -> None:
    """Draw the score of each direction over its training pairs, with the names of languages where there is room."""
    figure, (axis,) = grid(1, 7.5, 4.6)
    buckets = results.buckets
    best: dict[str, tuple[int, float]] = {}
    for direction, size in results.sizes.items():
        value = results.scores[direction].values[metric]
        axis.plot(size, value, MARKERS[group_of(direction)], color=COLOURS[buckets[direction]], markersize=5, alpha=0.8)
        row = row_of(direction)
        best[row] = max(best.get(row, (size, value)), (size, value), key=lambda place: place[1])
    if len(best) <= LABELLED:
        name_points(axis, best)
    log_scale(axis, set(results.sizes.values()))
    axis.set_xlabel("training pairs", fontsize=9)
    axis.set_ylabel(TITLES[metric], fontsize=9)
    tidy(axis)
    legend(figure, results, [group for group in MARKERS if results.group(group)])
    save(figure, path)


def log_scale(axis: Any, sizes: Collection[int]) -> None:
    """A logarithmic x axis that 0 has a place on, with a tick at each size if they are few."""
    axis.set_xscale("symlog", linthresh=10) if min(sizes) < 10 else axis.set_xscale("log")
    if len(sizes) <= TICKS:
        axis.set_xticks(sorted(sizes))
    axis.minorticks_off()
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.margins(x=0.08)


def name_points(axis: Any, places: Mapping[str, tuple[float, float]]) -> None:
    """Write names beside points; points of one size that lie close share a label."""
    low, high = axis.get_ylim()
    labels: list[tuple[float, float, list[str]]] = []
    for name, (x, y) in sorted(places.items(), key=lambda item: item[1]):
        if labels and labels[-1][0] == x and y - labels[-1][1] < CLOSE * (high - low):
            labels[-1][2].append(name)
        else:
            labels.append((x, y, [name]))
    for x, y, names in labels:
        place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(", ".join(names), (x, y), fontsize=7, color="0.3", **place)


def plot_off_target(results: Results, path: Path) -> None:
    """Draw the off-target rates, the highest first, with those of the references as ticks; at most ROWS directions."""
    rates = {d: signs for d, signs in results.signs.items() if signs.off_target is not None}
    shown = sorted(rates, key=lambda direction: -(rates[direction].off_target or 0))[:ROWS]
    figure, (axis,) = grid(1, 7, 1.3 + 0.2 * len(shown))
    buckets = results.buckets
    for row, direction in enumerate(shown):
        axis.barh(row, 100 * (rates[direction].off_target or 0), 0.7, color=COLOURS[buckets.get(direction)])
        axis.plot(100 * (rates[direction].off_target_references or 0), row, "|", color="black", markersize=9)
    axis.set_yticks(range(len(shown)), list(map(str, shown)), fontsize=8)
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.set_xlabel("% of lines found in another language; black: references", fontsize=9)
    tidy(axis, "x")
    legend(figure, results, [])
    save(figure, path)
