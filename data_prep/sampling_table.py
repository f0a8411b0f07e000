"""What each direction has, and how often temperature sampling shows it: CORPUS/reports/sampling.{json,md,png}."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.manifest import BinarizedText, Part
from moe_nmt.data import MAIN, SPLITS, Corpus, Direction, temperature_shares
from moe_nmt.data.corpus import Counts
from moe_nmt.data.text import write_text
from moe_nmt.evaluation.layout import Table, as_columns, as_markdown
from moe_nmt.evaluation.plots import grid, save, tidy
from moe_nmt.evaluation.results import BUCKETS, Thresholds

TEMPERATURES = (1.0, 2.0, 5.0, math.inf)
NOTE = """
The bucket of a direction is that of its main training pairs. **tokens** are those of the target side, in training. A
share is the part of the training sentences that fairseq takes from an entry at a sampling temperature T.
"""


@dataclass(frozen=True)
class Entry:
    """What fairseq samples as one: the training data of a direction that are of one kind, as they were binarized."""

    kind: str
    direction: Direction
    pairs: int
    tokens: int

    @property
    def key(self) -> str:
        """fairseq's name of it, as in `--sampling-weights`."""
        return f"{self.kind}:{self.direction}"


def entries_of(corpus: Corpus, parts: Iterable[Part]) -> list[Entry]:
    """The entries of a binarized corpus or sub-corpus, in the order of directions.tsv; some may have no pairs."""
    texts: dict[str, list[BinarizedText]] = {}
    for part in parts:
        for text in part.texts:
            if text.split == "train":
                texts.setdefault(text.pair, []).append(text)
    entries = []
    for direction, counts in corpus.directions.items():
        own = texts[str(corpus.serving(direction, "train"))] if counts["train"] else []
        pairs, tokens = sum(text.sentences for text in own), sum(text.tokens[direction.target] for text in own)
        entries.append(Entry(corpus.kind, direction, pairs, tokens))
    return entries


def write_sampling(corpus: Corpus, entries: Sequence[Entry], temperature: float | None, thresholds: Thresholds) -> str:
    """Writes the reports and returns the table of buckets; nothing without training data."""
    if not any(entry.pairs for entry in entries):
        return ""
    temperatures = sorted({*TEMPERATURES, *([] if temperature is None else [temperature])})
    pairs = {entry.key: entry.pairs for entry in entries}
    columns = {title(t): temperature_shares(pairs, t) for t in temperatures}
    buckets = {entry.key: thresholds.bucket(_counts(corpus, entry.direction)["train"]) for entry in entries}
    rows = {
        entry.key: {
            "bucket": buckets[entry.key],
            "train": entry.pairs,
            **{split: _counts(corpus, entry.direction)[split] for split in SPLITS if split != "train"},
            "tokens": entry.tokens,
            "shares": {name: round(column[entry.key], 8) for name, column in columns.items()},
        }
        for entry in entries
    }
    limits = {"high_from": thresholds.high_from, "low_from": thresholds.low_from}
    text = json.dumps({"thresholds": limits, "entries": rows}, indent=1) + "\n"
    path = corpus.reports / "sampling.json"
    plot = path.with_suffix(".png")
    if not (plot.is_file() and path.is_file() and path.read_text("utf-8") == text):
        plot_sampling(entries, buckets, columns, plot)
    write_text(path, text)
    summary = buckets_table(entries, buckets, columns)
    tables = f"{as_markdown(summary)}\n\n{as_markdown(entries_table(rows))}\n"
    write_text(path.with_suffix(".md"), f"# Sampling\n\n{tables}{NOTE}\n![sampling](sampling.png)\n")
    return as_columns(summary) + "\n"


def title(temperature: float) -> str:
    """`T=5`, as columns are headed."""
    return "T=∞" if math.isinf(temperature) else f"T={temperature:g}"


def _counts(corpus: Corpus, direction: Direction) -> Counts:
    return corpus.directions.get(direction, dict.fromkeys(SPLITS, 0))


def buckets_table(
    entries: Sequence[Entry], buckets: Mapping[str, str], columns: Mapping[str, Mapping[str, float]]
) -> Table:
    """One row for each bucket and kind that has entries."""
    groups: dict[str, list[Entry]] = {}
    for bucket, entry in sorted(((buckets[e.key], e) for e in entries), key=lambda row: BUCKETS.index(row[0])):
        groups.setdefault(bucket if entry.kind == MAIN else f"{bucket}, {entry.kind}", []).append(entry)
    rows = [
        [
            group,
            f"{len(members):,}",
            f"{sum(entry.pairs for entry in members):,}",
            f"{sum(entry.tokens for entry in members):,}",
            *(f"{sum(column[entry.key] for entry in members):.1%}" for column in columns.values()),
        ]
        for group, members in groups.items()
    ]
    return [["bucket", "directions", "pairs", "tokens", *columns], *rows]


def entries_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row an entry."""
    names = next(iter(rows.values()))["shares"]
    cells = [
        [
            key.removeprefix(f"{MAIN}:"),
            row["bucket"],
            *(f"{row[name]:,}" for name in (*SPLITS, "tokens")),
            *(f"{share:.2%}" for share in row["shares"].values()),
        ]
        for key, row in rows.items()
    ]
    return [["entry", "bucket", *SPLITS, "tokens", *names], *cells]


def plot_sampling(
    entries: Sequence[Entry], buckets: Mapping[str, str], columns: Mapping[str, Mapping[str, float]], path: Path
) -> None:
    """Draw the share of every entry over its training pairs, a line for each temperature and a mark for each bucket."""
    import matplotlib
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

    shown = sorted((entry for entry in entries if entry.pairs), key=lambda entry: entry.pairs)
    figure, (axis,) = grid(1, 7, 4.5)
    colours = matplotlib.colormaps["viridis"]
    marks = dict(zip(BUCKETS, "os^", strict=True))
    handles = []
    for number, (name, column) in enumerate(columns.items()):
        colour = colours(0.9 * number / (len(columns) - 1))
        axis.plot([e.pairs for e in shown], [column[e.key] for e in shown], color=colour, linewidth=1.2)
        handles.append(Line2D([], [], color=colour, linewidth=2, label=name))
        for bucket, mark in marks.items():
            own = [entry for entry in shown if buckets[entry.key] == bucket]
            axis.plot([e.pairs for e in own], [column[e.key] for e in own], mark, color=colour, markersize=4)
    used = [bucket for bucket in BUCKETS if bucket in {buckets[entry.key] for entry in shown}]
    handles += [Line2D([], [], color="0.3", marker=marks[b], linestyle="", label=b.replace("_", " ")) for b in used]
    for side, form in ((axis.xaxis, StrMethodFormatter("{x:,.0f}")), (axis.yaxis, PercentFormatter(1))):
        side.axes.set(**{f"{side.axis_name}scale": "log"})
        side.set_major_locator(LogLocator(subs=(1, 2, 5)))
        side.set_major_formatter(form)
        side.set_minor_locator(NullLocator())
    axis.set_xlabel("training pairs of the direction", fontsize=9)
    axis.set_ylabel("share of the training sentences", fontsize=9)
    axis.set_title("What sampling temperature T gives each direction", fontsize=11)
    tidy(axis)
    figure.legend(handles=handles, loc="outside right upper", fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)
