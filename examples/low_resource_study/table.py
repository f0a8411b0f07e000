"""The study's results: rows of rows.tsv compared by chrF++, and how far each over-fits, as JSON and as Markdown.

python -m examples.low_resource_study.table RUN --json results.json --markdown results.md --plots FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from examples.low_resource_study.plots import plot_curves, plot_gains
from examples.low_resource_study.scores import MeanCHRF, Statistics, chrf, count, p_value, verses
from moe_nmt.data import Corpus
from moe_nmt.data.text import read_lines, write_text
from moe_nmt.errors import UserError
from moe_nmt.evaluation.curves import Curve
from moe_nmt.evaluation.report_runs import mean, read_run
from moe_nmt.evaluation.results import BUCKETS, GROUPS, Thresholds

BASELINE = "moe"
THRESHOLDS = Thresholds(high_from=5000, low_from=1000)
SIDES = ("all", "out of English", "into English")


@dataclass(frozen=True)
class Trained:
    """One run: what it was trained with, its chrF++ counts, and mean losses by bucket, then `valid` or `train`."""

    setting: str
    statistics: Statistics
    losses: Mapping[str, Mapping[str, Curve]]


def read(run: Path, corpus: Corpus) -> dict[str, dict[str, Trained]]:
    """The finished runs by row, in the order of rows.tsv, and by seed; says on stderr which are not finished."""
    rows = [line.split("\t")[0] for line in read_lines(Path(__file__).with_name("rows.tsv"))][1:]
    folders = [folder for row in rows for folder in sorted((run / "runs" / row).glob("*"))]
    finished = [folder for folder in folders if (folder / "translated").is_file()]
    for folder in set(folders) - set(finished):
        print(f"table: {folder} is not finished, left out", file=sys.stderr)
    if not any(folder.parent.name == BASELINE for folder in finished):
        raise UserError(
            f"{run / 'runs'} has no finished run of the row {BASELINE}, which the others are compared with."
        )
    settings = {folder: (folder / "setting.txt").read_text("utf-8").strip() for folder in finished}
    if len(set(settings.values())) > 1:
        different = "; ".join(sorted(set(settings.values())))
        raise UserError(f"{run / 'runs'} has runs of different settings, which cannot be compared: {different}.")
    with ProcessPoolExecutor() as pool:
        translations = [folder / "translations" for folder in finished]
        counts = list(pool.map(partial(count, corpus, translations), corpus.directions))
        losses = list(pool.map(partial(read_losses, corpus), finished))
    runs: dict[str, dict[str, Trained]] = {}
    for number, folder in enumerate(finished):
        found = {direction: values[number] for direction, values in zip(corpus.directions, counts, strict=True)}
        runs.setdefault(folder.parent.name, {})[folder.name] = Trained(settings[folder], found, losses[number])
    return runs


def read_losses(corpus: Corpus, folder: Path) -> dict[str, dict[str, Curve]]:
    """The mean losses of a run by bucket, then `valid` or `train`."""
    run = read_run(folder, folder.name, corpus.folder, THRESHOLDS)
    return {bucket: {split: run.mean(split, bucket) for split in ("valid", "train")} for bucket in BUCKETS}


def compare(
    corpus: Corpus, baseline: Mapping[str, Statistics], row: Mapping[str, Statistics], group: Sequence[Any]
) -> dict[str, Any]:
    """chrF++ of a row (by seed) on a group of directions, and its gain over the baseline with the same seeds."""
    scores = {seed: chrf(system, group) for seed, system in row.items()}
    result: dict[str, Any] = {
        "mean": statistics.fmean(scores.values()),
        "sd": deviation(scores.values()),
        "seeds": scores,
    }
    common = [seed for seed in row if seed in baseline]
    if row is not baseline and common:
        gains = [scores[seed] - chrf(baseline[seed], group) for seed in common]
        p = p_value([baseline[s] for s in common], [row[s] for s in common], verses(corpus, group))
        result |= {"gain": statistics.fmean(gains), "gain_sd": deviation(gains), "p": p}
    return result


def deviation(values: Iterable[float]) -> float | None:
    """The standard deviation over seeds, None for one seed."""
    values = list(values)
    return statistics.stdev(values) if len(values) > 1 else None


def fitting(curves: Sequence[Mapping[str, Curve]]) -> dict[str, float]:
    """Where validation is best and how training ends, in bits per token: means over the seeds' curves."""
    found = []
    for losses in curves:
        valid, train = losses["valid"], losses["train"]
        best, update = min(zip(valid.values, valid.steps, strict=True))
        found.append((update, best, valid.values[-1] - best, valid.values[-1] - train.values[-1]))
    names = ("best_update", "best_valid", "rise", "gap")
    return dict(zip(names, map(statistics.fmean, zip(*found, strict=True)), strict=True))


