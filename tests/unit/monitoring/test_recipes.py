"""Recipes: streaks of non-overlapping windows, each alert once, with its evidence; the fold replays."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.core.build import build
from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.core.errors import ConfigError
from fedretrain.monitoring.alerts import (
    AccuracyFell,
    AccuracyRecovered,
    ConfidenceDecayed,
    ConfidenceRecovered,
    DeviceQuarantined,
    DeviceReleased,
    DriftCleared,
    Drifted,
    KpiBreached,
    KpiRecovered,
    LabelPaceChanged,
    LabelPaceRestored,
    MonitorEvent,
    PublishedRuleFired,
    Told,
    WindowJudged,
)
from fedretrain.monitoring.baseline import Baseline, make_baseline
from fedretrain.monitoring.config import AccuracyRules, DriftRules, MonitoringPolicy, PaceRules, PlaceRules
from fedretrain.monitoring.kpi import Better, Kpi, KpiTest, LimitKind
from fedretrain.monitoring.labels import CurveDrift
from fedretrain.monitoring.locate import DriftPlace, Scope
from fedretrain.monitoring.recipes import apply, decide, fold
from fedretrain.monitoring.state import MonitorState
from fedretrain.monitoring.view import FleetView, view
from tests.unit.monitoring.fleet_cases import SLOT_S, bins_of, fill, store_of

DEVICES, END = 12, 24 * 14
POLICY = MonitoringPolicy(
    kpis=(Kpi("alarms", Better.LOWER, "alarms per device-hour", 0.2, LimitKind.RELATIVE),),
    accuracy=AccuracyRules(window_s=DAY_S),
    place=PlaceRules(num_windows=2, release_windows=3),
)
BINS = bins_of()
NAMES = BINS.names


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    store = store_of(BINS, DEVICES)
    fill(store, 0, END, np.random.default_rng(0))
    return make_baseline(store, 0, END, POLICY, version=1, now=(END + 5) * SLOT_S)


@pytest.fixture(scope="module")
def quiet(baseline: Baseline) -> FleetView:
    store = store_of(BINS, DEVICES)
    fill(store, END, END + 24, np.random.default_rng(1))
    found = view(store, baseline, END + 24, POLICY)
    assert found.where.scope is Scope.NONE
    return found


def on_day(shown: FleetView, day: float, **changes: object) -> FleetView:
    return replace(shown, at=day * DAY_S, **changes)


def shifted(shown: FleetView, day: float, *features: int, significant: bool = True) -> FleetView:
    """The view with some features far above the limit."""
    mask = np.isin(np.arange(3), features)
    flags = mask & significant
    psi = np.where(mask, 0.9, 0.01)
    return on_day(
        shown, day, psi_F=psi, p_F=np.where(flags, 0.001, 0.5), significant_F=flags, shifted_F=flags
    )


def run(
    views: list[FleetView], baseline: Baseline, policy: MonitoringPolicy = POLICY
) -> tuple[MonitorState, list[MonitorEvent]]:
    """All views one after the other; the log without the judged windows."""
    state, log = MonitorState(version=1), []
    for shown in views:
        events = decide(policy, state, shown, baseline)
        state = fold(policy, state, events)
        log += events
    replayed = fold(policy, MonitorState(version=1), log)
    assert replayed == state
    return state, [event for event in log if not isinstance(event, WindowJudged)]


def test_three_windows_in_a_row_raise_drift_once(quiet: FleetView, baseline: Baseline) -> None:
    state, log = run([shifted(quiet, day, 1) for day in range(20, 26)], baseline)
    drifted = [event for event in log if isinstance(event, Drifted)]
    assert drifted == [Drifted(22 * DAY_S, 1, DAY_S, 3, ("pressure",), (0.9,), (0.001,))]
    assert state.drifted
    assert (state.num_alarms, state.num_published_alarms) == (1, 1)


def test_the_same_feature_must_shift_each_time(quiet: FleetView, baseline: Baseline) -> None:
    state, log = run([shifted(quiet, 20 + day, day % 3) for day in range(9)], baseline)
    assert not log
    assert not state.drifted


def test_overlapping_windows_do_not_count(quiet: FleetView, baseline: Baseline) -> None:
    hourly = [shifted(quiet, 20 + hour / 24, 1) for hour in range(48)]
    state, log = run(hourly, baseline)
    assert not log  # 20 and 21 counted, 22 not reached
    assert state.inputs[DAY_S].features["pressure"].bad == 2
    _, log = run([*hourly, shifted(quiet, 22, 1)], baseline)
    assert [type(event) for event in log] == [Drifted, PublishedRuleFired]


def test_a_window_that_says_nothing_holds_the_streak(quiet: FleetView, baseline: Baseline) -> None:
    unknown = {
        "psi_F": np.full(3, np.nan),
        "p_F": np.full(3, np.nan),
        "known_F": np.zeros(3, bool),
        "shifted_F": np.zeros(3, bool),
    }
    days = [shifted(quiet, 20, 1), shifted(quiet, 21, 1), on_day(quiet, 22, **unknown), shifted(quiet, 23, 1)]
    assert [type(event) for event in run(days, baseline)[1]] == [Drifted, PublishedRuleFired]
    assert not run([on_day(quiet, day, **unknown) for day in range(20, 40)], baseline)[1]


def test_the_published_rule_fires_where_significance_keeps_ours_quiet(
    quiet: FleetView, baseline: Baseline
) -> None:
    state, log = run([shifted(quiet, day, 0, 2, significant=False) for day in range(20, 24)], baseline)
    assert log == [PublishedRuleFired(22 * DAY_S, 1, DAY_S, 3, ("temperature", "current"))]
    assert (state.num_alarms, state.num_published_alarms, state.drifted) == (0, 1, False)


def test_drift_clears_after_quiet_windows_and_can_come_back(quiet: FleetView, baseline: Baseline) -> None:
    days = [shifted(quiet, day, 1) for day in range(20, 23)]
    days += [on_day(quiet, day) for day in range(23, 26)]
    days += [shifted(quiet, day, 1) for day in range(26, 29)]
    state, log = run(days, baseline)
    ours = [event for event in log if not isinstance(event, PublishedRuleFired)]
    assert [(type(event), event.at / DAY_S) for event in ours] == [
        (Drifted, 22),
        (DriftCleared, 25),
        (Drifted, 28),
    ]
    assert (state.num_alarms, state.num_published_alarms) == (2, 2)


def test_confidence_decay_and_recovery(quiet: FleetView, baseline: Baseline) -> None:
    store = store_of(BINS, DEVICES)
    fill(store, END, END + 24, np.random.default_rng(1), unsure=0.5)
    unsure = view(store, baseline, END + 24, POLICY)
    days = [on_day(unsure, day) for day in range(20, 24)] + [on_day(quiet, day) for day in range(24, 28)]
    _, log = run(days, baseline)
    assert [(type(event), event.at / DAY_S) for event in log] == [
        (ConfidenceDecayed, 22),
        (ConfidenceRecovered, 26),
    ]
    decayed = log[0]
    assert isinstance(decayed, ConfidenceDecayed)
    assert decayed.share == pytest.approx(0.5, abs=0.05)
    assert decayed.p_value < POLICY.confidence.alpha
    assert (decayed.num_devices, decayed.limit) == (DEVICES, 0.2)


def test_a_kpi_guardrail_breaches_and_recovers(quiet: FleetView, baseline: Baseline) -> None:
    store = store_of(BINS, DEVICES)
    fill(store, END, END + 24, np.random.default_rng(1), alarms=4.0)
    worse = view(store, baseline, END + 24, POLICY)
    days = [on_day(worse, day) for day in range(20, 23)] + [on_day(quiet, day) for day in range(23, 26)]
    state, log = run(days, baseline)
    assert [(type(event), event.at / DAY_S) for event in log] == [(KpiBreached, 21), (KpiRecovered, 24)]
    breach = log[0]
    assert isinstance(breach, KpiBreached)
    assert breach.bound == pytest.approx(baseline.kpis["alarms"].value * 1.2)
    assert breach.bound < breach.low < breach.value < breach.high
    assert state.breached == frozenset()


def sequential(limit: float, rate: float, seed: int = 1) -> tuple[MonitoringPolicy, Baseline, FleetView]:
    """A policy with an absolute limit, the champion's baseline (two alarms an hour), and a day with some rate."""
    policy = replace(POLICY, kpis=(Kpi("alarms", Better.LOWER, limit=limit),))
    store = store_of(BINS, DEVICES)
    fill(store, 0, END, np.random.default_rng(0))
    baseline = make_baseline(store, 0, END, policy, version=1, now=(END + 5) * SLOT_S)
    day = store_of(BINS, DEVICES)
    fill(day, END, END + 24, np.random.default_rng(seed), alarms=rate)
    return policy, baseline, view(day, baseline, END + 24, policy)


