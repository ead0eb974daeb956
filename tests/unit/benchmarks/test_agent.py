"""The agent's benchmark measures a device that serves what was installed, and its ratios are over bare onnxruntime."""

from __future__ import annotations

import pytest

from benchmarks import agent, inference
from fedretrain.edge.config import read_edge
from fedretrain.edge.device import DeviceRuntime
from fedretrain.training.models import mlp


@pytest.fixture
def case(monkeypatch):
    shape = (inference.CHANNELS, inference.WINDOW)
    monkeypatch.setitem(inference.CASES, "small", lambda: mlp(shape, inference.CLASSES, 0, hidden=(4,)))
    return "small"


def test_a_device_is_installed_without_a_server(case, tmp_path):
    served = agent.install(tmp_path, case)
    config = read_edge(tmp_path / "edge.toml")
    with DeviceRuntime(config, config.devices[0]) as device:
        (answer,) = device.predict(inference.problem(case).rows[:1])
    assert answer.package == served.digest


def test_a_measurement_has_its_ratios(case, monkeypatch):
    calls = {"bare": 1.0, "answer": 1.5, "predict": 4.0}

    def alternate(engines):
        for run in engines.values():
            run()
        return {name: [calls[name]] * 3 for name in engines}

    monkeypatch.setattr(agent, "alternate", alternate)
    line = agent.speed(case)
    assert (line["answer_over_bare"], line["predict_over_bare"]) == (1.5, 4.0)


@pytest.mark.parametrize(
    ("idle_mib", "later_mib", "status"), [(99.0, 99.0, 0), (101.0, 101.0, 1), (99.0, 101.0, 1)]
)
def test_an_agent_that_takes_too_much_memory_is_a_failure(monkeypatch, capsys, idle_mib, later_mib, status):
    assert agent.MOST_MIB == 100.0
    used = {"rss_mib": idle_mib, "rss_after_answers_mib": later_mib}
    monkeypatch.setattr(agent, "speed", lambda name: {"case": name})
    monkeypatch.setattr(agent, "memory", lambda name: {"case": name, **used})
    monkeypatch.setattr(agent, "append", lambda *_: None)
    assert agent.main() == status
    assert "onnxruntime" in capsys.readouterr().out
