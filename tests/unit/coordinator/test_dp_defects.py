"""Where implementations of DP in federated learning go wrong: each defect of others, a test of ours.

Those of the reducer (one NaN, zero norm, integer buffers, 0-d parameters, the clip's norm, the model clipped instead of the
update) are in `test_reduce.py`; those of accounting are in the tests of `fedretrain.privacy`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedretrain.aggregation.aggregator import Aggregator, ExampleWeightedMean, FixedDenominatorMean
from fedretrain.aggregation.robust import CoordinateMedian, TrimmedMean
from fedretrain.aggregation.server_optimizer import SGD
from fedretrain.coordinator.charging import CentralDp, Purse, SeededNoises
from fedretrain.coordinator.round import RoundRules, run_round
from fedretrain.coordinator.sampling import FixedSize, MinSeparation, Poisson
from fedretrain.coordinator.state import Outcome, ServerState
from fedretrain.core.errors import PrivacyError
from fedretrain.core.params import Layout
from fedretrain.core.types import FailureKind
from fedretrain.privacy.adaptive import AdaptiveClip
from fedretrain.privacy.file_ledger import FileLedger
from fedretrain.privacy.ledger import MemoryLedger
from fedretrain.privacy.mechanism import Relation
from tests.fakes import FakeRunner, random_deltas
from tests.unit.coordinator.rounds import cohort_of, dp_of, first_state, play, purse_of, rules_of

if TYPE_CHECKING:
    from pathlib import Path

    from fedretrain.coordinator.ports import RoundSpec

SHAPES = {"a": (40, 50), "b": (2000,), "c": (), "d": (10, 10, 20), "e": (2000, 1)}
WIDE = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def silent(spec: RoundSpec, clients: np.ndarray) -> np.ndarray:
    """Everybody's update is zero: what is released is noise alone."""
    return np.zeros((len(clients), spec.size), np.float32)


def release_of(
    dp: CentralDp, deltas: object = silent, *, n: int = 10, drop: int = 0, seed: int = 1
) -> ServerState:
    """The state after one round of `n` clients over the wide model, `drop` of them gone."""
    layout = Layout.of(WIDE)
    state = ServerState.first(layout, WIDE, SGD(), n, dp.clip_norm)
    cohort = FixedSize(n).cohort(seed, 0, state.history)
    runner = FakeRunner(deltas, fails=dict.fromkeys(cohort.clients[:drop].tolist(), FailureKind.DROPPED))  # type: ignore[arg-type]
    rules = RoundRules(FixedDenominatorMean(n), SGD(), dp=dp)
    after, result = run_round(state, rules, cohort, runner, round_=0, seed=seed, purse=purse_of(seed=seed))
    assert result.outcome is Outcome.RELEASED
    return after


def test_noise_is_scaled_to_the_denominator_not_to_who_answered() -> None:
    """3 of 10 replies: a mean over 3 would move by C / 3 per client while the noise is made for C / 10."""
    layout = Layout.of(WIDE)
    direction = np.zeros(layout.size, np.float32)
    direction[0] = 5.0  # clipped to C

    def same(spec: RoundSpec, clients: np.ndarray) -> np.ndarray:
        del spec
        return np.tile(direction, (len(clients), 1))

    dp = dp_of(noise_multiplier=1.0, clip_norm=2.0)
    all_ten = release_of(dp, same).params.astype(np.float64)
    three = release_of(dp, same, drop=7).params.astype(np.float64)
    per_client = (all_ten - three) / 7
    np.testing.assert_allclose(per_client[0], 2.0 / 10, rtol=1e-5)  # never C / 3
    noise = three[1:]
    sensitivity = per_client[0]
    assert noise.std() / sensitivity == pytest.approx(1.0, rel=0.03)  # the effective noise multiplier


def test_weights_by_data_size_cannot_meet_noise() -> None:
    with pytest.raises(PrivacyError, match="ExampleWeightedMean"):
        rules_of(dp_of(), aggregator=ExampleWeightedMean())
    clients = cohort_of(first_state(rules_of())).clients.tolist()
    even, _ = play(rules_of(dp_of()), FakeRunner())
    heavy, _ = play(rules_of(dp_of()), FakeRunner(num_examples={clients[0]: 1_000_000}))
    np.testing.assert_array_equal(even.params, heavy.params)


@pytest.mark.parametrize("aggregator", [CoordinateMedian(), TrimmedMean(), ExampleWeightedMean()], ids=repr)
def test_dp_is_never_silently_ignored_by_another_aggregator(aggregator: Aggregator) -> None:
    with pytest.raises(PrivacyError, match="cannot be used with differential privacy"):
        rules_of(dp_of(), aggregator=aggregator)