def test_an_absolute_limit_is_told_by_the_sequential_test_as_soon_as_it_decides() -> None:
    policy, baseline, worse = sequential(3.0, 3.2)
    _, _, good = sequential(3.0, 2.0)
    days = [on_day(worse, day) for day in (20, 20.5, 21)] + [on_day(good, day) for day in (22, 23)]
    state, log = run(days, baseline, policy)
    assert [(type(event), event.at / DAY_S) for event in log] == [(KpiBreached, 20), (KpiRecovered, 23)]
    breach = log[0]
    assert isinstance(breach, KpiBreached)
    assert (breach.test, breach.bound, breach.num_windows) == (KpiTest.SPRT, 3.0, 1)
    assert 5 <= breach.num_devices < DEVICES
    assert state.epochs["alarms"].number == 4  # the window in between overlaps: its devices did not enter
    record = baseline.kpi_records["alarms"]
    assert (record.mean, record.std) == pytest.approx((2.0, np.sqrt(2.0 / 24)), rel=0.15)


def test_a_limit_that_the_champion_does_not_keep_is_left_to_the_interval() -> None:
    policy, baseline, worse = sequential(1.9, 3.2)
    _, log = run([on_day(worse, day) for day in (20, 21)], baseline, policy)
    (breach,) = log
    assert isinstance(breach, KpiBreached)
    assert (breach.test, breach.num_windows, breach.num_devices) == (KpiTest.INTERVAL, 2, DEVICES)
    chosen = replace(policy, kpis=(Kpi("alarms", Better.LOWER, limit=3.0, test=KpiTest.INTERVAL),))
    assert not run([on_day(worse, day) for day in (20, 21)], baseline, chosen)[
        1
    ]  # 3.2, and 2.9 is not excluded
    _, _, far = sequential(3.0, 4.0)
    _, log = run([on_day(far, day) for day in (20, 21)], baseline, chosen)
    assert [(type(event), event.at / DAY_S) for event in log] == [(KpiBreached, 21)]


