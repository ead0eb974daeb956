"""Disks that lose a bit, under the real processes: what is damaged is refused, named and mended, and a model is served all the while."""

from __future__ import annotations

import signal
import sqlite3
import time
from contextlib import closing

import numpy as np
import pytest

from fedretrain.artifacts.package import read_manifest
from fedretrain.artifacts.weights import encode_params
from fedretrain.server import alerts, fleet
from fedretrain.server.database import reading
from tests.plant_cases import DEVICES, OPERATOR, POPULATION, Plant
from tests.proxy_cases import Fault, Proxy

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
PAGE_BYTES = 4096


@pytest.fixture(scope="module")
def proxy():
    made = Proxy()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def plant(tmp_path_factory, proxy):
    made = Plant(tmp_path_factory.mktemp("plant"), proxy=proxy)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def rot(path):
    """One bit in the middle of a file; what it was before."""
    before = path.read_bytes()
    content = bytearray(before)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return before


def proposed_behind_a_cut(plant, proxy, by):
    """A candidate with weights of its own that is in shadow before any device could fetch it; its manifest."""
    plant.reach("idle")
    proxy.set(Fault.DROP)
    weights = {name: leaf + np.float32(by) for name, leaf in plant.desk.models.package(1).weights.items()}
    plant.desk.propose(encode_params(weights), OPERATOR, "slightly other weights")
    plant.until(lambda: plant.phase() == "shadow", "shadow")
    digest = plant.desk.models.versions.package_of(plant.candidate())
    return read_manifest(plant.desk.models.stores.packages, digest)


def shadowing(plant):
    """How many devices say that they score the candidate."""
    candidate = plant.desk.models.versions.package_of(plant.candidate())
    with reading(plant.desk.log.engine) as connection:
        return sum(one.heartbeat["shadows"] == candidate for one in fleet.everybody(connection, POPULATION))


def test_a_delta_that_rotted_on_the_server_gives_way_to_the_full_file(plant, proxy):
    manifest = proposed_behind_a_cut(plant, proxy, 0.001)
    stored = plant.folder / "state" / "packages" / manifest.delta.digest
    before = rot(stored)
    proxy.set(Fault.NONE)
    plant.until(lambda: shadowing(plant) == len(DEVICES), "every device scores the candidate")
    assert any(manifest.delta.digest in one for one in plant.desk.verify()["wrong"])
    stored.write_bytes(before)
    plant.check()


def test_weights_that_rotted_on_the_server_reach_no_device_and_are_named(plant, proxy):
    """And once the file is whole again the rollout goes on."""
    manifest = proposed_behind_a_cut(plant, proxy, 0.002)
    stored = [
        plant.folder / "state" / "packages" / blob.digest for blob in (manifest.delta, manifest.weights)
    ]
    before = [rot(path) for path in stored]
    proxy.set(Fault.NONE)
    begun = time.time()
    plant.until(lambda: plant.heard_since(begun), "every device is heard")
    time.sleep(3.0)
    assert shadowing(plant) == 0
    assert plant.serving() == {1: len(DEVICES)}
    wrong = plant.desk.verify()["wrong"]
    assert all(any(path.name in one for one in wrong) for path in stored)
    told = "".join((plant.folder / f"{name}.log").read_text() for name in ("first", "second"))
    assert manifest.weights.digest in told
    for path, content in zip(stored, before, strict=True):
        path.write_bytes(content)
    plant.until(lambda: shadowing(plant) == len(DEVICES), "every device scores the candidate")
    plant.check()


def test_a_slot_that_rotted_on_a_device_gives_way_is_told_and_mended(plant):
    """While the agent was off, on a device that serves the candidate: the first answer is a model's."""
    plant.reach("canary")
    candidate = plant.candidate()
    name = next(one["device"] for one in plant.desk.devices() if one["serves"] == candidate)
    package = plant.desk.models.versions.package_of(candidate)
    manifest = read_manifest(plant.desk.models.stores.packages, package)
    plant.kill("agent")
    rot(plant.folder / "edge" / name / "models" / "content" / manifest.weights.digest)
    plant.revive("agent")
    plant.until(
        lambda: next(one for one in plant.desk.devices() if one["device"] == name)["serves"] == candidate,
        "the slot was fetched again",
    )
    plant.until(lambda: told(plant, name) == [("slot_damaged", package)], "a person is told")
    plant.check()


