"""Only code that is still the file's own is unmapped, and it is there again when it is needed."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys

import pytest

from fedretrain.edge import library_pages
from fedretrain.edge.library_pages import Mapping, forget, library_code, unwritten

CODE = Mapping(0x1000, 0x3000, "00000000 fd:00 7 /usr/lib/a library.so")


def smaps(rights="r-xp", path="/usr/lib/a library.so", **fields):
    told = {"Size": 8, "Anonymous": 0, "Swap": 0} | fields
    lines = [f"1000-3000 {rights} 00000000 fd:00 7        {path}"]
    lines += [f"{name}:   {kib:8} kB" for name, kib in told.items() if kib is not None]
    return [f"{line}\n" for line in (*lines, "VmFlags: rd ex mr mw me")]


def test_code_that_nobody_wrote_to_is_found_once():
    assert list(unwritten(smaps())) == [CODE]
    assert list(unwritten(smaps(Anonymous=4) + smaps())) == [CODE]


@pytest.mark.parametrize(
    "other",
    [
        {"Anonymous": 4},
        {"Swap": 4},
        {"Anonymous": None},
        {"Swap": None},
        {"rights": "r--p"},
        {"rights": "rwxp"},
        {"path": ""},
        {"path": "[vdso]"},
    ],
    ids=str,
)
def test_nothing_else_is(other):
    assert list(unwritten(smaps(**other))) == []


class Page:
    """A page of a file, mapped as the loader maps code."""

    def __init__(self, path, written=b""):
        path.write_bytes(b"file" * (mmap.PAGESIZE // 4))
        with path.open("rb") as file:
            rights = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
            self.bytes = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=rights)
        self.bytes[: len(written)] = written
        held = ctypes.c_char.from_buffer(self.bytes)
        at, size = ctypes.c_void_p(ctypes.addressof(held)), ctypes.c_size_t(mmap.PAGESIZE)
        assert ctypes.CDLL(None).mprotect(at, size, mmap.PROT_READ | mmap.PROT_EXEC) == 0
        self.begin = at.value
        del held

    def known(self):
        return frozenset(one for one in library_code() if one.begin == self.begin)


def test_a_page_is_the_files_again_and_a_written_one_is_left(tmp_path):
    clean, relocated = Page(tmp_path / "clean"), Page(tmp_path / "relocated", b"at 7f00")
    assert len(clean.known()) == len(relocated.known()) == 1
    assert forget(clean.known() | relocated.known()) == 1
    assert clean.bytes[:8] == b"filefile"
    assert relocated.bytes[:8] == b"at 7f00e"


def test_what_was_not_there_before_is_left(tmp_path):
    known = library_code()
    late = Page(tmp_path / "late")
    assert late.known()
    assert not late.known() & known
    assert forget(frozenset()) == 0


def test_a_process_computes_on_with_less_in_memory():
    code = """
import os, sqlite3, numpy as np
from pathlib import Path
from fedretrain.edge.library_pages import forget, library_code

def of_files():
    return int(Path("/proc/self/statm").read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE") / 2**20

square = np.arange(9.0).reshape(3, 3) + np.eye(3)
before, first = of_files(), np.linalg.inv(square)
assert forget(library_code()) > 5
after = of_files()
assert (np.linalg.inv(square) == first).all()
assert sqlite3.connect(":memory:").execute("select 6 * 7").fetchone() == (42,)
print(before - after)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) > 4.0  # MiB


def test_nothing_happens_where_the_system_does_not_tell(monkeypatch, tmp_path):
    known = library_code()
    monkeypatch.setattr(library_pages, "_MAPS", tmp_path / "maps")
    monkeypatch.setattr(library_pages, "_SMAPS", tmp_path / "smaps")
    assert library_code() == frozenset()
    assert forget(known) == 0


def test_nothing_happens_where_the_call_is_refused(monkeypatch, tmp_path):
    page = Page(tmp_path / "page")
    monkeypatch.setattr(library_pages, "_MADV_DONTNEED", 9999)
    assert forget(page.known()) == 0


def test_nothing_happens_where_there_is_no_such_call(monkeypatch):
    monkeypatch.setattr(library_pages.ctypes, "CDLL", lambda _: object())
    assert forget(library_code()) == 0
