"""Translations that go on where they were interrupted, and are not made twice."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moe_nmt.data import Direction
from moe_nmt.data.text import write_text
from moe_nmt.errors import UserError

Facts = list[Any]


class Journal:
    """Entries that were added to a file, by this process or by earlier ones that did the same work."""

    def __init__(self, path: Path, file: io.FileIO, entries: list[Any]):
        self.path, self.entries = path, entries
        self._file = file

    def add(self, entry: Any) -> None:
        """Appends an entry, which JSON must be able to hold; UserError where the file cannot grow."""
        line = _line(entry)
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}); make room, and the same command goes on."
            ) from None


@contextlib.contextmanager
def journal(path: Path, work: Any) -> Iterator[Journal]:
    """Opens the journal of the work that the JSON value `work` describes, and removes it when the block ends well.

    A journal of other work begins anew. Each line is a checksum and a JSON value; from the first line on that is torn
    or damaged the file is cut off.

    Raises:
        UserError: if another process has it open, or it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is writing to {path.parent}; wait for it, or choose another folder."
            ) from None
        file.seek(0)
        described, *entries = [*_read(file)] or [None]
        if described != json.loads(json.dumps(work)):
            file.truncate(0)
            entries = []
        opened = Journal(path, file, entries)
        if not os.fstat(file.fileno()).st_size:
            opened.add(work)
        yield opened
        path.unlink()


def _read(file: io.FileIO) -> Iterator[Any]:
    """The values of the whole lines from the beginning; what follows them is cut off."""
    end = 0
    for line in io.BytesIO(file.readall()):
        text = line.partition(b" ")[2]
        if line != _line_of(text.removesuffix(b"\n")):
            break
        yield json.loads(text)
        end += len(line)
    file.truncate(end)


def _line(entry: Any) -> bytes:
    return _line_of(json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode("utf-8"))


def _line_of(text: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(text), text)


def facts(path: Path) -> Facts:
    """What tells a file from its earlier versions, wherever its folder lies: name, size, and time of change in ns."""
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]


class Record:
    """What the DIRECTION.hyp of a folder were made from, in FOLDER/translations.json.

    `work` describes what they have in common, as JSON can hold it; a record of other work counts as empty.
    """

    def __init__(self, folder: Path, work: Mapping[str, Any]):
        self.folder, self.path, self.work = folder, folder / "translations.json", json.loads(json.dumps(work))
        try:
            recorded = json.loads(self.path.read_text(encoding="utf-8"))
            self._directions = recorded["directions"] if recorded["work"] == self.work else {}
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            self._directions = {}

    def file(self, direction: Direction) -> Path:
        return self.folder / f"{direction}.hyp"

    def holds(self, direction: Direction, inputs: list[Facts]) -> bool:
        """Whether the translations are there, untouched, and made from these input files."""
        path = self.file(direction)
        made = {"inputs": inputs, "output": facts(path)} if path.is_file() else None
        return made is not None and self._directions.get(str(direction)) == made

    def add(self, inputs: Mapping[Direction, list[Facts]]) -> None:
        """Records that the translations of these directions are there now."""
        for direction, files in inputs.items():
            self._directions[str(direction)] = {"inputs": files, "output": facts(self.file(direction))}
        content = {"work": self.work, "directions": self._directions}
        write_text(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
