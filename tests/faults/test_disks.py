"""Disks that are full, the coordinator's and the device's: what is served goes on, and nothing is lost."""

from __future__ import annotations

import subprocess
import time

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def _can_mount() -> bool:
    """Whether this user may mount a small disk of its own."""
    words = ["unshare", "--mount", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"]
    try:
        return subprocess.run(words, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


CAN_MOUNT = _can_mount()
OPTIONS = {"small": {"state": "96m", "edge": "96m"}} if CAN_MOUNT else {}


def _fill(folder):
    """A file that takes every byte that is left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1 << 9, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


@pytest.mark.skipif(not CAN_MOUNT, reason="mounting a small disk needs a right that this user does not have")
@pytest.mark.parametrize("whose", ["state", "edge"], ids=["coordinator", "agent"])
def test_a_full_disk_keeps_nobody_from_being_served(plant, whose):
    plant.reach("idle")
    filler = _fill(plant.folder / whose)
    before = plant.watcher.num_answers
    try:
        time.sleep(8.0)
        assert plant.watcher.num_answers > before + 20
    finally:
        filler.unlink()
    free_at = time.time()
    plant.until(lambda: plant.heard_since(free_at), "every device is heard")
    plant.until(lambda: plant.leader() != "", "somebody leads")
    plant.check()
