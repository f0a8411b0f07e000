"""A corpus and its sub-corpora as the steps walk over them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from moe_nmt.data import MAIN, Corpus, CorpusError, Direction


class Text(NamedTuple):
    """The text of a language pair, of one kind of data."""

    kind: str
    pair: Direction

    def __str__(self) -> str:
        return str(self.pair) if self.kind == MAIN else f"{self.kind} {self.pair}"


def open_corpora(folder: Path) -> dict[str, Corpus]:
    """The corpus of a folder and its sub-corpora by kind, itself first; CorpusError for a sub-corpus."""
    corpus = Corpus.open(folder)
    if corpus.parent:
        raise CorpusError(f"{folder} is a part of the corpus {corpus.parent}: run this step on that")
    return {part.kind: part for part in (corpus, *corpus.extras)}


def texts(corpora: dict[str, Corpus]) -> list[Text]:
    """All language pairs of all kinds."""
    return [Text(kind, pair) for kind, corpus in corpora.items() for pair in corpus.pairs]
