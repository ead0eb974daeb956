"""Paired comparison: what it finds, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.core.errors import UserError
from sim.compare import compare, number, pair_scores, render, served
from sim.results import DeviceScore, Metric
from tests.unit.sim.record_factory import make_run


@pytest.fixture(scope="module")
def run():
    return make_run(num_seeds=3, num_rounds=4, num_virtual=20)


def with_summary(run, **changes):
    return replace(run, summary=replace(run.summary, **changes))


def test_a_run_against_itself_differs_in_nothing(run):
    found = compare(run, run)
    assert {d.difference.value for d in found.differences} == {0.0}
    assert {d.verdict for d in found.differences} == {"same"}
    assert not found.notes


def test_a_shift_is_found_with_an_interval_over_seeds(run):
    found = compare(run, make_run(num_seeds=3, num_rounds=4, num_virtual=20, shift=-0.05))
    (line,) = [d for d in found.differences if (d.arm, d.metric) == ("fedavg", "accuracy (global)")]
    assert line.difference.value == pytest.approx(-0.05, abs=0.02)
    assert (line.difference.num, line.difference.over.value) == (3, "seeds")
    assert line.num_pairs == 19
    assert line.verdict == "worse"


def test_an_error_that_falls_is_better():
    a = make_run(num_seeds=3, num_rounds=4, metric=Metric.RMSE)
    b = make_run(num_seeds=3, num_rounds=4, metric=Metric.RMSE, shift=0.05)
    found = [d for d in compare(a, b).differences if d.metric == "rmse (global)"]
    assert {d.verdict for d in found} == {"better"}
    assert all(d.difference.value < 0 for d in found)


def test_one_common_seed_gives_intervals_over_devices_and_says_so(run):
    other = make_run(num_seeds=1, num_rounds=4, num_virtual=20, shift=-0.05)
    found = compare(run, other)
    assert found.seeds == (0,)
    assert found.differences[0].difference.over.value == "devices"
    assert any("One seed in common" in note for note in found.notes)


def test_what_a_run_cost_is_compared_too(run):
    cheaper = replace(run, rounds=tuple(replace(r, bytes_up=r.bytes_up // 2) for r in run.rounds))
    (line,) = [d for d in compare(run, cheaper).differences if (d.arm, d.metric) == ("fedavg", "bytes up")]
    assert line.b == pytest.approx(line.a / 2)
    assert line.verdict == "better"


def test_the_only_arms_of_two_runs_are_paired_under_both_names():
    a = make_run(num_seeds=2, num_rounds=3, arms=("fedavg",))
    b = make_run(num_seeds=2, num_rounds=3, arms=("personal",))
    assert compare(a, b).differences[0].arm == "fedavg -> personal"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"metric": Metric.RMSE}, "one reports accuracy, the other rmse"),
        ({"data_digest": "e" * 64}, "their data differ"),
        ({"num_devices": 9}, "their fleets differ"),
        ({"seeds": (7, 8)}, "no seed in common"),
    ],
)
def test_runs_that_cannot_be_paired_are_refused_with_the_reason(run, changes, why):
    with pytest.raises(UserError, match=why):
        compare(run, with_summary(run, **changes))


def test_runs_without_a_common_arm_are_refused():
    a = make_run(num_seeds=1, num_rounds=2, arms=("fedavg", "personal"))
    with pytest.raises(UserError, match="no arm in common"):
        compare(a, make_run(num_seeds=1, num_rounds=2, arms=("personal_dp",)))


def test_runs_without_a_common_device_are_refused(run):
    moved = replace(run, devices=tuple(replace(d, device=d.device + 1000) for d in run.devices))
    with pytest.raises(UserError, match="no device in common"):
        compare(run, moved)


def test_notes_tell_what_lowers_the_worth_of_a_pairing(run):
    other = replace(run, devices=tuple(replace(d, num_scored=d.num_scored + 1) for d in run.devices))
    other = with_summary(other, environment=replace(run.summary.environment, code_version="0.2", cores=8))
    notes = " ".join(compare(run, other).notes)
    assert "another number of rows" in notes
    assert "different versions" in notes
    assert "numbers of cores" in notes


def test_a_device_that_started_in_one_run_only_is_in_no_line(run):
    turned = replace(
        run, devices=tuple(replace(d, cold_start=d.cold_start or d.device == 0) for d in run.devices)
    )
    found = compare(run, turned)
    assert found.differences[0].num_pairs == 18
    assert any("took part in one run only" in note for note in found.notes)


def test_pairs_are_by_device_whatever_the_order():
    a = [DeviceScore("a", 0, i, False, False, 1, 5, i / 10) for i in range(4)]
    b = [DeviceScore("b", 0, i, False, False, 1, 5, i / 10 + 0.1) for i in (3, 1, 9)]
    left, right = pair_scores(a, b, served, served)
    np.testing.assert_allclose(left, [[0.1, 0.3]])
    np.testing.assert_allclose(right, [[0.2, 0.4]])


def test_the_table_is_aligned_and_complete(run):
    text = render(compare(run, make_run(num_seeds=3, num_rounds=4, num_virtual=20, shift=-0.05)))
    assert text.startswith("A: watch, 2026-03-01")
    rows = text.split("\n\n")[1].splitlines()
    assert rows[0].split() == ["arm", "metric", "A", "B", "B", "-", "A", "95", "%", "interval", "over"]
    column = rows[0].index("metric")
    assert all(row[column - 2 : column] in {"  ", "--"} and row[column] != " " for row in rows)
    assert "worse" in text
    assert "3 seeds" in text


def test_epsilons_that_claim_different_things_are_not_compared(run):
    arms = tuple(replace(a, privacy=a.privacy and replace(a.privacy, delta=1e-6)) for a in run.summary.arms)
    alike, unlike = compare(run, run), compare(run, with_summary(run, arms=arms))
    assert any(d.metric == "epsilon per device at delta 1e-05" for d in alike.differences)
    assert not any(d.metric.startswith("epsilon") for d in unlike.differences)
    assert any("claim different things" in note for note in unlike.notes)


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.1235"), (12345.6, "12,346"), (3.14159, "3.142"), (float("nan"), "n/a")]
)
def test_numbers_are_short(value, text):
    assert number(value) == text
