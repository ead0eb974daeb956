"""Real brokers, and agents as processes, for each test that asks for one."""

from __future__ import annotations

import signal

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


@pytest.fixture
def run():
    """Starts agents; those that are left are killed."""
    from tests.integration.test_agent import Running

    started = []

    def start(config):
        started.append(Running(config))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)
