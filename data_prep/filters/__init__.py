"""The steps of cleaning. One file, one idea; the options of a step are the keyword arguments of its class.

A step sees a chunk of sentence pairs at a time, a polars frame with the columns `source` and `target`, both with text.
"""

from __future__ import annotations

import polars as pl

from moe_nmt.registry import Registry

SIDES = ("source", "target")


class Filter:
    """A step of cleaning: an `Edit`, a `Criterion` or `Duplicates`."""


class Edit(Filter):
    """Rewrites the text; a pair of which a side becomes empty falls."""

    def edit(self, text: pl.Expr) -> pl.Expr:
        """The text of a side, rewritten."""
        raise NotImplementedError


class Criterion(Filter):
    """Drops pairs by what they are, each by itself."""

    def keep(self) -> pl.Expr:
        """Boolean, one a pair: whether it stays."""
        raise NotImplementedError


class Duplicates(Filter):
    """Of the pairs of a language pair with the same text the first one stays, over all sources.

    Args:
        of: compare `pair`s, or only their `source` or `target` sides.
    """

    def __init__(self, *, of: str = "pair"):
        self.sides = SIDES if of == "pair" else (of,)

    def text(self, side: pl.Expr) -> pl.Expr:
        """What of a side's text is compared."""
        raise NotImplementedError

    def key(self) -> pl.Expr:
        """A hash of 64 bits, equal for duplicates."""
        return pl.concat_str([self.text(pl.col(side)) for side in self.sides], separator="\n").hash()


FILTERS: Registry[Filter] = Registry("filter", __name__)
"""Filters are supplied with `source` and `target`, `languages` (all of the corpus) and `held_out` (see `leaks`)."""


def fold(text: pl.Expr) -> pl.Expr:
    """The text without case, punctuation and spaces, and with compatible characters as one (NFKC).

    Letters, marks and digits stay. A text that has none of them stays as it is.
    """
    folded = text.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"[^\p{L}\p{M}\p{N}]+", "")
    return pl.when(folded != "").then(folded).otherwise(text)
