"""What a store is said to take is what it takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.monitoring.footprint import Footprint
from fedretrain.monitoring.store import FleetStore
from tests.unit.monitoring.fleet_cases import SLOT_S, bins_of, labels_for, telemetry

DEVICES, SLOTS = 16, 24


@pytest.mark.parametrize("times", [1, 4])
def test_a_full_store_is_no_larger_than_said_and_not_much_smaller(times):
    """Where counts are of single rows, planes are half as wide as foreseen."""
    bins = bins_of()
    store = FleetStore(
        DEVICES, np.zeros(DEVICES, np.int64), bins, SLOT_S, SLOTS, num_outputs=2, kpis=("latency",)
    )
    said = Footprint(
        store.horizon.num_slots, store.horizon.chunk_slots, bins.num_features * bins.num_cells, 1
    )
    rng = np.random.default_rng(0)
    for slot in range(store.horizon.num_slots):
        rows = telemetry(bins, slot, DEVICES, rng)
        rows = replace(
            rows, kpis={"latency": np.column_stack([rng.uniform(0, 9, DEVICES), np.full(DEVICES, 60.0)])}
        )
        labels = labels_for(rows, 0.9, rng, share=1.0)
        for number in range(times):
            store.add(replace(rows, sequence_K=rows.sequence_K + 1000 * number))
            store.add_labels(replace(labels, sequence_K=labels.sequence_K + 1000 * number))
    resent = 16 * DEVICES * store.horizon.num_slots * (times - 1)  # the numbers of more rows than one
    kept = store.num_bytes - resent
    assert said.num_bytes(DEVICES, 1) / 2 < kept <= said.num_bytes(DEVICES, 1)