def test_dp_is_never_silently_ignored_by_a_round() -> None:
    rules = rules_of(dp_of())
    state, cohort = first_state(rules), cohort_of(first_state(rules))
    with pytest.raises(ValueError, match="a purse is needed"):
        run_round(state, rules, cohort, FakeRunner(), round_=0, seed=1)
    with pytest.raises(ValueError, match="without a clip norm"):
        play(rules, state=replace(state, clip_norm=None))


def test_adaptive_clip_moves_the_right_way() -> None:
    """Everything clipped: the norm grows. Nothing clipped: it shrinks."""
    adaptive = AdaptiveClip(1.0, bit_noise_stddev=0.01)
    for scale, grows in ((100.0, True), (0.001, False)):

        def scaled(spec: RoundSpec, clients: np.ndarray, by: float = scale) -> np.ndarray:
            return random_deltas(spec, clients) * np.float32(by)

        _, result = play(rules_of(dp_of(adaptive=adaptive)), FakeRunner(scaled))
        assert result.next_clip_norm is not None
        assert (result.next_clip_norm > 1.0) is grows
        assert result.clip_fraction_oracle == (1.0 if grows else 0.0)


def test_adaptive_clip_finds_its_quantile_at_30_percent_replies() -> None:
    """The centred bit: with seven of ten gone the clip norm still settles at the median of the norms, and stays."""
    base = {"w": np.zeros(1, np.float32)}
    n, rounds = 100, 60
    adaptive = AdaptiveClip(0.1, bit_noise_stddev=n / 20, learning_rate=1.0)
    dp = dp_of(clip_norm=0.1, adaptive=adaptive)
    rules = RoundRules(FixedDenominatorMean(n), SGD(), dp=dp)
    state = ServerState.first(Layout.of(base), base, SGD(), n, dp.clip_norm)
    lengths = np.linspace(1.0, 3.0, n)  # their median is 2

    def known(spec: RoundSpec, clients: np.ndarray) -> np.ndarray:
        del spec
        return lengths[clients][:, None].astype(np.float32)

    purse, norms = purse_of(), []
    for round_ in range(rounds):
        gone = np.random.default_rng(round_).permutation(n)[:70]
        runner = FakeRunner(
            known, fails=dict.fromkeys(gone.tolist(), FailureKind.DROPPED), shard_size=50, block_size=50
        )
        cohort = FixedSize(n).cohort(1, round_, state.history)
        state, result = run_round(state, rules, cohort, runner, round_=round_, seed=1, purse=purse)
        norms.append(result.next_clip_norm)
    assert 1.6 < np.median(norms[-30:]) < 2.4


def test_noise_uses_this_rounds_clip_norm() -> None:
    """Updates were clipped to C = 1 while the next norm is far away; the noise is that of C = 1."""
    adaptive = AdaptiveClip(1.0, bit_noise_stddev=0.01, learning_rate=5.0)
    ledger = MemoryLedger()
    rules = rules_of(dp_of(adaptive=adaptive))
    state, result = play(rules, purse=purse_of(ledger))
    assert result.next_clip_norm is not None
    assert result.next_clip_norm > 2.0
    assert state.clip_norm == result.next_clip_norm
    assert result.noise_stddev == 1.0 * 1.0 / 8
    (event,) = ledger.events()
    assert event.noise_stddev == 1.0
    _, second = play(rules, state=state, purse=purse_of(ledger), cohort=cohort_of(state, 1), round_=1)
    assert second.noise_stddev == state.clip_norm / 8
    assert ledger.events()[1].clip_norm == state.clip_norm


def test_the_clip_bit_is_charged_with_the_round() -> None:
    plain, bit = MemoryLedger(), MemoryLedger()
    play(rules_of(dp_of()), purse=purse_of(plain))
    play(rules_of(dp_of(adaptive=AdaptiveClip(1.0, bit_noise_stddev=2.0))), purse=purse_of(bit))
    assert bit.events()[0].mu_squared == plain.events()[0].mu_squared + (0.5 / 2.0) ** 2


def test_noise_is_not_divided_per_tensor() -> None:
    """Five tensors, one standard deviation (a peer divided again for each: 1e-2, 1e-4, 1e-6, ...)."""
    tree = release_of(dp_of(noise_multiplier=2.0, clip_norm=0.5)).tree
    for name, leaf in tree.items():
        if leaf.size > 1:
            assert leaf.std() == pytest.approx(2.0 * 0.5 / 10, rel=0.08), name
    assert tree["c"] != 0.0


def test_noise_is_never_nothing() -> None:
    """Every parameter is noised, 0-d ones too, however small sigma is beside the clip norm."""
    for dp in (
        dp_of(),
        dp_of(noise_multiplier=1e-3, clip_norm=1e-4),
        dp_of(noise_multiplier=50.0, clip_norm=1e4),
    ):
        assert np.count_nonzero(release_of(dp).params) == sum(leaf.size for leaf in WIDE.values())


