"""Text in another language than its file says."""

from __future__ import annotations

import functools
from pathlib import Path

import polars as pl

from data_prep.filters import FILTERS, SIDES, Criterion
from moe_nmt.data.language_id import LanguageIdentifier


@FILTERS.register("language_id", paper="Lui & Baldwin 2012 (langid); Joulin et al. 2017 (fastText)")
class LanguageId(Criterion):
    """Drops pairs with a side that is taken for another language of the corpus than its own.

    A side whose language the identifier does not know stays, and so does a short one. It is far slower than all other
    filters, and none of the usual ones: put it behind them.

    Args:
        source, target: the languages of the pair.
        languages: those of the corpus, which are told from each other.
        model: a file of fastText, like lid218e.bin; None: py3langid, which knows 97 languages.
        min_chars: from how many characters on a side is looked at.
    """

    def __init__(
        self, source: str, target: str, languages: tuple[str, ...], *, model: str | None = None, min_chars: int = 20
    ):
        self.codes = dict(zip(SIDES, (source, target), strict=True))
        self.identifier = identifier(model, languages)
        self.min_chars = min_chars

    def keep(self) -> pl.Expr:
        known = [(side, own) for side, own in self.codes.items() if self.identifier.knows(own)]
        right = [
            pl.col(side).map_batches(functools.partial(self._right, own), return_dtype=pl.Boolean)
            for side, own in known
        ]
        return pl.all_horizontal(pl.lit(True), *right)

    def _right(self, own: str, texts: pl.Series) -> pl.Series:
        long = texts.str.len_chars() >= self.min_chars
        found = iter(self.identifier.identify(texts.filter(long).to_list()))
        return pl.Series([not seen or self._fits(own, next(found)) for seen in long], dtype=pl.Boolean)

    def _fits(self, own: str, found: str) -> bool:
        return not self.identifier.knows(found) or self.identifier.same(own, found)


@functools.cache
def identifier(model: str | None, languages: tuple[str, ...]) -> LanguageIdentifier:
    """The identifier, loaded once in a process."""
    return LanguageIdentifier.open(Path(model) if model else None, languages)
