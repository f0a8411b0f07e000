"""Tables with a language in each column."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path

from data_prep.formats.format import FORMATS, Format, Pair
from data_prep.formats.patterns import fields, find, find_pairs
from data_prep.reading import BadFileError, Block, Fault, Sides, first_line, read_records
from moe_nmt.data import CorpusError
from moe_nmt.data.codes import is_code
from moe_nmt.errors import suggest


@FORMATS.register("tsv")
class Tsv(Format):
    """Tables with tabs and without quotes; `columns` gives the column of each language, from 1 or by its header.

    Where `path` holds `{source}` and `{target}`, these are what `columns` places, by default in the first two columns.
    Without either the first line says the languages. `header`: the first line is no text.
    """

    def __init__(self, path: str, *, columns: dict | None = None, header: bool = False) -> None:
        super().__init__(path)
        self.by_pair = {"source", "target"} <= fields(path)
        self.columns = {"source": 1, "target": 2} if columns is None and self.by_pair else columns
        _check(self.columns or {}, self.by_pair)
        self.header = header or self.columns is None or any(isinstance(column, str) for column in self.columns.values())

    def index(self, split: str) -> dict[Pair, tuple[Path, ...]]:
        if self.by_pair:
            return find_pairs(self.path, split)
        files = [path for path, _ in find(self.path, split)]
        return {pair: (path,) for path in files[:1] for pair in itertools.combinations(self._columns(path), 2)}

    def _columns(self, path: Path) -> Mapping[str, int | str]:
        if self.columns is not None:
            return self.columns
        return {name: name for name in first_line(path).split("\t") if is_code(name)}

    def read(self, pair: Pair, files: tuple[Path, ...], limit: int) -> Iterator[Block]:
        (path,) = files
        columns = self._columns(path)
        wanted = [columns[name] for name in (("source", "target") if self.by_pair else pair)]
        places = tuple(_place(path, column) for column in wanted)
        return read_records(path, limit, partial(_cells, itemgetter(*places)), self.header)


def _check(columns: Mapping[str, int | str], by_pair: bool) -> None:
    for language, column in columns.items():
        if not (isinstance(column, str) or (type(column) is int and column >= 1)):
            raise CorpusError(f"columns gives {language} the column {column!r}: write its number from 1, or its header")
    if by_pair and columns.keys() != {"source", "target"}:
        raise CorpusError(
            "columns must place source and target, as in {source: 1, target: 2}: the path names the languages"
        )


def _place(path: Path, column: int | str) -> int:
    if isinstance(column, int):
        return column - 1
    headers = first_line(path).split("\t")
    if column not in headers:
        raise BadFileError(f"{path} has no column '{column}'{suggest(column, headers)}", Fault.MALFORMED)
    return headers.index(column)


def _cells(take: itemgetter, line: str) -> Sides | Fault:
    try:
        source, target = take(line.split("\t"))
    except IndexError:
        return Fault.MISSING_SIDE
    return (source, target) if source.strip() and target.strip() else Fault.EMPTY
