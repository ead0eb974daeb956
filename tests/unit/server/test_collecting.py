"""A champion that came without data gets its bins from what the fleet counted: enough of it, each row once, as a version like any other."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import insert

from fedretrain.coordinator.cycle import Propose
from fedretrain.core.frozen import thaw
from fedretrain.monitoring.bins import Bins, fit_bins
from fedretrain.monitoring.histogram import count
from fedretrain.monitoring.reports import NUM_CONFIDENCE_BINS, NUM_LATENCY_BINS, Reports
from fedretrain.server import orders
from fedretrain.server.desk import Desk
from fedretrain.server.importing import NUM_EVEN_BINS
from fedretrain.server.tables import telemetry
from fedretrain.wire.control import encode_report
from tests.server_cases import CLASSES, FEATURES, lines
from tests.unit.server.test_model_files import onnx_bytes


@pytest.fixture
def furnished(office):
    """A champion from ONNX; nobody has any data."""
    file = office.folder / "first.onnx"
    file.write_bytes(onnx_bytes())
    kept = (
        line for line in office.config.read_text().splitlines() if not line.startswith(("pool", "training"))
    )
    office.config.write_text("\n".join(kept) + "\n")
    assert office.on("models", "import", "--onnx", file, "--outputs", "a,b,c").status == 0
    office.begin()
    office.enrol("pump-1")
    office.enrol("pump-2")
    return office


def _inputs(seed, num=60):
    return np.random.default_rng(seed).normal(0.2, 0.1, size=(num, FEATURES)).clip(-0.9, 0.9)


def _report(office, device, slot, x, *, shadow=False, bins=None):
    """An hour of a device's inputs, as it reports them."""
    desk = Desk(office.config, "")
    package = desk.models.package(1)
    pinned = thaw(Bins, package.baseline)
    none = np.zeros((1, NUM_CONFIDENCE_BINS), dtype=np.int32)
    rows = Reports(
        *(np.array([value]) for value in (0, slot, 1, 0, 0.0)),
        bins=bins or pinned.digest,
        features_KFC=count(pinned, x)[None].astype(np.int32),
        violations_KF=np.zeros((1, FEATURES), dtype=np.int32),
        outputs_KM=np.zeros((1, CLASSES), dtype=np.int32),
        confidence_KB=none,
        entropy_KB=none,
        latency_KL=np.zeros((1, NUM_LATENCY_BINS), dtype=np.int32),
    )
    payload = encode_report(rows, package.digest, shadow=shadow)
    log = office.log()
    with log.engine.begin() as connection:
        row = {"population": "pumps", "device": device, "at": 1.0, "received_at": 1.0, "payload": payload}
        connection.execute(insert(telemetry).values(**row))
    log.engine.dispose()


def test_without_data_bins_are_even_over_all_that_the_schema_allows(furnished):
    bins = Desk(furnished.config, "").models.bins(1)
    assert bins.edges_FE.shape == (FEATURES, NUM_EVEN_BINS + 1)
    np.testing.assert_allclose(bins.edges_FE[:, [0, -1]], [[-1.0, 1.0]] * FEATURES, atol=1e-6)
    np.testing.assert_allclose(np.diff(bins.edges_FE, axis=1), 0.02, atol=1e-6)


def test_the_first_week_makes_bins_and_a_version_that_waits_for_its_rollout(furnished):
    x = [_inputs(seed) for seed in range(4)]
    for device, slot, one in (
        ("pump-1", 0, x[0]),
        ("pump-2", 3, x[1]),
        ("pump-1", 167, x[2]),
        ("pump-2", 80, x[3]),
    ):
        _report(furnished, device, slot, one)
    _report(furnished, "pump-1", 5, _inputs(9) + 0.5, shadow=True)  # only scored
    _report(furnished, "pump-1", 6, _inputs(9) + 0.5, bins="e" * 64)  # on other bins
    _report(furnished, "ghost", 7, _inputs(9) + 0.5)
    words = ("baseline", "collect", "--by", "anna", "--reason", "a week in the field")
    said = furnished.on(*words, "--json")
    assert said.status == 0, said.err
    assert (said.json["version"], said.json["num_devices"], said.json["days"]) == (2, 2, 7.0)
    assert said.json["num_rows"] == 240
    desk = Desk(furnished.config, "")
    bins, wanted = desk.models.bins(2), fit_bins(np.concatenate(x), desk.models.bins(1).names)
    assert bins.edges_FE.shape == (FEATURES, 11)
    np.testing.assert_allclose(bins.edges_FE, wanted.edges_FE, atol=0.02)  # a fine bin
    old, new = desk.models.package(1), desk.models.package(2)
    assert (new.graph, new.manifest.weights, new.manifest.sanity) == (
        old.graph,
        old.manifest.weights,
        old.manifest.sanity,
    )
    (entry,) = desk.log.read(orders.stream("pumps"))
    assert orders.read(entry.record) == Propose(2, "anna", "a week in the field")
    assert desk.verify()["wrong"] == []


@pytest.mark.parametrize(
    ("slots", "words", "named"),
    [
        ((), (), "0.0 days of telemetry are kept, 7.0 are asked for"),
        ((0, 100), (), "4.2 days of telemetry"),
        ((0,), ("--days", "0"), "--days"),
    ],
)
def test_too_little_is_named_and_makes_no_version(furnished, slots, words, named):
    for slot in slots:
        _report(furnished, "pump-1", slot, _inputs(slot))
    said = furnished.on("baseline", "collect", "--by", "anna", *words)
    (line,) = lines(said.err)
    assert (said.status, named in line) == (2, True)
    assert list(Desk(furnished.config, "").models.versions.by_number) == [1]


def test_a_fleet_without_a_champion_has_nothing_to_collect(office):
    said = office.on("baseline", "collect", "--by", "anna")
    assert (said.status, "no champion with bins" in said.err) == (2, True)


def test_what_needs_data_is_not_imported_without_a_pool(office):
    features = office.folder / "features.json"
    features.write_text(features.read_text().replace('"range"', '"standard"'))
    file = office.folder / "first.onnx"
    file.write_bytes(onnx_bytes())
    kept = (line for line in office.config.read_text().splitlines() if not line.startswith("pool"))
    office.config.write_text("\n".join(kept) + "\n")
    said = office.on("models", "import", "--onnx", file)
    (line,) = lines(said.err)
    assert (said.status, "name a pool" in line) == (2, True)
