"""The corpus folder: its languages, its directions and where their text lies.

CORPUS/languages.txt       one code a line, English first; the order is the language-id order
CORPUS/directions.tsv      sentence pairs per direction and split
CORPUS/raw/                text, a file pair per language pair and split
CORPUS/subwords/           the subword model and the fairseq dictionary
CORPUS/encoded/            the text in pieces
CORPUS/data-bin/           the pieces as fairseq reads them
CORPUS/reports/            what the data steps measured
CORPUS/extra/KIND/         a corpus of training data of another kind (mined, back-translated), with the same subwords
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from moe_nmt.data.directions import CorpusError, Direction, check_code, check_unique, is_english, unknown
from moe_nmt.data.text import read_lines, read_pair, write_text

SPLITS = ("train", "valid", "test")
HEADER = ("direction", *SPLITS)
MAIN = "main"
KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Counts = Mapping[str, int]


@dataclass(frozen=True)
class Corpus:
    """A corpus folder as its two tables describe it: language codes, and sentence pairs by direction and split."""

    folder: Path
    languages: tuple[str, ...]
    directions: Mapping[Direction, Counts]

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Reads and checks languages.txt and directions.tsv; CorpusError where they are missing or contradict."""
        for name in ("languages.txt", "directions.tsv"):
            if not (folder / name).is_file():
                raise CorpusError(
                    f"{folder} is no corpus, it has no {name}: make one with data_prep/cldr.sh or data_prep/import_*.sh"
                )
        languages = _read_languages(folder / "languages.txt")
        return cls(folder, languages, _read_directions(folder / "directions.tsv", languages))

    @classmethod
    def empty(cls, folder: Path) -> Corpus:
        return cls(folder, (), {})

    def adding(self, directions: Mapping[Direction, Counts]) -> Corpus:
        """This corpus with more directions (or new counts for its own); new languages go last, but English first."""
        mentioned = [code for direction in directions for code in (direction.source, direction.target)]
        languages = dict.fromkeys([*self.languages, *mentioned])
        ordered = sorted(languages, key=lambda code: not is_english(code))
        return Corpus(self.folder, tuple(ordered), {**self.directions, **directions})

    def save(self) -> None:
        """Writes languages.txt and directions.tsv; a table that already reads so is left untouched."""
        rows = [HEADER, *((str(d), *(str(n[split]) for split in SPLITS)) for d, n in self.directions.items())]
        write_text(self.folder / "languages.txt", _as_lines(self.languages))
        write_text(self.folder / "directions.tsv", _as_lines("\t".join(row) for row in rows))

    @property
    def parent(self) -> Path | None:
        """The folder of the corpus that this one is a sub-corpus of, if it is one."""
        extra = self.folder.absolute().parent
        return extra.parent if extra.name == "extra" and (extra.parent / "languages.txt").is_file() else None

    @property
    def kind(self) -> str:
        """What its data are: `main`, or the kind of a sub-corpus."""
        return self.folder.absolute().name if self.parent else MAIN

    @property
    def extras(self) -> list[Corpus]:
        """The sub-corpora, by name; CorpusError where one cannot be used."""
        if self.parent:
            return []
        folders = sorted(path.parent for path in (self.folder / "extra").glob("*/languages.txt"))
        return [self._extra(folder) for folder in folders]

    def _extra(self, folder: Path) -> Corpus:
        if not KIND.fullmatch(folder.name) or folder.name == MAIN:
            raise CorpusError(
                f"{folder} names no kind of data: call it by letters, digits, '_', '-' and '.', and not '{MAIN}'"
            )
        extra = Corpus.open(folder)
        for language in extra.languages:
            if language not in self.languages:
                raise unknown(
                    "language", language, self.languages, f"{self.folder / 'languages.txt'}, unlike {folder},"
                )
        return extra

    @property
    def subwords(self) -> Path:
        """The folder of the subwords: a sub-corpus has those of its corpus."""
        return (self.parent or self.folder) / "subwords"

    @property
    def bpe(self) -> str:
        """What the text is cut by: `sentencepiece`, or `fastbpe` where there are codes of byte-pair encoding."""
        return "fastbpe" if (self.subwords / "bpe.codes").is_file() else "sentencepiece"

    @property
    def model(self) -> Path:
        """The SentencePiece model, or the codes of byte-pair encoding, of the whole corpus."""
        return self.subwords / ("bpe.codes" if self.bpe == "fastbpe" else "spm.model")

    @property
    def dictionary(self) -> Path:
        """The fairseq dictionary of the whole corpus."""
        return self.subwords / "dict.txt"

    @property
    def reports(self) -> Path:
        """The folder of the reports."""
        return self.folder / "reports"

    def text(self, stage: str, split: str, pair: Direction, language: str) -> Path:
        """The file of one side of a language pair at a stage, `raw` or `encoded`."""
        return self.folder / stage / f"{split}.{pair}.{language}"

    def sides(self, stage: str, split: str, pair: Direction) -> tuple[Path, Path]:
        """The two files of a language pair, in the order of its name."""
        return self.text(stage, split, pair, pair.source), self.text(stage, split, pair, pair.target)

    def counts(self, direction: Direction) -> Counts:
        """The sentence pairs of a direction by split; CorpusError where the corpus does not list it."""
        if direction not in self.directions:
            raise unknown("direction", str(direction), [str(d) for d in self.directions], str(self.folder))
        return self.directions[direction]

    def pair_counts(self, pair: Direction) -> dict[str, int]:
        """The lines of a language pair's files by split: the larger count of the directions that they serve, or 0."""
        return {split: max(self._served(pair, split), default=0) for split in SPLITS}

    def _served(self, pair: Direction, split: str) -> Iterator[int]:
        for direction in (pair, pair.reverse):
            count = self.directions.get(direction, {}).get(split, 0)
            if count and self.serving(direction, split) == pair:
                yield count

    def splits(self, pair: Direction) -> list[str]:
        """The splits in which a language pair has text."""
        return [split for split, lines in self.pair_counts(pair).items() if lines]

    def serving(self, direction: Direction, split: str) -> Direction:
        """The language pair whose files serve the direction in a split: named like it, else like its reverse."""
        for pair in (direction, direction.reverse):
            if any(path.exists() for path in self.sides("raw", split, pair)):
                return pair
        return self.pair(direction)

    def pair(self, direction: Direction) -> Direction:
        """The language pair whose files serve the direction in any split: named like it, else like its reverse."""
        counts = self.counts(direction)
        for pair in (direction, direction.reverse):
            if any(path.exists() for split in SPLITS for path in self.sides("raw", split, pair)):
                return pair
        first, second = self.sides("raw", next(split for split in SPLITS if counts[split]), direction)
        raise CorpusError(
            f"direction {direction} has no text, neither {first} and {second.name} nor the same under "
            f"{direction.reverse}: add the files, or take its row out of {self.folder / 'directions.tsv'}"
        )

    @functools.cached_property
    def pairs(self) -> list[Direction]:
        """The language pairs of all directions, each once, in the order of directions.tsv."""
        serving = (
            self.serving(direction, split) for direction, n in self.directions.items() for split in SPLITS if n[split]
        )
        return list(dict.fromkeys(serving))

    def check_text(self, pair: Direction) -> None:
        """Reads the raw text of a language pair; CorpusError unless it is there, UTF-8, aligned and as counted."""
        counts = self.pair_counts(pair)
        for split in self.splits(pair):
            sides = self.sides("raw", split, pair)
            for path in sides:
                _check_not_empty(path)
            lines = sum(1 for _ in read_pair(*sides))
            if lines != counts[split]:
                raise CorpusError(
                    f"{sides[0]} has {lines} lines where {self.folder / 'directions.tsv'} says {counts[split]}: "
                    "import the pair again, or mend its row"
                )


