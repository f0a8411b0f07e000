"""Text that is mostly numbers, signs and links."""

from __future__ import annotations

import polars as pl

from data_prep.filters import FILTERS, SIDES, Criterion


@FILTERS.register("letters")
class Letters(Criterion):
    """Drops pairs with a side of whose characters, spaces left out, less than the share `min` are letters or marks."""

    def __init__(self, *, min: float = 0.4):
        self.min = min

    def keep(self) -> pl.Expr:
        return pl.all_horizontal(self._share(pl.col(side)) >= self.min for side in SIDES)

    @staticmethod
    def _share(text: pl.Expr) -> pl.Expr:
        others = text.str.replace_all(r"[\p{L}\p{M}]+", "").str.len_chars() - text.str.count_matches(" ", literal=True)
        seen = text.str.len_chars() - text.str.count_matches(" ", literal=True)
        return 1 - others / seen
