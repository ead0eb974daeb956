"""Which alerts a judged window raises or takes back, by recipe.

Rules of this file:
    * Each is raised once, when something changes, with the numbers that caused it.
    * Only counted windows raise anything; recipe B counts its own, and devices are told by the windows they are looked for in.
"""

from __future__ import annotations

import math
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
    LabelPaceChanged,
    LabelPaceRestored,
    PublishedRuleFired,
    Told,
    WindowJudged,
)
from fedretrain.monitoring.judging import kpi_bound, score_bound
from fedretrain.monitoring.kpi import KpiTest
from fedretrain.monitoring.state import MonitorState, Streak

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedretrain.monitoring.baseline import Baseline
    from fedretrain.monitoring.config import MonitoringPolicy
    from fedretrain.monitoring.view import FleetView


def input_alerts(
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


def confidence_alerts(
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


def kpi_alerts(
    policy: MonitoringPolicy,
    after: MonitorState,
    event: WindowJudged,
    view: FleetView,
    baseline: Baseline,
) -> Iterable[KpiBreached | KpiRecovered]:
    """Recipe C."""
    if not event.counted or view.serving is None:
        return
    needed, looks = policy.kpi_rules.num_windows, {look.kpi: look for look in event.looks}
    for kpi in policy.kpis:
        streak, found = after.kpis.get(kpi.name), view.serving.kpis.get(kpi.name)
        if streak is None or found is None or kpi.name not in dict(event.kpis):
            continue
        look = looks.get(kpi.name)
        test, devices = (KpiTest.SPRT, look.num_devices) if look else (KpiTest.INTERVAL, found.num_devices)
        if streak.bad >= (1 if look else needed) and kpi.name not in after.breached:
            numbers = (found.value, found.low, found.high, kpi_bound(kpi, baseline))
            yield KpiBreached(event.at, event.version, kpi.name, *numbers, streak.bad, test, devices)
        if streak.quiet >= needed and kpi.name in after.breached:
            yield KpiRecovered(event.at, event.version, kpi.name, found.value)


def accuracy_alerts(
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


def device_alerts(
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


def pace_alerts(
    policy: MonitoringPolicy, after: MonitorState, event: WindowJudged, view: FleetView
) -> Iterable[LabelPaceChanged | LabelPaceRestored]:
    """How soon labels come."""
    if not event.counted or event.pace is Told.UNKNOWN:
        return
    found, needed = view.pace, policy.pace.num_windows
    if after.pace.bad >= needed and not after.pace_changed:
        who = event.at, event.version
        yield LabelPaceChanged(*who, found.surplus, found.p_value, found.num_devices, after.pace.bad)
    if after.pace.quiet >= needed and after.pace_changed:
        yield LabelPaceRestored(event.at, event.version, found.surplus)
