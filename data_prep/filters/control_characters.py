"""Characters that are not seen and carry no text."""

from __future__ import annotations

import polars as pl

from data_prep.filters import FILTERS, Edit

UNSEEN = r"[\p{Cc}--\s]|[\u00AD\u200B\u200E\u200F\u202A-\u202E\u2060-\u2069\uFEFF\uFFF9-\uFFFB]"
"""Control characters; soft hyphens, zero-width spaces, marks of the direction, byte order marks, annotations.

The joiners U+200C and U+200D stay: Persian and the scripts of India write with them.
"""


@FILTERS.register("control_characters")
class ControlCharacters(Edit):
    """Takes away control characters and the format characters that no script writes with; a tab becomes a space."""

    def edit(self, text: pl.Expr) -> pl.Expr:
        return text.str.replace_all(UNSEEN, "").str.replace_all(r"[\t-\r\x85]", " ").str.strip_chars(" ")
