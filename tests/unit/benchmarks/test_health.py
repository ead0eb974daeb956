"""The noise and the counting of the health benchmark."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.health import (
    FAULTS,
    NO_FAULT,
    SAMPLES,
    Device,
    covered,
    day,
    draw_device,
    false_line,
    is_calm,
    memory,
    recorded,
    serve,
    slow_share,
)
from fedretrain.edge.health import HealthState, LocalRollback
from fedretrain.edge.health_limits import Check, HealthRecord

DEVICE = Device(rate=2.0, sigma=0.3, record_p99=2.0, height_mib=1.0, period_s=120.0)


def test_bursts_cover_what_they_last():
    share = np.sum([covered(np.random.default_rng(seed), 12.0, 20.0, 1e9).sum() for seed in range(200)])
    assert share * 15.0 / 200 == pytest.approx(240.0, rel=0.1)  # twelve of 20 s a day


def test_a_day_has_the_noise_that_is_promised():
    samples = day(np.random.default_rng(0), DEVICE, fresh=True)
    assert len(samples) == SAMPLES
    served, failed = sum(s.num_served for s in samples), sum(s.num_failed for s in samples)
    assert served + failed == pytest.approx(2 * 86_400, rel=0.02)
    assert 0.009 < failed / (served + failed) < 0.02
    assert samples[0].memory_mib < 60.0 < samples[40].memory_mib + 5.0
    assert all(one.memory_mib is not None for one in samples), "as the agent, which reads it with each sample"


def test_a_fault_begins_when_it_should():
    leak, slow, errors, _ = FAULTS
    well, leaking = (
        memory(np.random.default_rng(0), DEVICE, fault, 43_200.0, fresh=False) for fault in (NO_FAULT, leak)
    )
    assert (well[:2880] == leaking[:2880]).all()
    assert leaking[-1] - well[-1] == pytest.approx(720.0, rel=0.01)
    ill = day(np.random.default_rng(0), DEVICE, fault=slow, fault_at=43_200.0)
    assert sum(s.num_slow for s in ill[2880:]) > 20 * sum(s.num_slow for s in ill[:2880])
    bad = day(np.random.default_rng(0), DEVICE, fault=errors, fault_at=43_200.0)[2880:]
    assert sum(s.num_failed for s in bad) / sum(s.num_failed + s.num_served for s in bad) == pytest.approx(
        0.2, abs=0.01
    )


def test_slow_is_beyond_the_ratio_to_the_record():
    rng = np.random.default_rng(0)
    device = draw_device(rng, 1.0)
    drawn = 1.3 * np.exp(device.sigma * rng.standard_normal(200_000))
    expected = float((drawn > 1.5 * device.record_p99).mean())
    assert slow_share(device, np.array([1.3]))[0] == pytest.approx(expected, abs=1e-3)


def test_a_day_counts_once_and_its_checks_are_named():
    fault = LocalRollback(1.0, "v", "", Check.ERRORS, {})
    line = false_line([[], [fault, fault], []])
    assert (line["bad_device_days"], line["rollbacks_by_check"]) == (1, {"errors": 2})
    assert line["per_1000_device_days"] == pytest.approx(333.333)
    assert false_line([[]] * 3000)["at_most_with_95_percent_confidence"] == pytest.approx(0.998, abs=1e-3)


def test_the_record_is_what_the_fold_would_have_left():
    device = draw_device(np.random.default_rng(5), 2.0)
    record = recorded(np.random.default_rng(1), device)
    state = HealthState("before", HealthRecord(device.record_p99), 0.0)
    state, _ = serve(state, day(np.random.default_rng(1), device, fresh=True), 0.0, judged=False)
    assert record.growth_mib_per_min == pytest.approx(state.next_record(None).growth_mib_per_min)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_no_day_in_which_a_check_sees_something_is_calm(fault):
    for seed in range(3):
        device = draw_device(np.random.default_rng(seed), 2.0)
        record = recorded(np.random.default_rng(seed), device)
        ill = day(np.random.default_rng(seed), device, fault=fault, fault_at=3600.0)
        assert not is_calm(ill, record, fresh=False)
    record = recorded(np.random.default_rng(1), DEVICE)
    assert is_calm(day(np.random.default_rng(0), DEVICE, fresh=True), record, fresh=True)