def _check_not_empty(path: Path) -> None:
    if not path.is_file():
        raise CorpusError(f"{path} is missing: add it, or set its split to 0 in directions.tsv")
    if path.stat().st_size == 0:
        raise CorpusError(f"{path} is empty: fill it, or set its split to 0 in directions.tsv")


def _read_languages(path: Path) -> tuple[str, ...]:
    languages = tuple(check_code(line.strip()) for line in read_lines(path))
    if not languages:
        raise CorpusError(f"{path} is empty: write one language code a line, English first")
    repeated = {code for code in languages if languages.count(code) > 1}
    if repeated:
        raise CorpusError(f"'{min(repeated)}' stands twice in {path}: keep it once")
    return languages


def _read_directions(path: Path, languages: tuple[str, ...]) -> dict[Direction, Counts]:
    header, *rows = [tuple(line.split("\t")) for line in read_lines(path)] or [()]
    if header != HEADER or not rows:
        raise CorpusError(f"{path} is no table of directions: it needs the header {' '.join(HEADER)} (tabs) and rows")
    directions = [Direction.parse(row[0]) for row in rows]
    check_unique(directions, str(path))
    for direction in directions:
        for code in (direction.source, direction.target):
            if code not in languages:
                raise unknown("language", code, languages, str(path.with_name("languages.txt")))
    return {direction: _read_counts(path, row) for direction, row in zip(directions, rows, strict=True)}


def _read_counts(path: Path, row: tuple[str, ...]) -> Counts:
    if len(row) != len(HEADER) or not all(cell.isdecimal() for cell in row[1:]):
        raise CorpusError(f"{path} cannot be read at '{' '.join(row)}': write {' '.join(HEADER)}, counts as numbers")
    counts = dict(zip(SPLITS, map(int, row[1:]), strict=True))
    if not any(counts.values()):
        raise CorpusError(f"direction {row[0]} has no data in any split: add some, or take its row out of {path}")
    return counts


def _as_lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