def told(plant, device):
    """What a device wanted a person to know."""
    found = alerts.newest(plant.desk.log, POPULATION, 100)
    return [(one["alert"], one["package"]) for one in found if one["device"] == device]


def test_a_page_of_an_agents_database_that_rotted_is_set_aside_and_told(plant):
    """All that was sent stays counted, and nothing of it twice; the device counts on."""
    plant.reach("idle")
    name = DEVICES[-1]
    plant.watcher.is_expected.clear()
    plant.until(lambda: plant.made() == plant.counted(), "all that was predicted has counted")
    plant.forgotten = {key: count for key, count in plant.counted().items() if key[0] == name}
    plant.kill("agent")
    path = plant.folder / "edge" / name / "agent.db"
    for log in path.parent.glob("agent.db-*"):
        log.unlink()
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // PAGE_BYTES * PAGE_BYTES
    content[middle : middle + PAGE_BYTES] = bytes(range(256)) * (PAGE_BYTES // 256)
    path.write_bytes(content)
    plant.revive("agent")
    assert plant.serving() == {1: len(DEVICES)}
    plant.until(lambda: told(plant, name)[-1:] == [("database_set_aside", "")], "a person is told")
    (aside,) = path.parent.glob("agent.db.damaged-*")
    assert aside.read_bytes() == content
    plant.check()


def start_again(plant):
    """Both coordinators; devices that found nobody for a while come back in their own time."""
    begun = time.time()
    for name in ("first", "second"):
        plant.processes[name].start()
    plant.until(lambda: plant.leader() != "", "somebody leads")
    plant.until(lambda: plant.heard_since(begun), "every device is heard", 400.0)


def test_a_page_of_the_coordinators_database_that_rotted_keeps_it_from_starting_and_devices_serve(plant):
    """What it says is what to do: with the back-up in its place everything goes on, and devices' records count once."""
    plant.reach("idle")
    database = plant.folder / "state" / "fedretrain.db"
    for name in ("first", "second"):
        plant.processes[name].end(signal.SIGTERM)
    plant.desk.log.engine.dispose()
    kept = plant.folder / "kept.db"
    with closing(sqlite3.connect(database)) as live, closing(sqlite3.connect(kept)) as copy:
        live.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        live.backup(copy)
    content = bytearray(database.read_bytes())
    content[-PAGE_BYTES:] = bytes(PAGE_BYTES)
    database.write_bytes(content)
    before = plant.watcher.num_answers
    for name in ("first", "second"):
        plant.processes[name].start()
    for name in ("first", "second"):
        assert plant.processes[name].running.wait(60) == 2
        last = (plant.folder / f"{name}.log").read_text().splitlines()[-1]
        assert "the database is damaged" in last
        assert str(database) in last
        assert "back-up" in last
    assert database.read_bytes() == content
    plant.until(lambda: plant.watcher.num_answers > before + 20, "devices serve on")
    for log in database.parent.glob("fedretrain.db-*"):
        log.unlink()
    kept.replace(database)
    del plant.__dict__["_desk"]
    start_again(plant)
    plant.check()


def test_damage_that_running_coordinators_meet_ends_them_by_name_and_devices_serve(plant):
    plant.reach("idle")
    database = plant.folder / "state" / "fedretrain.db"
    kept = plant.folder / "before.db"
    with closing(sqlite3.connect(database)) as live, closing(sqlite3.connect(kept)) as copy:
        live.backup(copy)
        live.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # or their log would hide the file's pages
    num_pages = database.stat().st_size // PAGE_BYTES
    with database.open("r+b") as file:  # all but the first page, under the feet of both
        file.seek(PAGE_BYTES)
        file.write(bytes((num_pages - 1) * PAGE_BYTES))
    before = plant.watcher.num_answers
    for name in ("first", "second"):
        process = plant.processes[name]
        plant.until(lambda process=process: not process.is_alive, f"{name} has ended", 60.0)
        assert process.running.returncode == 2
        assert "the database is damaged" in (plant.folder / f"{name}.log").read_text().splitlines()[-1]
    plant.until(lambda: plant.watcher.num_answers > before + 20, "devices serve on")
    bare, plant.watcher.bare = plant.watcher.bare, []
    assert bare == []
    plant.__dict__.pop("_desk").log.engine.dispose()
    for log in database.parent.glob("fedretrain.db-*"):
        log.unlink()
    kept.replace(database)
    start_again(plant)
