"""Personal parameters survive a restart, belong to a version, and are never half of one state."""

from __future__ import annotations

import os

import numpy as np
import pytest

from fedretrain.core.errors import DataError
from fedretrain.edge.examples import Stream
from fedretrain.edge.personal import Personal, Standing, erase, file_of, load, save, state_of

STREAM = Stream("left/../pump", "vibration")


def state(level=1.0, base="sha256:a"):
    return Personal(
        {"head.weight": np.full((2, 3), level, np.float32), "head.bias": np.zeros(2, np.float32)}, base, 12.25
    )


def test_what_was_saved_is_restored(tmp_path):
    assert load(tmp_path, STREAM) is None
    save(tmp_path, STREAM, state())
    save(tmp_path, STREAM, state(2.0, "sha256:b"))
    again = load(tmp_path, STREAM)
    assert (again.base, again.fitted_at) == ("sha256:b", 12.25)
    assert {name: leaf.tolist() for name, leaf in again.params.items()} == {
        "head.weight": [[2.0] * 3] * 2,
        "head.bias": [0.0, 0.0],
    }
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cut_leaves_the_old_state(tmp_path, monkeypatch):
    save(tmp_path, STREAM, state(1.0))

    def cut(*_):
        raise OSError("no power")

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(OSError, match="no power"):
        save(tmp_path, STREAM, state(2.0))
    assert load(tmp_path, STREAM).params["head.weight"][0, 0] == 1.0


@pytest.mark.parametrize("at", [3, 60, -3])
def test_damage_is_named(tmp_path, at):
    save(tmp_path, STREAM, state())
    path = file_of(tmp_path, STREAM)
    content = bytearray(path.read_bytes())
    content[at] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged .*personal-"):
        load(tmp_path, STREAM)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged"):
        load(tmp_path, STREAM)


def test_another_streams_file_is_refused(tmp_path):
    save(tmp_path, STREAM, state())
    other = Stream("right", "vibration")
    file_of(tmp_path, STREAM).rename(file_of(tmp_path, other))
    with pytest.raises(DataError, match="parameters of left"):
        load(tmp_path, other)


def test_streams_have_files_of_their_own(tmp_path):
    streams = [Stream("a", "bc"), Stream("ab", "c"), Stream("a/b", "c"), Stream("a", "b/c")]
    assert len({file_of(tmp_path, stream) for stream in streams}) == 4
    assert {file_of(tmp_path, stream).parent for stream in streams} == {tmp_path}


def test_how_old_a_base_may_be():
    bases = ["a", "b", "c", "d"]
    assert state_of("d", bases, 2) is Standing.CURRENT
    assert state_of("c", bases, 2) is state_of("b", bases, 2) is Standing.BEHIND
    assert state_of("a", bases, 2) is Standing.TOO_OLD
    assert state_of("x", bases, 2) is Standing.TOO_OLD
    assert state_of("a", ["a", "b", "a"], 0) is Standing.CURRENT, "a base that came back"


def test_erased_parameters_are_overwritten_before_they_are_removed(tmp_path):
    save(tmp_path, STREAM, state())
    twin = tmp_path / "twin"
    os.link(file_of(tmp_path, STREAM), twin)  # shows what the same blocks hold now
    erase(tmp_path, STREAM)
    assert load(tmp_path, STREAM) is None
    assert not any(twin.read_bytes())
    erase(tmp_path, STREAM)
