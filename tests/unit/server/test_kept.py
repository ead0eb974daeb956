"""What monitors keep comes back from a note and its blobs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from fedretrain.artifacts.store import ContentStore
from fedretrain.coordinator.watching import NOWHERE, Kept
from fedretrain.monitoring.aside import KeptOut
from fedretrain.monitoring.baseline import make_baseline
from fedretrain.monitoring.config import MonitoringPolicy
from fedretrain.monitoring.locate import DriftPlace, Scope
from fedretrain.server.kept import kept_of, note_of
from fedretrain.server.memory import BaselineNote
from tests.unit.monitoring.fleet_cases import SLOT_S, bins_of, store_of, telemetry

PLACE = DriftPlace(Scope.CLUSTER, (3,), (1,), ("a",), 12, (1e-9,), 0.4)


def _through_the_stream(note):
    return BaselineNote.of(json.loads(json.dumps(note.to_record(), allow_nan=False)))


def test_what_was_kept_comes_back(tmp_path):
    states = ContentStore(tmp_path)
    store = store_of(bins_of(), 6)
    for slot in range(96):
        store.add(telemetry(store.bins, slot, 6, np.random.default_rng(slot)))
    baseline = make_baseline(store, 0, 96, MonitoringPolicy(), version=1, now=96 * SLOT_S)
    kept = Kept(baseline, 12.5, None, 96, PLACE, (KeptOut(3, 5), KeptOut(4, 1, 9)))
    note = _through_the_stream(note_of(kept, None, BaselineNote(), states))
    back = kept_of(note, states)
    assert (back.settled_at, back.recorded_at, back.inputs_slot, back.where) == (12.5, None, 96, PLACE)
    assert back.stays == kept.stays
    assert np.array_equal(back.baseline.features_GFC, baseline.features_GFC)
    assert back.baseline.bins.digest == baseline.bins.digest
    later = note_of(replace(kept, settled_at=None, where=NOWHERE), kept, note, states)
    assert (later.blob, later.settled_at, later.where) == (note.blob, None, "")
    other = note_of(replace(kept, baseline=replace(baseline, version=2)), kept, note, states)
    assert other.blob != note.blob
    assert kept_of(other, states).baseline.version == 2


def test_a_first_champion_that_settles_is_noted_and_before_the_first_note_there_is_nothing(tmp_path):
    states = ContentStore(tmp_path)
    assert kept_of(BaselineNote(), states) is None
    note = _through_the_stream(note_of(Kept(None, 5.0, 9.0), None, BaselineNote(), states))
    back = kept_of(note, states)
    assert (back.baseline, back.settled_at, back.recorded_at, back.where) == (None, 5.0, 9.0, NOWHERE)
