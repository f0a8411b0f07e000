"""Pieces of HTML for pages that need nothing but themselves; all text is escaped."""

from __future__ import annotations

import base64
import html
import mimetypes
from collections.abc import Iterable, Sequence
from pathlib import Path

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2.2em } h3 { font-size: 1em; margin-bottom: 0.3em }
table { border-collapse: collapse; font-size: 0.9em } th, td { padding: 0.25em 0.9em; text-align: right }
th { border-bottom: 1px solid #999; font-weight: 600 } tr:nth-child(even) td { background: #f4f4f4 }
th:first-child, td:first-child { text-align: left } img { max-width: 100% } p { max-width: 48em }
summary { cursor: pointer } table.text th, table.text td { text-align: start }
table.text td { vertical-align: top; overflow-wrap: anywhere }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page; the parts are HTML."""
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "numbers") -> str:
    """A table; its kind, `numbers` or `text`, says how cells align. Text goes from right to left where it is such."""
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in header)]
    lines += ["".join(f'<td dir="auto">{html.escape(cell)}</td>' for cell in row) for row in rows]
    return f'<table class="{kind}">\n' + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>"


def folded(summary: str, content: str) -> str:
    """Content, as HTML, that shows when its summary is clicked on."""
    return f"<details><summary>{html.escape(summary)}</summary>\n{content}\n</details>"


def image(picture: Path) -> str:
    """The picture inside the page."""
    kind, _ = mimetypes.guess_type(picture.name)
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    return f'<img src="data:{kind};base64,{data}" alt="{html.escape(picture.stem)}">'


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
