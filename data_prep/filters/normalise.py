"""One way to write a character, and one space between words."""

from __future__ import annotations

from typing import Literal

import polars as pl

from data_prep.filters import FILTERS, Edit


@FILTERS.register("normalise", paper="Unicode Standard Annex 15")
class Normalise(Edit):
    """Brings the text into a Unicode normalisation form, and every run of white space to one space, none at the ends.

    Args:
        form: NFC composes characters and changes nothing that one sees; NFKC also replaces full-width and other
            compatible characters, so that no translation can have them.
    """

    def __init__(self, *, form: Literal["NFC", "NFKC", "NFD", "NFKD"] = "NFC"):
        self.form = form

    def edit(self, text: pl.Expr) -> pl.Expr:
        return text.str.normalize(self.form).str.replace_all(r"\s\s+|[\s--\x20]", " ").str.strip_chars(" ")
