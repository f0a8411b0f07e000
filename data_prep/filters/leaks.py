"""Held-out sentences in the training data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from data_prep.filters import FILTERS, SIDES, Criterion, fold


@FILTERS.register("leaks")
class Leaks(Criterion):
    """Drops training pairs with a side that stands in a validation or test set, on any side of any direction.

    Case, punctuation and spaces are not looked at.

    Args:
        held_out: a file of the `keys` of all validation and test sentences.
    """

    def __init__(self, held_out: Path):
        self.keys = pl.read_parquet(held_out)["key"].implode()

    def keep(self) -> pl.Expr:
        return ~pl.any_horizontal(key(side).is_in(self.keys) for side in SIDES)


def key(side: str) -> pl.Expr:
    """A hash of a side, equal for texts that are the same once folded."""
    return fold(pl.col(side)).hash()


def keys(chunks: Iterable[Path]) -> pl.DataFrame:
    """The keys of all sentences in chunks of held-out pairs, each once."""
    found = [pl.scan_parquet(path).select(key(side).alias("key")) for path in chunks for side in SIDES]
    none = pl.LazyFrame(schema={"key": pl.UInt64})
    return pl.concat([none, *found]).unique().sort("key").collect()
