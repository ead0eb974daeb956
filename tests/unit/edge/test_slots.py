"""Model slots: whatever is cut, spoilt, full or lost, the device serves a version that passed its vectors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedretrain.artifacts.delta import release
from fedretrain.artifacts.encryption import EncryptedStore
from fedretrain.core.errors import DataError
from fedretrain.edge.slots import CONTENT, COPY, POINTER, Slots
from tests.slot_cases import fingerprint, serve, write

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def server(tmp_path):
    return serve(tmp_path / "server")


@pytest.fixture
def slots(tmp_path):
    return Slots(tmp_path / "device")


def reopened(slots):
    return Slots(slots._folder)


def install(slots, server, *indices):
    for index in indices:
        slots.stage(server.versions[index], server)
        slots.activate(server.versions[index])


def serving(slots):
    package = slots.current()
    return None if package is None else package.digest


def spoil(slots, blob):
    path = slots._folder / CONTENT / (blob if isinstance(blob, str) else blob.digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_a_new_device_serves_nothing(slots):
    assert slots.current() is None
    assert slots.rollback() is None
    assert slots.state.held == ()


def test_a_candidate_is_not_served_until_it_is_activated(slots, server):
    install(slots, server, 0)
    slots.stage(server.versions[1], server)
    assert slots.state.candidate == server.versions[1]
    assert serving(slots) == serving(reopened(slots)) == server.versions[0]
    assert slots.activate(server.versions[1]).digest == server.versions[1]
    assert serving(slots) == serving(reopened(slots)) == server.versions[1]
    assert slots.state.previous == (server.versions[0],)


def test_a_first_version_comes_in_full_and_the_next_as_a_delta(slots, server):
    first, second = server.manifest(0), server.manifest(1)
    staged = slots.stage(server.versions[0], server)
    assert not staged.by_delta
    assert first.weights.digest in server.asked
    assert first.report.digest not in server.asked
    assert staged.fetched_bytes == sum(len(server.store.get(digest)) for digest in server.asked)
    slots.activate(server.versions[0])
    server.asked.clear()
    staged = slots.stage(server.versions[1], server)
    assert staged.by_delta
    assert second.delta.digest in server.asked
    assert second.weights.digest not in server.asked
    assert second.graph.digest not in server.asked  # it is the first one's
    assert (
        staged.fetched_bytes < second.weights.size_bytes + len(second.to_bytes()) + second.sanity.size_bytes
    )
    assert slots.activate(server.versions[1]).weights.keys() == {"head.weight", "head.bias"}


def test_a_delta_that_is_spoilt_gives_way_to_the_full_file(slots, server):
    install(slots, server, 0)
    server.spoil(server.manifest(1).delta)
    staged = slots.stage(server.versions[1], server)
    assert not staged.by_delta
    assert server.manifest(1).weights.digest in server.asked
    assert slots.activate(server.versions[1]).digest == server.versions[1]


def test_a_base_that_rotted_gives_way_to_the_full_file(slots, server):
    install(slots, server, 0)
    spoil(slots, server.manifest(0).weights)
    assert not slots.stage(server.versions[1], server).by_delta
    assert slots.activate(server.versions[1]).digest == server.versions[1]


def test_without_the_base_the_full_file_is_fetched(slots, server):
    assert not slots.stage(server.versions[2], server).by_delta


@pytest.mark.parametrize("part", ["weights", "graph", "pipeline", "sanity", "baseline"])
def test_a_spoilt_file_is_never_a_candidate_and_the_rest_is_not_fetched_again(slots, server, part):
    blob = getattr(server.manifest(0), part)
    server.spoil(blob)
    with pytest.raises(DataError, match=blob.digest):
        slots.stage(server.versions[0], server)
    assert slots.state.held == ()
    server.spoilt.clear()
    asked = set(server.asked)
    server.asked.clear()
    slots.stage(server.versions[0], server)
    assert set(server.asked) & asked == {blob.digest}
    assert slots.activate(server.versions[0]).digest == server.versions[0]


def test_a_spoilt_or_foreign_manifest_is_refused(slots, server):
    version = server.versions[0]
    for content in (b"", b"{}", server.store.get(version) + b" ", server.store.get(server.versions[1])):
        server.spoilt[version] = content
        with pytest.raises(DataError):
            slots.stage(version, server)
    assert slots.state.held == ()
    with pytest.raises(DataError, match="digest"):
        slots.stage("../manifest", server)


def test_what_the_network_raises_comes_through_and_nothing_changes(slots, server):
    install(slots, server, 0)

    def offline(_digest):
        raise ConnectionError("no route")

    with pytest.raises(ConnectionError):
        slots.stage(server.versions[1], offline)
    assert serving(slots) == server.versions[0]


def test_a_version_that_fails_its_vectors_here_is_marked_bad(slots, server):
    wrong = release(None, {"head.weight": np.ones((3, 60), np.float32), "head.bias": np.zeros(3, np.float32)})
    answers = np.tile([[0.1, 0.2, 0.7]], (4, 1))
    version = write(server.store, wrong, 9, outputs=answers)
    install(slots, server, 0)
    with pytest.raises(DataError, match="4 sanity vectors"):
        slots.stage(version, server)
    assert slots.state.candidate == ""
    assert "sanity vectors" in reopened(slots).state.why_bad(version)
    server.asked.clear()
    with pytest.raises(DataError, match="not installed"):
        slots.stage(version, server)
    assert server.asked == []  # it is refused before anything is fetched
    assert serving(slots) == server.versions[0]


def test_going_back_and_a_bad_version_that_stays_out(slots, server):
    install(slots, server, 0, 1)
    slots.mark_bad(server.versions[1], "it burns")
    assert slots.rollback().digest == server.versions[0]
    for one in (slots, reopened(slots)):
        assert serving(one) == server.versions[0]
        for call in (one.stage, lambda digest, _fetch, of=one: of.activate(digest)):
            with pytest.raises(DataError, match="it burns"):
                call(server.versions[1], server)
    slots.forgive(server.versions[1])
    install(slots, server, 1)
    assert serving(slots) == server.versions[1]


def test_nothing_to_go_back_to_changes_nothing(slots, server):
    install(slots, server, 0)
    before = slots.state
    assert slots.rollback() is None
    assert slots.state == before
    assert serving(slots) == server.versions[0]
    slots.mark_bad(server.versions[0], "it burns")
    assert slots.rollback() is None
    assert slots.current() is None  # the agent serves its rules


def test_going_back_passes_over_what_rotted(slots, server):
    install(slots, server, 0, 1, 2)
    spoil(slots, server.manifest(1).weights)
    assert slots.rollback().digest == server.versions[0]
    assert serving(reopened(slots)) == server.versions[0]


@pytest.mark.parametrize("part", ["weights", "sanity", "manifest"])
@pytest.mark.parametrize("damage", ["rotted", "gone"])
def test_a_current_version_that_lost_a_file_gives_way_to_the_one_before(slots, server, part, damage):
    install(slots, server, 1, 2)
    name = server.versions[2] if part == "manifest" else getattr(server.manifest(2), part).digest
    if damage == "rotted":
        spoil(slots, name)
    else:
        (slots._folder / CONTENT / name).unlink()
    assert serving(slots) == server.versions[1]
    assert slots.state.why_bad(server.versions[2]) == ""  # a bad copy is no bad version
    install(slots, server, 2)
    assert serving(reopened(slots)) == server.versions[2]


def test_a_file_that_all_versions_share_is_mended_by_staging_again(slots, server):
    install(slots, server, 1, 2)
    spoil(slots, server.manifest(2).graph)
    assert slots.current() is None
    server.asked.clear()
    slots.stage(server.versions[2], server)
    assert server.asked == [server.manifest(2).graph.digest]
    assert serving(slots) == server.versions[2]


def test_a_pointer_that_names_a_missing_slot(slots, server):
    install(slots, server, 0, 1)
    for path in (slots._folder / CONTENT).iterdir():
        path.unlink()
    assert reopened(slots).current() is None
    install(reopened(slots), server, 1)
    assert serving(reopened(slots)) == server.versions[1]


def test_a_pointer_that_rotted_is_read_from_its_copy(slots, server):
    install(slots, server, 0, 1)
    (slots._folder / POINTER).write_bytes(b'{"format": 1}')
    assert reopened(slots).state == slots.state
    (slots._folder / POINTER).unlink()
    assert serving(reopened(slots)) == server.versions[1]
    (slots._folder / COPY).write_bytes(b"")
    assert reopened(slots).state.held == ()


def test_a_pointer_that_cannot_be_read_is_an_error_and_not_a_new_device(slots, server):
    install(slots, server, 0)
    (slots._folder / POINTER).unlink()
    (slots._folder / POINTER).mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        reopened(slots)


def test_the_last_good_ones_are_kept_and_no_more(tmp_path):
    server = serve(tmp_path / "server", 5)
    slots = Slots(tmp_path / "device", keep=2)
    install(slots, server, 0, 1, 2, 3, 4)
    assert slots.state.held == tuple(server.versions[i] for i in (4, 3, 2))
    files = {path.name for path in (slots._folder / CONTENT).iterdir()}
    assert {server.manifest(i).weights.digest for i in (2, 3, 4)} <= files
    assert not {server.versions[0], server.versions[1], server.manifest(0).weights.digest} & files
    assert (
        slots.activate(server.versions[2]).digest == server.versions[2]
    )  # verified before, so it needs no server
    assert slots.state.held == tuple(server.versions[i] for i in (2, 4, 3))
    with pytest.raises(DataError, match="not on this device"):
        slots.activate(server.versions[0])


def test_what_cut_writes_left_is_removed(slots, server):
    install(slots, server, 0)
    for folder in (slots._folder, slots._folder / CONTENT):
        (folder / ".new-abc").write_bytes(b"half")
    install(slots, server, 1)
    assert list(slots._folder.rglob(".new-*")) == []


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made"):
        Slots(tmp_path / "file")


def test_a_keep_of_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="too few"):
        Slots(tmp_path, keep=0)


def test_files_may_be_encrypted_and_another_key_opens_none(tmp_path, server):
    def slots(key):
        return Slots(
            tmp_path / "device", store=EncryptedStore(tmp_path / "device" / "sealed", bytes([key] * 32))
        )

    install(slots(1), server, 0, 1)
    assert serving(slots(1)) == server.versions[1]
    weights = server.store.get(server.manifest(1).weights.digest)
    assert all(weights not in path.read_bytes() for path in (tmp_path / "device" / "sealed").iterdir())
    assert slots(2).current() is None


class Full:
    """A disk that is full from its n-th write on."""

    def __init__(self, patch, at):
        self.count, self.at = 0, at
        for name in ("fsync", "replace"):
            real = getattr(os, name)
            patch.setattr(os, name, lambda *args, real=real: self(real, *args))

    def __call__(self, real, *args):
        self.count += 1
        if self.count >= self.at:
            raise OSError(28, "No space left on device")
        return real(*args)


def test_a_disk_that_is_full_at_any_write_leaves_what_was_served(slots, server, monkeypatch):
    install(slots, server, 0)
    refused, at = 0, 0
    while True:
        at += 1
        with monkeypatch.context() as patch:
            full = Full(patch, at)
            try:
                install(slots, server, 1)
            except DataError as error:
                assert "No space left" in str(error)  # noqa: PT017 - the last round does not raise
                refused += 1
            found = serving(slots)
            assert found in server.versions[:2]
        assert serving(reopened(slots)) == found
        if full.count < at:
            break
        if found == server.versions[1]:
            slots.mark_bad(server.versions[1], "to begin again")
            slots.rollback()
            slots.forgive(server.versions[1])
    assert refused >= 8  # manifest, weights, vectors, pointer
    assert serving(slots) == server.versions[1]


def test_a_full_disk_keeps_nobody_from_going_back(slots, server, monkeypatch):
    install(slots, server, 0, 1)
    with monkeypatch.context() as patch:
        Full(patch, 1)
        slots.mark_bad(server.versions[1], "it burns")
        assert slots.rollback().digest == server.versions[0]
        assert slots.unsaved
        assert serving(slots) == server.versions[0]
    slots.mark_bad(server.versions[1], "it burns")
    assert not slots.unsaved
    assert serving(reopened(slots)) == server.versions[0]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("scenario", "before", "after"), [("first", None, 0), ("install", 0, 1), ("back", 1, 0)]
)
def test_a_device_that_is_killed_at_any_instant_has_a_working_slot(tmp_path, server, scenario, before, after):
    command = [sys.executable, "-m", "tests.slot_cutter", scenario, server.store._root, tmp_path / "work"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "OPENBLAS_NUM_THREADS": "1",
    }
    answer = subprocess.run(
        [*map(str, command), *server.versions],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert answer.returncode == 0, answer.stderr
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    old, new = (None if index is None else server.versions[index] for index in (before, after))
    for mode in (False, True):
        ours = [line for line in lines if line["after"] is mode]
        assert [line["killed"] for line in ours] == [True] * (len(ours) - 1) + [False]
        assert len(ours) > 10
        found = [line["found"] for line in ours]
        switched = found.index(new)  # at one instant, and never back
        assert found == [old] * switched + [new] * (len(found) - switched)
        assert switched > 0
    for line in lines:
        assert line["again"] == new
        assert new in line["held"]
        assert scenario == "back" or line["hidden"] == []  # the next install removes what a cut left


def test_files_are_written_before_the_pointer_that_needs_them(slots, server, monkeypatch):
    install(slots, server, 0)
    names, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (names.append(Path(b).name), replace(a, b)))
    slots.stage(server.versions[1], server)
    assert names[-2:] == [POINTER, COPY]
    assert not {POINTER, COPY} & set(names[:-2])
    before = fingerprint(slots._folder / CONTENT)
    names.clear()
    slots.activate(server.versions[1])
    assert names == [POINTER, COPY]
    assert fingerprint(slots._folder / CONTENT) == before
