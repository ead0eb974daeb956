"""The operator's incidents: what they show, and the two orders that follow from one."""

from __future__ import annotations

import pytest

from fedretrain.coordinator.cycle import Discard, Resubmit, Withdraw
from fedretrain.rollout.causes import Phase
from fedretrain.server import orders
from tests.cycle_cases import Drive
from tests.rollout_cases import FAIL
from tests.server_cases import lines

NAME = "rollout-1/kpi_regression"


@pytest.fixture
def failed(office):
    """A candidate that a gate caught when a quarter of four devices ran it."""
    drive = Drive()
    assert drive.retrained() == 2
    drive.to(Phase.RAMP, step=3)
    drive.to(Phase.ROLLED_BACK, gate=FAIL)
    for number in range(4):
        office.enrol(f"pump-{number}")
    office.lived(drive, num_devices=4)
    return office


def _orders(office):
    log = office.log()
    found = [orders.read(entry.record) for entry in log.read(orders.stream("pumps"))]
    log.engine.dispose()
    return found


def test_incidents_are_listed_and_shown_with_what_was_exposed(failed):
    (one,) = failed.on("incident", "show", "--json").json
    assert (one["incident"], one["version"], one["kind"]) == (NAME, 2, "model")
    assert one["closed_at"] >= one["opened_at"]
    for which in (NAME, "2"):
        found = failed.on("incident", "show", which, "--json").json
        assert (found["incident"], found["candidate"], found["fallback"]) == (NAME, 2, 1)
        assert found["devices"] == ["pump-0", "pump-1"]  # half of four, by their ranks
        assert (found["quarantined"], found["discarded"]) == (True, False)
        assert found["evidence"]["verdict"] == "fail"
        assert [entry["what"] for entry in found["timeline"]][-2:] == ["rollback_started", "rolled_back"]
    text = failed.on("incident", "show", "2").out
    assert "2 devices exposed" in text
    assert text.rstrip().endswith("it is in quarantine")


@pytest.mark.parametrize(("word", "order"), [("resubmit", Resubmit), ("discard", Discard)])
@pytest.mark.parametrize("which", [NAME, "2"])
def test_what_becomes_of_it_is_an_order_with_name_and_reason(failed, word, order, which):
    said = failed.on("incident", word, which, "--by", "anna", "--reason", "the sensor was broken", "--json")
    assert (said.status, said.json) == (0, {"version": 2})
    assert _orders(failed) == [order(2, "anna", "the sensor was broken")]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("incident", "show", "rollout-9/gate_failed"), "no incident 'rollout-9/gate_failed'"),
        (("incident", "resubmit", "1", "--by", "anna", "--reason", "x"), "no incident '1'"),
        (("incident", "discard", "2", "--by", "anna", "--reason", " "), "--reason"),
        (("incident", "resubmit", "2", "--by", " ", "--reason", "x"), "--by"),
    ],
)
def test_a_mistake_is_one_line_and_no_order(failed, words, named):
    said = failed.on(*words)
    (line,) = lines(said.err)
    assert (said.status, named in line) == (2, True)
    assert _orders(failed) == []


def test_a_reason_must_be_given(failed):
    with pytest.raises(SystemExit) as ended:
        failed.on("incident", "resubmit", "2", "--by", "anna")
    assert ended.value.code == 2


def test_a_version_that_a_person_withdrew_may_try_again(office):
    drive = Drive()
    drive.promoted()
    drive.tick(orders=(Withdraw(1, "anna", "wrong units"),))
    assert drive.state.quarantined == {1}
    office.lived(drive)
    assert office.on("incident", "show").out.strip() == "there was no incident yet"
    assert office.on("incident", "resubmit", "1", "--by", "anna", "--reason", "units are right").status == 0
    assert _orders(office) == [Resubmit(1, "anna", "units are right")]