def test_a_lattice_coarser_than_the_noise_is_refused_not_rounded_to_nothing() -> None:
    with pytest.raises(PrivacyError, match="steps wide"):
        release_of(dp_of(noise_multiplier=1e-13))


def test_model_is_not_replaced_by_noise() -> None:
    rules = rules_of(dp_of(noise_multiplier=1e-6, clip_norm=1e3))
    state, _ = play(rules)
    plain, _ = play(rules_of())
    np.testing.assert_allclose(state.params, plain.params, atol=1e-2)
    assert np.abs(plain.params).max() > 0.5


def test_model_is_not_clipped_instead_of_update() -> None:
    """A model of norm 5,000 with C = 1 keeps its length; only the update is shortened."""
    base = {"w": np.full(100, 500.0, np.float32)}
    layout = Layout.of(base)
    dp = dp_of(noise_multiplier=1e-6)
    state = ServerState.first(layout, base, SGD(), 8, dp.clip_norm)
    cohort = FixedSize(8).cohort(1, 0, state.history)
    rules = RoundRules(FixedDenominatorMean(8), SGD(), dp=dp)
    after, result = run_round(state, rules, cohort, FakeRunner(), round_=0, seed=1, purse=purse_of())
    assert result.clip_fraction_oracle == 1.0
    assert np.abs(after.params - 500.0).max() < 1.01


def test_integer_buffers_are_no_parameters() -> None:
    """A counter is neither averaged nor noised, and noise on it is not truncated to zero: it is refused by name."""
    with pytest.raises(TypeError, match="steps"):
        Layout.of({"w": np.zeros(2, np.float32), "steps": np.zeros((), np.int64)})


@pytest.mark.parametrize("sampler", [FixedSize(8), MinSeparation(8, 3)], ids=repr)
def test_fixed_or_cyclic_cohorts_are_never_accounted_as_poisson(sampler: FixedSize | MinSeparation) -> None:
    rules = rules_of(dp_of())
    ledger = MemoryLedger()
    state = first_state(rules)
    play(rules, state=state, cohort=sampler.cohort(1, 0, state.history), purse=purse_of(ledger))
    (event,) = ledger.events()
    assert (event.amplified, event.sampling_fraction) == (False, 0.0)
    claimed = rules_of(dp_of(relation=Relation.ADD_REMOVE, amplified=True), quorum=0)
    with pytest.raises(PrivacyError, match="cohorts"):
        play(claimed, state=state, cohort=sampler.cohort(1, 0, state.history))


def test_amplification_is_claimed_only_where_every_reply_is_used() -> None:
    rules = rules_of(dp_of(relation=Relation.ADD_REMOVE, amplified=True), quorum=0)
    state = first_state(rules)
    cohort = replace(Poisson(0.2).cohort(1, 0, state.history), stop_after=5)
    with pytest.raises(PrivacyError, match="stopping at a quorum"):
        play(rules, state=state, cohort=cohort)


def test_charges_survive_a_restart(tmp_path: Path) -> None:
    path, rules = tmp_path / "ledger.jsonl", rules_of(dp_of())
    with FileLedger(path) as ledger:
        purse = Purse(ledger, SeededNoises(1))
        state, _ = play(rules, purse=purse)
        spent = purse.spent.epsilon(1e-5)
    assert spent > 0
    with FileLedger(path) as ledger:
        purse = Purse(ledger, SeededNoises(1))
        assert purse.spent.epsilon(1e-5) == spent
        same = replace(cohort_of(first_state(rules)), clients=np.flatnonzero(state.history.count))
        play(rules, state=state, purse=purse, cohort=same, round_=1)
        assert purse.spent.epsilon(1e-5) > spent


def test_persons_are_charged_for_all_their_devices() -> None:
    person_of = np.arange(40) // 2
    rules = rules_of(dp_of(unit="person", unit_of=person_of, max_devices_per_unit=2))
    ledger = MemoryLedger()
    state = first_state(rules)
    cohort = replace(cohort_of(state), clients=np.array([0, 1, 2]))
    play(rules, state=state, cohort=cohort, purse=purse_of(ledger))
    (event,) = ledger.events()
    assert [ids.tolist() for ids in event.unit_counts] == [[0, 1], [2, 1]]
    with pytest.raises(PrivacyError, match="2 devices of one person"):
        play(rules_of(dp_of(unit="person", unit_of=person_of)), state=state, cohort=cohort)


def test_what_is_known_of_single_clients_is_named_oracle() -> None:
    """Without a kept oracle a result says nothing of single clients, and of un-noised metrics only what is named so."""
    _, result = play(rules_of(dp_of()))
    described = {name for name in vars(result) if "oracle" in name}
    assert described == {"oracle", "clip_fraction_oracle"}
    assert not any(name for name in vars(result) if "loss" in name or "num_examples" in name)
