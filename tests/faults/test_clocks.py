"""Clocks that are set while processes run: a day ahead and back, on the coordinator and on a device, and a device that starts in 1970."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import select

from fedretrain.core.clock import DAY_S
from fedretrain.server.database import reading
from fedretrain.server.tables import telemetry
from fedretrain.wire.v1 import fleet_pb2 as pb
from tests.clock_cases import Clocks
from tests.plant_cases import DEVICES, SLOT_S, Plant

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
NAMES = ("first", "second", "agent")
WRONG_S = 8.0
NEAR_S = 600.0


@pytest.fixture(scope="module")
def clocks(tmp_path_factory):
    return Clocks(tmp_path_factory.mktemp("clocks") / "shim")


@pytest.fixture(scope="module")
def plant(tmp_path_factory, clocks):
    env = {name: clocks.env(name) for name in NAMES}
    made = Plant(tmp_path_factory.mktemp("plant"), env=env)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("by_s", [DAY_S, -DAY_S], ids=["ahead", "behind"])
def test_a_coordinators_clock_that_is_a_day_off_for_a_moment_moves_nothing(plant, clocks, by_s):
    """Neither rollouts nor leases nor what devices hold for the time."""
    plant.reach("shadow")
    candidate, leader = plant.candidate(), plant.leader()
    for name in ("first", "second"):
        clocks.set(name, by_s)
    time.sleep(WRONG_S)
    assert plant.leader() == leader
    assert plant.phase() in ("shadow", "canary")
    for name in ("first", "second"):
        clocks.set(name, 0.0)
    assert "the machine's clock was set by" in (plant.folder / f"{leader}.log").read_text()
    plant.until(lambda: plant.phase() == "canary", "the rollout goes on", 120.0)
    assert plant.candidate() == candidate
    plant.check()
    assert all(abs(at - time.time()) < NEAR_S for at in slots(plant))


@pytest.mark.parametrize("by_s", [DAY_S, -DAY_S], ids=["ahead", "behind"])
def test_a_devices_clock_that_is_a_day_off_counts_in_the_right_slots(plant, clocks, by_s):
    plant.reach("idle")
    clocks.set("agent", by_s)
    time.sleep(WRONG_S)
    clocks.set("agent", 0.0)
    plant.check()
    assert all(abs(at - time.time()) < NEAR_S for at in slots(plant))


def test_a_device_that_starts_in_1970_serves_and_counts_in_the_right_slots(plant, clocks):
    plant.reach("idle")
    plant.kill("agent")
    clocks.set("agent", -float(int(time.time())))
    plant.processes["agent"].start()
    plant.until(plant._answers, "the agent answers again")
    plant.watcher.is_expected.set()
    time.sleep(WRONG_S)
    assert "\n1970-01-01" in (plant.folder / "agent.log").read_text()
    clocks.set("agent", 0.0)
    begun = time.time()
    plant.until(lambda: plant.heard_since(begun), "every device is heard again")
    plant.check()
    assert plant.serving() == {1: len(DEVICES)}
    assert all(abs(at - time.time()) < NEAR_S for at in slots(plant))


def slots(plant):
    """Where in time everything lies that devices have counted."""
    with reading(plant.desk.log.engine) as connection:
        found = [
            pb.Payload.FromString(row.payload) for row in connection.execute(select(telemetry.c.payload))
        ]
    return {one.report.slot * SLOT_S for one in found if one.WhichOneof("what") == "report"}
