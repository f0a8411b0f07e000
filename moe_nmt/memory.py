"""How a process treats the memory that it frees."""

from __future__ import annotations

import ctypes

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