def test_a_window_without_the_kpi_says_nothing_and_ends_no_epoch() -> None:
    policy, baseline, worse = sequential(3.0, 3.2)
    assert worse.serving is not None
    silent = replace(worse, serving=replace(worse.serving, kpis_D2={"alarms": np.zeros((DEVICES, 2))}))
    state, log = run([on_day(silent, 20), on_day(replace(worse, serving=None), 21)], baseline, policy)
    assert not log
    assert not state.epochs
    store = store_of(BINS, DEVICES)
    fill(store, END, END + 24, np.random.default_rng(1))
    week = view(store, baseline, END + 24, policy, window_s=7 * DAY_S).serving
    assert week is not None
    assert (set(week.kpis), week.kpis_D2) == ({"alarms"}, {})


def test_an_accuracy_that_falls_beyond_the_margin_is_told_with_its_interval(
    quiet: FleetView, baseline: Baseline
) -> None:
    store = store_of(BINS, DEVICES)
    fill(store, END, END + 24, np.random.default_rng(1), accuracy=0.8)
    worse = view(store, baseline, END + 24, POLICY)
    state, log = run([on_day(worse, 20), on_day(worse, 21), on_day(quiet, 22)], baseline)
    assert [type(event) for event in log] == [AccuracyFell, AccuracyRecovered]
    fell = log[0]
    assert isinstance(fell, AccuracyFell)
    assert fell.high < fell.bound == pytest.approx(baseline.accuracy - 0.03)
    assert fell.completeness == pytest.approx(0.5, abs=0.03)
    assert not state.accuracy_fell


def test_a_changed_pace_of_labels_is_told_once_and_taken_back(quiet: FleetView, baseline: Baseline) -> None:
    later = CurveDrift(-0.4, 1e-6, DEVICES)
    same = CurveDrift(0.02, 0.4, DEVICES)
    silent = (CurveDrift(), replace(later, num_devices=4), CurveDrift(-0.4, math.nan, 1))
    small = CurveDrift(-0.05, 1e-9, DEVICES)  # beyond chance, and too little to matter
    paces = [
        (20, same),
        (27, later),
        (34, later),
        *zip((41, 48, 55), silent, strict=True),
        (62, small),
        (69, later),
    ]
    weeks = [on_day(quiet, day, window_s=7 * DAY_S, pace=pace) for day, pace in paces]
    state, log = run(weeks, baseline)
    assert log == [
        LabelPaceChanged(27 * DAY_S, 1, -0.4, 1e-6, DEVICES, 1),
        LabelPaceRestored(62 * DAY_S, 1, -0.05),
        LabelPaceChanged(69 * DAY_S, 1, -0.4, 1e-6, DEVICES, 1),
    ]
    assert state.pace_changed
    assert not run([on_day(quiet, 20, pace=later)], baseline)[1]  # not the window in which it is judged


def test_labels_too_few_to_speak_say_nothing(quiet: FleetView, baseline: Baseline) -> None:
    store = store_of(BINS, DEVICES)
    fill(store, END, END + 24, np.random.default_rng(1), accuracy=0.5)
    worse = view(store, baseline, END + 24, POLICY)
    assert worse.serving is not None
    rare = replace(worse.serving, completeness=0.05)
    few = replace(worse.serving, num_labelled_devices=2)
    for serving in (rare, few, None):
        assert not run([on_day(worse, 20, serving=serving)], baseline)[1]


