"""One case lived: a life with its saboteur, until its one rollout is decided or the horizon is over.

Rules of this file:
    * The life is the loop's own; here it is watched from outside, and ended early.
    * A candidate that was promoted serves everybody for the rest of the horizon.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.clock import DAY_S
from fedretrain.rollout.causes import MODEL_AT_FAULT, Cause, EventKind, Phase
from fedretrain.rollout.events import RolloutEvent
from sim.lifetime.loop import Living
from sim.lifetime.policies import policies_of
from sim.sabotage.cases import Wanted, chosen
from sim.sabotage.records import CaseOutcome, Ended

if TYPE_CHECKING:
    from fedretrain.coordinator.cycle import CycleEvent
    from fedretrain.rollout.state import RolloutState
    from sim.sabotage.cases import Case
    from sim.sabotage.saboteurs import Honest
    from sim.schema import Config

_RIGHT = {
    Wanted.STOPPED: (Ended.STOPPED, Ended.UNDECIDED),
    Wanted.PROMOTED: (Ended.PROMOTED,),
    Wanted.HELD: (Ended.HELD, Ended.UNDECIDED),
    Wanted.UNBLAMED: (Ended.PROMOTED, Ended.HELD, Ended.UNDECIDED),
}


@dataclass(frozen=True)
class CaseJob:
    """A case with a seed: what a worker process is sent.

    Attributes:
        config: The experiment's configuration.
        case: Name of the case.
        seed: Of everything random.
    """

    config: Config
    case: str
    seed: int

    @property
    def title(self) -> str:
        """What to call it if it fails."""
        return f"the case {self.case}, seed {self.seed},"

    def begin(self, saved: bytes | None, where: str) -> CaseUnderWay:
        """Begin it in this process; a case is never put aside half lived."""
        import torch

        assert saved is None, where
        torch.set_num_threads(1)
        (case,) = chosen([self.case])
        return CaseUnderWay(self.config, case, self.seed)


class CaseUnderWay:
    """A case that is lived until its rollout is decided.

    Args:
        config: The experiment's configuration, before the case changes it.
        case: What is done.
        seed: Of everything random.
    """

    def __init__(self, config: Config, case: Case, seed: int) -> None:
        self._begun = time.perf_counter()
        named = policies_of(config.lifetime)[0]
        saboteur = case.make()
        self._case = case
        self._living = Living(case.configured(config, named.policy), named, seed, saboteur)
        self._trial = _Trial(self._living, saboteur, config.sabotage.horizon_s)
        self._num_ticked = 0
        self._living.begin()

    def go(self, seconds: float) -> CaseOutcome | None:
        """Go on for about so many seconds; what became of the case once it is over."""
        begun, living = time.perf_counter(), self._living
        while time.perf_counter() - begun < seconds:
            living.tick(self._num_ticked)
            self._num_ticked += 1
            over = self._trial.over(self._num_ticked * living.life.tick_s)
            if over or self._num_ticked == living.life.num_ticks:
                digest = living.finish(0.0).summary.digest
                return self._trial.outcome(self._case, digest, time.perf_counter() - self._begun)
        return None

    def save(self) -> None:
        """A case takes less than a minute: one that is interrupted begins again."""


_FORWARD = (Phase.PENDING, Phase.SHADOW, Phase.CANARY, Phase.RAMP, Phase.CHAMPION)
"""Where a candidate gets to; from a frozen, falling or waiting rollout it cannot be told how far it came."""


class _Trial:
    """Watches the one rollout of a life."""

    def __init__(self, living: Living, saboteur: Honest, horizon_s: float) -> None:
        self._living, self._saboteur, self._horizon_s = living, saboteur, horizon_s
        self._created_at: float | None = None
        self._now = 0.0
        self._served_s = 0.0
        self._peak = 0.0
        self._effect = (np.nan, np.nan)
        self._decided: tuple[float, RolloutEvent, Phase] | None = None
        self._phase = Phase.PENDING
        saboteur.listen(self._heard)

    def _heard(self, event: CycleEvent) -> None:
        body = event.body
        if not isinstance(body, RolloutEvent):
            return
        if body.kind is EventKind.CREATED and self._created_at is None:
            self._created_at = event.at
        ends = body.kind in (EventKind.PROMOTED, EventKind.ROLLBACK_STARTED)
        if ends and self._decided is None:
            self._decided = (event.at, body, self._phase)
        if self._rollout.phase in _FORWARD:
            self._phase = self._rollout.phase

    @property
    def _rollout(self) -> RolloutState:
        state = self._living.state
        assert state is not None
        assert state.rollout is not None
        return state.rollout

    def over(self, now: float) -> bool:
        """Count the tick that ended; whether there is nothing more to see."""
        self._now = now
        if self._created_at is None:
            return False
        if now >= self._created_at + DAY_S and np.isnan(self._effect[0]):
            self._effect = self._measured(self._created_at)
        if now > self._created_at + self._horizon_s:
            return True
        share = float(np.mean(self._living.serving.version == self._saboteur.candidate))
        self._peak = max(self._peak, share if self._decided is None else 0.0)
        closed = self._decided is not None and not self._rollout.is_open
        if not closed or not self._promoted:
            self._served_s += share * self._living.life.tick_s
        return closed and now >= self._created_at + DAY_S

    @property
    def _promoted(self) -> bool:
        return self._decided is not None and self._decided[1].kind is EventKind.PROMOTED

    def _measured(self, created_at: float) -> tuple[float, float]:
        """Oracle: what the candidate does to the fleet, and to the site that it hurts most."""
        living, candidate = self._living, self._saboteur.candidate
        assert candidate is not None
        found = living.rows.between(created_at, created_at + DAY_S)
        rows = np.arange(found.start, found.stop)
        champion = self._rollout.plan.champion
        right = [
            _best(living.serving.probabilities(rows, version, served=True)) == living.rows.y[rows]
            for version in (candidate, champion)
        ]
        gain = right[0].astype(np.float64) - right[1]
        site = living.fleet.traits(living.everybody).site[living.rows.device[rows]].astype(np.int64)
        count, total = np.bincount(site), np.bincount(site, weights=gain)
        return float(gain.mean()), float((total[count > 0] / count[count > 0]).min())

    def outcome(self, case: Case, digest: str, wall_s: float) -> CaseOutcome:
        """What became of the case."""
        ended, stopped_by, phase, reason, at = self._ending()
        created_at = at if self._created_at is None else self._created_at
        served_s = self._served_s
        if ended is Ended.PROMOTED:
            served_s += max(created_at + self._horizon_s - self._now, 0.0)
        return CaseOutcome(
            case=case.name,
            title=case.title,
            seed=self._living.seed,
            wanted=str(case.wanted),
            ended=str(ended),
            as_wanted=ended in _RIGHT[case.wanted],
            stopped_by=stopped_by,
            phase=phase,
            reason=reason,
            days=(at - created_at) / DAY_S,
            exposure=served_s / self._horizon_s,
            peak_exposure=self._peak,
            effect=self._effect[0],
            worst_site_effect=self._effect[1],
            digest=digest,
            wall_s=wall_s,
        )

    def _ending(self) -> tuple[Ended, str, str, str, float]:
        """How it ended, who stopped it, in which phase, why, and when."""
        state = self._living.state
        assert state is not None
        if self._created_at is None:  # the campaign itself came to nothing
            return Ended.STOPPED, "training", "", "no candidate came of the campaign", self._now
        if self._decided is None:
            held = self._rollout.held or (
                Cause.METRIC_SOURCE if self._rollout.broken_at is not None else None
            )
            return Ended.HELD, "", str(self._phase), f"held: {held or 'no evidence'}", self._now
        at, event, phase = self._decided
        if event.kind is EventKind.PROMOTED:
            return Ended.PROMOTED, "", str(phase), event.reason, at
        blamed = event.cause in MODEL_AT_FAULT
        return (
            Ended.STOPPED if blamed else Ended.UNDECIDED,
            self._by(event, phase),
            str(phase),
            event.reason,
            at,
        )

    def _by(self, event: RolloutEvent, phase: Phase) -> str:
        """Who took it back."""
        if event.cause is Cause.VALIDATION_FAILED:
            report = self._living.judge.validation
            failed = (
                [] if report is None else list(dict.fromkeys(str(check.name) for check in report.failed()))
            )
            return f"validation: {', '.join(failed)}"
        if event.cause is Cause.INSTALL_FAILED:
            return "the devices' own check"
        if event.cause in (Cause.GATE_FAILED, Cause.KPI_REGRESSION):
            return f"{phase} gate: {event.reason.removeprefix('worse in ')}"
        return f"limit of {phase}"


def _best(
    share: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The class of the largest probability; -1 where there is none."""
    known = np.asarray(np.isfinite(share).all(axis=1), dtype=np.bool_)
    return np.where(known, np.where(known[:, None], share, 0.0).argmax(axis=1), -1)
