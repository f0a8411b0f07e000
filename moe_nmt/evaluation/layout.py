"""How a table is laid out as text: columns for the terminal, Markdown for a file."""

from __future__ import annotations

from collections.abc import Sequence

Table = Sequence[Sequence[str]]
"""Rows of cells, of which the first is the header."""


def as_columns(table: Table) -> str:
    """The first column on the left, the others on the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *others in table:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    """The same as a table of Markdown."""
    header, *rows = table
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
