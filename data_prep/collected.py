"""Collected text: what `collect` writes and `clean` reads.

CORPUS/collected/parts.json                                    the parts, in the order of the sources
CORPUS/collected/KIND/SPLIT/PAIR/SOURCE/part.json              one of them
CORPUS/collected/KIND/SPLIT/PAIR/SOURCE/00000.parquet, …       chunks of sentence pairs: columns `source`, `target`
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moe_nmt.data import CorpusError, Direction
from moe_nmt.data.text import drafting, write_text

os.environ.setdefault("POLARS_MAX_THREADS", "1")  # parts and chunks are worked on by processes side by side
import polars as pl

CHUNK_PAIRS = 100_000
CHUNK_BYTES = 32 << 20
SCHEMA = {"source": pl.String, "target": pl.String}


@dataclass(frozen=True)
class Part:
    """The text of one source for one language pair and split, and what became of its lines.

    `kind` is `main`, or the name of data that are kept apart and tagged, as `mined` or `back_translated`. A part that
    is `one_way` serves only the direction it is named after. Of the `lines` of its files so many were `dropped` for
    each reason; the others are in `chunks` chunks.
    """

    kind: str
    split: str
    pair: Direction
    source: str
    one_way: bool = False
    lines: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict, hash=False)
    chunks: int = 0

    @property
    def pairs(self) -> int:
        """The sentence pairs in the chunks."""
        return self.lines - sum(self.dropped.values())

    def folder(self, corpus: Path) -> Path:
        """Where its chunks lie."""
        return corpus / "collected" / self.kind / self.split / str(self.pair) / self.source

    def paths(self, corpus: Path) -> list[Path]:
        """Its chunks, in order."""
        return [self.folder(corpus) / f"{number:05}.parquet" for number in range(self.chunks)]


Texts = tuple[Sequence[str], Sequence[str]]


def write_chunks(folder: Path, pairs: Iterable[tuple[str, str]]) -> int:
    """Write sentence pairs as chunks; returns their number."""
    return write_blocks(folder, (([source], [target]) for source, target in pairs))


def write_blocks(folder: Path, blocks: Iterable[Texts]) -> int:
    """Write aligned text, which comes in blocks of lines, as chunks; returns their number.

    A chunk holds CHUNK_PAIRS sentence pairs, or fewer that have CHUNK_BYTES characters together with their block.
    """
    number = -1
    for number, (sources, targets) in enumerate(_chunks(blocks)):
        with drafting(folder / f"{number:05}.parquet") as (draft,):
            write_frame(pl.DataFrame({"source": sources, "target": targets}, schema=SCHEMA), draft)
    return number + 1


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    """Write a chunk, packed as fast as possible; OSError, with its number, where the disk is full."""
    packed = io.BytesIO()  # polars itself would raise an error of its own without a number
    frame.write_parquet(packed, compression="lz4", statistics=False)
    path.write_bytes(packed.getbuffer())


def _chunks(blocks: Iterable[Texts]) -> Iterator[Texts]:
    sources: list[str] = []
    targets: list[str] = []
    characters = 0
    for more_sources, more_targets in blocks:
        sources.extend(more_sources)
        targets.extend(more_targets)
        characters += sum(map(len, more_sources)) + sum(map(len, more_targets))
        while len(sources) >= CHUNK_PAIRS:
            yield sources[:CHUNK_PAIRS], targets[:CHUNK_PAIRS]
            sources, targets, characters = sources[CHUNK_PAIRS:], targets[CHUNK_PAIRS:], 0
        if characters >= CHUNK_BYTES:
            yield sources, targets
            sources, targets, characters = [], [], 0
    if sources:
        yield sources, targets


def save_parts(corpus: Path, parts: Sequence[Part]) -> None:
    """Write parts.json, the sign that everything is collected."""
    _save(corpus / "collected" / "parts.json", parts)


def save_part(corpus: Path, part: Part) -> None:
    """Write part.json beside the chunks of a part."""
    _save(part.folder(corpus) / "part.json", [part])


def read_part(corpus: Path, part: Part) -> Part:
    """Read part.json of the part with the same names; CorpusError where it is missing or cannot be read."""
    return _load(part.folder(corpus) / "part.json", corpus)[0]


def _save(path: Path, parts: Sequence[Part]) -> None:
    rows = [{**asdict(part), "pair": str(part.pair)} for part in parts]
    write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def read_parts(corpus: Path) -> list[Part]:
    """Read parts.json; CorpusError where nothing is collected, or not to its end."""
    return _load(corpus / "collected" / "parts.json", corpus)


def _load(path: Path, corpus: Path) -> list[Part]:
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return [Part(**{**row, "pair": Direction.parse(row["pair"])}) for row in rows]
    except FileNotFoundError:
        raise CorpusError(
            f"{path} is missing: run data_prep/collect.sh SOURCES.yaml {corpus} to its end first"
        ) from None
    except (ValueError, TypeError, KeyError):
        raise CorpusError(f"{path} cannot be read: run data_prep/collect.sh SOURCES.yaml {corpus} again") from None
