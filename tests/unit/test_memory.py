"""What keep_freed_memory does, seen by the system's count of page faults."""

import subprocess
import sys

import pytest

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
