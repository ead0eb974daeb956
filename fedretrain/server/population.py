"""A population's loop on the wall clock: gather what is known, decide, write it down, act.

Rules of this file:
    * Decisions are `coordinator.cycle`'s. This shell reads the database, keeps the books in one transaction for each tick,
      and lets the world follow: each part of it is compared with what should be, and mended, at every tick.
    * Every append is fenced: a coordinator that lost its lease decides nothing any more.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.coordinator import cycle
from fedretrain.coordinator.cycle import Evidence, Trained
from fedretrain.coordinator.looking import Looking
from fedretrain.coordinator.signals import Facts
from fedretrain.coordinator.watching import Watching
from fedretrain.core.errors import ConfigError, DataError, PrivacyError, UserError
from fedretrain.core.frozen import freeze, thaw
from fedretrain.retraining.signals import Signals
from fedretrain.rollout.assignment import exposure
from fedretrain.rollout.causes import EventKind
from fedretrain.rollout.evidence import Coverage, RolloutEvidence
from fedretrain.rollout.exposure import JOINED
from fedretrain.rollout.safety import Switch
from fedretrain.rollout.verdict import Verdict
from fedretrain.server import fleet, orders, refreshes
from fedretrain.server.assigning import confirmed, grown
from fedretrain.server.database import reading
from fedretrain.server.examining import Examiner
from fedretrain.server.field import Field
from fedretrain.server.fleet import Standing
from fedretrain.server.kept import kept_of, note_of
from fedretrain.server.memory import LOOK, ORDERS, RANKS, fold, recall, stream
from fedretrain.server.ranked import Ranked, queue
from fedretrain.server.steady_clock import standing
from fedretrain.server.telemetry import Telemetry
from fedretrain.server.watched import clockwork_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.artifacts.store import ContentStore
    from fedretrain.coordinator.cycle import CycleEvent
    from fedretrain.coordinator.policy import Policy
    from fedretrain.coordinator.roles import Roles
    from fedretrain.coordinator.watching import Kept
    from fedretrain.monitoring.bins import Bins
    from fedretrain.rollout.metrics import MetricEvidence
    from fedretrain.rollout.state import RolloutState
    from fedretrain.server.config import Population as PopulationConfig
    from fedretrain.server.event_log import EventLog, Fence
    from fedretrain.server.fleet import Device
    from fedretrain.server.models import Models
    from fedretrain.server.orders import Orders
    from fedretrain.server.people import Notary

COUNTED_AT_ONCE = 20_000
"""Records that a tick counts: a long backlog keeps no order from being taken, and the next tick is at once."""
PRUNED_AT_ONCE = 5000  # records at a tick, or twice as many as came


class Population:
    """One population's loop. Mutable; one process runs it at a time.

    Args:
        name: Its name.
        config: Its clockwork.
        policy: What was decided beforehand.
        log: The event log.
        states: Where ranks and baselines are kept.
        models: Its versions and packages.
        fence: The lease of whoever runs it.
        roles: Who may order and approve what.
        notary: Says of an order whether it is the word of whom it names.
    """

    def __init__(
        self,
        name: str,
        config: PopulationConfig,
        policy: Policy,
        log: EventLog,
        states: ContentStore,
        models: Models,
        fence: Fence,
        roles: Roles,
        notary: Notary,
    ) -> None:
        self.name, self.policy, self.models, self.fence, self._roles = name, policy, models, fence, roles
        self._notary = notary
        self._log, self._states = log, states
        self._clockwork = clockwork_of(config.watching, policy)
        self._most_bytes = config.watching.memory_gib * 2**30
        self.memory = recall(policy, log.read(stream(name)), self._load_ranks)
        self.devices: list[Device] = []
        self.telemetry: Telemetry | None = None
        self._watching: Watching | None = None
        self._noted: Kept | None = None
        self._bins = ""
        self._looking = Looking(policy)
        if self.memory.ranks is not None:
            step, attempt, taken = self.memory.look or (0, 0, None)
            self._looking.restore(self.memory.ranks.seed, taken, (step, attempt))
        self.examiner = Examiner(name, models, log, fence)
        self.trouble: UserError | None = None

    def is_waiting(self) -> bool:
        """Whether something waits for the next tick: records of a long backlog, or what somebody has ordered."""
        if self.memory.state is None:
            return False
        return (self.telemetry is not None and self.telemetry.is_behind) or self.is_ordered

    @property
    def is_ordered(self) -> bool:
        """Whether somebody has ordered something since the last tick."""
        return self._log.head(orders.stream(self.name)).counter > self.memory.orders

    def tick(self, now: float) -> tuple[CycleEvent, ...]:
        """Decide on what has arrived; what happened.

        Where a package is damaged, what is seen with it is not seen; people's orders, and what is known, count all the same.
        The damage is left in `trouble`.

        Args:
            now: Instant, seconds since the epoch.

        Raises:
            FencedError: If somebody else runs this population now.
        """
        self.trouble = None
        self.models.refresh()
        with reading(self._log.engine) as connection:
            self.devices = fleet.everybody(connection, self.name)
        if self.memory.state is None:
            self._begin_if_possible(now)
        if self.memory.state is None or not self.devices:
            return ()
        # A clock that was set back: the loop's time stands until it is reached again, and orders count meanwhile.
        self.trouble = standing(self.name, self.memory.state.updated_at - now)
        wall, now = now, max(now, self.memory.state.updated_at)
        champion = self.memory.begun.champion
        size = len(self.devices)
        self.memory = replace(self.memory, assignments=grown(self.memory.assignments, size, champion))
        try:
            self._listen(now)
        except DataError as error:
            self.trouble = error
        digests = self.models.versions.digests
        told = confirmed(self.memory.assignments, self.devices, digests, now)
        self.memory = replace(self.memory, assignments=told)
        memory, entries = self.memory, self._log.read(orders.stream(self.name), after=self.memory.orders)
        # Signed by people's clocks, which agree with this one, not with a loop whose time stands.
        return self._decide(now, orders.gather(entries, memory.orders, self._notary, wall, memory.nonces))

    def _begin_if_possible(self, now: float) -> None:
        """The loop begins with the first model that was imported."""
        if not self.models.versions.by_number:
            return
        champion = min(self.models.versions.by_number)
        begun = cycle.CycleEvent(now, cycle.Begun(champion, 0, self.policy.digest))
        self._write([begun.to_record()], now)

    # ---- what is known

    def _listen(self, now: float) -> None:
        """Count what devices sent; make the arrays anew where the fleet has outgrown them, or the bins have changed."""
        bins = self.models.bins(self.memory.begun.champion)
        if bins is None:
            return
        telemetry = self.telemetry
        if telemetry is None or not telemetry.fits(self.devices) or self._bins != bins.digest:
            telemetry = self._start_watching(bins, now)
        telemetry.know(self.devices)
        telemetry.evaluation = self.examiner.known.evaluation
        # Who orders a rollback does not wait until ten thousand reports are counted: they are, in the next tick.
        digests, unordered = self.models.versions.digests, lambda: not self.is_ordered
        read = telemetry.catch_up(digests, now, most=COUNTED_AT_ONCE, go_on=unordered)
        telemetry.malformed += self.examiner.hear(telemetry.taken_answers(), self.devices, now)
        telemetry.prune(now, max(PRUNED_AT_ONCE, 2 * read))

    def _start_watching(self, bins: Bins, now: float) -> Telemetry:
        champion = self.memory.begun.champion
        # Also where the fleet has outgrown its memory: nothing is judged by half of a fleet.
        self.telemetry = self._watching = None
        telemetry = Telemetry(
            self._log.engine,
            self.name,
            self.policy.monitoring,
            self._clockwork,
            bins,
            self.models.shape(champion, bins),
            self.devices,
            evaluation=self.examiner.known.evaluation,
            mode=self.policy.telemetry,
            most_bytes=self._most_bytes,
        )
        keep = self._clockwork.keep_slots(self.policy.monitoring) * self._clockwork.slot_s
        self._noted = kept_of(self.memory.baseline, self._states)
        if self._noted is not None:  # first: rows of devices that are kept out are not the fleet's
            telemetry.served.store.keep_out(self._noted.stays)
        telemetry.catch_up(self.models.versions.digests, now, since=now - keep)
        watching = Watching(self.policy.monitoring, telemetry.served, self._clockwork, self._noted)
        if self._noted is None:
            watching.promoted(champion, now, self.memory.begun.monitor)
        self.telemetry, self._watching, self._bins = telemetry, watching, bins.digest
        return telemetry

    def _trained(self, now: float) -> Trained | None:
        """How the campaign under way ended, once it has."""
        training = self.memory.begun.training
        if training is None:
            return None
        ended = self.models.trained(training.version, self.memory.begun.champion)
        if ended is None or not ended.made or self.telemetry is None:
            return ended
        seen = self._field(self._sound()).foresee(self.policy, now)
        return replace(ended, detectable=seen.detectable, clusters=seen.clusters)

    # ---- deciding

    def _decide(self, now: float, told: Orders) -> tuple[CycleEvent, ...]:
        state = self.memory.begun
        watching = self._watching
        if watching is not None:
            watching.keep_out(state.kept_devices, now)
        views = () if watching is None else watching.views(state.monitor, now)
        try:
            signals = self._signals(told)
        except (ConfigError, PrivacyError) as error:  # such as too few devices for a cohort
            self.trouble, signals = error, None
        evidence = Evidence(
            views=views,
            baseline=None if watching is None else watching.baseline,
            signals=signals,
            trained=self._trained(now),
            under_way=None if state.training is None else self.models.under_way(state.training.version),
            rollout=self._rollout(told, now),
            orders=told.cycle,
            refused=told.refused,
            decides_otherwise=self.models.deciding_otherwise(state.champion, state.waiting),
            roles=self._roles,
            num_devices=len(self._active()),
        )
        events = cycle.tick(self.policy, state, evidence, now)
        if watching is not None:
            self._crown(watching, events, now)
        records = [event.to_record() for event in events]
        self._write([*records, *self._notes(told, now)], now)
        if self.telemetry is not None:
            self.telemetry.refreshed.clear()
        self._noted = None if watching is None else watching.kept
        return events

    def _signals(self, told: Orders) -> Signals | None:
        """What retraining may look at: what monitors see, or where a person asks and they see nothing, what it would cost."""
        watching, telemetry = self._watching, self.telemetry
        if watching is None or telemetry is None:
            return None
        if watching.judges:
            return watching.signals(self.memory.begun.monitor, self._facts())
        if not any(isinstance(order, cycle.Retrain) for order in told.cycle):
            return None
        facts = self._facts()
        return Signals(
            num_labels=facts.num_labels,
            num_pool_rows=facts.num_pool_rows,
            can_personalize=facts.can_personalize,
            remaining_epsilon=facts.remaining_epsilon,
            campaign_epsilon=facts.campaign_epsilon,
        )

    def _crown(self, watching: Watching, events: tuple[CycleEvent, ...], now: float) -> None:
        """Tell the monitors of a new champion, before its note is written in one transaction with the events."""
        before = state = self.memory.begun
        for event in events:
            state = cycle.apply(self.policy, state, event)
            before = state if state.champion == self.memory.begun.champion else before
        if state.champion != before.champion:
            watching.promoted(state.champion, now, before.monitor)

    def _notes(self, told: Orders, now: float) -> list[dict[str, Any]]:
        """What the shell writes down beside the events."""
        said = () if self.telemetry is None else self.telemetry.refreshed
        notes = refreshes.notes(self.memory.refreshes, said, now)
        if told.through != self.memory.orders:
            notes.append({"kind": ORDERS, "at": now, "through": told.through, "nonces": sorted(told.nonces)})
        if self._watching is not None and self._watching.kept is not self._noted:
            note = note_of(self._watching.kept, self._noted, self.memory.baseline, self._states)
            notes.append(note.to_record())
        taken, (step, attempt) = self._looking.taken, self._looking.gate_for
        if taken is not None and self.memory.look != (step, attempt, taken):
            notes.append({"kind": LOOK, "step": step, "attempt": attempt, "look": taken})
        return notes

    def _write(self, records: list[dict[str, Any]], now: float) -> None:
        """Append records and fold them; a rollout's first event brings the order in which devices are exposed."""
        if not records:
            return
        whole: list[dict[str, Any]] = []
        for record in records:
            whole.append(record)
            if record["kind"] == "rollout" and record["body"]["kind"] == EventKind.CREATED:
                whole.append(self._new_ranks())
        # JSON first: what is read back after a restart is what is folded now.
        whole = json.loads(json.dumps(whole))
        after = self.memory.num_records
        self._log.append(stream(self.name), whole, at=now, fence=self.fence, after=after)
        for record in whole:
            self.memory = fold(self.policy, self.memory, record, self._load_ranks)

    def _new_ranks(self) -> dict[str, Any]:
        """A new rollout: its devices queue in an order of its own."""
        state, seed = self.memory.begun, secrets.randbits(62)
        blob = self._states.put(freeze(Ranked(queue(self.devices, secrets.randbits(62)))))
        self._looking.begin(seed)
        return {"kind": RANKS, "rollout": state.num_rollouts + 1, "blob": blob, "seed": seed}

    def _load_ranks(self, digest: str) -> NDArray[np.float64]:
        return thaw(Ranked, self._states.get(digest)).rank_D

    # ---- evidence of a rollout

    def _rollout(self, told: Orders, now: float) -> RolloutEvidence:
        rollout = self.memory.begun.rollout
        heard_D = np.array([device.seen_at for device in self.devices])
        seen = exposure(self.memory.assignments, now, heard_D)
        self.examiner.settle(rollout, now)
        if rollout is None or not rollout.is_open:
            return RolloutEvidence(exposure=seen, approval=told.approval, operator=told.operator)
        if self.telemetry is not None:
            clusters = self._field(self._counted()).clusters(self.policy.gate.clusters)
            self._looking.take(rollout, now, lambda start_at: self._measure(rollout, start_at, now), clusters)
        return RolloutEvidence(
            gate=self._looking.gate,
            gate_for=self._looking.gate_for,
            coverage=self._coverage(rollout, now),
            exposure=seen,
            approval=told.approval,
            operator=told.operator,
            validation=self._validated(rollout, now),
            simulation=self.models.simulations.of(rollout.plan.candidate, rollout.rollout).verdict,
        )

    def _validated(self, rollout: RolloutState, now: float) -> Verdict:
        try:
            state = self.memory.begun
            may_ask = state.safety.allows(Switch.INSTALLS) and self.telemetry is not None  # else nobody hears
            return self.examiner.validated(rollout, self.devices, state.kept_devices, now, may_ask=may_ask)
        except DataError as error:
            self.trouble = error
            return Verdict.INCONCLUSIVE

    def _measure(self, rollout: RolloutState, start_at: float, now: float) -> list[MetricEvidence]:
        names = [rule.metric for rule in self.policy.rollout.metrics]
        return self._field(self._counted()).measure(names, rollout, self.memory.assignments, start_at, now)

    def _coverage(self, rollout: RolloutState, now: float) -> Coverage:
        """Hours of the day and device types that have scored the candidate since the stage began."""
        if self.telemetry is None:
            return Coverage()
        return self._field(self._counted()).coverage(rollout.plan.candidate, rollout.entered_at, now)

    def _field(self, counted_D: NDArray[np.bool_]) -> Field:
        assert self.telemetry is not None
        return Field(self.telemetry, self._clockwork, self.devices, counted_D)

    # ---- who counts

    def _active(self) -> list[Device]:
        return [device for device in self.devices if device.standing is Standing.ACTIVE]

    def _sound(self) -> NDArray[np.bool_]:
        """``[D]`` devices that are in the fleet and not kept out."""
        kept = self.memory.begun.kept_devices
        return np.array([one.standing is Standing.ACTIVE and one.number not in kept for one in self.devices])

    def _counted(self) -> NDArray[np.bool_]:
        """``[D]`` those of them that were there when the rollout drew its arms."""
        sound_D = self._sound()
        return sound_D & (self.memory.assignments.rank_D[: len(sound_D)] < JOINED)

    def _facts(self) -> Facts:
        assert self.telemetry is not None
        budget = self.models.budget(self.devices)
        return Facts(
            num_labels=self.telemetry.num_labels,
            num_devices=max(1, len(self._active())),
            num_pool_rows=self.models.num_pool_rows,
            labels_leave_devices=False,
            remaining_epsilon=budget.remaining,
            campaign_epsilon=budget.campaign,
            can_personalize=self.models.can_personalize(self.memory.begun.champion),
        )
