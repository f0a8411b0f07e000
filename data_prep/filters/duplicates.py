"""What was collected twice."""

from __future__ import annotations

from typing import Literal

import polars as pl

from data_prep.filters import FILTERS, Duplicates, fold


@FILTERS.register("exact_duplicates")
class ExactDuplicates(Duplicates):
    """Keeps the first of the pairs that have the same text, over all sources of a language pair."""

    def __init__(self, *, of: Literal["pair", "source", "target"] = "pair"):
        super().__init__(of=of)

    def text(self, side: pl.Expr) -> pl.Expr:
        return side


@FILTERS.register("near_duplicates")
class NearDuplicates(Duplicates):
    """Keeps the first of the pairs that are the same but for case, punctuation, spaces and, if asked for, numbers.

    Args:
        of: see `Duplicates`.
        numbers: whether pairs that differ in their digits only are different.
    """

    def __init__(self, *, of: Literal["pair", "source", "target"] = "pair", numbers: bool = True):
        super().__init__(of=of)
        self.numbers = numbers

    def text(self, side: pl.Expr) -> pl.Expr:
        return fold(side if self.numbers else side.str.replace_all(r"\p{N}+", ""))