def results_of(corpus: Corpus, runs: Mapping[str, Mapping[str, Trained]]) -> dict[str, Any]:
    """Everything that the tables and plots show, as JSON holds it."""
    buckets = {direction: THRESHOLDS.bucket(counts["train"]) for direction, counts in corpus.directions.items()}
    groups = {
        f"{bucket}, {side}": [d for d in corpus.directions if buckets[d] == bucket and GROUPS[side](d)]
        for side in SIDES
        for bucket in BUCKETS
    }
    counts = {row: {seed: trained.statistics for seed, trained in seeds.items()} for row, seeds in runs.items()}
    return {
        "setting": next(iter(runs[BASELINE].values())).setting,
        "baseline": BASELINE,
        "signature": MeanCHRF().get_signature().format(),
        "groups": {group: [str(direction) for direction in directions] for group, directions in groups.items()},
        "rows": {
            row: {
                "chrf++": {g: compare(corpus, counts[BASELINE], counts[row], members) for g, members in groups.items()},
                "directions": {str(d): statistics.fmean(chrf(c, [d]) for c in counts[row].values()) for d in buckets},
                "fitting": {bucket: fitting([t.losses[bucket] for t in seeds.values()]) for bucket in BUCKETS},
                "curves": {
                    bucket: {s: vars(mean([t.losses[bucket][s] for t in seeds.values()])) for s in ("valid", "train")}
                    for bucket in BUCKETS
                },
            }
            for row, seeds in runs.items()
        },
    }


def markdown(results: Mapping[str, Any]) -> str:
    """The table of each side, that of over-fitting, and the lines that say how to read them."""
    parts = [f"Setting: {results['setting']}"]
    titles = [bucket.replace("_", " ") for bucket in BUCKETS]
    for side in SIDES:
        scores = {row: [values["chrf++"][f"{b}, {side}"] for b in BUCKETS] for row, values in results["rows"].items()}
        rows = [[row, str(len(found[0]["seeds"])), *map(_score, found)] for row, found in scores.items()]
        parts.append(_table([f"chrF++, {side}", "seeds", *titles], rows))
    rows = [
        [row, *(f"{f['best_update']:,.0f} / {f['rise']:.2f} / {f['gap']:.2f}" for f in values["fitting"].values())]
        for row, values in results["rows"].items()
    ]
    parts.append(_table(["best at / rise / gap", *titles], rows))
    parts.append(
        "chrF++: mean over directions and seeds ± standard deviation over seeds; in brackets the gain over "
        f"{results['baseline']}, * where p < 0.05 (two-sided paired bootstrap over test verses, not corrected for the "
        f"number of comparisons). {results['signature']}\n\n"
        "Best at: update of the bucket's lowest validation loss; rise: validation loss at the end above that; gap: "
        "validation loss at the end above that on training sentences; in bits per token."
    )
    return "\n\n".join(parts) + "\n"


def _score(score: Mapping[str, Any]) -> str:
    spread = "" if score["sd"] is None else f" ± {score['sd']:.1f}"
    gain = f" ({score['gain']:+.1f}{'*' if score['p'] < 0.05 else ''})" if "gain" in score else ""
    return f"{score['mean']:.1f}{spread}{gain}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of run.sh")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables, which are printed too")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw gains.png and curves.png there")
    args = parser.parse_args()
    try:
        corpus = Corpus.open(args.run / "corpus")
        results = results_of(corpus, read(args.run, corpus))
    except (UserError, OSError) as error:
        print(f"table: error: {error}", file=sys.stderr)
        return 2
    print(markdown(results), end="")
    if args.json:
        write_text(args.json, json.dumps(results, indent=1) + "\n")
    if args.markdown:
        write_text(args.markdown, markdown(results))
    if args.plots:
        plot_gains(results, args.plots / "gains.png")
        plot_curves(results, args.plots / "curves.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
