"""The network between agent and gateway does what networks do, while devices report and while they are ordered back."""

from __future__ import annotations

import time

import pytest

from tests.plant_cases import DEVICES, Plant
from tests.proxy_cases import Fault, Proxy

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
FAULTY_S = 6.0


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


CELLS = [(fault, "idle") for fault in Fault if fault is not Fault.NONE] + [(Fault.DROP, "rollback")]


@pytest.mark.parametrize(("fault", "phase"), CELLS, ids=[f"{fault}-{phase}" for fault, phase in CELLS])
def test_a_network_that_fails_costs_nothing(plant, proxy, fault, phase):
    plant.reach("idle" if phase == "idle" else "canary")
    before = proxy.num_faults
    proxy.set(fault)
    if phase == "rollback":
        plant.desk.order("roll_back", "the test", "while the network fails")
    time.sleep(FAULTY_S)
    asked = plant.watcher.num_answers
    assert proxy.num_faults > before
    proxy.set(Fault.NONE)
    healed_at = time.time()
    plant.until(lambda: plant.heard_since(healed_at), "every device is heard again")
    plant.until(lambda: plant.serving() == {1: len(DEVICES)}, "every device serves the champion")
    assert plant.watcher.num_answers >= asked > 0
    plant.check()
