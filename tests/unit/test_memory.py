"""What keep_freed_memory does, seen by the system's count of page faults; and the peak of a process."""

import subprocess
import sys

import pytest

from moe_nmt.memory import peak_memory

COUNT_FAULTS = """
import resource, torch
from moe_nmt.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
for _ in range(20):
    torch.zeros(1 << 24).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.zeros(1 << 24).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
    code = COUNT_FAULTS.format(keep=keep)
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
def test_freed_memory_comes_back_without_page_faults():
    pages = 10 * (4 << 24) // 4096
    assert faults(keep=False) > pages / 2
    assert faults(keep=True) < pages / 5


PEAK = """
from moe_nmt.memory import peak_memory
before = peak_memory()
del [bytearray(b"x" * {size})][:]
print(before, peak_memory())
"""


def test_the_peak_counts_what_was_freed_and_nothing_of_the_parent_process():
    size = 200_000_000
    ballast = bytearray(b"x" * size)
    command = [sys.executable, "-c", PEAK.format(size=size)]
    before, after = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert before < len(ballast) and size < after - before < 2.5 * size


@pytest.mark.skipif(sys.platform == "win32", reason="there is no getrusage")
def test_without_proc_the_peak_is_that_of_getrusage(monkeypatch):
    def refuse(*args, **options):
        raise FileNotFoundError

    by_proc = peak_memory()
    monkeypatch.setattr("builtins.open", refuse)
    assert by_proc * 0.9 <= peak_memory() < 100 * by_proc
