"""Quantised updates: near the whole ones, never beyond the bound, their error fed back."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.aggregation.aggregator import FixedDenominatorMean
from fedretrain.coordinator.ports import RoundSpec
from fedretrain.coordinator.reduce import Reducer
from fedretrain.core.params import Layout
from fedretrain.core.types import FailureKind
from fedretrain.training.upload import CLIP_MARGIN, num_channels, pack, packed_bytes, unpack
from tests.fakes import block_of

BASE = {
    "bias": np.zeros((), np.float32),
    "none": np.zeros((0, 3), np.float32),
    "thin": np.zeros((2, 0), np.float32),
    "v": np.zeros(4, np.float32),
    "w": np.zeros((3, 5, 2), np.float32),
}
LAYOUT = Layout.of(BASE)


def updates(num=20, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(num, LAYOUT.size)) * np.exp(3 * rng.normal(size=(num, 1)))).astype(np.float32)


def none(num):
    return np.zeros((num, LAYOUT.size), np.float32)


def test_each_entry_is_at_most_half_a_step_of_its_channel_away():
    delta = updates()
    packed, left = pack(delta, none(20), LAYOUT, None)
    sent = unpack(packed, LAYOUT)
    np.testing.assert_array_equal(left, delta - sent)
    assert packed.scales_KC.shape == (20, num_channels(LAYOUT)) == (20, 1 + 0 + 2 + 1 + 3)
    at = 0
    for name in LAYOUT.names:
        leaf = np.zeros(BASE[name].shape, np.float32)
        rows = leaf.reshape(leaf.shape[0] if leaf.ndim > 1 else 1, -1) if leaf.size else np.zeros((0, 0))
        for _ in range(len(rows)):
            mine = slice(at, at + rows.shape[1])
            half = np.abs(delta[:, mine]).max(axis=1) / 127 / 2
            assert (np.abs(left[:, mine]).max(axis=1) <= half * (1 + 1e-4)).all()
            at += rows.shape[1]
    assert at == LAYOUT.size
    assert packed_bytes(LAYOUT) == packed.codes_KP[0].nbytes + packed.scales_KC[0].nbytes


@pytest.mark.parametrize("seed", range(20))
def test_what_is_decoded_is_never_longer_than_the_bound_and_the_server_never_sums_more_than_the_clip_norm(
    seed,
):
    clip_norm = float(np.exp(np.random.default_rng(seed).normal()))
    residual, bound = updates(20, seed + 100), clip_norm * CLIP_MARGIN
    packed, left = pack(updates(20, seed), residual, LAYOUT, bound)
    sent = unpack(packed, LAYOUT)
    norms = np.linalg.norm(sent.astype(np.float64), axis=1)
    assert (norms <= bound).all()
    for row in sent:
        reducer = Reducer(RoundSpec(0, BASE, 0, 1, 0.0, FixedDenominatorMean(1), clip_norm))
        reducer.add(block_of(np.array([0]), row[None]))
        assert np.linalg.norm(reducer.result().partial.state.value()) <= clip_norm
    # What the clip cut is not fed back: what is left is the rounding alone.
    assert (np.abs(left) <= np.abs(packed.scales_KC).max(axis=1)[:, None]).all()


def test_a_server_still_sees_who_was_clipped():
    delta = updates(200, 3)
    packed, _ = pack(delta, none(200), LAYOUT, 1.0 * CLIP_MARGIN)
    norms = np.linalg.norm(unpack(packed, LAYOUT).astype(np.float64), axis=1)
    clipped = np.linalg.norm(delta.astype(np.float64), axis=1) > CLIP_MARGIN
    assert 20 < clipped.sum() < 195
    assert (norms[clipped] > 1.0).all()


def test_over_rounds_the_errors_do_not_add_up():
    total, sent, left = none(1)[0].astype(np.float64), none(1)[0].astype(np.float64), none(1)
    worst = 0.0
    for round_ in range(200):
        delta = np.random.default_rng(round_).normal(size=(1, LAYOUT.size)).astype(np.float32)
        packed, left = pack(delta, left, LAYOUT, None)
        total, sent = total + delta[0], sent + unpack(packed, LAYOUT)[0]
        worst = max(worst, float(packed.scales_KC.max()))
    assert np.abs(total - sent).max() <= worst / 2 + 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_stays_so_and_leaves_nothing_behind(bad):
    delta = updates(3)
    delta[1, 7] = bad
    packed, left = pack(delta, none(3), LAYOUT, 1.0)
    sent = unpack(packed, LAYOUT)
    assert np.isfinite(sent[[0, 2]]).all()
    assert not left[1].any()
    reducer = Reducer(RoundSpec(0, BASE, 0, 1, 0.0, FixedDenominatorMean(1), 1.0))
    reducer.add(block_of(np.arange(3), sent))
    assert [one.kind for one in reducer.result().failures] == [FailureKind.NONFINITE]


def test_nothing_is_sent_of_nothing():
    packed, left = pack(none(2), none(2), LAYOUT, 1.0)
    assert not unpack(packed, LAYOUT).any()
    assert not left.any()
