"""What a process does for the speed of small models: it keeps freed memory, and computes on one thread.

Rules of this file:
    * A speed measure and nothing else: where the C library is not glibc, nothing happens.
    * Bounded: at most `_KEPT_BYTES` of freed memory stay with the process.
    * The number of torch's threads is put back after each block: it is the caller's.

Each block of clients allocates and frees the same few tensors. By default glibc gives such memory back to the system and
asks for it again, and the system zeroes every page anew: 6 to 8 % of the time of a small model's block. The products of a block are too small to be worth a second thread: on a busy machine
threads that wait for each other by spinning took ten times the CPU time. Parallelism comes from processes (Ray).
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread inside."""
    before = torch.get_num_threads()
    if before != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)
