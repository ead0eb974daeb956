"""Keeping freed memory for the next block.

Rules of this file:
    * A speed measure and nothing else: where the C library is not glibc, nothing happens.
    * Bounded: at most `_KEPT_BYTES` of freed memory stay with the process.

Each block of clients allocates and frees the same few tensors. By default glibc gives such memory back to the system and
asks for it again, and the system zeroes every page anew: 6 to 8 % of the time of a small model's block.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT_BYTES = 128 * 2**20
_LARGEST_BYTES = 32 * 2**20  # the most that glibc accepts; larger tensors are still returned at once


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next block; True if it does."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
