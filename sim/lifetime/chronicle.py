"""The books of a life: what was decided, what happened, and what the oracle saw of it.

Rules of this file:
    * Events are written as they happen; steps once for each step of the tally; everything else when the life is over.
    * A drift is *detected* at the first alert after its onset, *restored* when the hit devices' accuracy is back within
      the bad margin of their own record for a whole trailing window, while the drift lasts: a drift that ends by itself
      mends nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.coordinator.cycle import Begun, Trained
from fedretrain.core.build import plain
from fedretrain.core.clock import DAY_S
from fedretrain.monitoring.alerts import Alert, WindowJudged
from fedretrain.retraining.config import Strategy, Where
from fedretrain.retraining.decision import Action, Decision, Outcome
from fedretrain.retraining.online import Reverted
from fedretrain.rollout.causes import Cause, EventKind
from fedretrain.rollout.events import RolloutEvent
from fedretrain.rollout.safety import SafetyEvent, SafetyEventKind
from fedretrain.rollout.stops import RULES_BASELINE
from sim.lifetime.records import (
    DetectionRecord,
    DeviceScore,
    FeatureRecord,
    Life,
    LifeEvent,
    PolicySummary,
    StepRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fedretrain.coordinator.cycle import (
        Admitted,
        CycleEvent,
        CycleState,
        Discarded,
        Proposed,
        Refused,
        ServedAgain,
        Withdrawn,
    )
    from fedretrain.coordinator.cycle_events import Body
    from fedretrain.monitoring.view import FleetView
    from fedretrain.rollout.quarantine import QuarantineEvent
    from sim.lifetime.loop import Living
    from sim.lifetime.online import Told
    from sim.sensors.events import DriftEvent

_YEAR_S = 365.25 * DAY_S
ALERTS = ("drifted", "accuracy_fell", "confidence_decayed", "kpi_breached", "device_quarantined")
"""Monitor events that count as noticing a drift."""


class Chronicle:
    """Keeps the books.

    Args:
        policy: Name of the policy.
        seed: Of the life.
        living: The life.
    """

    def __init__(self, policy: str, seed: int, living: Living) -> None:
        self._policy, self._seed, self._living = policy, seed, living
        self._events: list[LifeEvent] = []
        self._steps: list[StepRecord] = []
        self._features: list[FeatureRecord] = []
        self._psi = np.nan
        self._low_confidence = np.nan
        self._view: FleetView | None = None
        self._champion = -1
        self._fallback: int | None = None
        self._calm_s = 0.0
        self._digest = ""

    def note(self, event: CycleEvent, state: CycleState) -> None:
        """Write an event down."""
        body = event.body
        record = plain(body)
        self._chain([event.at, type(body).__name__, record])
        if isinstance(body, Decision):
            if body.action is not Action.NONE:
                self._decision(event.at, body, state)
        elif isinstance(body, RolloutEvent):
            kind = "champion" if body.kind is EventKind.PROMOTED else str(body.kind)
            version = state.rollout.plan.candidate if state.rollout is not None else -1
            text = body.reason + self._why(body)
            self._write(event.at, kind, text, version, {"step": float(body.step)})
            for warning in () if body.plan is None else body.plan.warnings:
                self._write(event.at, "warned", warning, version, {})
        elif isinstance(body, Trained):
            kind = "candidate" if body.made else "no_candidate"
            self._write(event.at, kind, body.reason, body.version, {})
        elif isinstance(body, Alert):
            if not isinstance(body, WindowJudged):
                self._alert(event.at, body, state)
        elif not isinstance(body, (Outcome, Begun)):
            self._standing(event, body, state)

    def _chain(self, record: list[Any]) -> None:
        """One more record of the log, and all before it, in one digest."""
        text = self._digest + json.dumps(record, sort_keys=True, default=str)
        self._digest = hashlib.sha256(text.encode()).hexdigest()

    def _standing(
        self,
        event: CycleEvent,
        body: Proposed
        | Admitted
        | Withdrawn
        | ServedAgain
        | Discarded
        | Refused
        | SafetyEvent
        | QuarantineEvent,
        state: CycleState,
    ) -> None:
        """What changes who may serve and who counts: safe mode, switches, quarantine, waiting candidates."""
        kind = str(event.to_record()["kind"])
        told = plain(body)
        more = told.get("kind") or told.get("answer")
        version = int(told.get("version", told.get("ident", state.champion)))
        named = f"{kind}_{more}" if more else kind
        if isinstance(body, SafetyEvent) and body.kind is SafetyEventKind.ENTERED:
            named = "safe_mode"
        self._write(event.at, named, body.reason, version, {})

    def serves(self, at: float, version: int, state: CycleState) -> None:
        """Write down when something else than the champion begins to serve, and when the champion does again."""
        fallback = None if version == state.champion else version
        if fallback == self._fallback:
            return
        self._fallback = fallback
        if fallback is None:
            self._write(at, "champion_serves", f"version {version} serves again", version, {})
            return
        why = "safe mode" if state.safety.safe_mode else "the champion's confidence has decayed"
        what = "the rules serve" if version == RULES_BASELINE else f"version {version} serves"
        self._write(at, "fallback_serves", f"{what}: {why}", version, {})

    def _why(self, body: RolloutEvent) -> str:
        """Which checks of the offline validation failed, where that is the reason."""
        report = self._living.judge.validation
        if (
            body.kind is not EventKind.ROLLBACK_STARTED
            or body.cause is not Cause.VALIDATION_FAILED
            or report is None
        ):
            return ""
        failed = [f"{check.name} {check.part}".strip() for check in report.failed()]
        more = f" and {len(failed) - 4} more" if len(failed) > 4 else ""
        return f": {', '.join(failed[:4])}{more}"

    def online(self, at: float, told: Told) -> None:
        """Write down that a device's online copy went back to the champion, or learns again."""
        reverted = isinstance(told.event, Reverted)
        text = told.event.reason if isinstance(told.event, Reverted) else "the rest is over"
        kind = "online_reverted" if reverted else "online_resumed"
        self._chain([at, kind, told.device, text])
        self._write(at, kind, f"device {told.device}: {text}", told.version, {"device": float(told.device)})

    def _alert(self, at: float, body: Body, state: CycleState) -> None:
        """An alert, or whatever else the coordinator wrote down, with its numbers."""
        kind = re.sub(r"(?<!^)(?=[A-Z])", "_", type(body).__name__).lower()
        values = {k: v for k, v in plain(body).items() if k not in ("at", "version")}
        text = ", ".join(f"{name} {_short(value)}" for name, value in values.items())
        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        self._write(at, kind, text, state.champion, numbers)

    def _decision(self, at: float, body: Decision, state: CycleState) -> None:
        kind = "deferred" if body.action is Action.DEFER else "retrain"
        version = -1
        if kind == "retrain" and body.where is Where.DEVICE:
            kind = "online_started" if body.strategy is Strategy.ONLINE else "personal_refresh"
        elif kind == "retrain" and state.training is not None:
            version = state.training.version
        self._write(at, kind, body.reason, version, dict(body.evidence))

    def _write(self, at: float, kind: str, text: str, version: int, evidence: dict[str, Any]) -> None:
        kept = {name: value if isinstance(value, str) else float(value) for name, value in evidence.items()}
        self._events.append(LifeEvent(self._policy, self._seed, at, kind, text, version, kept))

    def step(self, tick: int, now: float, state: CycleState, views: Sequence[FleetView]) -> None:
        """The end of a tick; a record at the end of each step."""
        living = self._living
        if state.champion != self._champion:  # what was seen of the last one says nothing of this one
            self._champion, self._psi, self._low_confidence, self._view = state.champion, np.nan, np.nan, None
        for view in views:
            if view.version != state.champion:  # made before this tick's promotion
                continue
            if view.window_s == min(w.length_s for w in living.policy.monitoring.windows):
                self._short(view, now)
            else:
                self._view = view
        if not len(living.truth.active(now)):
            self._calm_s += living.life.tick_s
        step_s = living.tally.step_s
        if now % step_s > 1e-6 * step_s and tick + 1 < living.life.num_ticks:
            return
        self._steps.append(self._record(round(now / step_s) - 1, now, state))

    def _short(self, view: FleetView, now: float) -> None:
        """The short window's figures; its features once a step."""
        known = view.psi_F[np.isfinite(view.psi_F)]
        self._psi = float(known.max()) if len(known) else float("nan")
        self._low_confidence = _number(view.serving.low_confidence_fraction if view.serving else None)
        if now % self._living.tally.step_s <= 1e-6 * self._living.tally.step_s:
            self._features += [
                FeatureRecord(self._policy, self._seed, now, name, float(psi), bool(beyond))
                for name, psi, beyond in zip(view.features, view.psi_F, view.significant_F, strict=True)
                if np.isfinite(psi)
            ]

    def _record(self, index: int, now: float, state: CycleState) -> StepRecord:
        living, tally = self._living, self._living.tally
        index = min(index, tally.rows_DS.shape[1] - 1)
        accuracy = tally.of_devices(index, index + 1)
        rollout = state.rollout
        long = self._view.serving if self._view is not None else None
        personal = self._view.personal if self._view is not None else None
        epsilon = living.campaigns.epsilon()
        candidate = rollout.plan.candidate if rollout is not None and rollout.is_open else -1
        return StepRecord(
            policy=self._policy,
            seed=self._seed,
            at=now,
            rows=int(tally.rows_DS[:, index].sum()),
            accuracy=float(np.nanmean(accuracy)) if np.isfinite(accuracy).any() else float("nan"),
            worst_decile=tally.worst_decile(max(index - 6, 0), index + 1),
            observed_accuracy=_number(long.accuracy if long else None),
            completeness=_number(long.completeness if long else None),
            estimated_accuracy=_number(long.estimated_accuracy if long else None),
            bad_devices=int(tally.badly_served(index).sum()),
            drifted_devices=len(living.truth.active(now)),
            psi_max=self._psi,
            low_confidence=self._low_confidence,
            champion=state.champion,
            phase=str(rollout.phase) if rollout is not None and rollout.is_open else "",
            exposure=float((living.serving.version == candidate).mean()) if candidate >= 0 else 0.0,
            training=living.campaigns.running,
            epsilon=float("nan") if epsilon is None else epsilon,
            safe_mode=state.safety.safe_mode,
            personal_gain=_number(personal.gap if personal else None),
            refused_fraction=_number(personal.refused_fraction if personal else None),
        )

    def close(self, state: CycleState, wall_s: float) -> Life:
        """Everything, once the life is over."""
        del state
        return Life(
            self._summary(wall_s),
            tuple(self._steps),
            tuple(self._features),
            tuple(self._events),
            tuple(self._detections()),
            tuple(self._devices()),
        )

    def _devices(self) -> Iterator[DeviceScore]:
        """Every device in every named part of the life."""
        living = self._living
        for name, (start_at, end_at) in living.life.segments_of(living.life.duration_s).items():
            rows_D, right_D = living.tally.part(start_at, end_at)
            for device, (rows, right) in enumerate(zip(rows_D.tolist(), right_D.tolist(), strict=True)):
                accuracy = right / rows if rows else float("nan")
                yield DeviceScore(self._policy, self._seed, device, name, rows, accuracy)

    def _summary(self, wall_s: float) -> PolicySummary:
        living, tally = self._living, self._living.tally
        kinds = [event.kind for event in self._events]
        steps = tally.rows_DS.shape[1]
        hours = tally.step_s / 3600.0
        campaigns = living.campaigns
        return PolicySummary(
            policy=self._policy,
            seed=self._seed,
            accuracy=tally.accuracy(living.life.scored_from_s),
            by_segment={
                name: tally.accuracy(a, b)
                for name, (a, b) in living.life.segments_of(living.life.duration_s).items()
            },
            worst_decile=tally.worst_decile(0, steps),
            retrains=kinds.count("retrain"),
            personal_refreshes=kinds.count("personal_refresh"),
            deferred=kinds.count("deferred"),
            promoted=kinds.count("champion"),
            rolled_back=kinds.count("rolled_back"),
            bytes_up=campaigns.bytes_up + living.watch.bytes_up,
            bytes_down=campaigns.bytes_down,
            epsilon=campaigns.epsilon(),
            labels_used=living.watch.num_labels,
            bad_device_hours=float(sum(record.bad_devices for record in self._steps)) * hours,
            device_hours=float(living.fleet.num_devices * steps) * hours,
            false_alarms=sum(self._is_false(event) for event in self._events),
            feature_years=self._calm_s / _YEAR_S * living.watch.num_features if living.truth.groups else 0.0,
            wall_s=wall_s,
            digest=self._digest,
            privacy_scope=campaigns.privacy_scope(),
        )

    def _is_false(self, event: LifeEvent) -> bool:
        """A drift alert while nothing injected is active."""
        truth = self._living.truth
        return event.kind == "drifted" and bool(truth.groups) and not len(truth.active(event.at))

    def _detections(self) -> list[DetectionRecord]:
        """What became of each injected drift."""
        found = []
        for group in self._living.truth.groups:
            onset_at = _onset_of(group)
            alerts = [e.at - onset_at for e in self._events if e.kind in ALERTS and e.at >= onset_at]
            until_at = self._watched_until(group)
            hit = self._living.truth.hit(group)
            found.append(
                DetectionRecord(
                    self._policy,
                    self._seed,
                    self._living.title_of(group[0].spec),
                    onset_at,
                    min(alerts, default=float("nan")),
                    self._restored(hit, onset_at, until_at),
                    until_at - onset_at,
                    self._cost(hit, onset_at, until_at),
                )
            )
        return found

    def _watched_until(self, group: Sequence[DriftEvent]) -> float:
        """What comes after the next drift's onset is the next one's, and after the drift's own end nobody's."""
        onsets = [_onset_of(other) for other in self._living.truth.groups]
        next_at = min((at for at in onsets if at > _onset_of(group)), default=math.inf)
        return min(next_at, *(event.end_at for event in group), self._living.life.duration_s)

    def _restored(self, hit: np.ndarray[Any, Any], onset_at: float, until_at: float) -> float:
        """Seconds from the onset until few of the hit devices are badly served, for good; 0 if few ever were, NaN if never."""
        tally = self._living.tally
        first, end = int(onset_at // tally.step_s), int(until_at // tally.step_s)
        bad = np.array([float(tally.badly_served(s)[hit].mean()) for s in range(first, end)])
        harmed = bad > _HARMED
        if not harmed.any():
            return 0.0
        last = int(np.flatnonzero(harmed)[-1])
        return float("nan") if last == len(bad) - 1 else (first + last + 1) * tally.step_s - onset_at

    def _cost(self, hit: np.ndarray[Any, Any], onset_at: float, until_at: float) -> float:
        """What a drift cost the hit devices in accuracy while it was watched."""

        def accuracy(start_at: float, end_at: float) -> float:
            rows_D, right_D = self._living.tally.part(max(start_at, 0.0), end_at)
            rows = int(rows_D[hit].sum())
            return int(right_D[hit].sum()) / rows if rows else float("nan")

        return accuracy(onset_at - _BEFORE_S, onset_at) - accuracy(onset_at, until_at)


def _onset_of(group: Sequence[DriftEvent]) -> float:
    return min(event.onset_at for event in group)


_BEFORE_S = 7 * DAY_S
"""Before an onset, what its cost is told against."""

_HARMED = 0.1
"""Share of the hit devices that may be badly served by chance."""


def _short(value: Any) -> str:
    """A value as it stands in a timeline."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        shown = ", ".join(_short(item) for item in value[:3])
        return shown + (f" and {len(value) - 3} more" if len(value) > 3 else "")
    return str(value)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
