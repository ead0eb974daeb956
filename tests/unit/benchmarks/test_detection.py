"""What the detection benchmark counts as found, and that its monitors see a drift that is there and cry at none that is not."""

from __future__ import annotations

import itertools
import math

import pytest
from scipy import stats

from benchmarks import detection
from benchmarks.detection import (
    DEVICES,
    EVERY_DAYS,
    KINDS,
    LASTS_DAYS,
    Told,
    clopper_pearson,
    judge,
    lines,
    live,
    quiet,
    share_of,
    specs_of,
)
from fedretrain.monitoring.alerts import DriftCleared, Drifted
from sim.configure import configure
from sim.sensors.config import DriftKind, DriftSpec

DAY = 86_400.0
NAMES = [f"s{i}" for i in range(12)]


def small(days):
    """A life so short that it takes a second."""
    rows = 24 * (16 + days)
    return configure([
        *detection._SHIPPED,
        f"fleet.num_devices={DEVICES}",
        "fleet.num_sites=1",
        f"fleet.generator.num_samples={rows}",
        f"fleet.generator.scored_fraction={24 * days / rows}",
        f"lifetime.duration_s={days * DAY}",
    ])  # fmt: skip


def drift(onset_day, kind=DriftKind.OFFSET, magnitude=4.0):
    at = onset_day * DAY
    return DriftSpec(
        kind=kind, magnitude=magnitude, onset_from_s=at, onset_to_s=at, duration_s=LASTS_DAYS * DAY
    )


def drifted():
    return Drifted(0.0, 1, DAY, 3, ("s0",), (0.5,), (0.01,))


def cleared():
    return DriftCleared(0.0, 1, DAY, 3)


class Sized:
    """A fleet in which every drift is of one size."""

    def size(self, start_at, end_at):
        return end_at - start_at


def test_every_kind_and_magnitude_takes_its_turn_from_life_to_life():
    found = [s for life in range(10) for s in specs_of(life, 365, NAMES)]
    cases = [(s.kind, s.magnitude) for s in found]
    wanted = [(kind, m) for kind, sizes in KINDS.items() for m in sizes]
    assert set(cases) == set(wanted)
    assert cases[: len(wanted)] == wanted
    assert max(map(cases.count, wanted)) - min(map(cases.count, wanted)) <= 1


def test_drifts_do_not_overlap_and_end_within_the_life():
    found = specs_of(3, 100, NAMES)
    assert len(found) == (100 - LASTS_DAYS) // EVERY_DAYS
    starts = [s.onset_from_s for s in found]
    assert all(b - a >= (EVERY_DAYS - 1) * DAY for a, b in itertools.pairwise(starts))
    assert starts[-1] + LASTS_DAYS * DAY <= 100 * DAY
    assert all(s.onset_from_s % 3600 == 0 for s in found)
    assert len({s.channels for s in found}) > 1


def test_the_first_alert_after_an_onset_and_before_the_next_counts():
    specs = (drift(0.5), drift(12.25), drift(24.0))
    told = judge(Sized(), specs, [(2, drifted()), (7, cleared()), (26, drifted())])
    assert next(one.delay_s for one in told) == 2.5 * DAY
    assert math.isnan(told[1].delay_s)
    assert told[2].delay_s == 3 * DAY
    assert [one.in_time for one in told] == [True, False, True]
    assert not any(one.blocked for one in told)
    assert told[0].size == LASTS_DAYS * DAY


def test_a_drift_under_a_verdict_that_still_stands_is_in_no_share():
    told = judge(Sized(), (drift(0.0), drift(12.0)), [(2, drifted())])
    assert [one.blocked for one in told] == [False, True]
    assert share_of(told) == {
        "drifts": 1, "in_time": 1, "share": 1.0, "interval": [0.025, 1.0],
        "median_windows": 3.0, "p90_windows": 3.0, "blocked": 1,
    }  # fmt: skip


def test_five_windows_are_too_late_and_never_is_no_number():
    late = Told(drift(0.0), 1.0, 4.1 * DAY, blocked=False)
    never = Told(drift(0.0), 1.0, math.nan, blocked=False)
    found = share_of([late, never])
    assert (found["in_time"], found["median_windows"], found["p90_windows"]) == (0, 4.1, None)


@pytest.mark.parametrize(("good", "num"), [(0, 10), (7, 10), (10, 10), (399, 400)])
def test_the_interval_is_clopper_and_pearsons(good, num):
    wanted = stats.binomtest(good, num).proportion_ci(0.95, "exact")
    assert clopper_pearson(good, num) == pytest.approx((wanted.low, wanted.high))
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_a_size_is_in_one_band_and_a_large_one_is_in_the_claim():
    found = [Told(drift(0.0), size, DAY, blocked=False) for size in (0.05, 0.1, 0.29, 0.3, 2.0)]
    counts = {line["case"]: line["drifts"] for line in lines(found)}
    assert [n for case, n in counts.items() if "_to_" in case] == [1, 1, 1, 1, 0, 1]
    assert counts["size_from_0.3"] == 2
    assert counts["offset_4"] == 5


def test_monitors_find_a_plain_drift_and_size_it(monkeypatch):
    monkeypatch.setattr(detection, "KINDS", {DriftKind.OFFSET: (4.0,)})
    (told,) = live(small(20), 0)
    assert told.in_time
    assert told.delay_s > 2 * DAY
    assert told.size > 1.0


def test_a_life_without_drift_is_watched_for_as_many_feature_years():
    alarms = quiet(small(20), 5)
    assert alarms.feature_years == pytest.approx(20 / 365.25 * 12)
    assert alarms.num == 0
