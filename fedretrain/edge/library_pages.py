"""Library code that only the start needed is unmapped once the agent serves: what is left is what an idle agent runs.

Rules of this file:
    * Only executable pages of files that nobody has written to: the kernel has them in its page cache, and maps a page again where
      it is needed. Nothing is read from the disk for that unless the kernel was short of memory meanwhile.
    * Only mappings that were there before a second thread could load a library: the loader writes to one that it is still making.
    * A saving and nothing else: where the system does not tell its mappings or has no such call, nothing happens.

The resident set falls by these pages, and they are the first that the kernel takes when memory is short. Until then it keeps
them, as free memory that remembers: nothing else on the machine shows the difference.

Source: madvise(2), https://man7.org/linux/man-pages/man2/madvise.2.html; proc_pid_smaps(5).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAPS, _SMAPS = Path("/proc/self/maps"), Path("/proc/self/smaps")
_CODE = "r-xp"
_MADV_DONTNEED = 4  # a private mapping of a file is filled from the file again when it is touched
_WRITTEN = ("Anonymous:", "Swap:")
"""Fields of smaps that count pages which differ from the file (relocations, a debugger's break points): forgetting them would be fatal."""


@dataclass(frozen=True)
class Mapping:
    """Code of a file in this process.

    Attributes:
        begin: First address.
        end: The first address behind it.
        file: Offset, device, inode and path, as the system prints them.
    """

    begin: int
    end: int
    file: str


def library_code() -> frozenset[Mapping]:
    """The code mapped now; empty where the system does not tell. To be asked while no thread can be loading a library."""
    try:
        with _MAPS.open() as lines:
            return frozenset(found for found in map(_code, lines) if found is not None)
    except OSError:
        return frozenset()


def forget(known: frozenset[Mapping]) -> int:
    """Unmap the pages of code that was mapped at an earlier time and is so still; how many mappings that was.

    Args:
        known: What `library_code` found then.
    """
    try:
        madvise = ctypes.CDLL(None).madvise
        with _SMAPS.open() as lines:
            clean = [one for one in unwritten(lines) if one in known]
    except (OSError, AttributeError):
        return 0
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return sum(madvise(one.begin, one.end - one.begin, _MADV_DONTNEED) == 0 for one in clean)


def unwritten(smaps: Iterable[str]) -> Iterator[Mapping]:
    """The code that is still the file's own, of lines as in ``/proc/PID/smaps``; none that does not say so."""
    found, clean = None, 0
    for line in smaps:
        field, _, rest = line.partition(" ")
        if not field.endswith(":"):
            found, clean = _code(line), 0
        elif field in _WRITTEN and rest.split()[0] == "0":
            clean += 1
            if clean == len(_WRITTEN) and found is not None:
                yield found


def _code(line: str) -> Mapping | None:
    """The mapping of a line as in ``/proc/PID/maps``; None if it is not code of a file."""
    addresses, rights, *file = line.split(maxsplit=5)
    if rights != _CODE or len(file) < 4 or not file[-1].startswith("/"):
        return None
    begin, end = (int(address, 16) for address in addresses.split("-"))
    return Mapping(begin, end, " ".join(file).strip())
