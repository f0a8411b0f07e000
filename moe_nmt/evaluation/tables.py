"""Results as text to read: columns for the terminal, or Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moe_nmt.evaluation.layout import Table, as_columns, as_markdown
from moe_nmt.evaluation.results import BUCKETS, GROUPS, Results
from moe_nmt.evaluation.signs import TITLES as SIGNS

TITLES = {"bleu": "BLEU", "chrf++": "chrF++", "spbleu": "spBLEU"}


def render(results: Results, notes: Sequence[str], markdown: bool = False) -> str:
    """All directions with their scores and signs, the means by group and bucket, the signatures, and the notes."""
    bullet = "- " if markdown else ""
    lines = [f"{bullet}{line}" for line in (*signatures(results), *notes)]
    tables = (directions_table(results), signs_table(results), means_table(results))
    layout = as_markdown if markdown else as_columns
    return "\n\n".join([*map(layout, tables), "\n".join(lines)]) + "\n"


def directions_table(results: Results) -> Table:
    """One row a direction."""
    buckets = results.buckets
    rows = [
        [str(direction), buckets.get(direction, "-"), str(score.sentences), *_cells(results, score.values)]
        for direction, score in results.scores.items()
    ]
    return [["direction", "bucket", "sentences", *(TITLES[name] for name in results.metrics)], *rows]


def signs_table(results: Results) -> Table:
    """One row a direction: the signs of bad translations, shares in percent; columns that nothing is known of are left
    out."""
    known = {direction: signs.known() for direction, signs in results.signs.items()}
    names = [name for name in SIGNS if any(name in signs for signs in known.values())]
    rows = [[str(direction), *(_sign(name, signs.get(name)) for name in names)] for direction, signs in known.items()]
    return [["direction", *(SIGNS[name] for name in names)], *rows]


def means_table(results: Results) -> Table:
    """One row for each group of directions, and for each bucket within it; empty ones are left out."""
    rows = []
    for group in GROUPS:
        for bucket in (None, *BUCKETS):
            directions = results.group(group, bucket)
            if directions:
                mean = _cells(results, results.mean(directions))
                rows.append([f"{group}, {bucket}" if bucket else group, str(len(directions)), *mean])
    return [["mean of", "directions", *(TITLES[name] for name in results.metrics)], *rows]


def _cells(results: Results, values: Mapping[str, float]) -> list[str]:
    return [f"{values[name]:.1f}" for name in results.metrics]


def _sign(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name == "length_ratio" else f"{100 * value:.1f} %"


def signatures(results: Results) -> list[str]:
    """A line for each signature of sacrebleu."""
    lines = []
    for name, signature in results.signatures().items():
        texts = signature.values() if isinstance(signature, dict) else [signature]
        lines += [f"{TITLES[name]}: {text}" for text in texts]
    return lines
