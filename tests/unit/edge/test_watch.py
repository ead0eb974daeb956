"""The watch over a served version: its own latency record, and a breach that is returned once."""

from __future__ import annotations

import pytest

from fedretrain.edge.health_limits import MIN_TRIAL, Check, HealthLimits, HealthRecord
from fedretrain.edge.vitals import SAMPLE_S
from fedretrain.edge.watch import HealthWatch, own_bytes


def served(watch, now, num, latency_s=0.001, *, failed=False):
    for _ in range(num):
        watch.prediction(latency_s, 1, failed=failed)
    return watch.look(now)


def test_the_first_predictions_are_the_record():
    watch = HealthWatch(HealthLimits(), "v", HealthRecord(), 0.0)
    assert served(watch, 10.0, MIN_TRIAL) is None  # no sample is due yet
    assert watch.record.latency_p99_s is None
    watch.look(30.0)
    assert watch.record.latency_p99_s == 0.001
    assert watch.num_served == MIN_TRIAL


@pytest.mark.parametrize(
    ("latency_s", "failed", "check"), [(0.01, False, Check.LATENCY_RATIO), (0.001, True, Check.ERRORS)]
)
def test_a_breach_is_found_within_five_minutes_and_told_once(latency_s, failed, check):
    watch = HealthWatch(HealthLimits(), "v", HealthRecord(latency_p99_s=0.001), 0.0)
    found = [
        served(watch, SAMPLE_S * n, 40, latency_s, failed=failed) for n in range(1, 1 + int(300 / SAMPLE_S))
    ]
    breaches = [one for one in found if one is not None]
    assert [one.check for one in breaches] == [check]
    assert breaches[0].version == "v"


def test_what_a_version_was_right_about_is_the_next_ones_record():
    watch = HealthWatch(HealthLimits(), "v", HealthRecord(), 0.0)
    for index in range(100):
        watch.label(correct=index < 90)
    watch.look(30.0)
    assert (watch.next_record.num_labelled, watch.next_record.num_correct) == (100, 90)


def test_failed_sanity_vectors_are_a_breach():
    watch = HealthWatch(HealthLimits(), "v", HealthRecord(), 0.0)
    watch.sanity(2)
    assert watch.look(30.0).check is Check.SANITY


def test_a_leak_of_this_process_is_a_breach():
    watch = HealthWatch(HealthLimits(), "v", HealthRecord(), 0.0, lambda: int(2**20 * memory_mib))
    found = []
    for number in range(1, 120):
        memory_mib = 50.0 + number * SAMPLE_S / 60
        found.append(watch.look(SAMPLE_S * number))
    assert next(one for one in found if one is not None).check is Check.MEMORY_GROWTH


def test_this_process_has_memory():
    assert own_bytes() > 2**20
