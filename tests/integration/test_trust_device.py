"""What a device stores of the signed list, asks for, and does when its disk or its network fails."""

from __future__ import annotations

import pytest

from fedretrain.artifacts.trust import client as client_module
from fedretrain.artifacts.trust.repository import Lifetimes
from fedretrain.artifacts.trust.words import MAX_BYTES, Block, TrustError
from fedretrain.core.errors import DataError
from tests.trust_cases import DAY, HOUR, NOW, TrustWorld, block_of, target

LATER = NOW + HOUR


@pytest.fixture
def world(tmp_path):
    world = TrustWorld(tmp_path)
    world.client.refresh(NOW)
    return world


def test_only_known_names_are_asked_for_and_no_more_than_a_file_may_have(world):
    names = [name for name, _ in world.asked]
    assert names == ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"]
    for name, max_bytes in world.asked:
        assert 0 < max_bytes <= MAX_BYTES[name.split(".")[-2]]


@pytest.mark.parametrize(
    "name",
    [
        "../keys/online/targets.pem",
        "/etc/passwd",
        "timestamp.json/..",
        ".lock",
        "",
        None,
        "0.root.json",
        "1.root.json\n",
        "root.json",
    ],
)
def test_the_repository_gives_no_other_file(world, name):
    with pytest.raises(DataError, match="not a file of a trust repository"):
        world.repository.read(name)


def test_after_a_restart_without_a_network_the_stored_list_counts(world):
    restarted = world.new_client("device")
    assert block_of(world.installs, 1, NOW, restarted) is Block.NEVER_REFRESHED
    world.asked.clear()
    restarted.recall(LATER)
    assert world.asked == []
    assert world.installs(1, LATER, restarted) == target(1)
    assert block_of(restarted.recall, NOW + DAY) is Block.EXPIRED


def test_a_new_device_has_nothing_to_recall(world):
    assert block_of(world.new_client("fresh").recall, NOW) is Block.NEVER_REFRESHED


@pytest.mark.parametrize(
    "name", ["timestamp.json", "snapshot.json", "targets.json", "root_history/1.root.json"]
)
def test_a_stored_file_that_a_cut_emptied_is_fetched_again(world, name):
    (world.folder / "device" / name).write_bytes(b"")
    restarted = world.new_client("device")
    restarted.refresh(NOW)
    assert world.installs(1, NOW, restarted) == target(1)


def test_a_stored_list_that_somebody_edited_is_not_recalled(world):
    path = world.folder / "device" / "targets.json"
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":7'))
    assert block_of(world.new_client("device").recall, NOW) is Block.MISMATCH


@pytest.mark.parametrize("role", ["snapshot", "targets", "root"])
def test_whatever_expires_first_blocks(tmp_path, role):
    long = {"targets_s": 400 * DAY, "snapshot_s": 400 * DAY, "timestamp_s": 400 * DAY}
    lifetimes = Lifetimes(**{key: DAY if key == f"{role}_s" else value for key, value in long.items()})
    world = TrustWorld(tmp_path, lifetimes)
    world.client.refresh(NOW)
    end = NOW + (365 * DAY if role == "root" else DAY)
    assert world.installs(1, end - 1) == target(1)
    with pytest.raises(TrustError, match=f"{role} expired") as caught:
        world.installs(1, end)
    assert caught.value.block is Block.EXPIRED


def test_what_is_known_is_not_written_again(world):
    files = [path for path in (world.folder / "device").rglob("*") if path.is_file()]
    before = {path: path.stat().st_ino for path in files}
    assert len(before) == 4
    world.new_client("device").refresh(NOW)
    assert {path: path.stat().st_ino for path in files} == before


def test_a_device_with_a_full_disk_keeps_its_list(world, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    world.repository.publish([target(2)], LATER)
    with monkeypatch.context() as patch:
        patch.setattr(client_module, "write_whole", full)
        assert block_of(world.client.refresh, LATER) is Block.STORAGE
    assert world.installs(1, LATER) == target(1)
    assert world.installs(2, LATER) is None
    world.client.refresh(LATER)
    assert world.installs(2, LATER) == target(2)


def test_a_device_folder_that_cannot_be_made_is_one_line(world):
    (world.folder / "file").write_bytes(b"")
    assert block_of(world.new_client, "file/deep") is Block.STORAGE
