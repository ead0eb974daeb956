"""Whole or absent: a write that is cut leaves the file as it was, and nothing beside it that has its name."""

from __future__ import annotations

import os

import pytest

from fedretrain.core.durable import write_whole


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
