"""Lines of dots, dashes and cries."""

from __future__ import annotations

import numpy as np
import polars as pl

from data_prep.filters import FILTERS, SIDES, Criterion


@FILTERS.register("repeated_characters")
class RepeatedCharacters(Criterion):
    """Drops pairs with a side in which a character stands more than `max` times in a row, as in `..........`."""

    def __init__(self, *, max: int = 9):
        self.max = max

    def keep(self) -> pl.Expr:
        return pl.all_horizontal(pl.col(side).map_batches(self._short, return_dtype=pl.Boolean) for side in SIDES)

    def _short(self, texts: pl.Series) -> pl.Series:
        return pl.Series(longest_runs(texts) <= self.max)


def longest_runs(texts: pl.Series) -> np.ndarray:
    """How often the most repeated character of each text stands in a row: int64 [texts], 0 for an empty text."""
    joined = np.frombuffer("".join(texts.to_list()).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    text_ends = np.cumsum(texts.str.len_chars().to_numpy(), dtype=np.int64)
    run_ends = np.append(joined[1:] != joined[:-1], True)[: len(joined)]
    run_ends[text_ends[text_ends > 0] - 1] = True
    ends = np.flatnonzero(run_ends) + 1
    longest = np.zeros(len(texts), dtype=np.int64)
    np.maximum.at(longest, np.searchsorted(text_ends, ends), np.diff(ends, prepend=0))
    return longest
