"""Reading line by line what may be damaged: every line is text or a fault, in blocks and in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from moe_nmt.data import CorpusError
from moe_nmt.data.text import opening

BLOCK = 1 << 20  # bytes read at once
BOM = b"\xef\xbb\xbf"


class Fault(StrEnum):
    """Why a line, or all lines of a file, cannot be used; in this order, where several are true."""

    TOO_LONG = "too_long"
    INVALID_UTF8 = "invalid_utf8"
    NUL = "nul"
    HEADER = "header"
    MALFORMED = "malformed"
    MISSING_SIDE = "missing_side"
    EMPTY = "empty"
    MISSING_FILE = "missing_file"
    EMPTY_FILE = "empty_file"
    UNEQUAL_SIDES = "unequal_sides"
    DAMAGED_FILE = "damaged_file"


class BadFileError(CorpusError):
    """A file that cannot be used at all, for the reason `fault`; `lines` of it were seen."""

    def __init__(self, message: str, fault: Fault = Fault.DAMAGED_FILE, lines: int = 0) -> None:
        super().__init__(message)
        self.fault, self.lines = fault, lines


Line = str | Fault
Sides = tuple[str, str]


@dataclass
class Block:
    """Successive lines of aligned text: those with text on both sides, and the faults of the others by their place."""

    sources: Sequence[str]
    targets: Sequence[str]
    faults: dict[int, Fault] = field(default_factory=dict)

    @property
    def lines(self) -> int:
        return len(self.sources) + len(self.faults)

    @classmethod
    def of(cls, lines: Sequence[Sides | Fault]) -> Block:
        """Sorts the lines of a block into pairs and faults."""
        faults = {place: line for place, line in enumerate(lines) if isinstance(line, Fault)}
        pairs = [line for line in lines if not isinstance(line, Fault)]
        return cls([source for source, _ in pairs], [target for _, target in pairs], faults)


def judge(text: str, limit: int) -> Line:
    """The text, or what is wrong with it: longer than `limit` bytes, not to be written as UTF-8, NUL, or blank."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return Fault.INVALID_UTF8
    if size > limit:
        return Fault.TOO_LONG
    if "\0" in text:
        return Fault.NUL
    return text if text.strip() else Fault.EMPTY


def read_records(
    path: Path, limit: int, parse: Callable[[str], Sides | Fault], header: bool = False
) -> Iterator[Block]:
    """The lines of a file that hold both sides, as `parse` takes them apart. `header`: the first line is no text."""
    for number, lines in enumerate(read_lines(path, limit)):
        if header and number == 0:
            lines[0] = Fault.HEADER
        yield Block.of([line if isinstance(line, Fault) else parse(line) for line in lines])


def first_line(path: Path, limit: int = BLOCK) -> str:
    """The first line of a file; BadFileError where there is none that can be read."""
    line = next(iter(next(read_lines(path, limit), [])), Fault.EMPTY_FILE)
    if isinstance(line, Fault):
        raise BadFileError(f"{path} cannot be used, its first line is {line}: fetch it again or mend it", line)
    return line


def read_aligned(paths: tuple[Path, Path], limit: int) -> Iterator[Block]:
    """The lines of two files side by side; BadFileError at the end where they are not equally many."""
    blocks = [read_lines(path, limit) for path in paths]
    sides: list[list[Line]] = [[], []]
    ended = 0
    while True:
        sides = [side or next(more, []) for side, more in zip(sides, blocks, strict=True)]
        if not all(sides):
            break
        count = min(map(len, sides))
        ended += count
        yield _pair_up(*(side[:count] for side in sides))
        sides = [side[count:] for side in sides]
    ends = [ended + len(side) + sum(map(len, more)) for side, more in zip(sides, blocks, strict=True)]
    if ends[0] != ends[1]:
        (ours, theirs), (first, second) = paths, ends
        raise BadFileError(
            f"{ours} has {first:,} lines and {theirs} has {second:,}: the two sides must be aligned line by line",
            Fault.UNEQUAL_SIDES,
            max(ends),
        )


def _pair_up(first: list[Line], second: list[Line]) -> Block:
    if Fault not in {*map(type, first), *map(type, second)}:
        return Block(first, second)
    return Block.of([_both(*sides) for sides in zip(first, second, strict=True)])


def _both(first: Line, second: Line) -> Sides | Fault:
    if isinstance(first, Fault):
        return first
    return second if isinstance(second, Fault) else (first, second)


def read_lines(path: Path, limit: int) -> Iterator[list[Line]]:
    """The lines of a file in blocks, each without its LF or CRLF, or a Fault in its place.

    Lines end at LF and nowhere else. A line of more than `limit` bytes is never held in memory. The mark at the start
    of a file that says UTF-8 is left out; BadFileError where one says UTF-16.
    """
    for block in _blocks(path, limit):
        yield _decode(block, limit) or [_judge_bytes(line, limit) for line in block.split(b"\n")]


def _blocks(path: Path, limit: int) -> Iterator[bytes]:
    """The bytes of a file in blocks of whole lines, LF between them; too long a line is cut, but stays too long."""
    with opening(path) as file:
        rest = file.read(len(BOM)).removeprefix(BOM)
        if rest[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise BadFileError(f"{path} is UTF-16: convert it with iconv -f UTF-16 -t UTF-8", Fault.DAMAGED_FILE)
        while block := file.read(BLOCK):
            lines, found, rest = (rest + block).rpartition(b"\n")
            if found:
                yield _without_cr(lines)
            if len(rest) > limit + 1:
                rest = rest[: limit + 2]
        if rest:
            yield _without_cr(rest.removesuffix(b"\n"))


def _without_cr(block: bytes) -> bytes:
    return block.replace(b"\r\n", b"\n").removesuffix(b"\r") if b"\r" in block else block


def _decode(block: bytes, limit: int) -> list[Line] | None:
    """The lines of a block without any fault; None where there may be one."""
    try:
        text = block.decode()
    except UnicodeDecodeError:
        return None
    lines: list[Line] = text.split("\n")  # type: ignore[assignment]
    may_be_too_long = max(map(len, lines)) > limit // 4
    return None if may_be_too_long or "\0" in text or not all(map(str.strip, lines)) else lines


def _judge_bytes(line: bytes, limit: int) -> Line:
    if len(line) > limit:
        return Fault.TOO_LONG
    try:
        return judge(line.decode(), limit)
    except UnicodeDecodeError:
        return Fault.INVALID_UTF8
