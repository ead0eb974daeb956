"""A small fleet's loop for tests: a short policy, windows made by hand, and a driver that keeps the log."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.coordinator import cycle
from fedretrain.coordinator.policy import Policy
from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.monitoring.baseline import Baseline
from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.config import AccuracyRules, DriftRules, MonitoringPolicy, PlaceRules, Window
from fedretrain.monitoring.fleet_view import FleetView, PersonalView, ServingView, ViewVerdict
from fedretrain.monitoring.kpi import Better, ConfidenceDecay, DecayEvidence, Kpi
from fedretrain.monitoring.locate import DriftPlace, Scope
from fedretrain.monitoring.ratios import Ratio
from fedretrain.retraining.config import RetrainingPolicy
from fedretrain.retraining.decision import Outcome
from fedretrain.retraining.signals import DriftScope, Signals
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.config import OnRetrain, OnSecond
from fedretrain.rollout.evidence import RolloutEvidence
from fedretrain.rollout.safety import SafetyCommand, SafetyLimit, SafetyOrder, SafetyRules, Switch
from tests import rollout_cases

if TYPE_CHECKING:
    from fedretrain.coordinator.cycle import CycleEvent

NAMES = ("temperature", "pressure")
MONITORING = MonitoringPolicy(
    windows=(Window(DAY_S, HOUR_S),),
    drift=DriftRules(num_windows=1, clear_windows=1, windows_s=(DAY_S,)),
    confidence=ConfidenceDecay(num_windows=1),
    kpis=(Kpi("hits", Better.HIGHER),),
    accuracy=AccuracyRules(window_s=DAY_S),
    place=PlaceRules(num_windows=1, release_windows=2),
)
RETRAINING = RetrainingPolicy(cool_down_s=HOUR_S, retry_s=HOUR_S, min_labels=0, interval_s=1000 * DAY_S)
SAFETY = SafetyRules(
    (SafetyLimit("too few hits", "hits", below=0.1), SafetyLimit("blind", "missing_fraction", above=0.9))
)
POLICY = Policy(
    monitoring=MONITORING, retraining=RETRAINING, rollout=rollout_cases.POLICY, safety=SAFETY, name="test"
)
DRIFT = Signals(psi_max=0.9, drift_confirmed=True, drift_scope=DriftScope.FLEET, num_labels=100)
STRUCTURE = Signals(schema_changed=True, num_labels=100)
"""A cause whose rule may stop a rollout."""
CALM = Signals(psi_max=0.01, num_labels=100)

_FILL = np.random.default_rng(0).normal(size=(200, 2))
BINS = fit_bins(_FILL, NAMES)


def policy_with(
    *, on_second: OnSecond = OnSecond.REFUSE, on_retrain: OnRetrain = OnRetrain.SUPERSEDE, **changes: Any
) -> Policy:
    """The test policy with other answers to a second rollout, and other parts."""
    rollout = changes.pop("rollout", POLICY.rollout)
    return replace(POLICY, rollout=replace(rollout, on_second=on_second, on_retrain=on_retrain), **changes)


def baseline_of(version: int) -> Baseline:
    """A champion's record, by hand."""
    none = np.zeros(2, dtype=np.int64)
    return Baseline(
        version=version,
        bins=BINS,
        features_GFC=np.ones((1, len(NAMES), BINS.num_cells), dtype=np.int64),
        nulls={},
        output_nulls={},
        outputs_M=none,
        confidence_B=np.zeros(10, dtype=np.int64),
        accuracy=0.9,
        macro_f1=0.9,
        rmse=math.nan,
        calibration_B2=np.zeros((10, 2), dtype=np.int64),
        arrival=None,
        kpis={},
        record=None,
    )


