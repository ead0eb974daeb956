"""Two coordinators at once, and a back-up of an earlier day: one decides, devices follow, a spent budget stays spent."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import time

import pytest

from fedretrain.server.coordinator import LEASE_S
from tests.plant_cases import DEVICES

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def test_a_leader_that_stood_still_does_not_decide_when_it_wakes(plant):
    """Its lease runs out, the other decides, and what the first one still wants to write is refused."""
    plant.reach("canary")
    name = plant.leader()
    other = {"first": "second", "second": "first"}[name]
    plant.processes[name].signal(signal.SIGSTOP)
    try:
        plant.until(lambda: plant.leader() == other, "the other leads", LEASE_S + 60.0)
        plant.desk.order("roll_back", "the test", "while the leader stands still")
        plant.until(lambda: plant.phase() != "canary", "the other has decided")
    finally:
        plant.processes[name].signal(signal.SIGCONT)
    plant.until(lambda: plant.serving() == {1: len(DEVICES)}, "every device is back on the champion")
    for _ in range(5):
        time.sleep(1.0)
        assert plant.leader() == other
    plant.check()


def test_two_that_start_at_once_have_one_leader(plant):
    plant.reach("idle")
    for name in ("first", "second"):
        plant.processes[name].end(signal.SIGTERM)
    for name in ("first", "second"):
        plant.processes[name].start()
    plant.until(lambda: plant.leader() != "", "somebody leads")
    name = plant.leader()
    begun = time.time()
    plant.until(lambda: plant.heard_since(begun), "every device is heard")
    assert plant.leader() == name
    plant.check()


def test_devices_follow_a_coordinator_whose_database_is_of_an_earlier_day(plant):
    """Devices have seen higher counters than the restored database knows; a rollback must reach them all the same."""
    plant.reach("idle")
    kept = plant.folder / "kept.db"
    with sqlite3.connect(plant.folder / "state" / "fedretrain.db") as live, sqlite3.connect(kept) as copy:
        live.backup(copy)
    plant.reach("canary")
    for name in ("first", "second"):
        plant.processes[name].end(signal.SIGTERM)
    plant.desk.log.engine.dispose()
    for old in (plant.folder / "state").glob("fedretrain.db*"):
        old.unlink()
    shutil.copy(kept, plant.folder / "state" / "fedretrain.db")
    del plant.__dict__["_desk"]
    for name in ("first", "second"):
        plant.processes[name].start()
    plant.until(lambda: plant.leader() != "", "somebody leads")
    plant.until(lambda: plant.serving() == {1: len(DEVICES)}, "every device follows it back to its champion")
    bare, plant.watcher.bare = plant.watcher.bare, []
    assert bare == []
    assert plant.watcher.num_answers > 0
