"""The inference benchmark compares what computes the same, and its bytes are those of real files."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import inference
from fedretrain.artifacts.delta import release
from fedretrain.training.models import mlp


@pytest.fixture
def case(monkeypatch):
    monkeypatch.setattr(inference, "_REPEATS", 2)
    monkeypatch.setattr(inference, "_BLOCK_S", 0.0)
    shape = (inference.CHANNELS, inference.WINDOW)
    monkeypatch.setitem(inference.CASES, "small", lambda: mlp(shape, inference.CLASSES, 0, hidden=(4,)))
    return "small"


def test_a_measurement_has_its_ratios(case, monkeypatch):
    calls = {"bare": 1.0, "model": 1.5, "answer": 4.0}
    monkeypatch.setattr(inference, "alternate", lambda engines: {name: [calls[name]] * 3 for name in engines})
    line = inference.speed(case, 3)
    assert (line["model_over_bare"], line["answer_over_bare"], line["rows"]) == (1.5, 4.0, 3)
    assert line["cpu_ms"] == {"bare": 1000.0, "model": 1500.0, "answer": 4000.0}


def test_every_engine_is_called_as_often_in_each_repetition(case):
    calls = []
    times = inference.alternate({name: lambda name=name: calls.append(name) for name in ("bare", "model")})
    assert {name: len(found) for name, found in times.items()} == {"bare": 2, "model": 2}
    assert calls == ["bare", "model"] * 3  # once to warm up, then in turns


def test_bytes_are_those_of_the_files(case):
    line = inference.sizes(case)
    problem = inference.problem(case)
    first = release(None, problem.bundle.first_params())
    second = release(first.weights, inference.trained(problem, first.weights))
    assert (line["full_bytes"], line["delta_bytes"]) == (len(second.full_bytes), len(second.delta_bytes))
    saved = line["install_in_full_bytes"] - line["install_by_delta_bytes"]
    assert saved > line["full_bytes"] - line["delta_bytes"] > 0  # graph and pipeline are held too
    assert np.isclose(line["full_over_delta"], line["full_bytes"] / line["delta_bytes"], atol=0.01)
