"""One round: ask, fold what comes in, charge, release. Used by simulator and server alike.

Rules of this file:
    * The round is a fold over `ShardResult`s; a failure in it is a value. Shards may come in any order.
    * Below quorum a round is ABANDONED: nothing released, nothing charged, the very same state. Under Poisson amplification
      there is no quorum: a round that was started is charged and released, however few answered.
    * With DP the order is: the budget's decision, the cohort, the charge (durable), the noise, the release. A crash may
      waste budget and never overspends it.
    * The noise on the sum has standard deviation noise multiplier times *this* round's clip norm, once, for the whole vector;
      the sum is divided by the aggregator's fixed n, however many answered.
    * No clock, no logger, no randomness of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.aggregation.aggregator import require_private
from fedretrain.coordinator.ports import Oracle, PartialSum, RoundSpec
from fedretrain.coordinator.state import Outcome, RoundResult, ServerState
from fedretrain.core.errors import ConfigError, PrivacyError
from fedretrain.core.ids import ClientId
from fedretrain.core.types import ClientFailure, FailureKind
from fedretrain.privacy.event import EVERYBODY, decode_units
from fedretrain.privacy.mechanism import Relation, lattice_gaussian, noise_stddev

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from fedretrain.aggregation.aggregator import Aggregator
    from fedretrain.aggregation.server_optimizer import ServerOptimizer
    from fedretrain.coordinator.charging import CentralDp, Purse
    from fedretrain.coordinator.ports import CohortRunner, ShardResult
    from fedretrain.coordinator.sampling import Cohort
    from fedretrain.privacy.event import PrivacyEvent


@dataclass(frozen=True)
class RoundRules:
    """How the rounds of a campaign are run.

    Attributes:
        aggregator: How updates combine.
        server_optimizer: What is done with the aggregated update.
        quorum: The fewest updates (with DP: the fewest answers, useful or not) that make a release; 0 under the relation add/remove (Poisson amplification), where
            one unit's presence would decide whether there is one.
        deadline_s: How long a round waits for replies.
        dp: Central differential privacy; None without.
    """

    aggregator: Aggregator[Any]
    server_optimizer: ServerOptimizer
    quorum: int = 1
    deadline_s: float = math.inf
    dp: CentralDp | None = None

    def __post_init__(self) -> None:
        if self.quorum < 0 or (self.quorum == 0 and self.dp is None):
            raise ConfigError(f"a quorum of {self.quorum}", where="campaign.quorum", fix="give at least 1")
        if self.dp is None:
            return
        require_private(self.aggregator)
        if self.dp.relation is Relation.ADD_REMOVE and self.quorum:
            raise PrivacyError(
                f"a quorum of {self.quorum} under add/remove: abandoning a small round reveals its size",
                where="campaign.quorum",
                fix="set the quorum to 0, or claim zero_out",
            )


def run_round(
    state: ServerState,
    rules: RoundRules,
    cohort: Cohort,
    runner: CohortRunner,
    *,
    round_: int,
    seed: int,
    at: float = 0.0,
    purse: Purse | None = None,
) -> tuple[ServerState, RoundResult]:
    """Run one round.

    Args:
        state: The state after the last released round.
        rules: The campaign's rules.
        cohort: Who is asked.
        runner: Who trains them.
        round_: Index of the round; it grows with every attempt, so that no stream repeats.
        seed: The run's seed.
        at: The instant at which the round begins.
        purse: Ledger, budget and noise; needed exactly with `rules.dp`.

    Returns:
        The next state and the result. The state is the very same object where nothing was released or charged.
    """
    if (purse is None) != (rules.dp is None):
        raise ValueError("a purse is needed with differential privacy, and only then")
    if rules.aggregator.max_cohort is not None and len(cohort) > rules.aggregator.max_cohort:
        raise ConfigError(
            f"{type(rules.aggregator).__name__} keeps every update and is bounded to {rules.aggregator.max_cohort}",
            where="aggregation",
            fix=f"ask at most that many clients (not {len(cohort)}), or use a mean",
        )
    result = RoundResult(
        round_,
        Outcome.RELEASED,
        cohort.shortfall,
        len(cohort),
        clip_norm=state.clip_norm,
        next_clip_norm=state.clip_norm,
    )
    event = _event(state, rules, cohort, round_, purse)
    decision = purse.may_charge(event) if purse is not None and event is not None else None
    if decision is not None:
        if not decision.allowed:
            return state, replace(result, outcome=Outcome.BUDGET_SPENT, reason=decision.reason)
        result = replace(result, epsilon=decision.epsilon_after)
    spec = _spec(state, rules, cohort, round_=round_, seed=seed, at=at)
    fold = fold_shards(spec, cohort.clients, runner.run(spec, cohort.clients) if len(cohort) else ())
    result = fold.describe(result)
    counted = _counted(result, private=rules.dp is not None)
    if counted < rules.quorum:
        verb = "contributed" if rules.dp is None else "answered"
        reason = f"{counted} of {len(cohort)} {verb}, the quorum is {rules.quorum}"
        return state, replace(result, outcome=Outcome.ABANDONED, reason=reason, epsilon=None)
    if event is not None and purse is not None:
        purse.charge(event)
        return _release_noised(
            state, rules, cohort, partial=fold.partial, event=event, purse=purse, result=result
        )
    return _step(state, rules, cohort, rules.aggregator.release(fold.partial.state), result)


_SILENT = frozenset({FailureKind.UNAVAILABLE, FailureKind.DROPPED, FailureKind.TIMEOUT, FailureKind.LOST})


def _counted(result: RoundResult, *, private: bool) -> int:
    """What the quorum is compared with.

    Without DP: the updates in the sum. With it: everybody who *answered*, useful or not. An abandoned round charges
    nothing and is seen, so it must not depend on data: whether an update was finite, or a device had anything
    labelled, does; who answers at all is public under the relation zero-out.
    """
    if not private:
        return result.num_contributed
    return result.num_asked - sum(failure.kind in _SILENT for failure in result.failures)


def _event(
    state: ServerState, rules: RoundRules, cohort: Cohort, round_: int, purse: Purse | None
) -> PrivacyEvent | None:
    """What will be charged if the round is released."""
    if rules.dp is None or purse is None:
        return None
    if state.clip_norm is None:
        raise ValueError("a state without a clip norm in a round with differential privacy")
    return rules.dp.event(
        cohort,
        round_=round_,
        attempt=purse.attempt(rules.dp.campaign, round_),
        clip_norm=state.clip_norm,
        denominator=require_private(rules.aggregator).n,
    )


def _spec(
    state: ServerState, rules: RoundRules, cohort: Cohort, *, round_: int, seed: int, at: float
) -> RoundSpec:
    return RoundSpec(
        round=round_,
        base=state.tree,
        base_version=state.version,
        seed=seed,
        at=at,
        aggregator=rules.aggregator,
        clip_norm=state.clip_norm,
        deadline_s=rules.deadline_s,
        stop_after=cohort.stop_after,
    )


def _release_noised(
    state: ServerState,
    rules: RoundRules,
    cohort: Cohort,
    *,
    partial: PartialSum,
    event: PrivacyEvent,
    purse: Purse,
    result: RoundResult,
) -> tuple[ServerState, RoundResult]:
    """The release of a charged round: (sum + noise) / n, and the next clip norm."""
    aggregator = require_private(rules.aggregator)
    stddev = noise_stddev(event.clip_norm, event.noise_multiplier)
    source = purse.noises(event.round, event.attempt, "update")
    noise_P = lattice_gaussian(source, len(state.params), stddev, partial.state.step)
    update = aggregator.release_noised(partial.state, noise_P)
    result = replace(result, noise_multiplier=event.noise_multiplier, noise_stddev=stddev / aggregator.n)
    adaptive = rules.dp.adaptive if rules.dp is not None else None
    if adaptive is not None:
        bits = adaptive.release(
            partial.num_unclipped,
            partial.num_clients,
            aggregator.n,
            purse.noises(event.round, event.attempt, "clip_bit"),
        )
        result = replace(result, next_clip_norm=adaptive.update(event.clip_norm, bits))
    return _step(state, rules, cohort, update, result)


def _step(
    state: ServerState, rules: RoundRules, cohort: Cohort, update: NDArray[np.float64], result: RoundResult
) -> tuple[ServerState, RoundResult]:
    """The server optimizer's step, released if it is finite."""
    optimizer, step = rules.server_optimizer.apply(state.optimizer, update)
    with np.errstate(over="ignore", invalid="ignore"):
        params = (state.params.astype(np.float64) + step).astype(np.float32)
    charged = state.with_participants(cohort.clients, result.round)
    if not np.isfinite(params).all():
        reason = "the server's step is not finite; lower its learning rate"
        kept = charged if rules.dp is not None else state
        return kept, replace(result, outcome=Outcome.DIVERGED, reason=reason)
    result = replace(result, update_norm=float(np.linalg.norm(update)))
    released = replace(
        charged,
        params=params,
        optimizer=optimizer,
        clip_norm=result.next_clip_norm,
        version=state.version + 1,
    )
    return released, result


