"""What devices sent is counted, whichever columns each of them fills."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sqlalchemy import select

from fedretrain.coordinator.watching import Clockwork
from fedretrain.monitoring.config import MonitoringPolicy
from fedretrain.server.fleet import Device, Standing, Traits
from fedretrain.server.tables import telemetry as table
from fedretrain.server.telemetry import Telemetry
from fedretrain.wire.control import ReportShape, encode_report
from tests.unit.monitoring.fleet_cases import SLOT_S, bins_of, personal_of, telemetry

BINS, DEVICES, PACKAGE = bins_of(), 3, "ab" * 32


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
