"""One life: a fleet under one policy with one seed, tick after tick on the virtual clock.

Rules of this file:
    * Decisions are `coordinator.cycle`'s; this loop moves the clock, lets devices act, gathers evidence, carries out what
      follows from events, and keeps the books.
    * The order of a tick: devices predict and report, labels arrive, orders reach devices, campaigns train, then the
      coordinator decides on what has arrived by then.
    * Devices serve what `cycle.served` says after each tick, and those in `kept_devices` are asked in no round and count in no
      judgement until they are let in again.
    * A life is a pure function of configuration, policy and seed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.coordinator import cycle
from fedretrain.coordinator.cycle import CycleState, Evidence
from fedretrain.core.errors import ConfigError
from fedretrain.core.rng import seed_for
from fedretrain.retraining.config import Strategy, Where
from fedretrain.retraining.decision import Action, Decision
from fedretrain.rollout.causes import EventKind, Phase
from fedretrain.rollout.events import RolloutEvent
from fedretrain.rollout.evidence import RolloutEvidence
from fedretrain.rollout.stops import RULES_BASELINE
from sim.arm import Arms
from sim.lifetime.campaigns import Campaigns
from sim.lifetime.chronicle import Chronicle
from sim.lifetime.examine import Examiner
from sim.lifetime.field import Field
from sim.lifetime.judge import Judge
from sim.lifetime.online import Learner
from sim.lifetime.oracle import Tally, Truth
from sim.lifetime.pool import Pool
from sim.lifetime.release import Release
from sim.lifetime.rows import LifeFleet, LifeRows
from sim.lifetime.saboteur import Saboteur
from sim.lifetime.serving import Serving
from sim.lifetime.watch import Watch
from sim.sensors.config import SHAPED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.arm import Arm
    from sim.lifetime.policies import NamedPolicy
    from sim.lifetime.records import Life
    from sim.schema import Config

    Ids = NDArray[np.int64]

BASE_LATENCY_S = 0.001


class Living:
    """A life under way.

    Args:
        config: The experiment's configuration.
        policy: What it lives under.
        seed: Of everything random.
        saboteur: Changes what happens on purpose; None: nothing.
    """

    def __init__(
        self, config: Config, policy: NamedPolicy, seed: int, saboteur: Saboteur | None = None
    ) -> None:
        life = config.lifetime
        self.life, self.policy, self.seed = life, policy.policy, seed
        self.saboteur = saboteur or Saboteur()
        # The fleet need not keep what it made: the life copies every row once.
        found = Arms().get(replace(config, runner=replace(config.runner, cache_bytes=0)), seed)
        self.rows = LifeRows.of(found.world.fleet)
        self.fleet = fleet = self._buffered(found)
        self.arm: Arm = replace(
            found, setting=replace(found.setting, world=replace(found.world, fleet=fleet))
        )
        self.everybody = np.arange(fleet.num_devices)
        traits = fleet.traits(self.everybody)
        self.serving = Serving(self.arm, self.rows, self.saboteur)
        training = self.saboteur.training(self.arm)
        pool = Pool(training, fleet, life.pool_devices) if life.pool_devices else None
        self.campaigns = Campaigns(training, pool)
        self.learner = Learner(self.arm, fleet, self.serving, policy.policy.retraining.online, life.online_lr)
        strata = traits.site.astype(np.int64) * 1000 + traits.device_type
        self.release = Release(self.serving, strata, seed)
        costs = (self.latency_of, self.size_of)
        examiner = Examiner(
            policy.policy.validation, self.arm, fleet, self.serving, life.validation_s or life.buffer_s, costs
        )
        self.watch = Watch(self, policy.policy, traits.site.astype(np.int64))
        field = Field(self.rows, self.watch.trial, traits, self.latency_of)
        self.judge = Judge(policy.policy, self.release, field, examiner, seed)
        self.tally = Tally(fleet.num_devices, life)
        self.truth = Truth(fleet.truth(self.everybody), fleet.num_devices, life.duration_s)
        self.chronicle = Chronicle(policy.name, seed, self)
        self.state: CycleState | None = None
        self._span_end = 0
        self._refreshed_D = np.zeros(fleet.num_devices, dtype=np.int64)
        self.saboteur.attach(self)

    def _buffered(self, arm: Arm) -> LifeFleet:
        """The arm's fleet, whose devices train on what they hold at the time."""
        life = self.life
        return LifeFleet(
            arm.world.fleet,
            self.rows,
            buffer_s=life.buffer_s,
            buffer_rows=life.buffer_rows,
            holdout_every=life.holdout_every,
        )

    def latency_of(self, version: int) -> float:
        """Median latency in seconds of a version: all have the same architecture, so an honest life's are alike."""
        return self.saboteur.latency_s(version, BASE_LATENCY_S)

    def size_of(self, version: int) -> int:
        """Size in bytes of a version's package; of the rules, which every device has, 0."""
        if version == RULES_BASELINE:
            return 0
        usual = sum(leaf.nbytes for leaf in self.serving.versions.shared[version].values())
        return self.saboteur.size_bytes(version, usual)

    def begin(self) -> None:
        """The first champion, trained on the history, and its baseline."""
        life = self.life
        at = -life.baseline_s if life.baseline_held_out else 0.0
        self.campaigns.begin(1, None, {}, rounds=life.initial_rounds, at=at)
        first = self.campaigns.run_all(at, 0.0)
        if first.shared is None:
            raise ConfigError(
                f"no first champion: {first.reason}",
                where="lifetime.initial_rounds",
                fix="check that devices have labelled rows before the life begins (lifetime.baseline_s)",
            )
        self.serving.versions.add(1, first.shared, first.personal)
        self.serving.serve(1)
        self.serving.prepare(self.everybody, 1, at=at)
        history = self.rows.between(-life.baseline_s, 0.0)
        self.serving.predict_served(np.arange(history.start, history.stop))
        self.watch.begin(champion=1)
        begun = cycle.Begun(1, self.watch.num_labels, self.policy.digest)
        self.state = cycle.begin(cycle.CycleEvent(0.0, begun))

    def tick(self, tick: int) -> None:
        """One step of the clock."""
        assert self.state is not None
        start_at = tick * self.life.tick_s
        now = start_at + self.life.tick_s
        which = self.rows.between(start_at, now)
        self._predict(tick)
        online = self.arm.world.availability.online(self.everybody, now)
        self.watch.observe(which, start_at, now, online, self.released())
        self._observe_shadow(which, start_at, now, online)
        self.campaigns.collect(start_at, now)
        self._learn(start_at, now)
        self.tally.add(self.rows, which, self.serving.outputs)
        changed = self.release.step(now, online)
        self._refresh(now, online)
        self._again(changed, now)
        trained = self._train(now)
        views = self.watch.views(self.state, now)
        evidence = Evidence(
            views,
            self.watch.baseline,
            self.watch.signals(self.state, self.campaigns, now),
            trained,
            self.campaigns.under_way(self.life.campaign_max_s),
            self._judged(self.state, now),
            num_devices=self.fleet.num_devices,
        )
        champion, monitor = self.state.champion, self.state.monitor
        for event in cycle.tick(self.policy, self.state, evidence, now):
            self.state = cycle.apply(self.policy, self.state, event)
            if self.state.champion == champion:
                monitor = self.state.monitor
            self.chronicle.note(event, self.state)
            self.saboteur.heard(event)
            self._carry_out(event.body, now)
        self._stand(now)
        if self.state.champion != champion:
            self.learner.stop()
            self.watch.promoted(self.state.champion, now, monitor)
        self.chronicle.step(tick, now, self.state, views)

    def _judged(self, state: cycle.CycleState, now: float) -> RolloutEvidence:
        """What is known of the rollout; without an open one, only what the devices say."""
        rollout = state.rollout
        if rollout is not None and rollout.is_open:
            return self.judge.evidence(rollout, now, self._counted())
        return RolloutEvidence(exposure=self.release.exposure(now))

    def released(self) -> tuple[int, ...]:
        """Versions that some device may serve."""
        return (RULES_BASELINE, *self.serving.versions.shared)

    def finish(self, wall_s: float) -> Life:
        """The books, closed."""
        assert self.state is not None
        return self.chronicle.close(self.state, wall_s)

    def _predict(self, tick: int) -> None:
        """Predict the coming span at its beginning; a candidate in shadow likewise."""
        if tick % self.life.span_ticks == 0:
            self._span_end = tick + self.life.span_ticks
            rows = self._coming(tick * self.life.tick_s)
            self._serve(rows)
            self._predict_shadow(rows)

    def _serve(self, rows: Ids) -> None:
        """Predict rows with what their devices serve: a version, or a copy of it that learns online."""
        self.serving.predict_served(rows)
        self.learner.predict(rows, self.serving.outputs)

    def _learn(self, start_at: float, now: float) -> None:
        """Copies learn from the labels that came."""
        changed, told = self.learner.learn(self.rows.labelled_between(start_at, now), now)
        self._again(changed, now)
        for one in told:
            self.chronicle.online(now, one)

    def _coming(self, at: float) -> Ids:
        """The rows from an instant to the span's end."""
        found = self.rows.between(at, self._span_end * self.life.tick_s)
        return np.arange(found.start, found.stop)

    def _predict_shadow(self, rows: Ids) -> None:
        candidate = self._shadowed_now()
        if candidate is None:
            return
        mine = rows[self.release.shadowing[self.rows.device[rows]]]
        version = np.full(len(mine), candidate, dtype=np.int64)
        self.serving.predict(mine, version, self.serving.candidate_outputs)

    def _shadowed_now(self) -> int | None:
        """The candidate that is scored without being served."""
        rollout = self.state.rollout if self.state is not None else None
        scored = rollout is not None and rollout.phase in (Phase.SHADOW, Phase.FROZEN)
        return rollout.plan.candidate if rollout is not None and scored else None

    def _observe_shadow(self, which: slice, start_at: float, now: float, online: NDArray[np.bool_]) -> None:
        candidate, rows = self._shadowed_now(), np.arange(which.start, which.stop)
        mine = rows[:0] if candidate is None else rows[self.release.shadowing[self.rows.device[rows]]]
        self.watch.observe_shadow(mine, candidate or 0, start_at, now, online, self.released())

    def _again(self, devices: Ids, now: float) -> None:
        """Predict again what comes, on devices that changed what they serve."""
        if len(devices):
            rows = self._coming(now)
            self._serve(rows[np.isin(self.rows.device[rows], devices)])

    def _refresh(self, now: float, online: NDArray[np.bool_]) -> None:
        """Devices that are to refresh their personal state do so once they are online."""
        assert self.state is not None
        due = cycle.refresh_due(self.state)
        devices = np.flatnonzero((self._refreshed_D < due) & online)
        if len(devices):
            self.serving.refit(devices, at=now)
            self._refreshed_D[devices] = due
            self._again(devices, now)

    def _train(self, now: float) -> cycle.Trained | None:
        """The rounds that are due; a campaign's end."""
        found = self.campaigns.advance(now, self.life.round_interval_s)
        if found is None:
            return None
        if found.shared is None:
            return cycle.Trained(found.version, made=False, reason=found.reason)
        found = self.saboteur.made(found)
        assert found.shared is not None
        self.serving.versions.add(found.version, found.shared, found.personal)
        # Candidates are judged, offline and in shadow, with the personal state that devices would hold for them.
        self.serving.prepare(self.everybody, found.version, at=now)
        seen = self.judge.foresee(now, self._counted())
        return cycle.Trained(
            found.version, made=True, reason=found.told, detectable=seen.detectable, clusters=seen.clusters
        )

    def _stand(self, now: float) -> None:
        """What holds until the next tick: what devices serve, and who is kept out."""
        assert self.state is not None
        safe = self.state.safety.safe_mode
        version = cycle.served(self.policy, self.state)
        self.release.serve(version, exposing=self.state.rollout_open, everybody=safe)
        self.chronicle.serves(now, version, self.state)
        self.campaigns.keep_out(~self._counted())

    def _counted(self) -> NDArray[np.bool_]:
        """``[D]`` devices whose evidence and updates count."""
        assert self.state is not None
        counted = np.ones(self.fleet.num_devices, dtype=np.bool_)
        counted[sorted(self.state.kept_devices)] = False
        return counted

    def _carry_out(self, body: cycle.Body, now: float) -> None:
        """What follows for the world."""
        assert self.state is not None
        if isinstance(body, Decision) and body.action is Action.RETRAIN:
            self._start(body, now)
        if isinstance(body, cycle.Trained) and not body.made:
            self.campaigns.stop()  # one that is over is not running; one that was given up trains nobody any more
        if not isinstance(body, RolloutEvent):
            return
        if body.kind is EventKind.CREATED:
            self.release.begin(self.state.num_rollouts, self._counted())
            self.judge.begin(self.state.num_rollouts)
        if body.order is not None:
            self.release.order(body.order)
        if body.kind in (EventKind.SHADOW_STARTED, EventKind.UNFROZEN):
            self._predict_shadow(self._coming(now))

    def _start(self, decision: Decision, now: float) -> None:
        """Begin what a retrain decision asks for."""
        assert self.state is not None
        if decision.strategy is Strategy.ONLINE:
            if self.state.champion != RULES_BASELINE:
                self.learner.start(self.state.champion)
            return
        if decision.where is Where.DEVICE:
            return  # devices do it themselves: `_refresh`
        assert self.state.training is not None
        champion = self.state.champion
        anew = decision.from_scratch or champion == RULES_BASELINE
        base = None if anew else self.serving.versions.shared[champion]
        personal = {} if anew else self.serving.personal_now()
        rounds, pooled = self.life.retrain_rounds, decision.where is Where.POOL
        self.campaigns.stop()
        self.campaigns.begin(
            self.state.training.version,
            base,
            personal,
            rounds=rounds if decision.then_federated or not pooled else 0,
            at=now,
            pool_rounds=rounds if pooled else 0,
        )

    def title_of(self, spec: int) -> str:
        """What a specification of the drift plan is called."""
        wanted = self.arm.config.drift.specs[spec]
        return f"{wanted.kind} {wanted.shape}" if wanted.kind in SHAPED else str(wanted.kind)

    def seed_of(self, purpose: str) -> int:
        """A seed of this life for a purpose of its own."""
        return seed_for(self.seed, -1, -1, purpose)
