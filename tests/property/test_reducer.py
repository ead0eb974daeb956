"""The reducer's algebra: order, block size and sharding change no bit; dropouts never lower the noise; nothing exceeds the clip."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedretrain.aggregation.aggregator import Aggregator, ExampleWeightedMean, FixedDenominatorMean
from fedretrain.aggregation.fixed_point import FixedPointSum, bits_for
from fedretrain.aggregation.robust import CoordinateMedian, TrimmedMean
from fedretrain.aggregation.server_optimizer import SGD
from fedretrain.coordinator.charging import CentralDp, Purse, SeededNoises
from fedretrain.coordinator.ports import PartialSum, RoundSpec, ShardResult
from fedretrain.coordinator.reduce import Reducer
from fedretrain.coordinator.round import RoundRules, fold_shards, run_round
from fedretrain.coordinator.sampling import FixedSize
from fedretrain.coordinator.state import ServerState
from fedretrain.core.params import Layout
from fedretrain.core.types import FailureKind
from fedretrain.privacy.ledger import MemoryLedger
from fedretrain.privacy.rows import clip_factors, row_norms
from tests.fakes import FakeRunner, block_of

AGGREGATORS = st.sampled_from(
    [FixedDenominatorMean(5), ExampleWeightedMean(), CoordinateMedian(), TrimmedMean(trim_fraction=0.2)]
)
CLIPS = st.one_of(st.none(), st.floats(1e-3, 1e3))


def spec_of(aggregator: Aggregator, size: int, clip_norm: float | None) -> RoundSpec:
    return RoundSpec(0, {"w": np.zeros(size, np.float32)}, 0, 1, 0.0, aggregator, clip_norm)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, updates of very different lengths, numbers of examples."""
    count, size = draw(st.integers(1, 12)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = 10.0 ** rng.uniform(-6, 2, (count, 1))
    delta = (rng.normal(size=(count, size)) * lengths / np.sqrt(size)).astype(np.float32)
    return rng.permutation(1000)[:count], delta, rng.integers(1, 5000, count)


def reduce_shards(
    spec: RoundSpec, cohort: tuple[np.ndarray, ...], cuts: list[list[int]]
) -> list[ShardResult]:
    """One shard for each list of positions, in blocks of at most three."""
    ids, delta, examples = cohort
    results = []
    for part in cuts:
        reducer = Reducer(spec)
        for i in range(0, len(part), 3):
            rows = part[i : i + 3]
            reducer.add(block_of(ids[rows], delta[rows], examples[rows]))
        results.append(reducer.result())
    return results


def release(spec: RoundSpec, shards: list[ShardResult], ids: np.ndarray) -> bytes:
    return spec.aggregator.release(fold_shards(spec, ids, shards).partial.state).tobytes()


@given(cohorts(), AGGREGATORS, CLIPS, st.data())
def test_order_and_sharding_change_no_bit(
    cohort: tuple[np.ndarray, ...], aggregator: Aggregator, clip_norm: float | None, data: st.DataObject
) -> None:
    spec = spec_of(aggregator, cohort[1].shape[1], clip_norm)
    count = len(cohort[0])
    order = data.draw(st.permutations(range(count)))
    cut = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    cuts = [list(part) for part in np.split(np.array(order), cut) if len(part)]
    whole = release(spec, reduce_shards(spec, cohort, [list(range(count))]), cohort[0])
    parts = reduce_shards(spec, cohort, cuts)
    assert release(spec, parts, cohort[0]) == whole
    assert release(spec, parts[::-1], cohort[0]) == whole
    travelled = [pickle.loads(pickle.dumps(part)) for part in parts]
    assert release(spec, travelled, cohort[0]) == whole


@given(cohorts(), AGGREGATORS, CLIPS)
def test_merge_is_a_commutative_monoid(
    cohort: tuple[np.ndarray, ...], aggregator: Aggregator, clip_norm: float | None
) -> None:
    spec = spec_of(aggregator, cohort[1].shape[1], clip_norm)
    count = len(cohort[0])
    thirds = [list(range(count))[i::3] for i in range(3)]
    a, b, c = (shard.partial for shard in reduce_shards(spec, cohort, thirds))
    before = pickle.dumps((a, b, c))
    zero = PartialSum(aggregator.init(spec.size, clip_norm))

    def value(partial: PartialSum) -> tuple[bytes, int, int]:
        return aggregator.release(partial.state).tobytes(), partial.num_clients, partial.num_unclipped

    left = a.merge(b, aggregator).merge(c, aggregator)
    assert value(left) == value(a.merge(b.merge(c, aggregator), aggregator))
    assert value(left) == value(c.merge(b, aggregator).merge(a, aggregator))
    assert value(left) == value(zero.merge(left, aggregator))
    assert pickle.dumps((a, b, c)) == before


@given(
    arrays(
        np.float32,
        st.tuples(st.just(1), st.integers(1, 200)),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
    ),
    st.floats(1e-6, 1e6),
)
def test_a_quantised_row_never_exceeds_the_clip_norm(delta: np.ndarray, clip_norm: float) -> None:
    norm = row_norms(delta)
    factor, _ = clip_factors(norm, clip_norm)
    total = FixedPointSum.zero(delta.shape[1], clip_norm).add(delta, factor, norm).total
    # Exact integers: the sum of squares against (C 2**bits)**2, C a ratio of integers.
    numerator, denominator = clip_norm.as_integer_ratio()
    squares = sum(int(entry) ** 2 for entry in total) * denominator**2
    bits = bits_for(clip_norm)
    limit = (numerator << bits) ** 2 if bits >= 0 else numerator**2
    assert squares << max(0, -2 * bits) <= limit
    assert np.all(np.sign(total) * np.sign(delta[0]) >= 0)


@given(st.floats(1e-30, 1e30))
def test_the_scale_keeps_one_client_below_two_to_the_forty(clip_norm: float) -> None:
    assert 2.0**39 < np.ldexp(clip_norm, bits_for(clip_norm)) <= 2.0**40


@given(cohorts(), st.sampled_from([0.01, 1.0, 300.0]))
def test_the_sum_is_as_accurate_as_stated(cohort: tuple[np.ndarray, ...], clip_norm: float) -> None:
    ids, delta, _ = cohort
    spec = spec_of(FixedDenominatorMean(1.0), delta.shape[1], clip_norm)
    (shard,) = reduce_shards(spec, cohort, [list(range(len(ids)))])
    factor, _ = clip_factors(row_norms(delta), clip_norm)
    exact = (delta.astype(np.longdouble) * factor[:, None]).sum(axis=0)
    assert np.all(np.abs(shard.partial.state.value() - exact) <= len(ids) * clip_norm * 2.0**-39)


@settings(max_examples=25)
@given(st.sets(st.integers(0, 9), max_size=9), st.integers(0, 2**32))
def test_dropouts_never_lower_the_noise(dropped: set[int], seed: int) -> None:
    """The noise in the release is the same vector whoever answered: standard deviation z C / n, n planned."""
    base = {"w": np.zeros(16, np.float32)}
    layout = Layout.of(base)
    dp = CentralDp(noise_multiplier=1.5, clip_norm=0.5)
    rules = RoundRules(FixedDenominatorMean(10), SGD(), dp=dp)
    cohort = FixedSize(10).cohort(seed, 0, ServerState.first(layout, base, SGD(), 10, 0.5).history)

    def release_with(fails: set[int]) -> tuple[np.ndarray, float]:
        start = ServerState.first(layout, base, SGD(), 10, clip_norm=0.5)
        runner = FakeRunner(fails=dict.fromkeys(fails, FailureKind.DROPPED))
        purse = Purse(MemoryLedger(), SeededNoises(seed))
        after, result = run_round(start, rules, cohort, runner, round_=0, seed=seed, purse=purse)
        spec = runner.specs[0]
        fold = fold_shards(spec, cohort.clients, runner.run(spec, cohort.clients))
        return after.params - fold.partial.state.value() / 10, result.noise_stddev

    noise, stddev = release_with(dropped)
    all_noise, all_stddev = release_with(set())
    assert stddev == all_stddev == 1.5 * 0.5 / 10
    np.testing.assert_allclose(noise, all_noise, atol=1e-7)


@given(cohorts(), st.data())
def test_a_client_counts_once_however_often_it_is_sent(
    cohort: tuple[np.ndarray, ...], data: st.DataObject
) -> None:
    ids, delta, examples = cohort
    spec = spec_of(FixedDenominatorMean(3), delta.shape[1], 1.0)
    again = data.draw(st.lists(st.integers(0, len(ids) - 1), max_size=5))
    once, more = Reducer(spec), Reducer(spec)
    for reducer, rows in ((once, []), (more, again)):
        reducer.add(block_of(ids, delta, examples))
        for row in rows:
            reducer.add(block_of(ids[[row]], delta[[row]], examples[[row]]))
    assert more.result().num_duplicates == len(again)
    assert more.result().partial.state.total.tobytes() == once.result().partial.state.total.tobytes()
