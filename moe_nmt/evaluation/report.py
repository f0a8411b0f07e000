"""`moe-nmt report`: a page on trainings: learning curves, over-fitting, and where the languages go."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_nmt.data.text import write_text
from moe_nmt.evaluation.cli import add_threshold_arguments
from moe_nmt.evaluation.curves import Curve
from moe_nmt.evaluation.html import document, heading, image, number, paragraph, table
from moe_nmt.evaluation.plots import (
    BUCKET_TITLES,
    COURSE,
    plot_course,
    plot_expert_load,
    plot_gaps,
    plot_gates,
    plot_learning_curves,
    plot_similarity,
)
from moe_nmt.evaluation.report_runs import PROBE, Run, as_dict, labels, losses_at, lowest, read_run
from moe_nmt.evaluation.results import BUCKETS, Thresholds

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
        "scores.json, or evaluation/ with it. Where routing.json is missing or older than the checkpoint it is counted "
        "first, on the validation data."
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a training")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--corpus",
        type=Path,
        help="corpus folder of all runs, for the sizes of directions (default: RUN/corpus, or as training logged)",
    )
    add_threshold_arguments(parser)


def write_report(
    folders: Sequence[Path], output: Path, corpus: Path | None, thresholds: Thresholds, notes: Mapping[Path, str]
) -> None:
    """Write the report on these runs into the folder `output`; `notes` says of a run why it has no routing.

    Raises:
        UserError: if a run is named twice or cannot be read (see `read_run`).
    """
    named = dict(zip(labels(folders), folders, strict=True))
    runs = [read_run(folder, name, corpus, thresholds) for name, folder in named.items()]
    output.mkdir(parents=True, exist_ok=True)
    plot_learning_curves(runs, output / "learning_curves.png")
    if any(run.trained(name).steps for run in runs for name in COURSE):
        plot_course(runs, output / "course.png")
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
    write_text(output / "index.html", page(runs, thresholds, why, output))


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


def page(runs: Sequence[Run], thresholds: Thresholds, notes: Mapping[str, str], folder: Path) -> str:
    """The text of index.html, with the pictures that lie in `folder`."""
    results = [*overview(runs, thresholds), *over_fitting(runs, folder)]
    return document("Trainings", [*results, *course(runs, folder), *pictures_of_runs(runs, notes, folder)])


def overview(runs: Sequence[Run], thresholds: Thresholds) -> Iterator[str]:
    yield heading("Training" if len(runs) == 1 else f"{len(runs)} trainings", level=1)
    yield paragraph(
        f"A direction is high-resource from {thresholds.high_from:,} training pairs on, low-resource from "
        f"{thresholds.low_from:,} on, and very low-resource below. Figures of a bucket are means over its directions. "
        "Losses are in bits per token, without label smoothing. The best update is the one of the lowest validation "
        "loss over all directions. All numbers are in report.json."
    )
    for bucket in BUCKETS:
        members = [run for run in runs if run.members(bucket)]
        if members:
            yield heading(f"{BUCKET_TITLES[bucket].capitalize()} directions")
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


def over_fitting(runs: Sequence[Run], folder: Path) -> Iterator[str]:
    yield heading("Learning curves")
    yield image(folder / "learning_curves.png")
    yield heading("Over-fitting")
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
        yield image(folder / "gaps.png")


def course(runs: Sequence[Run], folder: Path) -> Iterator[str]:
    """The section on speed, memory and routing over the training, of the runs that logged something of it."""
    logged = [run for run in runs if any(run.trained(name).steps for name in COURSE)]
    if not logged:
        return
    yield heading("Course of the training")
    yield paragraph(
        "Speed is the median over the lines of the log, time includes validation, memory is the peak of the GPU or, on "
        "CPUs, of the process. Entropy and load are those of the last line."
    )
    yield table(COURSE_HEADER, [[run.name, *course_figures(run)] for run in logged])
    if any(run.phases for run in logged):
        yield paragraph("In the pictures of curves dotted lines stand where the phases of a curriculum begin.")
    yield image(folder / "course.png")


COURSE_HEADER = ("run", "updates", "time, h:mm", "target tokens/s", "memory, GB", "entropy, nats", "load (1: even)")


def course_figures(run: Run) -> list[str]:
    """The cells of a run in the table of the course."""
    speed, minutes = run.trained("wps").values, last(run.trained("wall"), 1 / 60)
    return [
        f"{max(run.trained('loss').steps, default=run.last_update):,}",
        "–" if minutes is None else f"{int(minutes) // 60}:{int(minutes) % 60:02}",
        f"{statistics.median(speed):,.0f}" if speed else "–",
        number(last(run.trained("memory_gb")), 2),
        number(last(run.trained("moe_entropy"))),
        number(last(run.trained("moe_balance")), 2),
    ]


def last(curve: Curve, scale: float = 1) -> float | None:
    """The last value of a curve, scaled; None of an empty one."""
    return curve.values[-1] * scale if curve.values else None


def pictures_of_runs(runs: Sequence[Run], notes: Mapping[str, str], folder: Path) -> Iterator[str]:
    used = [run for run in runs if run.routing and run.routing.used]
    shown = {
        "expert_load": used,
        "similarity": used,
        "gates": [run for run in runs if run.routing and run.routing.gates],
    }
    for kind, (title, caption) in PER_RUN.items():
        if shown[kind]:
            yield heading(title)
            yield paragraph(caption)
            for run in shown[kind]:
                yield heading(run.name, level=3)
                yield image(folder / picture(kind, run))
    if silent := [run.name for run in runs if not run.routing]:
        yield heading("Without pictures of their routing")
        yield from (paragraph(f"{name}: {notes.get(name, 'no routing.json.')}") for name in silent)
