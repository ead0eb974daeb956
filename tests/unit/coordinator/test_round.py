"""One round: outcomes, quorum, failures as values, charging before releasing, crash and recovery."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedretrain.aggregation.aggregator import ExampleWeightedMean, FixedDenominatorMean
from fedretrain.aggregation.robust import CoordinateMedian
from fedretrain.aggregation.server_optimizer import SGD, Adam
from fedretrain.coordinator.charging import Purse, SeededNoises
from fedretrain.coordinator.ports import PartialSum, ShardResult
from fedretrain.coordinator.round import RoundRules, recover
from fedretrain.coordinator.sampling import FixedSize, Poisson
from fedretrain.coordinator.state import Outcome, ServerState
from fedretrain.core.errors import ConfigError, PrivacyError
from fedretrain.core.ids import ClientId
from fedretrain.core.types import ClientFailure, FailureKind
from fedretrain.privacy.budget import Budget
from fedretrain.privacy.event import decode_units
from fedretrain.privacy.file_ledger import FileLedger
from fedretrain.privacy.ledger import MemoryLedger
from fedretrain.privacy.mechanism import NoiseSource, Relation
from tests.fakes import FakeRunner, random_deltas
from tests.unit.coordinator.rounds import (
    LAYOUT,
    POPULATION,
    N,
    cohort_of,
    dp_of,
    first_state,
    play,
    purse_of,
    rules_of,
)

if TYPE_CHECKING:
    from pathlib import Path


def clients_of(round_: int = 0) -> list[int]:
    return cohort_of(first_state(rules_of()), round_).clients.tolist()


def deltas_of(runner: FakeRunner, clients: list[int]) -> np.ndarray:
    return random_deltas(runner.specs[0], np.array(clients)).astype(np.float64)


def test_a_round_releases_the_mean() -> None:
    runner = FakeRunner()
    state, result = play(rules_of(), runner)
    start = first_state(rules_of())
    update = deltas_of(runner, clients_of()).sum(0) / N
    np.testing.assert_allclose(state.params, start.params + update, atol=1e-6)
    assert (result.outcome, result.num_asked, result.num_contributed, result.failures) == (
        Outcome.RELEASED,
        N,
        N,
        (),
    )
    assert state.version == 1
    assert result.update_norm == pytest.approx(np.linalg.norm(update), rel=1e-6)
    assert np.flatnonzero(state.history.count).tolist() == clients_of()
    assert result.oracle.clients.tolist() == clients_of()
    assert result.bytes_down == result.bytes_up == 4 * LAYOUT.size * N


def test_the_spec_tells_the_runner_everything() -> None:
    runner = FakeRunner()
    state = replace(first_state(rules_of()), version=3)
    cohort = FixedSize(4, 2.0).cohort(1, 0, state.history)
    play(rules_of(deadline_s=30.0), runner, state=state, cohort=cohort, round_=5)
    (spec,) = runner.specs
    assert (spec.round, spec.base_version, spec.seed, spec.deadline_s, spec.stop_after) == (5, 3, 1, 30.0, 4)
    np.testing.assert_array_equal(LAYOUT.pack(spec.base), state.params)


def test_error_reply_does_not_drop_the_round() -> None:
    clients = clients_of()
    fails = {
        clients[0]: FailureKind.DROPPED,
        clients[3]: FailureKind.MALFORMED,
        clients[5]: FailureKind.DROPPED,
    }
    runner = FakeRunner(fails=fails)
    state, result = play(rules_of(), runner)
    assert result.outcome is Outcome.RELEASED
    assert result.failure_counts == {FailureKind.DROPPED: 2, FailureKind.MALFORMED: 1}
    left = [c for c in clients if c not in fails]
    wanted = first_state(rules_of()).params + deltas_of(runner, left).sum(0) / N
    np.testing.assert_allclose(state.params, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", [FailureKind.NONFINITE, FailureKind.NO_DATA])
def test_with_dp_the_quorum_counts_answers_whatever_their_data(kind: FailureKind) -> None:
    """An abandoned round is seen and charges nothing: it must not tell a useless answer from a useful one."""
    runner = FakeRunner(fails=dict.fromkeys(clients_of()[:4], kind))
    private = play(rules_of(dp_of(), quorum=5), runner, purse=purse_of())[1]
    assert (private.outcome, private.num_contributed) == (Outcome.RELEASED, 4)
    assert play(rules_of(quorum=5), runner)[1].outcome is Outcome.ABANDONED


@pytest.mark.parametrize("dp", [None, dp_of()])
def test_below_quorum_nothing_happens(dp: object) -> None:
    ledger = MemoryLedger()
    rules = rules_of(dp, quorum=5)
    state = first_state(rules)
    runner = FakeRunner(fails=dict.fromkeys(clients_of()[:4], FailureKind.TIMEOUT))
    after, result = play(rules, runner, state=state, purse=purse_of(ledger) if dp else None)
    assert after is state
    assert (result.outcome, result.num_contributed, result.epsilon) == (Outcome.ABANDONED, 4, None)
    assert result.reason == f"4 of 8 {'answered' if dp else 'contributed'}, the quorum is 5"
    assert ledger.events() == ()
    assert (
        play(replace(rules, quorum=4), runner, purse=purse_of(ledger) if dp else None)[1].outcome
        is Outcome.RELEASED
    )


def test_everybody_who_was_asked_is_charged_before_the_release() -> None:
    ledger = MemoryLedger()
    fails = {clients_of()[0]: FailureKind.DROPPED}
    state, result = play(rules_of(dp_of()), FakeRunner(fails=fails), purse=purse_of(ledger))
    (event,) = ledger.events()
    assert decode_units(event.units).tolist() == clients_of()
    assert np.flatnonzero(state.history.count).tolist() == clients_of()
    assert (event.noise_multiplier, event.clip_norm, event.denominator, event.round) == (1.0, 1.0, N, 0)
    assert result.outcome is Outcome.RELEASED


def test_a_spent_budget_refuses_before_anybody_is_asked() -> None:
    runner, ledger = FakeRunner(), MemoryLedger()
    rules = rules_of(dp_of())
    purse = purse_of(ledger, Budget(epsilon=6.0, delta=1e-5, num_units=POPULATION))
    state, outcomes = first_state(rules), []
    cohort = cohort_of(state)  # the same devices each time
    for round_ in range(4):
        before = state
        state, result = play(rules, runner, state=state, purse=purse, cohort=cohort, round_=round_)
        outcomes.append(result.outcome)
    assert outcomes == [Outcome.RELEASED, *[Outcome.BUDGET_SPENT] * 3]
    assert state is before
    assert len(runner.specs) == len(ledger.events()) == 1
    assert "above the budget of 6" in result.reason
    assert purse.spent.epsilon(1e-5) <= 6.0


class CrashError(RuntimeError):
    pass


class CrashingNoises:
    """The process dies between the charge and the release."""

    def __call__(self, round_: int, attempt: int, purpose: str) -> NoiseSource:
        raise CrashError(round_, attempt, purpose)


def test_a_crash_between_charge_and_release_wastes_budget_and_never_overspends(tmp_path: Path) -> None:
    path, rules = tmp_path / "ledger.jsonl", rules_of(dp_of())
    with FileLedger(path) as ledger, pytest.raises(CrashError):
        play(rules, purse=Purse(ledger, CrashingNoises()))
    checkpoint = first_state(rules)  # what was saved before the round
    with FileLedger(path) as ledger:
        purse = Purse(ledger, SeededNoises(1))
        assert len(ledger.events()) == 1
        assert purse.spent.most_participations == 1
        state = recover(checkpoint, ledger.events(), campaign="default", next_round=0)
        assert np.flatnonzero(state.history.count).tolist() == clients_of()
        again, result = play(rules, state=state, purse=purse, cohort=cohort_of(state))
        assert result.outcome is Outcome.RELEASED
        assert [event.attempt for event in ledger.events()] == [0, 1]
        assert purse.spent.most_participations == 2
        assert again.history.count.max() == 2


def test_a_repeated_round_draws_other_noise() -> None:
    """Two releases of one round with the same noise would give the noise away by subtraction."""
    purse, rules = purse_of(), rules_of(dp_of())
    one, _ = play(rules, purse=purse)
    two, _ = play(rules, purse=purse)
    assert np.all(one.params != two.params)


class BrokenLedger(MemoryLedger):
    def append(self, event: object) -> object:  # type: ignore[override]
        raise PrivacyError("the disk is full", where="ledger", fix="free it")


def test_a_charge_that_cannot_be_written_releases_nothing() -> None:
    drawn: list[str] = []

    class Watching(CrashingNoises):
        def __call__(self, round_: int, attempt: int, purpose: str) -> NoiseSource:
            drawn.append(purpose)
            return super().__call__(round_, attempt, purpose)

    with pytest.raises(PrivacyError, match="the disk is full"):
        play(rules_of(dp_of()), purse=Purse(BrokenLedger(), Watching()))
    assert drawn == []


def test_recovery_leaves_other_campaigns_and_finished_rounds_alone() -> None:
    ledger, rules = MemoryLedger(), rules_of(dp_of(campaign="spring"))
    state, _ = play(rules, purse=purse_of(ledger))
    assert recover(state, ledger.events(), campaign="spring", next_round=1) is state
    assert recover(state, ledger.events(), campaign="autumn", next_round=0) is state


def repeat(shards: list[ShardResult]) -> list[ShardResult]:
    return [*shards, shards[0]]


def test_a_shard_that_comes_twice_counts_once() -> None:
    state, result = play(rules_of(), FakeRunner(tamper=repeat))
    wanted, _ = play(rules_of(), FakeRunner())
    np.testing.assert_array_equal(state.params, wanted.params)
    assert (result.num_shards_refused, result.num_contributed, result.failures) == (1, N, ())


def test_a_retried_shard_heals_its_failures() -> None:
    def lose_then_retry(shards: list[ShardResult]) -> list[ShardResult]:
        first = shards[0]
        lost = tuple(
            ClientFailure(ClientId(c), FailureKind.LOST, "worker killed") for c in first.clients.tolist()
        )
        empty = PartialSum(FixedDenominatorMean(N).init(LAYOUT.size, None))
        return [ShardResult(empty, failures=lost), *shards]

    state, result = play(rules_of(), FakeRunner(tamper=lose_then_retry))
    np.testing.assert_array_equal(state.params, play(rules_of())[0].params)
    assert result.failures == ()


def test_a_lost_shard_is_lost_clients_never_a_wrong_aggregate() -> None:
    runner = FakeRunner(tamper=lambda shards: shards[1:])
    state, result = play(rules_of(), runner)
    assert result.failure_counts == {FailureKind.LOST: 4}
    wanted = first_state(rules_of()).params + deltas_of(runner, clients_of()[4:]).sum(0) / N
    np.testing.assert_allclose(state.params, wanted, atol=1e-6)


def test_a_shard_with_strangers_or_a_false_count_is_refused_whole() -> None:
    def strangers(shards: list[ShardResult]) -> list[ShardResult]:
        return [replace(shards[0], clients=shards[0].clients + 1000), shards[1]]

    def miscounted(shards: list[ShardResult]) -> list[ShardResult]:
        return [replace(shards[0], clients=shards[0].clients[1:]), shards[1]]

    for tamper in (strangers, miscounted):
        _, result = play(rules_of(), FakeRunner(tamper=tamper))
        assert (result.num_shards_refused, result.num_contributed) == (1, 4)
        assert result.failure_counts == {FailureKind.LOST: 4}


def test_a_release_has_the_same_bits_however_it_was_sharded() -> None:
    params = {
        play(rules_of(dp_of()), FakeRunner(shard_size=shards, block_size=blocks, tamper=tamper))[
            0
        ].params.tobytes()
        for shards in (1, 3, 8)
        for blocks in (1, 5)
        for tamper in (list, lambda parts: parts[::-1])
    }
    assert len(params) == 1


def test_a_step_that_is_not_finite_is_not_released() -> None:
    rules = rules_of(server_optimizer=SGD(lr=1e40))
    state = first_state(rules)
    after, result = play(rules, state=state)
    assert after is state
    assert (result.outcome, "not finite" in result.reason) == (Outcome.DIVERGED, True)


def test_a_diverged_round_with_dp_stays_charged_and_counts_as_participation() -> None:
    ledger, rules = MemoryLedger(), rules_of(dp_of(), server_optimizer=SGD(lr=1e40))
    state = first_state(rules)
    after, result = play(rules, state=state, purse=purse_of(ledger))
    assert result.outcome is Outcome.DIVERGED
    assert len(ledger.events()) == 1
    np.testing.assert_array_equal(after.params, state.params)
    assert after.version == 0
    assert np.flatnonzero(after.history.count).tolist() == clients_of()


def test_poisson_amplification_charges_every_round_that_was_started() -> None:
    """No quorum: a round that nobody answered, and one that asked nobody, are charged and released as noise."""
    ledger = MemoryLedger()
    dp = dp_of(relation=Relation.ADD_REMOVE, amplified=True)
    rules = rules_of(dp, quorum=0)
    state = first_state(rules)
    cohort = Poisson(0.2).cohort(1, 0, state.history)
    nobody = FakeRunner(fails=dict.fromkeys(cohort.clients.tolist(), FailureKind.DROPPED))
    purse = purse_of(ledger)
    state, silent = play(rules, nobody, state=state, cohort=cohort, purse=purse)
    empty = replace(cohort, clients=np.zeros(0, dtype=np.int64))
    before = state
    state, unasked = play(rules, state=state, cohort=empty, purse=purse, round_=1)
    assert [silent.outcome, unasked.outcome] == [Outcome.RELEASED] * 2
    assert len(ledger.events()) == 2
    assert np.all(state.params != before.params)
    assert {(e.sampling, e.sampling_fraction, e.units, e.amplified) for e in ledger.events()} == {
        ("poisson", 0.2, "*", True)
    }


def test_a_quorum_under_add_remove_is_refused() -> None:
    for amplified in (True, False):
        with pytest.raises(PrivacyError, match="abandoning a small round reveals its size"):
            rules_of(dp_of(relation=Relation.ADD_REMOVE, amplified=amplified), quorum=3)


def test_too_large_a_cohort_for_a_bounded_list_is_refused_before_anybody_is_asked() -> None:
    runner = FakeRunner()
    with pytest.raises(ConfigError, match="bounded to 5"):
        play(rules_of(aggregator=CoordinateMedian(max_clients=5)), runner)
    assert runner.specs == []


def test_a_weighted_round_without_dp() -> None:
    clients = clients_of()
    runner = FakeRunner(num_examples={c: 1 + i for i, c in enumerate(clients)})
    state, _ = play(rules_of(aggregator=ExampleWeightedMean()), runner)
    update = np.average(deltas_of(runner, clients), axis=0, weights=np.arange(1, N + 1))
    np.testing.assert_allclose(state.params, first_state(rules_of()).params + update, atol=1e-6)


def test_a_quorum_of_nobody_needs_dp() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        RoundRules(FixedDenominatorMean(1), SGD(), quorum=0)


def test_state_survives_its_arrays() -> None:
    rules = rules_of(dp_of(), server_optimizer=Adam())
    state, _ = play(rules)
    again = ServerState.from_arrays(LAYOUT, {name: leaf.copy() for name, leaf in state.to_arrays().items()})
    after_one, _ = play(rules, state=state, round_=1, cohort=cohort_of(state, 1))
    after_two, _ = play(rules, state=again, round_=1, cohort=cohort_of(again, 1))
    one, two = after_one.to_arrays(), after_two.to_arrays()
    assert one.keys() == two.keys()
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert ServerState.from_arrays(LAYOUT, first_state(rules_of()).to_arrays()).clip_norm is None


def test_a_damaged_checkpoint_is_named() -> None:
    arrays = first_state(rules_of()).to_arrays()
    with pytest.raises(Exception, match="lacks"):
        ServerState.from_arrays(LAYOUT, {k: v for k, v in arrays.items() if k != "version"})
    with pytest.raises(Exception, match="the model 13"):
        ServerState.from_arrays(LAYOUT, {**arrays, "params": np.zeros(2, np.float32)})
