"""What devices sent is counted, whichever columns each of them fills."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedretrain.coordinator.watching import Clockwork
from fedretrain.monitoring.config import MonitoringPolicy
from fedretrain.server.fleet import Device, Standing, Traits
from fedretrain.server.tables import telemetry as table
from fedretrain.server.telemetry import Telemetry
from fedretrain.wire.control import ReportShape, encode_report
from tests.unit.monitoring.fleet_cases import SLOT_S, bins_of, personal_of, telemetry

BINS, DEVICES, PACKAGE = bins_of(), 3, "ab" * 32


def test_devices_with_and_without_a_personal_model_count_beside_each_other(engine):
    rows = replace(telemetry(BINS, 0, DEVICES, np.random.default_rng(1)), kpis={})
    said = personal_of(rows, np.full(DEVICES, 0.25), np.full(DEVICES, 0.2), np.array([0, 1, 0]))
    devices = [Device("p", f"d{i}", i, "", Standing.ACTIVE, Traits()) for i in range(DEVICES)]
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
    shape = ReportShape(BINS.num_features, BINS.num_cells, 2)
    counted = Telemetry(engine, "p", MonitoringPolicy(), Clockwork(SLOT_S), BINS, shape, devices)
    assert counted.catch_up({1: PACKAGE}, SLOT_S) == DEVICES
    assert not counted.malformed
    assert not counted.served.refusals
    assert counted.served.store.window(1, 1).num_rows == rows.features_KFC[:, 0].sum()
    personal = counted.served.store.personal(1, 1)
    assert personal.gap_D2[:DEVICES].tolist() == [[0.25, 1.0], [0.25, 1.0], [0.0, 0.0]]
    assert personal.bases_D2[:DEVICES].tolist() == [[1, 0], [1, 1], [0, 0]]
