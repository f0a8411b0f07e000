"""Reading damaged text line by line, against a slow oracle, and in constant memory."""

import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import reading
from data_prep.reading import BadFileError, Block, Fault, read_aligned, read_lines

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 40
PIECES = [b"text", b"\xc3\xa4", b"\xc3", b"\xff", b"\0", b"\n", b"\n", b"\r\n", b"\r", b" ", b"\t", b"\xed\xa0\x80"]
PIECES += [b"\xe2\x80\xa8", b"\xc2\x85", b"\x1c", b"x" * 41, b"\xf0\x9f\x98\x80" * 10, b"\xef\xbb\xbf", b"\xe3\x80\x80"]


def oracle(data):
    """What each line is, one after the other."""
    *lines, last = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for line in [*lines, last] if last else lines:
        line = line.removesuffix(b"\r")
        if len(line) > LIMIT:
            yield "too_long"
        elif line != line.decode("utf-8", "ignore").encode():
            yield "invalid_utf8"
        elif b"\0" in line:
            yield "nul"
        else:
            yield line.decode() if line.decode().strip() else "empty"


def hostile(rng):
    return b"".join(rng.choices(PIECES, k=rng.randrange(400)))


@pytest.fixture(params=[1, 7, 64, 1 << 20])
def block(request, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", request.param)


@pytest.mark.parametrize("seed", range(30))
def test_every_line_is_text_or_a_fault(seed, block, tmp_path):
    data = hostile(random.Random(seed))
    (tmp_path / "text").write_bytes(data)
    lines = [line for lines in read_lines(tmp_path / "text", LIMIT) for line in lines]
    assert [str(line) for line in lines] == list(oracle(data))


def test_the_shortest_files(block, tmp_path):
    for letters in itertools.chain.from_iterable(itertools.product(b"a\r\n", repeat=length) for length in range(5)):
        (tmp_path / "text").write_bytes(bytes(letters))
        lines = [line for lines in read_lines(tmp_path / "text", LIMIT) for line in lines]
        assert [str(line) for line in lines] == list(oracle(bytes(letters))), bytes(letters)


@pytest.mark.parametrize("seed", range(30))
def test_aligned_lines_stay_aligned_and_all_are_counted(seed, block, tmp_path):
    rng = random.Random(seed)
    data = [hostile(rng) for _ in range(2)]
    for name, content in zip("ab", data, strict=True):
        (tmp_path / name).write_bytes(content)
    sides = [list(oracle(content)) for content in data]
    count = min(map(len, sides))
    blocks = read_aligned((tmp_path / "a", tmp_path / "b"), LIMIT)
    blocks = list(blocks) if len(sides[0]) == len(sides[1]) else until_refused(blocks, max(map(len, sides)))
    faults = {str(fault) for fault in Fault}
    first, second = sides
    expected = [(a, b) for a, b in zip(first, second, strict=False) if not {a, b} & faults]
    assert [pair for block in blocks for pair in zip(block.sources, block.targets, strict=True)] == expected
    found = [str(fault) for block in blocks for fault in block.faults.values()]
    assert found == [a if a in faults else b for a, b in zip(first, second, strict=False) if {a, b} & faults]
    assert sum(block.lines for block in blocks) == count


def until_refused(blocks, lines):
    read = []
    with pytest.raises(BadFileError, match="must be aligned line by line") as error:
        read.extend(blocks)
    assert (error.value.fault, error.value.lines) == (Fault.UNEQUAL_SIDES, lines)
    return read


def test_places_of_faults_are_those_of_the_lines():
    block = Block.of([("a", "b"), Fault.EMPTY, Fault.NUL, ("c", "d")])
    assert (block.sources, block.targets, block.lines) == (["a", "c"], ["b", "d"], 4)
    assert block.faults == {1: Fault.EMPTY, 2: Fault.NUL}


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_refuses_utf16(mark, tmp_path):
    (tmp_path / "text").write_bytes(mark + b"a\0\n\0")
    with pytest.raises(BadFileError, match="is UTF-16: convert it"):
        list(read_lines(tmp_path / "text", LIMIT))


def test_endless_lines_cost_no_memory(tmp_path):
    with open(tmp_path / "text", "wb") as file:
        file.write(b"first\n")
        for _ in range(200):
            file.write(b"x" * 1_000_000)
        file.write(b"\nlast\n")
    code = f"""
import re
from pathlib import Path
from data_prep.reading import read_lines
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
lines = [str(line) for lines in read_lines(Path({str(tmp_path / "text")!r}), 65536) for line in lines]
assert lines == ["first", "too_long", "last"], lines
print(peak() - before)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 20_000, "kilobytes"
