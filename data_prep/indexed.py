"""The files that fairseq reads token ids from (`--dataset-impl mmap`), byte for byte those of fairseq-preprocess."""

from __future__ import annotations

import hashlib
import itertools
import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_prep.subwords.symbols import FAIRSEQ
from moe_nmt.data.text import drafting, read_lines

END, UNKNOWN = FAIRSEQ.index("</s>"), FAIRSEQ.index("<unk>")
CODES = {"H": 8, "I": 9}  # fairseq's codes of unsigned integers of 16 and 32 bits, by Python's typecodes
LARGEST_OF_16_BITS = 65_500
BATCH = 10_000


class Index(dict[str, int]):
    """The index of each symbol of a fairseq dictionary; that of `<unk>` for any other."""

    def __init__(self, dictionary: Path):
        symbols = itertools.chain(FAIRSEQ, (line.rsplit(" ", 1)[0] for line in read_lines(dictionary)))
        super().__init__((symbol, number) for number, symbol in enumerate(symbols))

    def __missing__(self, symbol: str) -> int:
        return UNKNOWN

    @property
    def typecode(self) -> str:
        """The smallest integers that hold the indices, as Python's `array` calls them."""
        return "H" if len(self) < LARGEST_OF_16_BITS else "I"


@dataclass(frozen=True)
class Written:
    """Of a text that was written: sentences, tokens with the end of each sentence, and the unknown among them."""

    sentences: int
    tokens: int
    unknown: int


def write_indexed(lines: Iterable[str], index: Index, data: Path, idx: Path) -> Written:
    """Write the ids of lines of symbols to the two files of an indexed dataset, both at once when all is written."""
    sizes, unknown = array("i"), 0
    waiting = iter(lines)
    with drafting(data, idx) as (data_draft, idx_draft):
        with open(data_draft, "wb") as file:
            while batch := list(itertools.islice(waiting, BATCH)):
                ids = array(index.typecode)
                for line in batch:
                    symbols = line.split()
                    ids.extend(map(index.__getitem__, symbols))
                    ids.append(END)
                    sizes.append(len(symbols) + 1)
                unknown += ids.count(UNKNOWN)
                ids.tofile(file)
        _write_idx(sizes, index.typecode, idx_draft)
    return Written(len(sizes), sum(sizes), unknown)


def _write_idx(sizes: array[int], typecode: str, path: Path) -> None:
    """Format, version, type and number; then the size of each sentence, and the byte it begins at."""
    width = array(typecode).itemsize
    with open(path, "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, CODES[typecode], len(sizes)))
        sizes.tofile(file)
        begins = itertools.islice(itertools.accumulate((size * width for size in sizes), initial=0), len(sizes))
        while batch := array("q", itertools.islice(begins, BATCH)):
            batch.tofile(file)


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
