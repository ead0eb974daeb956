"""Real brokers for each test that asks for one."""

from __future__ import annotations

import pytest

from fedretrain.server.sources import kafka, running
from tests import broker_cases
from tests.broker_cases import Mosquitto, Tansu


@pytest.fixture
def mosquitto(tmp_path):
    why = broker_cases.mosquitto_missing()
    if why:
        pytest.skip(why)
    made = Mosquitto(tmp_path / "mosquitto")
    yield made
    made.close()


@pytest.fixture
def tansu(tmp_path):
    why = broker_cases.tansu_missing()
    if why:
        pytest.skip(why)
    made = Tansu(tmp_path / "tansu")
    yield made
    made.close()


@pytest.fixture
def quick(monkeypatch):
    """Sources begin again after a tenth of a second, and look after one: tests need no patience."""
    patient = running.Backoff
    monkeypatch.setattr(running, "Backoff", lambda: patient(0.1, 0.2))
    monkeypatch.setattr(kafka, "LOOK_S", 1.0)
