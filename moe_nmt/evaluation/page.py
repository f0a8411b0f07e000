"""The page of an evaluation: tables, pictures and examples in one HTML file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from moe_nmt.data import Direction
from moe_nmt.evaluation.html import document, folded, heading, image, paragraph, table
from moe_nmt.evaluation.quality_plots import plot_buckets, plot_off_target, plot_quality, plot_sizes
from moe_nmt.evaluation.results import Results
from moe_nmt.evaluation.scoring import Evaluation, Example
from moe_nmt.evaluation.signs import MEANINGS, TITLES
from moe_nmt.evaluation.tables import directions_table, means_table, signatures, signs_table

LONG = 40  # rows, from which on a table is folded
METRIC = "chrf++"


def page(
    results: Results, evaluations: Mapping[Direction, Evaluation], about: Sequence[str], notes: Sequence[str]
) -> str:
    """The text of the page; `about` says what was evaluated, `notes` what a reader must know beside the numbers."""
    with tempfile.TemporaryDirectory() as folder:
        parts = [
            heading("Evaluation", 1),
            *map(paragraph, about),
            *overview(results),
            *pictures(results, Path(folder)),
            *signs(results),
            *examples(evaluations),
            heading("Signatures and notes"),
            *map(paragraph, [*signatures(results), *notes]),
        ]
    return document("Evaluation", parts)


def overview(results: Results) -> Iterator[str]:
    header, *rows = means_table(results)
    yield table(header, rows)
    if results.sizes:
        limits = results.thresholds
        yield paragraph(
            f"A direction is high-resource from {limits.high_from:,} training pairs on, low-resource from "
            f"{limits.low_from:,} on, and very low-resource below. Means are over directions, all of the same weight."
        )


def pictures(results: Results, folder: Path) -> Iterator[str]:
    yield heading("Quality by direction")
    plot_quality(results, METRIC, folder / "quality.png")
    yield image(folder / "quality.png")
    header, *rows = directions_table(results)
    yield perhaps_folded(f"All {len(rows)} directions", header, rows)
    if results.sizes:
        yield heading("Quality by resource bucket")
        plot_buckets(results, folder / "buckets.png")
        yield image(folder / "buckets.png")
        yield heading("Quality and training size")
        plot_sizes(results, METRIC, folder / "sizes.png")
        yield image(folder / "sizes.png")
    if any(found.off_target is not None for found in results.signs.values()):
        yield heading("Off-target translations")
        plot_off_target(results, folder / "off_target.png")
        yield image(folder / "off_target.png")


def signs(results: Results) -> Iterator[str]:
    yield heading("Signs of bad translations")
    header, *rows = signs_table(results)
    yield perhaps_folded(f"All {len(rows)} directions", header, rows)
    for name, meaning in MEANINGS.items():
        if TITLES[name] in header:
            yield paragraph(f"{TITLES[name]}: {meaning}.")


def examples(evaluations: Mapping[Direction, Evaluation]) -> Iterator[str]:
    yield heading("Examples")
    yield paragraph("The translations of lowest chrF++ in each direction, and some around its median.")
    for direction, evaluation in evaluations.items():
        tables = [heading("Worst", 3), example_table(evaluation.worst)]
        if evaluation.median:
            tables += [heading("Median", 3), example_table(evaluation.median)]
        yield folded(f"{direction}, chrF++ {evaluation.score.values[METRIC]:.1f}", "\n".join(tables))


def example_table(found: Sequence[Example]) -> str:
    header = ("line", "chrF++", "source", "reference", "translation")
    rows = [
        (str(example.line), f"{example.chrf:.1f}", example.source or "–", example.reference, example.hypothesis)
        for example in found
    ]
    return table(header, rows, kind="text")


def perhaps_folded(summary: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    content = table(header, rows)
    return folded(summary, content) if len(rows) > LONG else content