@dataclass
class Fold:
    """The running fold of a round's shards.

    Attributes:
        cohort: ``[K]`` int64, sorted.
        partial: The sum of the shards that counted.
        counted: ``[K]`` bool: whose update is in it.
    """

    cohort: NDArray[np.int64]
    partial: PartialSum
    counted: NDArray[np.bool_]
    _failures: dict[int, ClientFailure] = field(default_factory=dict)
    _oracles: list[Oracle] = field(default_factory=list)
    _num_duplicates: int = 0
    _num_refused: int = 0
    _bytes_down: int = 0
    _bytes_up: int = 0
    _busy_s: float = 0.0
    _reply_s: dict[int, float] = field(default_factory=dict)

    def add(self, shard: ShardResult, aggregator: Aggregator[Any]) -> None:
        """Fold in one shard; a shard that names strangers or comes twice is refused whole."""
        self._bytes_down += shard.bytes_down
        self._bytes_up += shard.bytes_up
        self._busy_s += shard.busy_s
        self._num_duplicates += shard.num_duplicates
        for failure in shard.failures:
            self._fail(failure)
        at = np.searchsorted(self.cohort, shard.clients)
        at[at == len(self.cohort)] = 0
        known = len(self.cohort) > 0 and bool((self.cohort[at] == shard.clients).all())
        consistent = len(np.unique(shard.clients)) == shard.partial.num_clients
        if not (known and consistent) or self.counted[at].any():
            self._num_refused += 1
            return
        self.partial = self.partial.merge(shard.partial, aggregator)
        self.counted[at] = True
        self._oracles.append(shard.oracle)
        self._reply_s.update(shard.reply_s)

    def _fail(self, failure: ClientFailure) -> None:
        """Keep one failure per client: a reason that says more than LOST, the same whatever the order."""
        other = self._failures.get(failure.client)
        if other is None or _precedence(failure) < _precedence(other):
            self._failures[failure.client] = failure

    def failures(self) -> tuple[ClientFailure, ...]:
        """One failure for everybody who was asked and is not in the sum."""
        missing = self.cohort[~self.counted].tolist()
        lost = {c: ClientFailure(ClientId(c), FailureKind.LOST, "no answer") for c in missing}
        return tuple(self._failures.get(client, lost[client]) for client in missing)

    def describe(self, result: RoundResult) -> RoundResult:
        """The result with what the fold knows."""
        count = self.partial.num_clients
        return replace(
            result,
            num_contributed=count,
            failures=self.failures(),
            num_duplicates=self._num_duplicates,
            num_shards_refused=self._num_refused,
            clip_fraction_oracle=1.0 - self.partial.num_unclipped / count if count else 0.0,
            oracle=Oracle.join(self._oracles),
            bytes_down=self._bytes_down,
            bytes_up=self._bytes_up,
            busy_s=self._busy_s,
            reply_s=dict(sorted(self._reply_s.items())),
        )


