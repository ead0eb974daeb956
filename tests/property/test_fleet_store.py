"""The store's algebra: any order, any batching, any number of resends give bitwise the same store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedretrain.monitoring.intake import Intake
from fedretrain.monitoring.reports import LabelReports, Reports, join
from tests.unit.monitoring.fleet_cases import SLOT_S, bins_of, labels_for, personal_of, store_of, telemetry

if TYPE_CHECKING:
    from fedretrain.monitoring.store import FleetStore

BINS, DEVICES, SLOTS = bins_of(2), 3, 12


def rows_of(seed: int, stretch: int) -> tuple[list[Reports], list[LabelReports]]:
    """Single rows of a few slots, some of them far apart, of two versions."""
    rng = np.random.default_rng(seed)
    reports, labels = [], []
    for index in range(SLOTS):
        batch = telemetry(BINS, index * stretch, DEVICES, rng, rows=3, version=index % 2)
        kpi = rng.normal(size=(DEVICES, 2)) * 10.0 ** rng.uniform(-5, 8)
        batch = replace(batch, kpis={"alarms": np.abs(kpi)})
        if seed % 2:
            batch = personal_of(
                batch, rng.uniform(-1, 1, DEVICES), rng.lognormal(size=DEVICES), rng.random(DEVICES) < 0.5
            )
        late = labels_for(batch, 0.7, rng)
        reports += [batch.take(np.array([d])) for d in range(DEVICES)]
        labels += [late.take(np.array([d])) for d in range(DEVICES)]
    return reports, labels


def small_store() -> FleetStore:
    return store_of(BINS, DEVICES, keep_slots=10, chunk_slots=4)


def add_all(store: FleetStore, batches: list[Reports | LabelReports]) -> str:
    for batch in batches:
        store.add(batch) if isinstance(batch, Reports) else store.add_labels(batch)
    return store.digest()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 5]), st.data())
def test_any_permutation_with_resends_gives_the_same_store(
    seed: int, stretch: int, data: st.DataObject
) -> None:
    reports, labels = rows_of(seed, stretch)
    rows = [*reports, *labels]
    order = data.draw(st.permutations(range(len(rows))))
    again = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=30))
    shuffled = [rows[i] for i in [*order[:40], *again, *order[40:], *again[::-1]]]
    assert add_all(small_store(), shuffled) == add_all(small_store(), rows)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from([1, 3]), st.data())
def test_any_batching_gives_the_same_store(seed: int, stretch: int, data: st.DataObject) -> None:
    reports, labels = rows_of(seed, stretch)
    order = data.draw(st.permutations(range(len(reports))))
    cuts = sorted(data.draw(st.lists(st.integers(1, len(reports) - 1), max_size=6, unique=True)))
    parts = [list(part) for part in np.split(np.array(order), cuts)]
    batches: list[Reports | LabelReports] = [join([reports[i] for i in part]) for part in parts]
    batches += [join([labels[i] for i in part]) for part in parts]
    assert add_all(small_store(), batches) == add_all(small_store(), [*reports, *labels])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.data())
def test_an_intake_ends_alike_whatever_the_order(seed: int, data: st.DataObject) -> None:
    reports, labels = rows_of(seed, 1)
    rows = [*reports, *labels]
    order = data.draw(st.permutations(range(len(rows))))
    again = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20))
    stores, now = [], 100 * SLOT_S
    for arrivals in (list(range(len(rows))), [*order, *again]):
        intake = Intake(store_of(BINS, DEVICES, keep_slots=24), wait_s=1e9)
        for i in arrivals:
            intake.receive(rows[i], [0, 1], now)
        assert intake.num_held == 0
        stores.append(intake.store.digest())
    assert stores[0] == stores[1]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(0, SLOTS), st.integers(1, SLOTS))
def test_windows_add_up(seed: int, middle: int, length: int) -> None:
    store = store_of(BINS, DEVICES, keep_slots=48)
    reports, labels = rows_of(seed, 1)
    add_all(store, [*reports, *labels])
    left, right = store.window(middle, length), store.window(middle + length, length)
    whole = store.window(middle + length, 2 * length)
    assert np.array_equal(left.features_GFC + right.features_GFC, whole.features_GFC)
    for version, served in whole.served.items():
        parts = [w.served[version] for w in (left, right) if version in w.served]
        assert np.array_equal(sum(p.confusion_GMM for p in parts), served.confusion_GMM)
        assert np.array_equal(sum(p.predictions_D for p in parts), served.predictions_D)
