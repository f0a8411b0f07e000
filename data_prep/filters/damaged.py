"""Text that was decoded wrongly."""

from __future__ import annotations

import polars as pl

from data_prep.filters import FILTERS, SIDES, Criterion


@FILTERS.register("damaged")
class Damaged(Criterion):
    """Drops pairs with a replacement character (U+FFFD), one of private use, or one that Unicode has not assigned."""

    def keep(self) -> pl.Expr:
        return ~pl.any_horizontal(pl.col(side).str.contains(r"[\uFFFD\p{Co}\p{Cn}]") for side in SIDES)
