"""How a process treats the memory that it frees."""

from __future__ import annotations

import ctypes
import resource
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Of mallopt(3)."""


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next allocation, for the rest of the process.

    By default glibc returns every large block to the system at once. A training step then gets its activations and
    gradients as fresh pages, which the system fills with zeros one by one; on a CPU that takes longer than computing
    them. The price: memory that was needed once stays with the process, as with PyTorch's allocator for GPUs, and
    blocks of changing sizes leave gaps.

    Returns False, having done nothing, where the C library knows no `mallopt`.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_TOP_PAD, 64 << 20)])


def peak_memory() -> int:
    """Bytes of main memory that this process has held at most so far (resident).

    Of Linux's two answers the one that begins anew with each program: `getrusage` keeps the peak of the program that a
    process was before it became this one.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            kibibytes = next(line for line in status if line.startswith("VmHWM:")).split()[1]
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(kibibytes) * 1024
