"""A JSON object on each line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.formats.format import FORMATS, Format, Pair
from data_prep.formats.patterns import fields, find, find_pairs
from data_prep.reading import BadFileError, Block, Fault, Sides, first_line, judge, read_records
from moe_nmt.data.codes import is_code

NEST = "translation"


@FORMATS.register("jsonl")
class Jsonl(Format):
    """A JSON object on each line, `{"translation": {"de": …, "en": …}}` or `{"de": …, "en": …}`.

    `keys` says where else a language is, as `text.german` for `{"text": {"german": …}}`; without it languages are
    those of the first line. A line break inside a text becomes a space.
    """

    def __init__(self, path: str, *, keys: dict | None = None) -> None:
        super().__init__(path)
        self.keys: Mapping[str, str] = {} if keys is None else {language: str(key) for language, key in keys.items()}

    def index(self, split: str) -> dict[Pair, tuple[Path, ...]]:
        if {"source", "target"} <= fields(self.path):
            return find_pairs(self.path, split)
        files = [path for path, _ in find(self.path, split)]
        return {pair: (path,) for path in files[:1] for pair in itertools.combinations(self._languages(path), 2)}

    def _languages(self, path: Path) -> list[str]:
        if self.keys:
            return list(self.keys)
        record = _load(first_line(path))
        texts = record.get(NEST, record) if isinstance(record, dict) else None
        if not isinstance(texts, dict):
            raise BadFileError(
                f"{path} is no JSONL, its first line is no JSON object: give its format", Fault.MALFORMED
            )
        return [key for key, text in texts.items() if isinstance(text, str) and is_code(key)]

    def read(self, pair: Pair, files: tuple[Path, ...], limit: int) -> Iterator[Block]:
        (path,) = files
        places = [self.keys[code].split(".") if code in self.keys else None for code in pair]
        return read_records(path, limit, partial(_texts, pair, places, limit))


def _texts(pair: Pair, places: list[list[str] | None], limit: int, line: str) -> Sides | Fault:
    record = _load(line)
    if not isinstance(record, dict):
        return Fault.MALFORMED
    sides = []
    for code, place in zip(pair, places, strict=True):
        text = _at(record, place or ([NEST, code] if NEST in record else [code]))
        if not isinstance(text, str):
            return Fault.MISSING_SIDE
        side = judge(text.replace("\r\n", " ").replace("\n", " "), limit)
        if isinstance(side, Fault):
            return side
        sides.append(side)
    return sides[0], sides[1]


def _at(value: Any, place: list[str]) -> Any:
    for key in place:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _load(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
