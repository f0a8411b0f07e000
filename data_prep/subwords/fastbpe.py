"""Byte-pair encoding of words (Sennrich et al. 2016) in fastBPE's files: learnt by subword-nmt, applied by fastBPE.

Pieces inside a word end in `@@`; `fairseq-generate --remove-bpe` joins them. Words are what stands between spaces.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from data_prep.subwords.symbols import UNKNOWN
from moe_nmt.data import CorpusError
from moe_nmt.data.text import read_lines

MARK = "@@"


class FastBPE:
    """Cuts lines by codes, into pieces of the vocabulary beside them.

    A piece that the vocabulary lacks, and the end of a word that ends in `@@`, is spelled in characters: the pieces of
    a line, joined again, are its words.
    """

    def __init__(self, codes: Path):
        self.codes = load_codes(codes)
        self.known = frozenset(line.rsplit(" ", 1)[0] for line in read_lines(codes.with_suffix(".vocab")))

    def encode(self, lines: Sequence[str]) -> list[list[str]]:
        """The pieces of each line."""
        texts = [" ".join(line.split()) for line in lines]
        return [
            self._words(text) if f"{MARK} " in f"{text} " else self._checked(cut.split())
            for text, cut in zip(texts, self.codes.apply(texts), strict=True)
        ]

    def _checked(self, pieces: Iterable[str]) -> list[str]:
        found: list[str] = []
        for piece in pieces:
            found += [piece] if piece in self.known else self._spelled(piece.removesuffix(MARK), piece.endswith(MARK))
        return found

    def _words(self, text: str) -> list[str]:
        found: list[str] = []
        for cut in self.codes.apply(text.split()):
            *inner, last = cut.split()
            found += self._checked(inner)
            found += self._spelled(last, False) if last.endswith(MARK) else self._checked([last])
        return found

    def _spelled(self, text: str, goes_on: bool) -> list[str]:
        pieces = [*(character + MARK for character in text[:-1]), text[-1] + MARK * goes_on]
        return [piece if piece in self.known else UNKNOWN for piece in pieces]


def learn(words: Counter[str], merges: int) -> str:
    """At most so many merges, learnt from words and their counts, as fastBPE reads them: `a b 1`, the first first.

    CorpusError where subword-nmt is not installed, or the words give no merge.
    """
    learn_bpe = required("subword_nmt.learn_bpe", "subword-nmt").learn_bpe
    learnt = io.StringIO()
    if any(len(word) > 1 for word in words):
        with contextlib.redirect_stderr(io.StringIO()):
            learn_bpe((f"{word} {count}\n" for word, count in words.items()), learnt, merges, is_dict=True)
    rules = learnt.getvalue().splitlines()[1:]
    if not rules:
        raise CorpusError("the training text has no two characters that stand together twice: add more of it")
    return "".join(f"{rule} 1\n" for rule in rules)


def vocabulary(words: Counter[str], codes: Path, reserved: Collection[str]) -> dict[str, int]:
    """The pieces of the words and how often they come, the most frequent first.

    Among them is every character, as inside a word and as at its end; none is a reserved symbol.
    """
    counts: Counter[str] = Counter()
    for text, count in zip(load_codes(codes).apply(list(words)), words.values(), strict=True):
        for piece in text.split():
            counts[piece] += count
    for character in {character for word in words for character in word}:
        counts[character] += 0
        counts[character + MARK] += 0
    kept = [piece for piece in counts if piece not in reserved]
    return {piece: counts[piece] for piece in sorted(kept, key=lambda piece: (-counts[piece], piece))}


def load_codes(path: Path) -> Any:
    """fastBPE with the codes of a file; CorpusError where it is not installed."""
    module = required("fastBPE", "fastBPE==0.1.0")
    with _without_messages():
        return module.fastBPE(str(path))


def required(module: str, package: str) -> ModuleType:
    """An optional library; CorpusError with the way to install it where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise CorpusError(f"--bpe fastbpe needs {package}: pip install subword-nmt fastBPE==0.1.0") from None


@contextlib.contextmanager
def _without_messages() -> Iterator[None]:
    """Keeps off the terminal what C++ code says on stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
