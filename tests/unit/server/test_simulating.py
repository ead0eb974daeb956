"""When a simulation is due, and what its ends come to; the real job is in tests/integration."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fedretrain.artifacts.store import ContentStore
from fedretrain.coordinator.policy import Policy
from fedretrain.core.child import last_line
from fedretrain.core.errors import ConfigError
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.config import RolloutPolicy
from fedretrain.rollout.simulation import SimulationRules
from fedretrain.rollout.verdict import Verdict
from fedretrain.server.event_log import EventLog
from fedretrain.server.simulating import Simulating, check_pool, to_simulate
from fedretrain.server.simulations import SimulationBook
from fedretrain.server.validations import Judged, Validations

WANTED = replace(Policy(), rollout=RolloutPolicy(simulation=SimulationRules(required=True)))


@pytest.fixture
def book(engine, tmp_path):
    return SimulationBook("p", EventLog(engine), ContentStore(tmp_path / "store"), None, lambda: 5.0)


def _state(phase=Phase.PENDING, *, simulation=True):
    plan = SimpleNamespace(candidate=2, champion=1, simulation=simulation)
    return SimpleNamespace(rollout=SimpleNamespace(phase=phase, plan=plan))


def test_a_simulation_is_due_once_the_validation_has_passed_and_while_the_rollout_waits():
    def known(verdict="PASS", champion=1):
        judged = Judged(2, champion, verdict, "pool", "", "")
        return Validations(judged={2: judged})

    assert to_simulate(_state(), Validations()) is None
    assert to_simulate(_state(), known("FAIL")) is None
    assert to_simulate(_state(), known("INCONCLUSIVE")) is None
    assert to_simulate(_state(), known(champion=7)) is None
    assert to_simulate(_state(), known()) == 2
    assert to_simulate(_state(simulation=False), known()) is None
    assert to_simulate(_state(Phase.SHADOW), known()) is None
    assert to_simulate(SimpleNamespace(rollout=None), known()) is None
    assert to_simulate(None, known()) is None


def test_a_gate_that_could_never_run_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="labelled rows"):
        check_pool(WANTED, "", "populations.p.pool")
    check_pool(WANTED, "pool", "populations.p.pool")
    check_pool(Policy(), "", "populations.p.pool")


@pytest.mark.parametrize(
    ("status", "report", "verdict", "reason"),
    [
        (0, {"verdict": "pass", "checks": [{"verdict": "pass"}]}, Verdict.PASS, "1 checks passed"),
        (
            1,
            {"verdict": "fail", "checks": [{"verdict": "fail", "name": "n", "condition": "c"}]},
            Verdict.FAIL,
            "n, c",
        ),
        (3, {"verdict": "inconclusive", "checks": []}, Verdict.INCONCLUSIVE, "0 checks"),
        (0, {"verdict": "fail", "checks": []}, Verdict.INCONCLUSIVE, "its report says fail"),
        (1, None, Verdict.INCONCLUSIVE, "status 1 and no verdict: a line"),
        (2, {"verdict": "pass", "checks": []}, Verdict.INCONCLUSIVE, "status 2"),
        (-9, None, Verdict.INCONCLUSIVE, "signal 9"),
        (0, "no JSON", Verdict.INCONCLUSIVE, "cannot be read"),
        (0, {"verdict": "splendid"}, Verdict.INCONCLUSIVE, "cannot be read"),
    ],
)
def test_a_verdict_is_what_report_and_exit_status_both_say(book, tmp_path, status, report, verdict, reason):
    job = Simulating(SimulationRules(), book, lambda *_: None, tmp_path, lambda: 5.0)
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "log").write_text("\nbefore\na line\n\n")
    if report is not None:
        text = report if isinstance(report, str) else json.dumps(report)
        (tmp_path / "2" / "report.json").write_text(text)
    job._version, job._child = 2, SimpleNamespace(exit_status=status)
    found = job._read()
    assert found[0] is verdict
    assert reason in found[1]


def test_the_last_line_of_no_file_is_empty(tmp_path):
    assert last_line(tmp_path / "none") == ""
