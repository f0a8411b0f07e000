"""Sides that were not translated."""

from __future__ import annotations

import polars as pl

from data_prep.filters import FILTERS, SIDES, Criterion, fold


@FILTERS.register("identical")
class Identical(Criterion):
    """Drops pairs whose sides are the same but for case, punctuation and spaces."""

    def keep(self) -> pl.Expr:
        source, target = (fold(pl.col(side)) for side in SIDES)
        return source != target
