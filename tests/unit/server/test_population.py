"""When a population's devices may be asked to evaluate a candidate."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fedretrain.rollout.safety import SafetyState, Switch
from fedretrain.server.population import Population


@pytest.mark.parametrize(
    ("safety", "hears", "may_ask"),
    [
        (SafetyState(), True, True),
        (SafetyState(), False, False),  # a champion without bins: no telemetry is read
        (SafetyState(stopped=frozenset({Switch.INSTALLS})), True, False),
        (SafetyState(stopped=frozenset({Switch.TRAINING})), True, True),
    ],
)
def test_devices_are_asked_where_they_may_fetch_a_candidate_and_somebody_hears(safety, hears, may_ask):
    said = []
    population = object.__new__(Population)
    population.memory = SimpleNamespace(begun=SimpleNamespace(safety=safety, kept_devices=frozenset({3})))
    population.telemetry, population.devices = object() if hears else None, []
    population.examiner = SimpleNamespace(
        validated=lambda _, devices, kept, now, *, may_ask: said.append((kept, now, may_ask))
    )
    population._validated(None, 7.0)
    assert said == [(frozenset({3}), 7.0, may_ask)]
