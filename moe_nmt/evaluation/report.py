"""`moe-nmt report`: a page on trainings: learning curves, over-fitting, and where the languages go."""

from __future__ import annotations

import argparse
import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_nmt.data.text import write_text
from moe_nmt.evaluation.cli import add_threshold_arguments
from moe_nmt.evaluation.plots import (
    BUCKET_TITLES,
    plot_expert_load,
    plot_gaps,
    plot_gates,
    plot_learning_curves,
    plot_similarity,
)
from moe_nmt.evaluation.report_runs import PROBE, Run, as_dict, labels, losses_at, lowest, read_run
from moe_nmt.evaluation.results import BUCKETS, Thresholds

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2.2em } h3 { font-size: 1em; margin-bottom: 0.3em }
table { border-collapse: collapse; font-size: 0.9em } th, td { padding: 0.25em 0.9em; text-align: right }
th { border-bottom: 1px solid #999; font-weight: 600 } tr:nth-child(even) td { background: #f4f4f4 }
th:first-child, td:first-child { text-align: left } img { max-width: 100% } p { max-width: 48em }
"""
PER_RUN = {
    "expert_load": ("Expert load per language", "Each row is a language and sums to 100 %."),
    "similarity": (
        "Similarity of languages in their use of experts",
        "Cosine similarity between the shares of a language's tokens that each expert gets, in the first and the last "
        "layer with experts of encoder and decoder. Alike languages stand side by side.",
    ),
    "gates": (
        "Gates per language and layer",
        "Mean share of the experts in a layer's output; what is left comes from the feed-forward network that all "
        "tokens share.",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `moe-nmt report`."""
    parser.description = (
        "Write index.html with its pictures, and report.json with all numbers, on one training or several. A RUN is "
        "a folder that holds tensorboard/, and for all that can be shown corpus/, checkpoints/checkpoint_best.pt and "
        "scores.json. Where routing.json is missing or older than the checkpoint it is counted first, on the "
        "validation data."
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a training")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--corpus", type=Path, help="corpus folder of all runs (default: RUN/corpus)")
    add_threshold_arguments(parser)


def write_report(
    folders: Sequence[Path], output: Path, corpus: Path | None, thresholds: Thresholds, notes: Mapping[Path, str]
) -> None:
    """Write the report on these runs into the folder `output`; `notes` says of a run why it has no routing.

    Raises:
        UserError: if a run is named twice or cannot be read (see `read_run`).
    """
    named = dict(zip(labels(folders), folders, strict=True))
    runs = [read_run(folder, name, corpus or folder / "corpus", thresholds) for name, folder in named.items()]
    output.mkdir(parents=True, exist_ok=True)
    plot_learning_curves(runs, output / "learning_curves.png")
    if any(run.train for run in runs):
        plot_gaps(runs, output / "gaps.png")
    for run in runs:
        if run.routing and run.routing.used:
            plot_expert_load(run.routing, output / picture("expert_load", run))
            plot_similarity(run.routing, output / picture("similarity", run))
        if run.routing and run.routing.gates:
            plot_gates(run.routing, output / picture("gates", run))
    why = {name: notes[folder] for name, folder in named.items() if folder in notes}
    content = {"high_from": thresholds.high_from, "low_from": thresholds.low_from}
    numbers = finite({**content, "runs": {run.name: as_dict(run) for run in runs}})
    write_text(output / "report.json", json.dumps(numbers, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(output / "index.html", page(runs, thresholds, why))


def picture(kind: str, run: Run) -> str:
    """The name of the file with a picture of one run."""
    return f"{kind}.{run.name.replace('/', '.')}.png"


def finite(value: Any) -> Any:
    """The value as strict JSON can hold it: numbers that are infinite or not a number as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def page(runs: Sequence[Run], thresholds: Thresholds, notes: Mapping[str, str]) -> str:
    """The text of index.html."""
    body = "\n".join([*overview(runs, thresholds), *over_fitting(runs), *pictures_of_runs(runs, notes)])
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Trainings</title>\n'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def overview(runs: Sequence[Run], thresholds: Thresholds) -> Iterator[str]:
    yield f"<h1>{'Training' if len(runs) == 1 else f'{len(runs)} trainings'}</h1>"
    yield paragraph(
        f"A direction is high-resource from {thresholds.high_from:,} training pairs on, low-resource from "
        f"{thresholds.low_from:,} on, and very low-resource below. Figures of a bucket are means over its directions. "
        "Losses are in bits per token, without label smoothing. The best update is the one of the lowest validation "
        "loss over all directions. All numbers are in report.json."
    )
    for bucket in BUCKETS:
        members = [run for run in runs if run.members(bucket)]
        if members:
            yield f"<h2>{BUCKET_TITLES[bucket].capitalize()} directions</h2>"
            yield table(TABLE_HEADER, [[run.name, *figures(run, bucket)] for run in members])


TABLE_HEADER = (
    *("run", "best update", "valid there", "valid − train", "last update", "valid there", "valid − train"),
    *("lowest valid", "at update", "chrF++"),
)


def figures(run: Run, bucket: str) -> list[str]:
    """The cells of a run in the table of a bucket."""
    train, valid = run.mean("train", bucket), run.mean("valid", bucket)
    cells = []
    for update in (run.best_update, run.last_update):
        losses = losses_at(update, train, valid)
        cells += [f"{update:,}", *((number(losses.valid), number(losses.gap)) if losses else ("–", "–"))]
    loss, update = lowest(valid)
    return [*cells, number(loss), f"{update:,}", number(run.mean_chrf(bucket), 1)]


def over_fitting(runs: Sequence[Run]) -> Iterator[str]:
    yield "<h2>Learning curves</h2>"
    yield image("learning_curves.png")
    yield "<h2>Over-fitting</h2>"
    yield paragraph(
        "A model over-fits a direction where it predicts the sentences that it was trained on better than others: the "
        "gap, loss on valid minus loss on train, grows, and the validation loss rises again after its lowest point."
    )
    probed = [run.name for run in runs if run.train and run.probed]
    logged = [run.name for run in runs if run.train and not run.probed]
    if probed:
        yield paragraph(f"Train is the loss on training sentences in evaluation mode ({PROBE}): {', '.join(probed)}.")
    if logged:
        yield paragraph(
            "Train is the loss that training logged since the validation before, under dropout and whatever else acts "
            f"in training only, so that the true gap is larger: {', '.join(logged)}."
        )
    if silent := [run.name for run in runs if not run.train]:
        yield paragraph(f"No training loss per direction was logged, so there is no gap: {', '.join(silent)}.")
    if probed or logged:
        yield image("gaps.png")


def pictures_of_runs(runs: Sequence[Run], notes: Mapping[str, str]) -> Iterator[str]:
    used = [run for run in runs if run.routing and run.routing.used]
    shown = {
        "expert_load": used,
        "similarity": used,
        "gates": [run for run in runs if run.routing and run.routing.gates],
    }
    for kind, (title, caption) in PER_RUN.items():
        if shown[kind]:
            yield f"<h2>{title}</h2>\n{paragraph(caption)}"
            for run in shown[kind]:
                yield f"<h3>{html.escape(run.name)}</h3>\n{image(picture(kind, run))}"
    if silent := [run.name for run in runs if not run.routing]:
        yield "<h2>Without pictures of their routing</h2>"
        yield from (paragraph(f"{name}: {notes.get(name, 'no routing.json.')}") for name in silent)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def image(name: str) -> str:
    from urllib.parse import quote

    return f'<img src="{quote(name)}" alt="{html.escape(name)}">'


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
