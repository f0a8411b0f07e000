"""What encoding counts, by language pair and split: CORPUS/.counts/encode.PAIR.json."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.subwords.fastbpe import MARK
from data_prep.subwords.symbols import UNKNOWN
from moe_nmt.data import Corpus, CorpusError, Direction
from moe_nmt.data.text import read_lines

BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Figures:
    """Text and the pieces it was cut into.

    A word is what stands between spaces, and characters are those of words. Of the pieces so many are unknown, bytes,
    or a single character. `used` has a bit for every symbol of the dictionary, in its order: whether it occurs.
    """

    sentences: int = 0
    words: int = 0
    characters: int = 0
    pieces: int = 0
    unknown: int = 0
    bytes: int = 0
    single: int = 0
    used: int = 0

    def __add__(self, other: Figures) -> Figures:
        """The figures of both texts together."""
        sums = {name: value + getattr(other, name) for name, value in asdict(self).items()}
        return Figures(**sums | {"used": self.used | other.used})


class Counting:
    """Counts a text while it is encoded."""

    def __init__(self) -> None:
        self.sentences, self.words, self.characters = 0, 0, 0
        self.pieces: Counter[str] = Counter()

    def add(self, line: str, pieces: Sequence[str]) -> None:
        """Count a line and its pieces."""
        words = line.split()
        self.sentences += 1
        self.words += len(words)
        self.characters += sum(map(len, words))
        self.pieces.update(pieces)

    def figures(self, symbols: Mapping[str, int]) -> Figures:
        """What was counted; `symbols` are the places in the dictionary."""
        bits = bytearray(len(symbols) // 8 + 1)
        for piece in self.pieces.keys() & symbols.keys():
            bits[symbols[piece] // 8] |= 1 << symbols[piece] % 8
        return Figures(
            self.sentences,
            self.words,
            self.characters,
            self.pieces.total(),
            self.pieces[UNKNOWN],
            sum(count for piece, count in self.pieces.items() if BYTE.fullmatch(piece)),
            sum(count for piece, count in self.pieces.items() if _is_single(piece)),
            int.from_bytes(bits, "little"),
        )


def _is_single(piece: str) -> bool:
    return len(piece.removeprefix("▁").removesuffix(MARK)) <= 1


def symbols_of(dictionary: Path) -> dict[str, int]:
    """The place of each symbol in a fairseq dictionary, from 0."""
    return {line.rsplit(" ", 1)[0]: number for number, line in enumerate(read_lines(dictionary))}


@dataclass(frozen=True)
class SplitCounts:
    """Of a language pair in one split: the lines of raw text, and the figures of what was encoded by language."""

    lines: int
    sides: Mapping[str, Figures]

    @property
    def kept(self) -> int:
        """The sentence pairs that were encoded."""
        return next(iter(self.sides.values())).sentences


def counts_path(corpus: Corpus, pair: Direction) -> Path:
    """Where the counts of a language pair are."""
    return corpus.folder / ".counts" / f"encode.{pair}.json"


def as_json(splits: Mapping[str, SplitCounts]) -> str:
    """The counts of a language pair by split, as `read_counts` reads them."""
    rows = {split: {"lines": counts.lines, "sides": _sides(counts.sides)} for split, counts in splits.items()}
    return json.dumps(rows, indent=1) + "\n"


def _sides(sides: Mapping[str, Figures]) -> dict[str, dict[str, int | str]]:
    return {language: asdict(figures) | {"used": f"{figures.used:x}"} for language, figures in sides.items()}


def read_counts(corpus: Corpus, pair: Direction) -> dict[str, SplitCounts]:
    """The counts of a language pair by split; CorpusError where it is not encoded."""
    path = counts_path(corpus, pair)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {split: SplitCounts(row["lines"], _figures(row["sides"])) for split, row in rows.items()}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        raise CorpusError(
            f"{path} is missing: run data_prep/encode.sh {corpus.parent or corpus.folder} first"
        ) from None


def _figures(sides: Mapping[str, dict[str, int | str]]) -> dict[str, Figures]:
    return {language: Figures(**row | {"used": int(str(row["used"]), 16)}) for language, row in sides.items()}


def total(figures: Iterable[Figures]) -> Figures:
    """The figures of several texts together."""
    return sum(figures, Figures())
