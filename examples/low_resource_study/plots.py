"""The study's two pictures, drawn from the results that table.py writes as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_nmt.evaluation.plots import grid, save, tidy


def plot_gains(results: Mapping[str, Any], path: Path) -> None:
    """Draw each row's gain in chrF++ over the baseline on very low and on high, with the deviation over seeds."""
    rows = {row: v["chrf++"] for row, v in results["rows"].items() if "gain" in v["chrf++"]["high, all"]}
    figure, axes = grid(1, 6.5, 1.3 + 0.36 * len(rows))
    for bucket, colour, shift in (("very_low", "tab:red", -0.13), ("high", "tab:blue", 0.13)):
        scores = [row[f"{bucket}, all"] for row in rows.values()]
        axes[0].errorbar(
            [score["gain"] for score in scores],
            [place + shift for place in range(len(rows))],
            xerr=[score["gain_sd"] or 0 for score in scores],
            fmt="o",
            color=colour,
            capsize=3,
            label=f"{bucket.replace('_', ' ')}-resource",
        )
    axes[0].axvline(0, color="0.3", linewidth=1)
    axes[0].set_yticks(range(len(rows)), list(rows))
    axes[0].invert_yaxis()
    axes[0].set_xlabel(f"chrF++ above {results['baseline']}, mean and standard deviation over seeds", fontsize=9)
    tidy(axes[0])
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    save(figure, path)


def plot_curves(results: Mapping[str, Any], path: Path) -> None:
    """Draw the losses on the very low bucket, a panel per row, with the baseline in grey behind it."""
    curves = {row: values["curves"]["very_low"] for row, values in results["rows"].items()}
    baseline = curves[results["baseline"]]
    figure, axes = grid(len(curves), 2.8, 2.2, columns=4, sharex=True, sharey=True)
    for axis, (row, splits) in zip(axes, curves.items(), strict=True):
        for name, losses, colour in ((results["baseline"], baseline, "0.7"), ("row", splits, "tab:red")):
            for split, style in (("valid", "-"), ("train", "--")):
                curve = losses[split]
                axis.plot(curve["steps"], curve["values"], style, color=colour, label=f"{name}: {split}")
        axis.set_title(row, fontsize=10)
        tidy(axis)
    axes[0].set_ylim(0, 1.15 * max(baseline["valid"]["values"][-1], min(baseline["valid"]["values"])))
    figure.supxlabel("updates", fontsize=9)
    figure.supylabel("loss on very low, bits per token", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    save(figure, path)
