"""Clocks of processes that a test sets while they run: the wall clock alone, as somebody who sets a machine's does."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

_SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile double *offset_s;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = file < 0 ? MAP_FAILED : mmap(0, sizeof(double), PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) offset_s = page;
    if (file >= 0) close(file);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, clock, at);
    if (!failed && offset_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        at->tv_sec += (time_t)*offset_s;
    return failed;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class Clocks:
    """The wall clocks of named processes, each that of this machine until it is set.

    Args:
        folder: For files.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("setting a process's clock takes a C compiler")
        folder.mkdir()
        self._folder, self._library = folder, folder / "clock.so"
        source = folder / "clock.c"
        source.write_text(_SHIM)
        words = [compiler, "-O1", "-shared", "-fPIC", "-o", str(self._library), str(source)]
        subprocess.run(words, check=True, capture_output=True)

    def env(self, name: str) -> dict[str, str]:
        """What a process's environment needs."""
        path = self._folder / name
        if not path.exists():
            path.write_bytes(struct.pack("d", 0.0))
        return {"LD_PRELOAD": str(self._library), "TEST_CLOCK": str(path)}

    def set(self, name: str, by_s: float) -> None:
        """Whole seconds ahead of this machine's; below 0: behind."""
        with (self._folder / name).open("r+b") as file, mmap.mmap(file.fileno(), 8) as page:
            page[:8] = struct.pack("d", by_s)
