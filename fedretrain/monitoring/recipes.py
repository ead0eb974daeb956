"""From views to alerts, as a fold: `decide(policy, state, view, baseline) -> events`, `apply(policy, state, event) -> state`.

Rules of this file:
    * A rule counts only windows that do not overlap; a window in between is judged and logged, and moves no streak.
    * A window that says nothing neither raises nor clears: streaks stay.
    * (A) PSI above its limit and beyond its empirical null, false-discovery rate controlled, for the same feature in
      several windows in a row: `Drifted`. The published rule, which asks for no significance, is counted beside it.
    * (B) Too many unsure predictions: `ConfidenceDecayed`. (C) A guardrail breached: `KpiBreached`; whether by a
      sequential test over devices or by an interval is the KPI's (`kpi.py`, `guardrails.py`).
    * Labels: `AccuracyFell` if the whole interval lies beyond the margin and enough labels are there; `LabelPaceChanged` if they
      come sooner or later than they did.
    * An outlying device is quarantined after windows in a row, and released after more of them without.
    * Each alert is raised once, when something changes; a new champion starts with a new state.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from fedretrain.monitoring import raising
from fedretrain.monitoring.alerts import (
    AccuracyFell,
    AccuracyRecovered,
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
from fedretrain.monitoring.guardrails import KpiEpoch
from fedretrain.monitoring.judging import window_judged
from fedretrain.monitoring.kpi import DecayEvidence
from fedretrain.monitoring.state import MonitorState, Streak, WindowStreaks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedretrain.monitoring.baseline import Baseline
    from fedretrain.monitoring.config import MonitoringPolicy
    from fedretrain.monitoring.view import FleetView


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
        epochs=state.epochs,
    )
    after = apply(policy, state, judged)
    return (
        judged,
        *raising.input_alerts(policy, after, judged),
        *raising.confidence_alerts(policy, state, after, judged),
        *raising.kpi_alerts(policy, after, judged, view, baseline),
        *raising.accuracy_alerts(policy, after, judged, view, baseline),
        *raising.pace_alerts(policy, after, judged, view),
        *raising.device_alerts(policy, after, judged),
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
        case LabelPaceChanged() | LabelPaceRestored():
            return replace(state, pace_changed=isinstance(event, LabelPaceChanged))
        case DeviceQuarantined() | DeviceReleased():
            return _after_device(state, event)
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


def _after_device(state: MonitorState, event: DeviceQuarantined | DeviceReleased) -> MonitorState:
    """Quarantine and release."""
    if isinstance(event, DeviceQuarantined):
        return replace(state, quarantined=state.quarantined | {event.device})
    return replace(state, quarantined=state.quarantined - {event.device})


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
        epochs={**state.epochs, **{o.kpi: state.epochs.get(o.kpi, KpiEpoch()).after(o) for o in event.looks}},
        accuracy=state.accuracy.after(event.accuracy),
        pace=state.pace.after(event.pace),
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
