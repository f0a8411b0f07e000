"""How long the sides are, and how unlike in length."""

from __future__ import annotations

from typing import Literal

import polars as pl

from data_prep.filters import FILTERS, SIDES, Criterion
from moe_nmt.errors import UserError


def characters(side: str) -> pl.Expr:
    """The number of characters of a side."""
    return pl.col(side).str.len_chars()


def words(side: str) -> pl.Expr:
    """The number of words of a side, which single spaces separate."""
    return pl.col(side).str.count_matches(" ", literal=True) + 1


@FILTERS.register("length")
class Length(Criterion):
    """Drops pairs with a side that has too few or too many words or characters; None: any number.

    In scripts without spaces a sentence counts as one word, and its characters limit it.
    """

    def __init__(
        self,
        *,
        min_words: int | None = None,
        max_words: int | None = 250,
        min_chars: int | None = None,
        max_chars: int | None = 1500,
    ):
        limits = {words: (min_words, max_words), characters: (min_chars, max_chars)}
        self.limits = {count: bounds for count, bounds in limits.items() if bounds != (None, None)}
        if not self.limits:
            raise UserError("it limits nothing: give min_words, max_words, min_chars or max_chars")

    def keep(self) -> pl.Expr:
        within = [
            (count(side) >= (low or 0)) & (count(side) <= (high if high is not None else 2**31))
            for count, (low, high) in self.limits.items()
            for side in SIDES
        ]
        return pl.all_horizontal(within)


@FILTERS.register("ratio")
class Ratio(Criterion):
    """Drops pairs with a side more than `max` times as long as the other and `slack` more.

    Args:
        max: longer side over shorter side.
        slack: of so many units more than that a short pair may be.
        unit: `chars` or `words`.
    """

    def __init__(self, *, max: float = 4.0, slack: int = 15, unit: Literal["chars", "words"] = "chars"):
        if max < 1:
            raise UserError(f"max={max} would drop every pair, the longer side is at least as long: give 1 or more")
        self.max, self.slack = max, slack
        self.count = characters if unit == "chars" else words

    def keep(self) -> pl.Expr:
        counts = [self.count(side) for side in SIDES]
        return pl.max_horizontal(counts) <= self.max * pl.min_horizontal(counts) + self.slack
