"""The pictures of README.md, drawn from the JSON files of this folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from examples.scaling.scaling import Prediction, predict
from examples.scaling.validation import compare
from examples.scaling.worked_example import DEVICES, FOLDER, NLLB, TOKENS, WAYS, machines, on_devices, update_times
from moe_nmt.evaluation.plots import grid, save, tidy
from scripts.bench_distributed import LENGTH
from scripts.benchmarking import read_json


def stacked(axis: Any, parts: Iterable[dict[str, float]], scale: float) -> None:
    """Bars of what adds up, one for each number of devices."""
    import matplotlib

    columns = list(parts)
    below = [0.0] * len(columns)
    for place, name in enumerate(columns[0]):
        heights = [scale * column[name] for column in columns]
        colour = matplotlib.colormaps["tab10"](place)
        axis.bar([str(count) for count in DEVICES], heights, 0.72, below, label=name, color=colour)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axis.set_xlabel("devices", fontsize=9)


def plot_example(path: Path) -> None:
    """Draw the time of an update on both machines, and the memory of a device."""
    figure, axes = grid(3, 4.4, 4.2)
    found: dict[str, list[Prediction]] = {
        name: [predict(NLLB, on_devices(count), machines()[name]) for count in DEVICES] for name in ("a100", "h100")
    }
    for axis, (name, predictions) in zip(axes, found.items(), strict=False):
        stacked(axis, (each.seconds for each in predictions), 1000)
        axis.set_title(f"update, ms: {machines()[name].name}", fontsize=10)
    stacked(axes[2], (each.memory for each in found["a100"]), 1e-9)
    axes[2].axhline(80, color="0.2", linestyle="--", linewidth=1)
    axes[2].text(len(DEVICES) - 0.55, 81, "80 GB", ha="right", va="bottom", fontsize=9)
    axes[2].set_title("memory of a device, GB", fontsize=10)
    for axis in axes:
        axis.margins(y=0.12)
        tidy(axis, "y")
    axes[0].legend(*reversed_legend(axes[0]), fontsize=8, frameon=False, loc="upper left")
    axes[0].set_ylim(top=1.5 * axes[0].get_ylim()[1])
    axes[2].legend(*reversed_legend(axes[2]), fontsize=8, frameon=False, loc="upper right")
    save(figure, path)


def reversed_legend(axis: Any) -> tuple[list[Any], list[str]]:
    """Handles and labels in the order in which bars are stacked, the last at the top."""
    handles, labels = axis.get_legend_handles_labels()
    return handles[::-1], labels[::-1]


def plot_validation(path: Path) -> None:
    """Draw measured times as bars over all rounds' range, predicted ones as marks."""
    training = read_json(FOLDER / "training.json")
    found = compare(training, machines()["here"])
    figure, axes = grid(1, 7.5, 0.9 + 0.42 * len(found))
    places = range(len(found))
    times = [1000 * each.measured["seconds"] for each in found]
    rounds = [[1000 * each["seconds"] for each in training["cases"][comparison.case]] for comparison in found]
    ranges = [
        [time - min(each) for time, each in zip(times, rounds, strict=True)],
        [max(each) - time for time, each in zip(times, rounds, strict=True)],
    ]
    axes[0].barh(places, times, 0.6, xerr=ranges, color="0.75", ecolor="0.4", capsize=3, label="measured, all rounds")
    marks = [1000 * each.predicted.step for each in found]
    axes[0].plot(marks, places, "D", color="tab:red", label="predicted")
    axes[0].set_yticks(places, [each.case for each in found])
    axes[0].invert_yaxis()
    settings = training["settings"]
    work = f"{settings['sentences']} sentences of {LENGTH} tokens a rank, ranks share {settings['cores']} cores"
    axes[0].set_xlabel(f"ms an update, {work}", fontsize=9)
    tidy(axes[0], "x")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    save(figure, path)


def plot_ways(path: Path) -> None:
    """Draw what by_node and chunks give on 128 devices, over the tokens of a device."""
    figure, axes = grid(2, 4.4, 3.4, sharey=True)
    for axis, name in zip(axes, ("a100", "h100"), strict=True):
        times = [update_times(machines()[name], tokens) for tokens in TOKENS]
        for place, way in enumerate(WAYS):
            axis.plot(TOKENS, [each[place] / each[0] for each in times], "o-" if place else "k:", label=way)
        axis.set_xscale("log", base=2)
        axis.set_xticks(TOKENS, [f"{tokens:,}" for tokens in TOKENS])
        axis.set_xlabel("tokens of a device and batch", fontsize=9)
        axis.set_title(f"128 × {machines()[name].name}", fontsize=10)
        tidy(axis)
    axes[0].set_ylabel("time of an update, relative", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    save(figure, path)
