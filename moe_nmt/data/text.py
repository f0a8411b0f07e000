"""Reading and writing text files: UTF-8, lines end at LF and nowhere else, nothing half-written."""

from __future__ import annotations

import contextlib
import gzip
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from moe_nmt.data.directions import CorpusError


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file, plain or .gz, without their LF.

    Other line separators of Unicode stay inside a line. CorpusError at a line that is not UTF-8, and at the end of a
    .gz that was cut off.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                yield _decode(line, path, number).removesuffix("\n")
        except (EOFError, gzip.BadGzipFile):
            raise CorpusError(f"{path} is no whole gzip file: fetch or pack it again") from None


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise CorpusError(f"{path} line {number} is not UTF-8: convert the file, e.g. with iconv") from None


def read_pair(first: Path, second: Path) -> Iterator[tuple[str, str]]:
    """The lines of two aligned files side by side; CorpusError after the last pair where their numbers differ."""
    for ours, theirs in itertools.zip_longest(read_lines(first), read_lines(second)):
        if ours is None or theirs is None:
            raise CorpusError(
                f"{first} has {count_lines(first)} lines and {second} has {count_lines(second)}: "
                "the two sides must be aligned line by line"
            )
        yield ours, theirs


def count_lines(path: Path) -> int:
    """How many lines the file has; a last line without LF counts."""
    return sum(1 for _ in read_lines(path))


def normalise_spaces(line: str) -> str:
    """The line with each run of white space of any kind as one space, and none at its ends."""
    return " ".join(line.split())


@contextlib.contextmanager
def drafting(*paths: Path) -> Iterator[list[Path]]:
    """Names a temporary file beside each path; all are renamed into place when the block ends well, else removed."""
    drafts = [path.with_name(f".{path.name}.tmp") for path in paths]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield drafts
        for draft, path in zip(drafts, paths, strict=True):
            draft.replace(path)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def rewriting(*paths: Path) -> Iterator[list[TextIO]]:
    """Opens text files that take the place of the old ones, all at once, when the block ends well."""
    with drafting(*paths) as drafts, contextlib.ExitStack() as stack:
        yield [stack.enter_context(open(draft, "w", encoding="utf-8", newline="\n")) for draft in drafts]


def write_text(path: Path, text: str) -> None:
    """Replaces the file in one step; a file that already holds this text is left untouched."""
    if path.exists() and path.read_bytes() == text.encode("utf-8"):
        return
    with rewriting(path) as (file,):
        file.write(text)
