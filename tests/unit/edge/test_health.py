"""The fold of the health checks: what leads to a rollback on the device, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.health import FAULTS, LIMITS, Fault, false_rollbacks, time_to_rollback
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.edge.health import (
    HealthState,
    IllegalHealthEvent,
    LocalRollback,
    Observed,
    apply,
    decide,
    replay,
)
from fedretrain.edge.health_limits import Check, HealthLimits, HealthRecord, p99_of
from fedretrain.edge.vitals import SAMPLE_S, Sample

WELL = Sample(num_served=30, memory_mib=60.0)


def run(samples, limits=LIMITS, record=None, state=None):
    """Every event of samples a quarter of a minute apart, and the state they lead to."""
    state = state or HealthState("sha256:new", record or HealthRecord(latency_p99_s=0.01), 0.0)
    log = []
    for index, sample in enumerate(samples):
        for event in decide(limits, state, sample, state.began_at + (index + 1) * SAMPLE_S):
            state = apply(state, event)
            log.append(event)
    return log, state


def rollbacks(log):
    return [event for event in log if isinstance(event, LocalRollback)]


def test_a_healthy_device_goes_on_and_its_state_stays_small():
    log, state = run([WELL] * 6000)
    assert not rollbacks(log)
    assert (len(state.blocks), len(state.readings), len(state.growths)) == (20, 19, 18)
    assert len(state.hours) == 24


def test_a_sanity_vector_that_fails_is_enough_and_ends_the_fold():
    log, state = run([WELL, replace(WELL, num_insane=1), WELL])
    (fault,) = rollbacks(log)
    assert (fault.check, fault.version, fault.evidence) == (Check.SANITY, "sha256:new", {"num_failed": 1.0})
    assert state.rolled_back
    assert len(log) == 3, "nothing is decided after a rollback"
    with pytest.raises(IllegalHealthEvent, match="already"):
        apply(state, log[0])


def test_a_rollback_of_another_version_is_illegal():
    state = HealthState("a", HealthRecord(), 0.0)
    with pytest.raises(IllegalHealthEvent, match="while a serves"):
        apply(state, LocalRollback(1.0, "b", "", Check.ERRORS, {}))


@pytest.mark.parametrize(
    ("sick", "check"),
    [
        (Sample(num_served=24, num_failed=6), Check.ERRORS),
        (Sample(num_served=30, num_slow=3), Check.LATENCY_RATIO),
        (Sample(num_served=30, num_over=3), Check.LATENCY_LIMIT),
    ],
)
def test_a_share_needs_sixteen_blocks_of_twenty(sick, check):
    assert not rollbacks(run([WELL] * 8 + [sick] * 15 + [WELL] * 20)[0])
    (fault,) = rollbacks(run([WELL] * 20 + [sick] * 16)[0])
    assert (fault.check, fault.at) == (check, 36 * SAMPLE_S)
    assert fault.evidence["share"] > fault.evidence["limit"]


def test_few_predictions_are_judged_once_they_are_many():
    seldom = Sample(num_served=1, num_failed=1)
    (fault,) = rollbacks(run([seldom] * 200)[0])
    assert fault.at == 160 * SAMPLE_S  # sixteen blocks of twenty predictions
    assert not rollbacks(run([Sample()] * 3000)[0]), "no evidence is no breach"


def leak(rate, num=80, level=60.0):
    return [Sample(memory_mib=level + rate * index * SAMPLE_S / 60.0) for index in range(num)]


def test_a_leak_is_found_once_the_model_has_warmed_up_and_a_slow_growth_is_left():
    (fault,) = rollbacks(run(leak(1.0))[0])
    assert fault.check is Check.MEMORY_GROWTH
    assert fault.at == 180.0 + 270.0
    assert fault.evidence["mib_per_min"] == pytest.approx(1.0)
    assert not rollbacks(run(leak(0.4))[0])


def test_growth_that_the_device_always_had_is_not_held_against_the_model():
    record = HealthRecord(growth_mib_per_min=0.8)
    assert not rollbacks(run(leak(1.0), record=record)[0])
    (fault,) = rollbacks(run(leak(1.2), record=record)[0])
    assert fault.evidence["limit"] == pytest.approx(1.1)


def test_growth_over_a_gap_says_nothing():
    state = HealthState("a", HealthRecord(), -1000.0)
    for index, sample in enumerate(leak(3.0, num=25)):
        at = index * SAMPLE_S + 3600.0 * (index >= 13)
        for event in decide(LIMITS, state, sample, at):
            assert isinstance(event, Observed)
            state = apply(state, event)
    assert len(state.readings) == 12


def test_the_absolute_memory_limit_holds_at_once():
    limits = HealthLimits(memory_mib=100.0)
    (fault,) = rollbacks(run([Sample(memory_mib=101.0)], limits)[0])
    assert fault.check is Check.MEMORY_LIMIT


def labelled(correct, num=40):
    return [Sample(num_labelled=10, num_correct=correct)] * num


def test_accuracy_is_held_to_the_version_before():
    record = HealthRecord(num_labelled=500, num_correct=450)
    (fault,) = rollbacks(run(labelled(5), record=record)[0])
    assert fault.check is Check.ACCURACY
    assert fault.evidence["accuracy"] == 0.5
    assert fault.evidence["floor"] == pytest.approx(0.9 - 0.05 - 0.036, abs=0.01)
    assert not rollbacks(run(labelled(9, 400), record=record)[0])
    assert not rollbacks(run(labelled(0), record=replace(record, num_labelled=49, num_correct=49))[0])


def test_the_next_record_is_what_was_seen():
    sawtooth = [
        Sample(num_labelled=1, num_correct=1, memory_mib=60.0 + 0.1 * (index % 40)) for index in range(400)
    ]
    _, state = run(sawtooth)
    record = state.next_record(0.02)
    assert record == HealthRecord(0.02, pytest.approx(0.4), 400, 400)


def test_the_log_replays_to_the_same_state():
    log, state = run([WELL] * 20 + leak(1.0))
    assert rollbacks(log)
    assert replay(HealthState("sha256:new", HealthRecord(latency_p99_s=0.01), 0.0), log) == state


def test_a_record_of_few_predictions_is_refused():
    with pytest.raises(DataError, match="too few"):
        p99_of([0.01] * 999)
    assert p99_of([float(index) for index in range(1000)]) == 990.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency_ratio": 1.0},
        {"growth_mib_per_min": 0.0},
        {"growth_added_mib_per_min": 0.0},
        {"memory_mib": -1.0},
        {"accuracy_alpha": 0.0},
        {"min_labels": 0},
    ],
)
def test_impossible_limits_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=f"health.{next(iter(wrong))}"):
        HealthLimits(**wrong)


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS[:3], ids=lambda fault: fault.name)
def test_an_injected_fault_leads_to_a_rollback_within_five_minutes(fault: Fault):
    runs = [time_to_rollback(fault, seed, 5.0) for seed in range(12)]
    assert all(time > 0 for time, _ in runs), "not before the fault"
    assert sum(check is fault.check and time <= 300.0 for time, check in runs) >= 11


@pytest.mark.faults
def test_noisy_but_healthy_days_pass():
    days = false_rollbacks(7, 60)
    assert [fault for today in days for fault in today] == []
