"""Joining a Ray cluster that is not there."""

import socket
import time

import pytest

from fedretrain.core.errors import ConfigError
from sim.ray_runner import start_ray
from sim.schema import RunnerConfig


def test_an_address_at_which_nothing_answers_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # a test before this one may have started it
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # bound, and nobody listens
        begun = time.monotonic()
        with pytest.raises(ConfigError, match=r"cannot join Ray.*runner.address"):
            start_ray(RunnerConfig(address=f"127.0.0.1:{port}"))
    assert time.monotonic() - begun < 30
