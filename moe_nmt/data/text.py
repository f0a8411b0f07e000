"""Reading and writing text files: UTF-8, lines end at LF and nowhere else, nothing half-written."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import lzma
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, TextIO

from moe_nmt.data.directions import CorpusError

ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
UNPACKERS = {".gz": "gzip", ".xz": "lzma", ".bz2": "bz2", ".zst": ZSTD}
"""The module that unpacks a file, by its ending."""


@contextlib.contextmanager
def opening(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file to read its bytes: plain, .gz .xz .bz2 .zst, or one inside a .zip, written as if that were a folder.

    CorpusError, also while it is read, where a packed file was cut off or is none.
    """
    unpacker = _unpacker(path)
    with _refusing_damage(path, unpacker), contextlib.ExitStack() as stack:
        file = _open_as_it_is(path, stack)
        yield stack.enter_context(unpacker.open(file, "rb")) if unpacker else file


def _open_as_it_is(path: Path, stack: contextlib.ExitStack) -> IO[bytes]:
    archive = zip_of(path)
    if archive is None:
        return stack.enter_context(open(path, "rb"))
    packed = stack.enter_context(zipfile.ZipFile(archive))
    name = path.relative_to(archive).as_posix()
    if name not in packed.namelist():
        raise FileNotFoundError(f"{archive} holds no file {name}")
    return stack.enter_context(packed.open(name))


@contextlib.contextmanager
def _refusing_damage(path: Path, unpacker: ModuleType | None) -> Iterator[None]:
    """What the libraries raise at damaged files becomes a sentence; errors of the system have a number and pass."""
    damage = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, getattr(unpacker, "ZstdError", EOFError))
    try:
        yield
    except (*damage, OSError) as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) is not None:
            raise
        kind = UNPACKERS.get(path.suffix, "zip").rpartition(".")[2]
        raise CorpusError(f"{path} is no whole {kind} file: fetch or pack it again") from None


def zip_of(path: Path) -> Path | None:
    """The .zip that the path leads into, None where it leads into none."""
    return next((folder for folder in path.parents if folder.suffix == ".zip" and folder.is_file()), None)


def _unpacker(path: Path) -> ModuleType | None:
    name = UNPACKERS.get(path.suffix)
    try:
        return importlib.import_module(name) if name else None
    except ModuleNotFoundError:
        raise CorpusError(f"{path} cannot be unpacked without {name}: pip install {name}") from None


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file, packed or plain, without their LF.

    Other line separators of Unicode stay inside a line. CorpusError at a line that is not UTF-8, and at the end of a
    packed file that was cut off.
    """
    with opening(path) as file:
        for number, line in enumerate(file, start=1):
            yield _decode(line, path, number).removesuffix("\n")


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
