"""What a format is: which language pairs its files hold, and how they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from data_prep.reading import Block
from moe_nmt.registry import Registry

Pair = tuple[str, str]
"""Two languages as the files call them."""


class Format(ABC):
    """A format, with its options, of the files at `path`.

    Args:
        path: a file, a folder or a pattern, as the format has it; absolute.
    """

    registry: ClassVar[Registry[Format]]
    split_names: ClassVar[Mapping[str, str]] = {}
    """What the format calls the splits that it has, by our names; empty: one split, called as the pattern says."""

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    def index(self, split: str) -> dict[Pair, tuple[Path, ...]]:
        """The files of a split, called by its name in the format, by the language pair that they hold."""

    @abstractmethod
    def read(self, pair: Pair, files: tuple[Path, ...], limit: int) -> Iterator[Block]:
        """The aligned text of a language pair; a side of more than `limit` bytes is a fault.

        Raises:
            CorpusError: where a file is damaged, or not in this format.
        """


FORMATS: Registry[Format] = Registry("format", "data_prep.formats")
Format.registry = FORMATS
