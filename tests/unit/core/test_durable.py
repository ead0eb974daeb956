"""Whole or absent: a write that is cut leaves the file as it was, and nothing beside it that has its name."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedretrain.core.durable import write_new, write_whole


class Cut(BaseException):
    """The machine stops here."""


def test_a_file_is_made_and_replaced(tmp_path):
    path = tmp_path / "head"
    for content in (b"first", b"", b"second"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert [one.name for one in tmp_path.iterdir()] == ["head"]


@pytest.mark.parametrize("call", ["fdopen", "fsync", "replace"])
@pytest.mark.parametrize("before", [None, b"before"])
def test_a_cut_leaves_it_as_it_was(tmp_path, monkeypatch, call, before):
    path = tmp_path / "head"
    if before is not None:
        path.write_bytes(before)

    def cut(*_args, **_kwargs):
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(os, call, cut)
        with pytest.raises(Cut):
            write_whole(path, b"after")
    assert (path.read_bytes() if path.exists() else None) == before
    assert len(list(tmp_path.iterdir())) == (before is not None)


def test_the_folder_is_synced_after_the_rename(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("replace"), replace(a, b)))
    write_whole(tmp_path / "head", b"x")
    assert steps == ["fsync", "replace", "fsync"]


def test_a_new_file_is_made_once_and_never_replaced(tmp_path):
    path = tmp_path / "key"
    assert write_new(path, b"first")
    assert not write_new(path, b"second")
    assert path.read_bytes() == b"first"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("call", ["fdopen", "fsync", "link"])
def test_a_cut_new_file_is_absent_and_can_be_made_again(tmp_path, monkeypatch, call):
    def cut(*_args, **_kwargs):
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(os, call, cut)
        with pytest.raises(Cut):
            write_new(tmp_path / "key", b"first")
    assert list(tmp_path.iterdir()) == []
    assert write_new(tmp_path / "key", b"second")


def test_of_many_that_make_one_file_one_does(tmp_path):
    path = tmp_path / "key"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: write_new(path, bytes([number])), range(32)))
    assert made.count(True) == 1
    assert path.read_bytes() == bytes([made.index(True)])
