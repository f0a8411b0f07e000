"""The journal and the record of translations: what survives interruptions, damage and changes."""

import os
import subprocess
import sys

import pytest

from moe_nmt.data import Direction
from moe_nmt.errors import UserError
from moe_nmt.evaluation.resuming import Record, facts, journal

WORK = {"checkpoint": [1, 2], "options": {"beam": 4, "text": "ä\n"}}
ENTRIES = [[[0, "one"], [7, "zwei\u2028ü\n"]], [[1, ""]], [[2, "x" * 5000]]]


@pytest.fixture
def path(tmp_path):
    """A journal that was interrupted after three entries."""
    path = tmp_path / "folder" / ".journal"
    with pytest.raises(KeyboardInterrupt), journal(path, WORK) as opened:
        for entry in ENTRIES:
            opened.add(entry)
        raise KeyboardInterrupt
    return path


def entries(path, work=WORK):
    """What another process would find; the journal stays."""
    with pytest.raises(InterruptedError), journal(path, work) as opened:
        found = opened.entries
        raise InterruptedError
    return found


def test_entries_are_found_again_and_can_be_added_to(path):
    assert entries(path) == ENTRIES
    with pytest.raises(InterruptedError), journal(path, WORK) as opened:
        opened.add("more")
        raise InterruptedError
    assert entries(path) == [*ENTRIES, "more"]


def test_it_is_gone_when_the_work_is_done(path):
    with journal(path, WORK):
        pass
    assert not path.exists()


def test_other_work_begins_anew(path):
    assert entries(path, WORK | {"checkpoint": [1, 3]}) == []
    assert entries(path) == []


@pytest.mark.parametrize("cut", range(1, 80, 7))
def test_a_torn_end_is_cut_off(path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    assert entries(path) == ENTRIES[:2]
    with pytest.raises(InterruptedError), journal(path, WORK) as opened:
        opened.add("more")
        raise InterruptedError
    assert entries(path) == [*ENTRIES[:2], "more"]


def test_from_a_damaged_line_on_it_is_cut_off(path):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"[[1", b"[[2")
    path.write_bytes(b"".join(lines))
    assert entries(path) == ENTRIES[:1]


@pytest.mark.parametrize("rubbish", [b"", b"\n", b"\x00" * 1000, b"\xff\xfe{}\n" * 50, b"00000000 {}\n"])
def test_rubbish_begins_anew(path, rubbish):
    path.write_bytes(rubbish)
    assert entries(path) == []
    with pytest.raises(InterruptedError), journal(path, WORK) as opened:
        opened.add(1)
        raise InterruptedError
    assert entries(path) == [1]


def test_two_processes_do_not_write_to_one(path):
    with pytest.raises(InterruptedError), journal(path, WORK):
        with pytest.raises(UserError, match=r"another process is writing to .*folder"), journal(path, WORK):
            pass
        raise InterruptedError
    assert entries(path) == ENTRIES


def test_a_full_disk_is_one_sentence_and_what_was_written_stays(path):
    """A process that may not write larger files than the journal plus 100 bytes."""
    code = (
        "import resource, signal, sys, pathlib; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from moe_nmt.evaluation.resuming import journal; path = pathlib.Path(sys.argv[1]);"
        f"limit = path.stat().st_size + 100; resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit));"
        f"\nwith journal(path, {WORK!r}) as opened:\n    [opened.add('y' * 40) for _ in range(9)]"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert (
        ".journal cannot be written (No space left on device); make room, and the same command goes on." in done.stderr
    )
    assert entries(path) == [*ENTRIES, "y" * 40]


DIRECTION = Direction("eng", "deu")
INPUTS = [["test.bin", 10, 1]]


@pytest.fixture
def record(tmp_path):
    record = Record(tmp_path, WORK)
    record.file(DIRECTION).write_text("Hallo\n")
    record.add({DIRECTION: INPUTS})
    return record


def test_a_record_holds_what_is_done(record, tmp_path):
    assert record.holds(DIRECTION, INPUTS)
    assert Record(tmp_path, WORK).holds(DIRECTION, INPUTS)
    assert not record.holds(DIRECTION.reverse, INPUTS)


def test_a_record_does_not_hold_what_changed(record, tmp_path):
    assert not Record(tmp_path, WORK | {"options": {"beam": 5}}).holds(DIRECTION, INPUTS)
    assert not record.holds(DIRECTION, [["test.bin", 10, 2]])
    os.utime(record.file(DIRECTION), ns=(5, 5))
    assert not record.holds(DIRECTION, INPUTS)
    record.file(DIRECTION).unlink()
    assert not record.holds(DIRECTION, INPUTS)


@pytest.mark.parametrize("rubbish", ["", "[]", "{}", '{"work": 1, "directions": 2}', "\x00"])
def test_a_damaged_record_holds_nothing(record, tmp_path, rubbish):
    record.path.write_text(rubbish)
    assert not Record(tmp_path, WORK).holds(DIRECTION, INPUTS)


def test_facts_change_with_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("x")
    before = facts(path)
    path.write_text("xy")
    assert facts(path) != before
