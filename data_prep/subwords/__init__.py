"""The two ways to cut text into subwords, and the symbols that no text may turn into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from moe_nmt.data import Corpus, CorpusError


class Subwords(Protocol):
    """What cuts lines of text into pieces."""

    def encode(self, lines: Sequence[str]) -> list[list[str]]:
        """The pieces of each line; all are in the dictionary, and what is not is `<unk>`."""


def load_subwords(corpus: Corpus) -> Subwords:
    """The subwords of a corpus; CorpusError where they are not learnt yet, or a library is missing."""
    for path in (corpus.model, corpus.dictionary):
        if not path.is_file():
            raise CorpusError(
                f"{path} is missing: run data_prep/learn_subwords.sh {corpus.parent or corpus.folder} first"
            )
    if corpus.bpe == "fastbpe":
        from data_prep.subwords.fastbpe import FastBPE

        return FastBPE(corpus.model)
    from data_prep.subwords.sentence_pieces import SentencePiece

    return SentencePiece(corpus.model)
