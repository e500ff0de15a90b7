"""Keeping freed memory in the process: torch's CPU tensors come from malloc, which gives large blocks back to the system at once.

Every operation on a batch then faults its pages in again. Told to keep them, glibc makes a forward pass of a small model on
a large batch a quarter faster and more (`benchmarks/allocator.py`). Other C libraries have no such dial and are left alone.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Serve blocks below 1 GiB from memory that stays with the process; return whether the C library took the advice."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, KEPT_BYTES)) and bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES))
