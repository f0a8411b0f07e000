"""Results as text to read: columns for the terminal, or Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moe_nmt.evaluation.results import BUCKETS, GROUPS, Results

TITLES = {"bleu": "BLEU", "chrf++": "chrF++", "spbleu": "spBLEU"}
Table = list[list[str]]


def render(results: Results, notes: Sequence[str], markdown: bool = False) -> str:
    """All directions, the means by group and bucket, the signatures, and the notes."""
    layout = _markdown if markdown else _columns
    bullet = "- " if markdown else ""
    lines = [f"{bullet}{line}" for line in (*_signatures(results), *notes)]
    return "\n\n".join([layout(directions_table(results)), layout(means_table(results)), "\n".join(lines)]) + "\n"


def directions_table(results: Results) -> Table:
    """One row a direction."""
    rows = [
        [str(direction), results.buckets.get(direction, "-"), str(score.sentences), *_cells(results, score.values)]
        for direction, score in results.scores.items()
    ]
    return [["direction", "bucket", "sentences", *(TITLES[name] for name in results.metrics)], *rows]


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


def _signatures(results: Results) -> list[str]:
    lines = []
    for name, signature in results.signatures().items():
        texts = signature.values() if isinstance(signature, dict) else [signature]
        lines += [f"{TITLES[name]}: {text}" for text in texts]
    return lines


def _columns(table: Table) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *others in table:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def _markdown(table: Table) -> str:
    header, *rows = table
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