def view_of(
    version: int,
    day: float,
    *,
    psi: float = 0.01,
    unsure: bool = False,
    outliers: tuple[int, ...] = (),
    hits: float = 0.8,
    missing: float = 0.0,
) -> FleetView:
    """A day's window as one wishes.

    Args:
        version: Of the champion.
        day: Its end.
        psi: Of the first feature; above the limit it counts as significant.
        unsure: Too many unsure predictions.
        outliers: Devices that are.
        hits: The KPI.
        missing: Missing share of the first feature.
    """
    bad = np.array([psi > MONITORING.drift.psi, False])
    share = 0.9 if unsure else 0.1
    serving = ServingView(
        num_predictions=1000,
        output_psi=0.01,
        output_p=0.5,
        low_confidence_fraction=share,
        decay=DecayEvidence(share, 0.001 if unsure else 0.9, 50, unsure),
        latency_s=(0.001, 0.002, 0.003),
        completeness=0.9,
        expected_completeness=0.9,
        accuracy=0.9,
        accuracy_low=0.88,
        accuracy_high=0.92,
        macro_f1=0.9,
        rmse=math.nan,
        rmse_low=math.nan,
        rmse_high=math.nan,
        num_labelled_devices=40,
        estimated_accuracy=0.9,
        kpis={"hits": Ratio(hits, hits - 0.02, hits + 0.02, 50)},
    )
    scope = Scope.DEVICE if outliers else Scope.NONE
    return FleetView(
        at=day * DAY_S,
        window_s=DAY_S,
        version=version,
        features=NAMES,
        verdict=ViewVerdict.SHIFTED if bad.any() else ViewVerdict.UNCHANGED,
        num_rows=10_000,
        num_devices=50,
        psi_F=np.array([psi, 0.01]),
        p_F=np.where(bad, 0.001, 0.5),
        known_F=np.array([True, True]),
        significant_F=bad,
        shifted_F=bad,
        psi_GF=np.array([[psi, 0.01]]),
        missing_F=np.array([missing, 0.0]),
        violations_F=np.zeros(2),
        distinct_F=np.full(2, np.nan),
        serving=serving,
        where=DriftPlace(scope, outliers, (), NAMES[:1], 50, tuple(0.001 for _ in outliers), 0.0),
        personal=PersonalView(30, 0.04, 0.02, 0.06, 0.1, (0.3, 0.9), 20, 0.25, 0.1, 0.5),
    )


def stop(switch: Switch, by: str = "ada") -> SafetyOrder:
    return SafetyOrder(SafetyCommand.STOP, by, switch, "stop it")


def start(switch: Switch, by: str = "ada") -> SafetyOrder:
    return SafetyOrder(SafetyCommand.START, by, switch)


LEAVE = SafetyOrder(SafetyCommand.LEAVE, "ada", reason="it is mended")


class Drive:
    """A loop whose log is kept; all is well unless a test says otherwise."""

    def __init__(self, policy: Policy = POLICY, champion: int = 1) -> None:
        self.policy, self.now, self._day = policy, 0.0, 0
        self.log: list[CycleEvent] = [cycle.CycleEvent(0.0, cycle.Begun(champion, policy=policy.digest))]
        self.state = cycle.begin(self.log[0])

    def seen(self, **changes: Any) -> RolloutEvidence:
        """What is known of the rollout: all is well but for `changes`."""
        rollout = self.state.rollout
        return RolloutEvidence(**changes) if rollout is None else rollout_cases.well(rollout, **changes)

    def tick(self, hours: float = 1.0, *, seen: RolloutEvidence | None = None, **known: Any) -> list[Any]:
        """Let time pass, then one tick; the bodies of its events."""
        self.now += hours * HOUR_S
        evidence = cycle.Evidence(rollout=self.seen() if seen is None else seen, **known)
        events = cycle.tick(self.policy, self.state, evidence, self.now)
        for event in events:
            self.state = cycle.apply(self.policy, self.state, event)
        self.log += events
        return [event.body for event in events]

    def watch(self, **shown: Any) -> list[Any]:
        """A day passes and its window is looked at."""
        self._day += 2  # so that windows never overlap, however long the ticks between were
        self._day = max(self._day, math.ceil(self.now / DAY_S) + 1)
        view = view_of(self.state.champion, self._day, **shown)
        return self.tick(24.0, views=(view,), baseline=baseline_of(self.state.champion))

    def retrained(self, signals: Signals = DRIFT) -> int:
        """A retrain is decided and makes its candidate; its version."""
        self.tick(2.0, signals=signals)
        assert self.state.training is not None
        version = self.state.training.version
        self.tick(trained=cycle.Trained(version, made=True))
        return version

    def to(self, phase: Phase, step: int | None = None, **changes: Any) -> Drive:
        """Tick hourly, all well, until the rollout is in `phase` (and at `step`)."""
        for _ in range(400):
            rollout = self.state.rollout
            if rollout is not None and rollout.phase is phase and step in (None, rollout.step):
                return self
            self.tick(seen=self.seen(**changes))
        raise AssertionError(f"{phase} is not reached from {self.state.rollout}")

    def promoted(self) -> int:
        """A retrain whose candidate becomes champion."""
        version = self.retrained()
        self.to(Phase.CHAMPION)
        assert self.state.champion == version
        self.tick(signals=CALM)
        return version

    def replayed(self) -> cycle.CycleState:
        """The state that the log leads to after a way through a file."""
        lines = [json.dumps(event.to_record(), allow_nan=False) for event in self.log]
        return cycle.replay(self.policy, (cycle.from_record(json.loads(line)) for line in lines))


def outcomes(drive: Drive) -> list[Outcome]:
    """How retrains ended so far."""
    return [event.body for event in drive.log if isinstance(event.body, Outcome)]


def kinds(bodies: list[Any]) -> list[str]:
    """Class names, and of a rollout's events their kinds."""
    return [str(getattr(body, "kind", type(body).__name__)) for body in bodies]
