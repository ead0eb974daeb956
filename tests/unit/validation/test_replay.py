"""The replay test on the monitors' store and on a training set, and on folds that it must find out."""

from __future__ import annotations

import hashlib
import itertools
from typing import NamedTuple

import numpy as np
import pytest

from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.histogram import count_by
from fedretrain.monitoring.reports import (
    NUM_CONFIDENCE_BINS,
    NUM_DELAY_BINS,
    NUM_LATENCY_BINS,
    LabelReports,
    Reports,
    delay_bin,
)
from fedretrain.monitoring.store import FleetStore
from fedretrain.validation.count import count_rows
from fedretrain.validation.replay import Disorder, check_replay, deliveries
from fedretrain.validation.rows import Rows
from fedretrain.validation.statistics import empty, merge
from tests.unit.validation.fleets import labelled as labelled_rows
from tests.unit.validation.fleets import layout_of, pair
from tests.unit.validation.test_checks import POLICY, answers

DEVICES, SLOTS, CLASSES = 6, 30, 3
BINS = fit_bins(np.random.default_rng(1).normal(size=(500, 2)), ("a", "b"), num_bins=5)


class Event(NamedTuple):
    """Four readings of a device in a slot, and the label of the first, which may come later."""

    device: int
    sequence: int
    slot: int
    values: np.ndarray
    label: int


def history():
    rng = np.random.default_rng(0)
    found, sequence = [], [0] * DEVICES
    for slot in range(SLOTS):
        for device in rng.permutation(DEVICES)[: rng.integers(2, DEVICES + 1)].tolist():
            event = Event(device, sequence[device], slot, rng.normal(size=(4, 2)), int(rng.integers(CLASSES)))
            found.append(event)
            sequence[device] += 1
    return found


EVENTS = history()


def device_of(event):
    return event.device


def key(event):
    where = (event.device, event.slot, 1, event.sequence)
    return [np.array([value]) for value in where] + [np.array([event.slot * 3600.0])]


def telemetry(event):
    features = count_by(BINS, event.values, np.zeros(4, np.int64), 1)

    def four(size, at):
        return 4 * (np.arange(size) == at)[None].astype(np.int32)

    return Reports(
        *key(event),
        BINS.digest,
        features.astype(np.int32),
        np.zeros((1, 2), np.int32),
        four(CLASSES, event.label),
        four(NUM_CONFIDENCE_BINS, 7),
        four(10, 2),
        four(NUM_LATENCY_BINS, 9),
        {"alarms": np.array([[event.label, 1.0]])},
    )


def label_row(event):
    confusion = np.zeros((1, CLASSES, CLASSES), np.int32)
    confusion[0, event.label, 0] = 1
    calibration = np.zeros((1, NUM_CONFIDENCE_BINS, 2), np.int32)
    calibration[0, 7] = (1, event.label == 0)
    delays = (np.arange(NUM_DELAY_BINS) == delay_bin(np.array(60.0 * event.slot)))[None].astype(np.int32)
    return LabelReports(*key(event), confusion, None, calibration, delays)


def monitors(events, keep_slots=48, chunk_slots=24):
    """The digest of the monitors' store after these events."""
    store = FleetStore(
        DEVICES,
        np.arange(DEVICES) % 2,
        BINS,
        3600.0,
        keep_slots,
        num_outputs=CLASSES,
        kpis=("alarms",),
        chunk_slots=chunk_slots,
    )
    for event in events:
        store.add(telemetry(event))
        store.add_labels(label_row(event))
    return store.digest()


def last_slots(events):
    """Likewise for a store that keeps a few slots only: what is over is over, told in time or late."""
    return monitors(events, keep_slots=2, chunk_slots=2)


def training_set(events):
    """The digest of the labelled rows, each once, in an order of their own."""
    rows = {(event.device, event.sequence): event for event in events}
    content = hashlib.sha256()
    for where in sorted(rows):
        content.update(repr((where, rows[where].slot, rows[where].label)).encode())
        content.update(rows[where].values.tobytes())
    return content.hexdigest()


def test_backlog_late_duplicated_and_out_of_order_leave_monitors_and_training_set_as_if_online():
    folds = {"monitors": monitors, "last slots": last_slots, "training set": training_set}
    found = check_replay(folds, EVENTS, device_of=device_of)
    assert found.ok
    assert found.num_events == len(EVENTS) > 80
    assert found.num_replays == 3 * len(Disorder) * 3
    assert found.digests == {name: fold(EVENTS) for name, fold in folds.items()}


def ordered(events):
    """Wrong: whoever comes first is first."""
    return repr([(e.device, e.sequence) for e in {(e.device, e.sequence): e for e in events}.values()])


def counting(events):
    """Wrong: counts a resend twice."""
    return str(len(events))


def newest_only(events):
    """Wrong: drops what is older than what came before."""
    newest, kept = -1, set()
    for event in events:
        if event.slot >= newest:
            newest = event.slot
            kept.add((event.device, event.sequence))
    return repr(sorted(kept))


@pytest.mark.parametrize(
    ("fold", "found_by"),
    [
        (ordered, {Disorder.BACKLOG, Disorder.LATE, Disorder.OUT_OF_ORDER, Disorder.EVERYTHING}),
        (counting, {Disorder.DUPLICATED, Disorder.EVERYTHING}),
        (newest_only, {Disorder.BACKLOG, Disorder.LATE, Disorder.OUT_OF_ORDER, Disorder.EVERYTHING}),
    ],
)
def test_a_fold_that_depends_on_how_it_was_told_is_found_out(fold, found_by):
    found = check_replay({"fold": fold}, EVENTS, device_of=device_of)
    assert not found.ok
    assert {mismatch.disorder for mismatch in found.mismatches} == found_by
    assert {mismatch.fold for mismatch in found.mismatches} == {"fold"}


def test_a_backlog_keeps_a_device_s_order_and_comes_at_once():
    arrived = deliveries(EVENTS, 0, Disorder.BACKLOG, device_of)
    assert arrived != tuple(EVENTS)
    moved = 0
    for device in range(DEVICES):
        mine = [event.sequence for event in arrived if event.device == device]
        assert mine == sorted(mine)
        places = [i for i, event in enumerate(arrived) if event.device == device]
        moved += places != [i for i, event in enumerate(EVENTS) if event.device == device]
    assert moved > 0
    runs = [
        len(run)
        for run in "".join(
            "x" if a.device == b.device else " " for a, b in itertools.pairwise(arrived)
        ).split()
    ]
    assert max(runs) >= 3


def test_evaluation_statistics_pass_their_own_replay():
    rows = labelled_rows(np.random.default_rng(4).integers(0, DEVICES, 120))
    champion, candidate = pair(rows, 0.8, 0.8)
    both = Rows(rows, answers(rows.label_N, candidate), answers(rows.label_N, champion))
    layout = layout_of(POLICY)
    each = [
        count_rows(layout, Rows(rows.take([i]), both.candidate[[i]], both.champion[[i]]))
        for i in range(len(rows))
    ]

    def fold(events):
        total = empty(layout)
        for index in dict.fromkeys(events):
            total = merge(total, each[index])
        return total.digest

    found = check_replay({"statistics": fold}, range(120), device_of=lambda i: int(rows.device_N[i]))
    assert found.ok
