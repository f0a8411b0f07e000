"""How long the sides are, and how unlike in length."""

from __future__ import annotations

from typing import Literal

import polars as pl

from data_prep.filters import FILTERS, SIDES, Criterion
from moe_nmt.data.codes import is_code, script
from moe_nmt.errors import UserError

LETTERS = {"Hans": 2.8, "Hant": 2.8, "Jpan": 2.2, "Hang": 1.8, "Kore": 1.8, "Ethi": 1.5}
"""Characters of the English news of NTREX-128 over those of its translations; all other scripts have 0.7 to 1.2."""


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
        source, target: their languages: a Chinese character counts as `LETTERS` of an alphabet.
        max: longer side over shorter side.
        slack: of so many units more than that a short pair may be.
        unit: `chars` or `words`.
    """

    def __init__(
        self,
        source: str,
        target: str,
        *,
        max: float = 3.0,
        slack: int = 15,
        unit: Literal["chars", "words"] = "chars",
    ):
        if max < 1:
            raise UserError(f"max={max} would drop every pair, the longer side is at least as long: give 1 or more")
        self.max, self.slack = max, slack
        codes = zip(SIDES, (source, target), strict=True)
        self.counts = [words(side) if unit == "words" else characters(side) * letters(code) for side, code in codes]

    def keep(self) -> pl.Expr:
        return pl.max_horizontal(self.counts) <= self.max * pl.min_horizontal(self.counts) + self.slack


def letters(code: str) -> float:
    """How many letters of an alphabet say what one character does in the script of this language."""
    return LETTERS.get(script(code) or "", 1.0) if is_code(code) else 1.0
