"""Retraining in virtual time: one campaign at a time, on the server's pool or through the coordinator's own `run_round`.

Rules of this file:
    * Rounds of all campaigns are numbered on: no stream of randomness and no privacy event repeats.
    * The privacy ledger belongs to the population and outlives every campaign; a round on the pool charges nothing.
    * Devices that are kept out are asked in no round, and lie in no pool that is trained on, until they are let in again.
    * Devices' personal states of the new version grow beside those that they serve with; nothing that is served
      changes before an install.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.coordinator.charging import Purse, SeededNoises
from fedretrain.coordinator.cycle_evidence import UnderWay
from fedretrain.coordinator.round import run_round
from fedretrain.coordinator.sampling import Cohort
from fedretrain.coordinator.state import Outcome, ServerState
from fedretrain.privacy.claims import scope_text
from fedretrain.privacy.event import Sampling
from fedretrain.privacy.ledger import MemoryLedger
from sim.local_runner import LocalRunner
from sim.personal_store import PersonalStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.core.params import Params
    from sim.arm import Arm
    from sim.lifetime.pool import Pool
    from sim.personal_store import Rows


@dataclass
class _Running:
    """A campaign under way."""

    version: int
    state: ServerState
    store: PersonalStore
    rounds_left: int
    next_at: float
    begun_at: float
    pool_rounds_left: int = 0
    released: int = 0
    pooled: int = 0


@dataclass(frozen=True)
class Trained:
    """What a campaign ended in.

    Attributes:
        version: The version that it was to make.
        shared: The new shared parameters; None if no round was released.
        personal: The personal states that its clients hold for the new version.
        num_rounds: Released rounds, and those on the pool.
        num_pool_rounds: How many of them ran on the pool.
        reason: Why there is nothing, for people; empty otherwise.
    """

    version: int
    shared: Params | None
    personal: Rows
    num_rounds: int
    reason: str = ""
    num_pool_rounds: int = 0

    @property
    def told(self) -> str:
        """How it was made, for people."""
        federated = self.num_rounds - self.num_pool_rounds
        if not self.num_pool_rounds:
            return f"{federated} rounds"
        then = f", then {federated} federated rounds" if federated else ""
        return f"{self.num_pool_rounds} rounds on the pool of consented devices{then}"


class Campaigns:
    """Runs the campaigns of a life.

    Args:
        arm: World (with the life's fleet), model and method.
        pool: The server's, if there is one.
    """

    def __init__(self, arm: Arm, pool: Pool | None = None) -> None:
        self.pool = pool
        self._arm, self._rules = arm, arm.rules
        self._ledger = MemoryLedger()
        private = self._rules.rounds.dp is not None
        self.purse = Purse(self._ledger, SeededNoises(arm.seed), self._rules.budget) if private else None
        self._kept_out: NDArray[np.bool_] = np.zeros(arm.world.fleet.num_devices, dtype=np.bool_)
        self._running: _Running | None = None
        self._history: ServerState | None = None
        self._round = 0
        self._priced_for, self._price = (-1, 0), 0.0
        self.bytes_up = self.bytes_down = 0

    @property
    def running(self) -> bool:
        """Whether a campaign is under way."""
        return self._running is not None

    def under_way(self, max_s: float) -> UnderWay | None:
        """The campaign that is on, if there is one; it may take `max_s`."""
        running = self._running
        return None if running is None else UnderWay(running.version, running.begun_at, max_s)

    def keep_out(self, devices: NDArray[np.bool_]) -> None:
        """From now on these devices ``[D]``, and no others, are kept out."""
        self._kept_out = devices

    def collect(self, start_at: float, now: float) -> None:
        """Consented devices copy to the pool what was labelled since `start_at`."""
        if self.pool is not None:
            self.bytes_up += self.pool.copied(start_at, now)

    def epsilon(self) -> float | None:
        """What the population's ledger adds up to; None without DP."""
        return None if self.purse is None else self.purse.spent.epsilon(self._rules.delta)

    def privacy_scope(self) -> str:
        """What stands beside `epsilon`: whom it protects, at which delta, what it covers. Empty without DP."""
        spent = self.epsilon()
        return "" if spent is None else scope_text(spent, self._rules.delta, self._ledger.events())

    def remaining_epsilon(self) -> float | None:
        """What the promise has left; None without one."""
        budget = self._rules.budget
        if budget is None or self.purse is None:
            return None
        return max(budget.epsilon - (self.epsilon() or 0.0), 0.0)

    def campaign_epsilon(self, rounds: int) -> float:
        """What another campaign would add for the most charged unit; 0 without DP."""
        dp, purse = self._rules.rounds.dp, self.purse
        if dp is None or purse is None or self._history is None or self._history.clip_norm is None:
            return 0.0
        num = self._arm.world.fleet.num_devices
        expected = self._rules.sampler.expected(num)
        sampling = self._arm.config.campaign.sampling
        coin = expected / num if sampling is Sampling.POISSON else 0.0
        cohort = Cohort(np.arange(num), str(sampling), expected, 0, fraction=coin)
        event = dp.event(
            cohort, round_=self._round, attempt=0, clip_norm=self._history.clip_norm, denominator=expected
        )
        # Each device is asked in about so many of a campaign's rounds, at least once; amplified ones are all charged in each.
        times = rounds if dp.amplified else max(1, math.ceil(rounds * expected / num))
        key = (len(self._ledger.events()), times)
        if key != self._priced_for:
            after = purse.spent.epsilon_with(event, self._rules.delta, count=times)
            self._priced_for, self._price = key, after - (self.epsilon() or 0.0)
        return self._price

    def begin(
        self,
        version: int,
        base: Params | None,
        personal: Rows,
        *,
        rounds: int,
        at: float,
        pool_rounds: int = 0,
    ) -> None:
        """Start a campaign.

        Args:
            version: What it makes.
            base: The shared parameters to start from; None: from scratch.
            personal: The personal states to start from.
            rounds: How many federated rounds.
            at: The instant of the first one.
            pool_rounds: How many rounds on the pool come before them.
        """
        arm, rules = self._arm, self._rules
        shared = arm.first_shared() if base is None else base
        layout = arm.task.shared
        state = ServerState.first(
            layout, shared, rules.rounds.server_optimizer, arm.world.fleet.num_devices, rules.clip_norm
        )
        if self._history is not None:
            state = replace(state, history=self._history.history, clip_norm=self._history.clip_norm)
        store, size = PersonalStore(arm.state_size), arm.task.personal.size
        if personal and size:
            ids = np.array(sorted(personal), dtype=np.int64)
            rows = np.zeros((len(ids), arm.state_size), dtype=np.float32)
            rows[:, :size] = np.stack([personal[d] for d in ids.tolist()])
            store.stage(ids, rows)
            store.commit()
        if self.pool is not None:
            self.pool.begin()
        self._running = _Running(version, state, store, rounds + pool_rounds, at, at, pool_rounds)

    def stop(self) -> None:
        """Give up the campaign under way; what was charged stays charged."""
        if self._running is not None:
            self._history = self._running.state
        self._running = None

    def advance(self, now: float, every_s: float) -> Trained | None:
        """Run the rounds that are due by `now`; the result once the campaign is over."""
        running = self._running
        while running is not None and running.next_at <= now:
            over = self._one_round(running)
            running.next_at += every_s
            running.rounds_left -= 1
            if over or running.rounds_left == 0:
                return self._end(running, over)
        return None

    def run_all(self, at: float, every_s: float) -> Trained:
        """Run a whole campaign at once, its rounds `every_s` apart beginning at `at`."""
        rounds = self._running.rounds_left if self._running is not None else 0
        trained = self.advance(at + rounds * every_s, every_s)
        assert trained is not None
        return trained

    def _one_round(self, running: _Running) -> str:
        """One round; the reason why the campaign cannot go on, or nothing."""
        if running.pool_rounds_left:
            return self._pool_round(running)
        arm, at = self._arm, running.next_at
        world = arm.world
        everybody = np.arange(world.fleet.num_devices)
        # A Poisson coin is tossed for everybody who is not kept out: who is offline then is a failure, not ineligible.
        poisson = arm.config.campaign.sampling is Sampling.POISSON
        eligible = ~self._kept_out
        if not poisson:
            eligible &= world.availability.online(everybody, at)
        cohort = self._rules.sampler.cohort(arm.seed, self._round, running.state.history, eligible)
        running.state, result = run_round(
            running.state,
            self._rules.rounds,
            cohort,
            LocalRunner(arm, running.store),
            round_=self._round,
            seed=arm.seed,
            at=at,
            purse=self.purse,
        )
        running.store.commit()
        self._round += 1
        self.bytes_up += result.bytes_up
        self.bytes_down += result.bytes_down
        running.released += result.outcome is Outcome.RELEASED
        stopped = result.outcome in (Outcome.BUDGET_SPENT, Outcome.DIVERGED)
        return result.reason if stopped else ""

    def _pool_round(self, running: _Running) -> str:
        """One round on the pool; the reason why the campaign cannot go on, or nothing."""
        running.pool_rounds_left -= 1
        shared = None
        if self.pool is not None:
            shared = self.pool.round(running.state.tree, self._round, running.next_at, self._kept_out)
        self._round += 1
        if shared is None:
            return "the pool has no labelled rows"
        params = running.state.layout.pack(shared)
        if not np.isfinite(params).all():
            return "training on the pool diverged"
        running.state = replace(running.state, params=params)
        running.pooled += 1
        return ""

    def _end(self, running: _Running, reason: str) -> Trained:
        self._history, self._running = running.state, None
        arrays = running.store.to_arrays()
        size = self._arm.task.personal.size
        rows = arrays["rows"][:, :size]
        personal = dict(zip(arrays["devices"].tolist(), rows, strict=True)) if size else {}
        done = running.released + running.pooled
        if not done:
            return Trained(running.version, None, {}, 0, reason or "no round reached its quorum")
        return Trained(running.version, running.state.tree, personal, done, num_pool_rounds=running.pooled)