def _precedence(failure: ClientFailure) -> tuple[bool, str, str]:
    return failure.kind is FailureKind.LOST, failure.kind.value, failure.detail


def fold_shards(spec: RoundSpec, cohort: NDArray[np.int64], shards: Iterable[ShardResult]) -> Fold:
    """Fold the shards of a round, in whatever order they come."""
    clients = np.sort(cohort)
    empty = PartialSum(spec.aggregator.init(spec.size, spec.clip_norm))
    fold = Fold(clients, empty, np.zeros(len(clients), dtype=bool))
    for shard in shards:
        fold.add(shard, spec.aggregator)
    return fold


def recover(
    state: ServerState, events: Iterable[PrivacyEvent], *, campaign: str, next_round: int
) -> ServerState:
    """The state of a checkpoint, with the participations of rounds that were charged after it was written.

    A crash between charge and checkpoint leaves such rounds: they were paid for, so they count as participations, and
    the round may be repeated as another attempt. For the unit person the ledger names persons, not devices: with
    `unit_of` set, repeat such a round with other persons' devices.

    Args:
        state: From the checkpoint.
        events: The ledger's, oldest first.
        campaign: The campaign that goes on.
        next_round: The first round that the checkpoint does not contain.
    """
    for event in events:
        if event.campaign == campaign and event.round >= next_round and event.units != EVERYBODY:
            state = state.with_participants(np.unique(decode_units(event.units)), event.round)
    return state
