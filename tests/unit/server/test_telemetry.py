"""What devices sent is counted: once, apart where it was only scored, and by its reason where it cannot be read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import select

from fedretrain.coordinator.policy import TelemetryMode
from fedretrain.coordinator.watching import Clockwork
from fedretrain.core.errors import DataError
from fedretrain.core.types import FailureKind
from fedretrain.monitoring.config import MonitoringPolicy
from fedretrain.server import telemetry as module
from fedretrain.server.fleet import Device, Standing, Traits
from fedretrain.server.tables import telemetry as table
from fedretrain.server.telemetry import Telemetry
from fedretrain.server.watched import counts_bytes, room_for
from fedretrain.training.keep import Verdict
from fedretrain.wire.answers import encode_no_answer
from fedretrain.wire.control import (
    Alert,
    Refreshed,
    ReportShape,
    encode_alert,
    encode_labels,
    encode_refreshed,
    encode_report,
)
from tests.unit.monitoring.fleet_cases import SLOT_S, bins_of, labels_for, personal_of, telemetry

BINS, DEVICES, PACKAGE, CANDIDATE = bins_of(), 3, "ab" * 32, "cd" * 32
SHAPE = ReportShape(BINS.num_features, BINS.num_cells, 2)
VERSIONS = {0: "", 1: PACKAGE, 2: CANDIDATE}
NOW = 5 * SLOT_S


def _devices(count=DEVICES, site="north"):
    return [Device("p", f"d{i}", i, "", Standing.ACTIVE, Traits(site=site)) for i in range(count)]


def _telemetry(engine, devices=None):
    policy = MonitoringPolicy()
    return Telemetry(engine, "p", policy, Clockwork(SLOT_S), BINS, SHAPE, devices or _devices())


def _rows(slot, device):
    rows = replace(telemetry(BINS, slot, DEVICES, np.random.default_rng(slot)), kpis={})
    return rows.take(np.array([device]))


def _send(engine, *payloads, device="d0", population="p", at=SLOT_S):
    with engine.begin() as connection:
        for payload in payloads:
            values = {"population": population, "device": device, "at": at, "received_at": at}
            connection.execute(table.insert().values(**values, payload=payload))


def _predictions(intake, slot=0):
    served = intake.store.window(slot + 1, 1).served
    return {version: int(one.predictions_D.sum()) for version, one in served.items()}


def test_what_is_served_and_what_is_only_scored_are_counted_apart(engine):
    rows = _rows(0, 0)
    labels = labels_for(rows, 0.9, np.random.default_rng(0), share=1.0)
    scored = replace(rows, sequence_K=rows.sequence_K + 1)
    scored_labels = replace(labels, sequence_K=labels.sequence_K + 1)
    _send(engine, encode_report(rows, PACKAGE), encode_labels(labels, PACKAGE))
    _send(engine, encode_report(scored, CANDIDATE, shadow=True))
    _send(engine, encode_labels(scored_labels, CANDIDATE, shadow=True))
    counted = _telemetry(engine)
    assert counted.catch_up(VERSIONS, NOW) == 4
    assert not counted.malformed
    assert _predictions(counted.served) == {1: 20}
    assert _predictions(counted.shadowed) == {2: 20}
    assert counted.num_labels == 20  # a label says the same of what was only scored
    assert counted.shadowed.store.window(1, 1).served[2].labelled_D.sum() == 20


def test_a_record_is_read_once_and_the_next_one_when_it_comes(engine):
    counted = _telemetry(engine)
    _send(engine, encode_report(_rows(0, 0), PACKAGE))
    assert [counted.catch_up(VERSIONS, NOW) for _ in range(2)] == [1, 0]
    _send(engine, encode_report(_rows(0, 1), PACKAGE), device="d1")
    assert [counted.catch_up(VERSIONS, NOW) for _ in range(2)] == [1, 0]
    assert _predictions(counted.served) == {1: 40}
    again = _telemetry(engine)  # another process makes it anew
    assert again.catch_up(VERSIONS, NOW) == 2
    assert _predictions(again.served) == {1: 40}


def test_more_records_than_one_reading_takes_are_all_read(engine, monkeypatch):
    monkeypatch.setattr("fedretrain.server.telemetry._BATCH", 2)
    for i in range(DEVICES):
        _send(engine, encode_report(_rows(0, i), PACKAGE), device=f"d{i}")
    _send(engine, encode_report(_rows(1, 0), PACKAGE))
    counted = _telemetry(engine)
    assert counted.catch_up(VERSIONS, NOW) == 4
    assert _predictions(counted.served) == {1: 60}


def test_another_populations_records_and_old_ones_are_passed_over(engine):
    _send(engine, encode_report(_rows(0, 0), PACKAGE), population="q")
    _send(engine, encode_report(_rows(0, 0), PACKAGE), at=10.0)
    _send(engine, encode_report(_rows(0, 1), PACKAGE), device="d1", at=20.0)
    counted = _telemetry(engine)
    assert counted.catch_up(VERSIONS, NOW, since=15.0) == 1
    assert counted.served.store.window(1, 1).reported_D[:DEVICES].tolist() == [False, True, False]


def test_what_cannot_be_read_is_counted_by_its_reason_and_has_no_effect(engine):
    rows = _rows(0, 0)
    _send(engine, b"\xff\xff", b"", encode_report(rows, "ef" * 32))
    _send(engine, encode_report(replace(rows, outputs_KM=np.zeros((1, 5), np.int32)), PACKAGE))
    _send(engine, encode_report(rows, PACKAGE), device="stranger")
    _send(engine, encode_alert("", "", "nothing"))
    counted = _telemetry(engine)
    assert counted.catch_up(VERSIONS, NOW) == 6
    assert counted.malformed == {
        "payload": 2,
        "package": 1,
        "outputs": 1,
        "device: not in the fleet": 1,
        "alert": 1,
    }
    assert _predictions(counted.served) == {}
    assert not counted.alerts


def test_alerts_are_kept_with_the_number_of_their_device(engine):
    _send(engine, encode_alert("rolled_back", PACKAGE, "it was slow"), device="d2")
    counted = _telemetry(engine)
    counted.catch_up(VERSIONS, NOW)
    assert [alert for _, alert in counted.alerts] == [Alert(2, "rolled_back", PACKAGE, "it was slow")]


def test_labels_that_came_before_their_predictions_are_counted(engine):
    rows = _rows(0, 0)
    labels = labels_for(rows, 0.9, np.random.default_rng(0), share=1.0)
    _send(engine, encode_labels(labels, PACKAGE), encode_report(rows, PACKAGE))
    counted = _telemetry(engine)
    counted.catch_up(VERSIONS, NOW)
    assert counted.served.store.window(1, 1).served[1].labelled_D.sum() == 20
    assert not counted.served.refusals


def test_devices_that_join_are_counted_while_there_is_room(engine):
    counted = _telemetry(engine)
    assert counted.capacity == 16
    assert counted.fits(_devices(16))
    assert not counted.fits(_devices(17))
    assert not counted.fits(_devices(4, site="south"))
    _send(engine, encode_report(_rows(0, 0), PACKAGE), device="d9")
    counted.catch_up(VERSIONS, NOW)
    assert counted.malformed == {"device: not in the fleet": 1}
    counted.know(_devices(10))
    _send(engine, encode_report(_rows(1, 0), PACKAGE), device="d9")
    counted.catch_up(VERSIONS, NOW)
    assert np.flatnonzero(counted.served.store.window(2, 1).reported_D).tolist() == [9]


def test_a_larger_fleet_has_more_room_and_a_group_for_each_site(engine):
    devices = [*_devices(20), replace(_devices(21, site="south")[-1])]
    counted = _telemetry(engine, devices)
    assert (counted.capacity, counted.groups) == (32, {"north": 0, "south": 1})
    assert counted.fits(devices)


def _counted(engine):
    shape = ReportShape(BINS.num_features, BINS.num_cells, 2)
    devices = [Device("p", f"d{i}", i, "", Standing.ACTIVE, Traits()) for i in range(DEVICES)]
    return Telemetry(engine, "p", MonitoringPolicy(), Clockwork(SLOT_S), BINS, shape, devices)


def _numbers(engine):
    with engine.connect() as connection:
        return connection.scalars(select(table.c.number).order_by(table.c.number)).all()


def _receive(engine, *instants, population="p", at=0.0):
    with engine.begin() as connection:
        for received_at in instants:
            row = {"device": "d0", "at": at, "received_at": received_at, "payload": b"?"}
            connection.execute(table.insert().values(population=population, **row))


def test_what_no_window_needs_is_deleted_and_nothing_else(engine):
    counted = _counted(engine)
    horizon_s = counted.served.store.horizon.num_slots * SLOT_S
    now = 10 * horizon_s
    _receive(engine, 1.0, 2.0, at=1e300)  # a device's own clock keeps nothing
    _receive(engine, 3.0, population="q")
    _receive(engine, now - 0.9 * horizon_s, now, at=-1e300)
    assert counted.prune(now) == 2
    assert _numbers(engine) == [3, 4, 5]
    assert counted.prune(now) == 0


def test_old_records_are_deleted_a_part_at_a_time(engine):
    counted = _counted(engine)
    now = 100 * counted.served.store.horizon.num_slots * SLOT_S
    _receive(engine, *range(7), now)
    assert [counted.prune(now, 3) for _ in range(4)] == [3, 3, 1, 0]


def test_a_number_that_was_read_is_never_given_away_again(engine):
    counted = _counted(engine)
    _receive(engine, 1.0, 2.0)
    assert counted.catch_up({}, 2.0) == 2
    now = 100 * counted.served.store.horizon.num_slots * SLOT_S
    counted.prune(now)
    _receive(engine, now)
    assert counted.catch_up({}, now) == 1


def test_devices_with_and_without_a_personal_model_count_beside_each_other(engine):
    rows = replace(telemetry(BINS, 0, DEVICES, np.random.default_rng(1)), kpis={})
    said = personal_of(rows, np.full(DEVICES, 0.25), np.full(DEVICES, 0.2), np.array([0, 1, 0]))
    with engine.begin() as connection:
        for i in range(DEVICES):
            mine = (rows if i == 2 else said).take(np.array([i]))
            connection.execute(
                table.insert().values(
                    population="p",
                    device=f"d{i}",
                    at=SLOT_S,
                    received_at=SLOT_S,
                    payload=encode_report(mine, PACKAGE),
                )
            )
    counted = _counted(engine)
    assert counted.catch_up({1: PACKAGE}, SLOT_S) == DEVICES
    assert not counted.malformed
    assert not counted.served.refusals
    assert counted.served.store.window(1, 1).num_rows == rows.features_KFC[:, 0].sum()
    personal = counted.served.store.personal(1, 1)
    assert personal.gap_D2[:DEVICES].tolist() == [[0.25, 1.0], [0.25, 1.0], [0.0, 0.0]]
    assert personal.bases_D2[:DEVICES].tolist() == [[1, 0], [1, 1], [0, 0]]


def test_what_became_of_refreshes_waits_for_the_loop(engine):
    counted = _telemetry(engine)
    _send(engine, encode_refreshed(3, PACKAGE, Verdict.KEPT), device="d1")
    assert counted.catch_up(VERSIONS, NOW) == 1
    assert list(counted.refreshed) == [Refreshed(1, 3, PACKAGE, Verdict.KEPT)]


def _answer(evaluation="p/2/1", failure=FailureKind.NO_DATA):
    return encode_no_answer(evaluation, failure)


def test_the_first_answer_of_each_device_to_the_evaluation_that_is_on_waits_for_who_takes_it(engine):
    _send(engine, _answer("p/1/9"), _answer(), _answer(failure=FailureKind.REFUSED))
    _send(engine, _answer(), device="d2")
    counted = Telemetry(
        engine, "p", MonitoringPolicy(), Clockwork(SLOT_S), BINS, SHAPE, _devices(), evaluation="p/2/1"
    )
    counted.catch_up(VERSIONS, NOW)
    assert counted.malformed == {"evaluation: not on": 1, "evaluation: repeated": 1}
    taken = counted.taken_answers()
    assert {device: record for device, (record, _) in taken.items()} == {0: 2, 2: 4}
    assert counted.taken_answers() == {}


def test_where_telemetry_is_off_alerts_alone_are_heard(engine):
    rows = _rows(0, 0)
    _send(
        engine, encode_report(rows, PACKAGE), _answer(), encode_alert("rolled_back", PACKAGE, "it was slow")
    )
    counted = Telemetry(
        engine,
        "p",
        MonitoringPolicy(),
        Clockwork(SLOT_S),
        BINS,
        SHAPE,
        _devices(),
        evaluation="p/2/1",
        mode=TelemetryMode.OFF,
    )
    counted.catch_up(VERSIONS, NOW)
    assert counted.malformed == {"telemetry: off": 2}
    assert len(counted.alerts) == 1
    assert counted.taken_answers() == {}
    assert _predictions(counted.served) == {}


def test_a_long_backlog_is_read_in_parts(engine, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 2)
    counted = _telemetry(engine)
    rows = [replace(_rows(0, 0), sequence_K=np.array([number])) for number in range(5)]
    _send(engine, *(encode_report(one, PACKAGE) for one in rows))
    read = [(counted.catch_up(VERSIONS, NOW, most=2), counted.is_behind) for _ in range(4)]
    assert read == [(2, True), (2, True), (1, False), (0, False)]
    assert _predictions(counted.served) == {1: 100}


def test_counting_stops_after_the_part_in_which_something_more_urgent_came(engine, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 2)
    counted = _telemetry(engine)
    rows = [replace(_rows(0, 0), sequence_K=np.array([number])) for number in range(5)]
    _send(engine, *(encode_report(one, PACKAGE) for one in rows))
    answers = iter([True, False])
    assert counted.catch_up(VERSIONS, NOW, go_on=lambda: next(answers)) == 4
    assert counted.is_behind
    assert counted.catch_up(VERSIONS, NOW) == 1
    assert not counted.is_behind
    assert _predictions(counted.served) == {1: 100}


def test_a_fleet_that_outgrows_the_memory_is_refused_before_anything_is_made(engine):
    policy, clockwork = MonitoringPolicy(), Clockwork(SLOT_S)
    cells = SHAPE.num_features * SHAPE.num_cells
    most = counts_bytes(policy, clockwork, DEVICES, cells)
    Telemetry(engine, "p", policy, clockwork, BINS, SHAPE, _devices(), most_bytes=most)
    with pytest.raises(DataError, match=r"counts of 300 devices in \d+ slots may take .* GiB") as refused:
        Telemetry(engine, "p", policy, clockwork, BINS, SHAPE, _devices(300), most_bytes=most)
    assert refused.value.where == "watching.memory_gib"
    assert "slot_s" in refused.value.fix


@pytest.mark.parametrize("count", [0, 15, 16, 17, 1000, 1023, 1024, 10_000, 100_000])
def test_arrays_have_room_for_a_quarter_more_at_most(count):
    assert count < room_for(count) <= max(1.25 * count + 1, 32)
    assert counts_bytes(MonitoringPolicy(), Clockwork(SLOT_S), count, 8) > 0
