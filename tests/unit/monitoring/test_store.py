"""The store against a plain recount, and its horizon."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.monitoring.reports import join
from fedretrain.monitoring.rings import ByKey, Horizon, from_whole, to_whole
from tests.unit.monitoring.fleet_cases import bins_of, fill, labels_for, store_of, telemetry

BINS, DEVICES = bins_of(), 5


def test_windows_equal_a_recount() -> None:
    store, rng = store_of(BINS, DEVICES), np.random.default_rng(0)
    sent = [telemetry(BINS, slot, DEVICES, rng, version=1 + slot % 2) for slot in range(60)]
    labels = [labels_for(reports, 0.8, rng) for reports in sent]
    for row in sent:
        store.add(row)
    for row in labels:
        store.add_labels(row)
    window = store.window(50, 24)
    inside, their_labels = join(sent[26:50]), join(labels[26:50])
    group = inside.device_K % 2
    for g in range(2):
        assert np.array_equal(window.features_GFC[g], inside.features_KFC[group == g].sum(axis=0))
    assert window.num_rows == 24 * DEVICES * 20
    assert (window.first_slot, window.end_slot, window.num_kept) == (26, 50, 24)
    for version, served in window.served.items():
        mine = inside.take(inside.version_K == version)
        their = their_labels.take(their_labels.version_K == version)
        assert np.array_equal(served.outputs_GM.sum(axis=0), mine.outputs_KM.sum(axis=0))
        assert np.array_equal(served.confidence_GB.sum(axis=0), mine.confidence_KB.sum(axis=0))
        assert np.array_equal(served.entropy_GB.sum(axis=0), mine.entropy_KB.sum(axis=0))
        assert np.array_equal(served.latency_GL.sum(axis=0), mine.latency_KL.sum(axis=0))
        assert np.array_equal(served.confusion_GMM.sum(axis=0), their.confusion_KMM.sum(axis=0))
        assert np.array_equal(served.calibration_GB2.sum(axis=0), their.calibration_KB2.sum(axis=0))
        assert np.array_equal(served.delay_GD.sum(axis=0), their.delay_KD.sum(axis=0))
        for d in range(DEVICES):
            ours = mine.device_K == d
            assert served.predictions_D[d] == mine.num_predictions[ours].sum()
            assert np.array_equal(served.confidence_DB[d], mine.confidence_KB[ours].sum(axis=0))
            assert served.labelled_D[d] == their.num_labelled[their.device_K == d].sum()
            assert served.correct_D[d] == their.num_correct[their.device_K == d].sum()
            assert served.kpis_D2["alarms"][d].tolist() == mine.kpis["alarms"][ours].sum(axis=0).tolist()
        assert served.kpis_G2["alarms"].sum(axis=0).tolist() == mine.kpis["alarms"].sum(axis=0).tolist()


def test_features_by_device_cover_the_chunks_that_a_window_touches() -> None:
    store, rng = store_of(BINS, DEVICES), np.random.default_rng(0)
    sent = [telemetry(BINS, slot, DEVICES, rng) for slot in range(60)]
    for row in sent:
        store.add(row)
    for end, length, first, last in ((48, 24, 24, 48), (50, 24, 24, 72), (50, 48, 0, 72)):
        counts = store.devices(end, length)
        assert (counts.first_slot, counts.end_slot) == (first, last)
        expected = sum(row.features_KFC for row in sent[first : min(last, 60)])
        assert np.array_equal(counts.features_DFC, expected)


def test_slots_are_one_by_one_what_windows_are_together() -> None:
    store, rng = store_of(BINS, DEVICES), np.random.default_rng(0)
    fill(store, 0, 30, rng)
    features_SFC, outputs_SM = store.slots(3, 20)
    window = store.window(20, 17)
    assert np.array_equal(features_SFC.sum(axis=0), window.features_FC)
    assert np.array_equal(outputs_SM.sum(axis=0), window.served[1].outputs_GM.sum(axis=0))
    delays_SB, predicted_S = store.label_slots(3, 20, 1)
    assert np.array_equal(delays_SB.sum(axis=0), window.served[1].delay_GD.sum(axis=0))
    assert predicted_S.sum() == window.served[1].predictions_D.sum()
    assert not store.label_slots(3, 20, 99)[1].any()


def test_late_rows_correct_their_own_slot() -> None:
    late, punctual = store_of(BINS, DEVICES), store_of(BINS, DEVICES)
    sent = [telemetry(BINS, slot, DEVICES, np.random.default_rng(slot)) for slot in range(40)]
    for row in sent:
        punctual.add(row)
    held_back = sent.pop(17)
    for row in sent:
        late.add(row)
    before = late.window(18, 1)
    assert before.num_rows == 0
    assert not before.served
    late.add(held_back)
    assert late.window(18, 1).num_rows == DEVICES * 20
    assert late.digest() == punctual.digest()


def test_what_is_over_is_forgotten_in_whole_chunks() -> None:
    store, rng = store_of(BINS, DEVICES, keep_slots=24), np.random.default_rng(0)
    fill(store, 0, 72, rng)
    assert store.oldest_slot == 24
    assert store.window(24, 24).num_rows == 0
    assert store.window(30, 12).num_kept == 6
    with pytest.raises(DataError, match="not kept"):
        store.slots(0, 30)
    # A jump over everything leaves nothing behind.
    store.add(telemetry(BINS, 5_000, DEVICES, rng, version=2))
    other = store_of(BINS, DEVICES, keep_slots=24)
    other.add(telemetry(BINS, 4_999, DEVICES, np.random.default_rng(0), version=1))
    assert store.window(5_001, 48).num_rows == DEVICES * 20
    assert list(store.window(5_001, 48).served) == [2]
    assert list(other.window(5_001, 48).served) == [1]


def test_a_window_to_come_is_empty_and_never_shows_old_slots() -> None:
    store = store_of(BINS, DEVICES, keep_slots=24)
    fill(store, 0, 40, np.random.default_rng(0))
    assert store.window(90, 40).num_rows == 0
    assert not store.devices(90, 24).features_DFC.any()


def test_distinct_registers_keep_their_maximum() -> None:
    store = store_of(BINS, DEVICES, num_registers=16)
    rows = telemetry(BINS, 0, DEVICES, np.random.default_rng(0))
    registers = np.random.default_rng(1).integers(0, 9, (DEVICES, 3, 16)).astype(np.uint8)
    store.add(replace(rows, distinct_KFR=registers))
    found = store.window(1, 1).distinct_GFR
    for g in range(2):
        assert np.array_equal(found[g], registers[g::2].max(axis=0))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="group"):
        store_of(BINS, 0)
    with pytest.raises(ConfigError, match="positive"):
        store_of(BINS, 2, keep_slots=0)
    with pytest.raises(DataError, match="other bins"):
        store_of(BINS, DEVICES).add(replace(telemetry(BINS, 0, DEVICES, np.random.default_rng(0)), bins="x"))


@pytest.mark.parametrize("seed", range(20))
def test_real_numbers_add_up_exactly_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=200) * 10.0 ** rng.uniform(-6, 9, 200)
    sums = to_whole(values).sum(axis=0)
    assert np.array_equal(sums, to_whole(values[rng.permutation(200)]).sum(axis=0))
    exact = float(sum((Fraction(v) for v in values), Fraction(0)))
    assert abs(float(from_whole(sums)) - exact) <= 200 * 2.0**-33 + abs(exact) * 2.0**-50


def test_rows_by_key_equal_add_at() -> None:
    rng = np.random.default_rng(0)
    for keys in (
        rng.integers(0, 9, 50),
        np.arange(9),
        rng.permutation(9),
        np.array([3, 4, 5]),
        np.array([7]),
    ):
        rows, plain, ours = rng.integers(0, 99, (len(keys), 4)), np.zeros((9, 4), int), np.zeros((9, 4), int)
        np.add.at(plain, keys, rows)
        ByKey.of(keys).add_to(ours, rows)
        assert np.array_equal(plain, ours)


def test_the_horizon_names_each_chunk_that_ends_once() -> None:
    horizon = Horizon(chunk_slots=4, num_chunks=3)
    assert horizon.advance(2) == [0]
    assert horizon.advance(3) == []
    assert horizon.advance(9) == [1, 2]
    assert horizon.oldest_slot == 0
    assert horizon.advance(12) == [0]
    assert horizon.oldest_slot == 4
    assert horizon.advance(5) == []
    assert [(p.start, p.stop) for p in horizon.pieces(0, 20)] == [(4, 12), (0, 1)]
    assert sorted(horizon.advance(100)) == [0, 1, 2]
