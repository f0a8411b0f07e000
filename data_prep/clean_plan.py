"""What cleaning has to do: which filters in which pass, which chunks, which texts come out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import polars as pl

from data_prep.collected import Part, read_parts
from data_prep.filters import FILTERS, Duplicates
from moe_nmt.data import MAIN, SPLITS, Corpus, CorpusError, Direction
from moe_nmt.registry import Spec

TRAIN, *HELD_OUT = SPLITS
Steps = tuple[tuple[str, Spec], ...]


@dataclass(frozen=True)
class Pass:
    """Filters that see a pair by itself, then filters that compare it with all others of its language pair."""

    number: int
    steps: Steps
    duplicates: Steps


@dataclass(frozen=True)
class Chunk:
    """A file of collected training pairs.

    `number`: its place among those of its language pair over all kinds and sources; of two duplicates the first stays.
    `turned`: whether its columns are the other way round than the language pair is named.
    """

    part: Part
    pair: Direction
    path: Path
    number: int

    @property
    def turned(self) -> bool:
        return self.pair != self.part.pair

    def __str__(self) -> str:
        return f"{self.part.source} {self.part.pair} {self.path.stem}"


@dataclass(frozen=True)
class Target:
    """A text of the corpus: the parts that go into it, the same of all kinds first."""

    kind: str
    split: str
    pair: Direction
    parts: tuple[Part, ...]

    @property
    def directions(self) -> list[Direction]:
        """The directions that it serves."""
        return [self.pair] if self.parts[0].one_way else [self.pair, self.pair.reverse]

    def __str__(self) -> str:
        return f"{self.split} {self.pair}" if self.kind == MAIN else f"{self.kind} {self.split} {self.pair}"


@dataclass(frozen=True)
class Plan:
    """The cleaning of a corpus folder: its parts, main data first, and the filters with their names, in order."""

    corpus: Path
    parts: tuple[Part, ...]
    steps: Steps

    @classmethod
    def of(cls, corpus: Path, specs: Sequence[Spec]) -> Plan:
        """CorpusError where nothing is collected, or raw text is there that cleaning did not write."""
        check_raw(corpus)
        parts = sorted(read_parts(corpus), key=lambda part: part.kind != MAIN)
        return cls(corpus, tuple(parts), name_steps(specs))

    @cached_property
    def digest(self) -> str:
        """A name for all that the result depends on."""
        facts = [version("moe_nmt"), pl.__version__, *(f"{name}={spec}" for name, spec in self.steps)]
        for part in self.parts:
            stats = [path.stat() for path in part.paths(self.corpus)]
            facts += [str(part), *(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]

    @property
    def work(self) -> Path:
        """Where the passes write."""
        return self.corpus / "cleaned" / self.digest

    @cached_property
    def passes(self) -> list[Pass]:
        """The steps, cut after each run of duplicates."""
        passes = [Pass(0, (), ())]
        for step in self.steps:
            compares = issubclass(FILTERS.entry(step[1].name).part, Duplicates)
            *earlier, last = passes
            if compares:
                passes = [*earlier, Pass(last.number, last.steps, (*last.duplicates, step))]
            elif last.duplicates:
                passes.append(Pass(last.number + 1, (step,), ()))
            else:
                passes = [*earlier, Pass(last.number, (*last.steps, step), ())]
        return passes

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """All languages, as they come."""
        return tuple(dict.fromkeys(code for part in self.parts for code in (part.pair.source, part.pair.target)))

    @cached_property
    def targets(self) -> list[Target]:
        """The texts that come out.

        CorpusError where data of a kind serve one direction of a language pair in one part and both in another.
        """
        found: dict[tuple[str, str, Direction], list[Part]] = {}
        for part in self.parts:
            parts = found.setdefault((part.kind, part.split, self.name_of(part)), [])
            parts.append(part)
            if part.one_way != parts[0].one_way:
                raise CorpusError(
                    f"of the sources '{parts[0].source}' and '{part.source}' one has {part.split} pairs of {part.pair} "
                    f"for that direction only, the other for both, in the kind '{part.kind}': give one another kind"
                )
        return [Target(*key, tuple(parts)) for key, parts in found.items()]

    def name_of(self, part: Part) -> Direction:
        """The language pair whose text a part goes into: one that serves both ways is named as it first came."""
        return part.pair if part.one_way else self._names[frozenset((part.pair.source, part.pair.target))]

    @cached_property
    def _names(self) -> dict[frozenset[str], Direction]:
        names: dict[frozenset[str], Direction] = {}
        for part in self.parts:
            if not part.one_way:
                names.setdefault(frozenset((part.pair.source, part.pair.target)), part.pair)
        return names

    @cached_property
    def chunks(self) -> list[Chunk]:
        """The chunks of all training parts."""
        numbers: dict[Direction, itertools.count[int]] = {}
        return [
            Chunk(part, pair, path, next(numbers.setdefault(pair, itertools.count())))
            for part in self.parts
            if part.split == TRAIN
            for pair in [self.name_of(part)]
            for path in part.paths(self.corpus)
        ]

    def folder(self, kind: str) -> Path:
        """The corpus folder of a kind of data."""
        return self.corpus if kind == MAIN else self.corpus / "extra" / kind

    def raw(self, target: Target) -> tuple[Path, Path]:
        """The two files of a text."""
        return Corpus.empty(self.folder(target.kind)).sides("raw", target.split, target.pair)


def name_steps(specs: Sequence[Spec]) -> Steps:
    """A name for each filter: its own, with a number from the second of the same on."""
    seen: dict[str, int] = {}
    named = []
    for spec in specs:
        seen[spec.name] = seen.get(spec.name, 0) + 1
        named.append((spec.name if seen[spec.name] == 1 else f"{spec.name}_{seen[spec.name]}", spec))
    return tuple(named)


def check_raw(corpus: Path) -> None:
    """CorpusError if the folder has raw text that cleaning did not write, and would replace."""
    imported = [*(corpus / ".stamps").glob("import.*.json")]
    ours = (corpus / ".stamps" / "clean.json").exists() or (corpus / "cleaned").exists()
    if imported or (not ours and any((corpus / "raw").glob("*"))):
        raise CorpusError(
            f"{corpus / 'raw'} holds text that clean.sh did not write and would replace: collect into another folder, "
            "and name that text as a source"
        )
