"""Text that is aligned line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.formats.format import FORMATS, Format, Pair
from data_prep.formats.patterns import fields, find_languages, find_sides, pairs_of
from data_prep.reading import Block, read_aligned
from moe_nmt.data import CorpusError


@FORMATS.register("text")
class Text(Format):
    """Files that are aligned line by line, two for each language pair or one for each of many languages.

    `path` is a pattern with `{language}`, and with `{source}` and `{target}` where each language pair has its files.
    """

    @property
    def pattern(self) -> str:
        """The pattern of the files."""
        return self.path

    def index(self, split: str) -> dict[Pair, tuple[Path, ...]]:
        names = fields(self.pattern) - {"split"}
        if names == {"language"}:
            return pairs_of(find_languages(self.pattern, split))
        if names == {"source", "target", "language"}:
            return {**find_sides(self.pattern, split)}
        raise CorpusError(
            f"the path {self.pattern} does not tell the files of two languages apart: "
            "write {language} in it, and {source} and {target} where each language pair has its own files"
        )

    def read(self, pair: Pair, files: tuple[Path, ...], limit: int) -> Iterator[Block]:
        first, second = files
        return read_aligned((first, second), limit)
