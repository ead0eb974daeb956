"""From views to alerts, as a fold: `decide(policy, state, view, baseline) -> events`, `apply(policy, state, event) -> state`.

Rules of this file:
    * A rule counts only windows that do not overlap; a window in between is judged and logged, and moves no streak.
    * A window that says nothing neither raises nor clears: streaks stay.
    * (A) PSI above its limit and beyond its empirical null, false-discovery rate controlled, for the same feature in
      several windows in a row: `Drifted`. The published rule, which asks for no significance, is counted beside it.
    * (B) Too many unsure predictions: `ConfidenceDecayed`. (C) A guardrail breached: `KpiBreached`.
    * Labels: `AccuracyFell` if the whole interval lies beyond the margin and enough labels are there.
    * An outlying device is quarantined after windows in a row, and released after more of them without.
    * Each alert is raised once, when something changes; a new champion starts with a new state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

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
    MonitorEvent,
    PublishedRuleFired,
    Told,
    WindowJudged,
)
from fedretrain.monitoring.judging import kpi_bound, score_bound, window_judged
from fedretrain.monitoring.kpi import DecayEvidence, DecayState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fedretrain.monitoring.baseline import Baseline
    from fedretrain.monitoring.config import MonitoringPolicy
    from fedretrain.monitoring.view import FleetView


@dataclass(frozen=True)
class Streak:
    """Windows in a row that said the same about one question.

    Attributes:
        bad: Bad ones.
        quiet: Quiet ones.
    """

    bad: int = 0
    quiet: int = 0

    def after(self, told: Told) -> Streak:
        """With one more window; an unknown one changes nothing."""
        if told is Told.UNKNOWN:
            return self
        return Streak(self.bad + 1, 0) if told is Told.BAD else Streak(0, self.quiet + 1)


@dataclass(frozen=True)
class WindowStreaks:
    """Recipe A on windows of one length.

    Attributes:
        features: By name.
        published: Windows in a row above the limit, by feature, for the published rule.
        drifted: The verdict stands.
        published_on: The published rule's does.
    """

    features: Mapping[str, Streak] = field(default_factory=dict)
    published: Mapping[str, Streak] = field(default_factory=dict)
    drifted: bool = False
    published_on: bool = False


@dataclass(frozen=True)
class MonitorState:
    """What monitoring remembers of one champion.

    Attributes:
        version: The champion.
        counted_at: End of the last counted window, by its length.
        located_at: End of the last window in which outliers were looked for.
        inputs: Recipe A by the window's length.
        decay: Recipe B.
        kpis: Recipe C by KPI.
        breached: KPIs that are breached.
        accuracy: What labels said.
        accuracy_fell: The verdict stands.
        devices: Streaks of devices that are, or lately were, outliers.
        quarantined: Devices in quarantine.
        num_alarms: Times recipe A was raised.
        num_published_alarms: Times the published rule would have been.
    """

    version: int
    counted_at: Mapping[float, float] = field(default_factory=dict)
    located_at: float = -math.inf
    inputs: Mapping[float, WindowStreaks] = field(default_factory=dict)
    decay: DecayState = field(default_factory=DecayState)
    kpis: Mapping[str, Streak] = field(default_factory=dict)
    breached: frozenset[str] = frozenset()
    accuracy: Streak = field(default_factory=Streak)
    accuracy_fell: bool = False
    devices: Mapping[int, Streak] = field(default_factory=dict)
    quarantined: frozenset[int] = frozenset()
    num_alarms: int = 0
    num_published_alarms: int = 0

    @property
    def drifted(self) -> bool:
        """Recipe A stands for windows of some length."""
        return any(streaks.drifted for streaks in self.inputs.values())


def decide(
    policy: MonitoringPolicy, state: MonitorState, view: FleetView, baseline: Baseline
) -> tuple[MonitorEvent, ...]:
    """What a view says: first the judged window, then whatever it raises.

    Args:
        policy: Limits and windows.
        state: What was so far; of the same champion as the view.
        view: The window.
        baseline: The champion's record.

    Raises:
        ValueError: If state, view and baseline are not of one champion: a defect of the caller.
    """
    if not state.version == view.version == baseline.version:
        raise ValueError(f"champions differ: {state.version}, {view.version}, {baseline.version}")
    judged = window_judged(
        policy,
        view,
        baseline,
        counted=view.at - view.window_s >= state.counted_at.get(view.window_s, -math.inf),
        locatable=view.at - view.window_s >= state.located_at,
    )
    after = apply(policy, state, judged)
    return (
        judged,
        *_input_alerts(policy, after, judged),
        *_confidence_alerts(policy, state, after, judged),
        *_kpi_alerts(policy, after, judged, view, baseline),
        *_accuracy_alerts(policy, after, judged, view, baseline),
        *_device_alerts(policy, after, judged),
    )


def apply(policy: MonitoringPolicy, state: MonitorState, event: MonitorEvent) -> MonitorState:
    """The state after an event.

    Raises:
        ValueError: If the event is of another champion; the state is unchanged.
    """
    if event.version != state.version:
        raise ValueError(f"an event of version {event.version} for {state.version}")
    match event:
        case WindowJudged():
            return _after_window(policy, state, event)
        case Drifted() | DriftCleared() | PublishedRuleFired():
            return _after_inputs(state, event)
        case KpiBreached():
            return replace(state, breached=state.breached | {event.kpi})
        case KpiRecovered():
            return replace(state, breached=state.breached - {event.kpi})
        case AccuracyFell() | AccuracyRecovered():
            return replace(state, accuracy_fell=isinstance(event, AccuracyFell))
        case DeviceQuarantined():
            return replace(state, quarantined=state.quarantined | {event.device})
        case DeviceReleased():
            return replace(state, quarantined=state.quarantined - {event.device})
    return state  # recipe B's own state moved with the window


def fold(policy: MonitoringPolicy, state: MonitorState, events: Iterable[MonitorEvent]) -> MonitorState:
    """The state after several events."""
    for event in events:
        state = apply(policy, state, event)
    return state


def _after_inputs(state: MonitorState, event: Drifted | DriftCleared | PublishedRuleFired) -> MonitorState:
    """Verdicts of recipe A and of the published rule."""
    before = state.inputs.get(event.window_s, WindowStreaks())
    if isinstance(event, PublishedRuleFired):
        after = replace(before, published_on=True)
        state = replace(state, num_published_alarms=state.num_published_alarms + 1)
    else:
        after = replace(before, drifted=isinstance(event, Drifted))
        state = replace(state, num_alarms=state.num_alarms + int(after.drifted))
    return replace(state, inputs={**state.inputs, event.window_s: after})


def _after_window(policy: MonitoringPolicy, state: MonitorState, event: WindowJudged) -> MonitorState:
    """Streaks after a window."""
    if event.devices_judged:
        state = replace(state, located_at=event.at, devices=_device_streaks(policy, state, event))
    if not event.counted:
        return state
    decay = state.decay
    if event.confidence is not None:
        evidence = DecayEvidence(*event.confidence, event.confidence_exceeded)
        decay = policy.confidence.update(decay, evidence)
    before = state.inputs.get(event.window_s, WindowStreaks())
    published = {
        name: before.published.get(name, Streak()).after(
            Told.UNKNOWN
            if name not in dict(event.psi)
            else Told.BAD
            if name in event.published
            else Told.QUIET
        )
        for name, _ in event.features
    }
    features = {name: before.features.get(name, Streak()).after(told) for name, told in event.features}
    on = before.published_on and any(streak.bad for streak in published.values())
    after = replace(before, features=features, published=published, published_on=on)
    return replace(
        state,
        counted_at={**state.counted_at, event.window_s: event.at},
        inputs={**state.inputs, event.window_s: after} if event.features else state.inputs,
        decay=decay,
        kpis={**state.kpis, **{n: state.kpis.get(n, Streak()).after(told) for n, told in event.kpis}},
        accuracy=state.accuracy.after(event.accuracy),
    )


def _device_streaks(policy: MonitoringPolicy, state: MonitorState, event: WindowJudged) -> dict[int, Streak]:
    """Streaks of outliers and of devices that were; those quiet for long are forgotten."""
    streaks = {
        device: state.devices.get(device, Streak()).after(
            Told.BAD if device in event.outliers else Told.QUIET
        )
        for device in sorted({*state.devices, *event.outliers})
    }
    longest = policy.place.release_windows
    return {d: s for d, s in streaks.items() if s.quiet <= longest or d in state.quarantined}


def _input_alerts(
    policy: MonitoringPolicy, after: MonitorState, event: WindowJudged
) -> Iterable[Drifted | DriftCleared | PublishedRuleFired]:
    """Recipe A and the published rule."""
    streaks, needed = after.inputs.get(event.window_s), policy.drift.num_windows
    if streaks is None or not event.counted or not event.features:
        return
    bad = tuple(name for name, streak in streaks.features.items() if streak.bad >= needed)
    psi, p, who = dict(event.psi), dict(event.p), (event.at, event.version, event.window_s)
    if bad and not streaks.drifted:
        values = tuple(psi.get(name, math.nan) for name in bad), tuple(p.get(name, math.nan) for name in bad)
        yield Drifted(*who, needed, bad, *values)
    known = [streak.quiet for streak in streaks.features.values() if streak != Streak()]
    quiet = min(known, default=0)
    if streaks.drifted and quiet >= policy.drift.clear_windows:
        yield DriftCleared(*who, policy.drift.clear_windows)
    published = tuple(name for name, streak in streaks.published.items() if streak.bad >= needed)
    if published and not streaks.published_on:
        yield PublishedRuleFired(*who, needed, published)


def _confidence_alerts(
    policy: MonitoringPolicy, state: MonitorState, after: MonitorState, event: WindowJudged
) -> Iterable[ConfidenceDecayed | ConfidenceRecovered]:
    """Recipe B."""
    if event.confidence is None or state.decay.decayed == after.decay.decayed:
        return
    share, p_value, num_devices = event.confidence
    if after.decay.decayed:
        limit = policy.confidence.max_share
        yield ConfidenceDecayed(event.at, event.version, share, p_value, num_devices, limit)
    else:
        yield ConfidenceRecovered(event.at, event.version, share)


def _kpi_alerts(
    policy: MonitoringPolicy,
    after: MonitorState,
    event: WindowJudged,
    view: FleetView,
    baseline: Baseline,
) -> Iterable[KpiBreached | KpiRecovered]:
    """Recipe C."""
    if not event.counted or view.serving is None:
        return
    needed = policy.kpi_rules.num_windows
    for kpi in policy.kpis:
        streak, found = after.kpis.get(kpi.name), view.serving.kpis.get(kpi.name)
        if streak is None or found is None or kpi.name not in dict(event.kpis):
            continue
        if streak.bad >= needed and kpi.name not in after.breached:
            numbers = (found.value, found.low, found.high, kpi_bound(kpi, baseline))
            yield KpiBreached(event.at, event.version, kpi.name, *numbers, streak.bad)
        if streak.quiet >= needed and kpi.name in after.breached:
            yield KpiRecovered(event.at, event.version, kpi.name, found.value)


def _accuracy_alerts(
    policy: MonitoringPolicy,
    after: MonitorState,
    event: WindowJudged,
    view: FleetView,
    baseline: Baseline,
) -> Iterable[AccuracyFell | AccuracyRecovered]:
    """What labels say."""
    serving = view.serving
    if not event.counted or serving is None or event.accuracy is Told.UNKNOWN:
        return
    regression = not math.isnan(serving.rmse)
    value = serving.rmse if regression else serving.accuracy
    if after.accuracy.bad >= policy.accuracy.num_windows and not after.accuracy_fell:
        low, high = (
            (serving.rmse_low, serving.rmse_high)
            if regression
            else (serving.accuracy_low, serving.accuracy_high)
        )
        bound, share = score_bound(policy, baseline), serving.completeness
        devices = serving.num_labelled_devices
        yield AccuracyFell(event.at, event.version, value, low, high, bound, share, devices)
    if after.accuracy.quiet >= policy.accuracy.num_windows and after.accuracy_fell:
        yield AccuracyRecovered(event.at, event.version, value)


def _device_alerts(
    policy: MonitoringPolicy, after: MonitorState, event: WindowJudged
) -> Iterable[DeviceQuarantined | DeviceReleased]:
    """Quarantine and release."""
    if not event.devices_judged:
        return
    p = dict(zip(event.outliers, event.outlier_p, strict=True))
    for device, streak in after.devices.items():
        if streak.bad >= policy.place.num_windows and device not in after.quarantined:
            features = event.outlier_features
            yield DeviceQuarantined(event.at, event.version, device, streak.bad, features, p[device])
        if streak.quiet >= policy.place.release_windows and device in after.quarantined:
            yield DeviceReleased(event.at, event.version, device, streak.quiet)