def test_a_device_is_quarantined_after_two_windows_and_released_after_three(
    quiet: FleetView, baseline: Baseline
) -> None:
    stuck = DriftPlace(Scope.DEVICE, (5,), (), ("pressure",), DEVICES, (1e-9,), 1 / DEVICES)
    days = [on_day(quiet, day, where=stuck) for day in range(20, 23)]
    days += [on_day(quiet, day) for day in range(23, 27)]
    state, log = run(days, baseline)
    assert log == [
        DeviceQuarantined(21 * DAY_S, 1, 5, 2, ("pressure",), 1e-9),
        DeviceReleased(25 * DAY_S, 1, 5, 3),
    ]
    assert state.quarantined == frozenset()
    assert not run([days[0], days[3], days[1]], baseline)[0].quarantined


def test_windows_in_which_nobody_looked_do_not_release(quiet: FleetView, baseline: Baseline) -> None:
    stuck = DriftPlace(Scope.DEVICE, (5,), (), ("pressure",), DEVICES, (1e-9,), 1 / DEVICES)
    days = [on_day(quiet, day, where=stuck) for day in range(20, 22)]
    days += [on_day(quiet, day, where=DriftPlace(Scope.UNKNOWN)) for day in range(22, 40)]
    assert run(days, baseline)[0].quarantined == {5}


def test_events_and_views_of_another_champion_change_nothing(quiet: FleetView, baseline: Baseline) -> None:
    state = MonitorState(version=2)
    with pytest.raises(ValueError, match="champions differ"):
        decide(POLICY, state, quiet, baseline)
    with pytest.raises(ValueError, match="version 1"):
        apply(POLICY, state, KpiRecovered(0.0, 1, "alarms", 1.0))
    assert state == MonitorState(version=2)


@given(st.lists(st.tuples(st.sampled_from("qsup"), st.floats(0.1, 2.0)), max_size=25))
def test_alarms_alternate_with_clearing_and_need_enough_windows(days: list[tuple[str, float]]) -> None:
    state, at, log = MonitorState(version=1), 0.0, []
    for kind, step in days:
        at += step * DAY_S
        told = {"q": Told.QUIET, "s": Told.BAD, "p": Told.QUIET, "u": Told.UNKNOWN}[kind]
        event = WindowJudged(
            at,
            1,
            DAY_S,
            at - DAY_S >= state.counted_at.get(DAY_S, -np.inf),
            features=(("x", told),),
            published=("x",) if kind in "sp" else (),
            psi=() if kind == "u" else (("x", 0.3),),
        )
        after = apply(POLICY, state, event)
        streaks = after.inputs.get(DAY_S)
        if streaks is not None:
            assert streaks.features["x"].bad <= sum(1 for k, _ in days if k == "s")
            if event.counted and streaks.features["x"].bad >= 3 and not streaks.drifted:
                drifted = Drifted(at, 1, DAY_S, 3, ("x",), (0.3,), (0.0,))
                after = apply(POLICY, after, drifted)
                log.append("raised")
            elif event.counted and streaks.drifted and streaks.features["x"].quiet >= 3:
                after = apply(POLICY, after, DriftCleared(at, 1, DAY_S, 3))
                log.append("cleared")
        state = after
    assert log == [("raised", "cleared")[i % 2] for i in range(len(log))]
    assert state.num_alarms == log.count("raised")


def test_a_policy_is_built_from_plain_values_and_checks_itself() -> None:
    policy = build(
        MonitoringPolicy,
        {
            "windows": [
                {"length_s": 6 * HOUR_S, "stride_s": HOUR_S},
                {"length_s": DAY_S, "stride_s": HOUR_S},
            ],
            "drift": {"psi": 0.25, "null": "pooled", "windows_s": [6 * HOUR_S]},
            "kpis": [{"name": "alarms", "better": "lower", "limit": 0.02, "limit_kind": "relative"}],
            "accuracy": {"window_s": DAY_S},
        },
    )
    assert policy.drift.windows_s == (6 * HOUR_S,)
    assert policy.kpis[0].limit == 0.02
    with pytest.raises(ConfigError, match="no window is 3600 s long"):
        MonitoringPolicy(drift=DriftRules(windows_s=(HOUR_S,)))
    with pytest.raises(ConfigError, match="two KPIs"):
        MonitoringPolicy(kpis=(Kpi("a", Better.LOWER), Kpi("a", Better.HIGHER)))
    with pytest.raises(ConfigError, match=r"place\.alpha"):
        PlaceRules(alpha=0.7)
    with pytest.raises(ConfigError, match="no window is 3600 s long"):
        MonitoringPolicy(pace=PaceRules(window_s=HOUR_S))
    with pytest.raises(ConfigError, match=r"pace\.min_devices"):
        PaceRules(min_devices=1)
    with pytest.raises(ConfigError, match=r"drift\.alpha"):
        DriftRules(alpha=1.0)
