"""Manifests: one content, one digest; whatever a stranger may write into one is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.artifacts.decision import Calibration, Decision
from fedretrain.artifacts.manifest import (
    MAX_BYTES,
    MAX_TEXT,
    Blob,
    Manifest,
    Personalization,
    Strategy,
    TrainingRecord,
)
from fedretrain.core.errors import DataError
from fedretrain.core.types import MethodKind, Objective

DIGEST = hashlib.sha256(b"x").hexdigest()
OTHER = hashlib.sha256(b"y").hexdigest()


def made(**changes):
    fields = {
        "population": "greenhouse",
        "version": 3,
        "created_at": 1_750_000_000.5,
        "weights": Blob(DIGEST, 400),
        "graph": Blob(DIGEST, 50),
        "pipeline": Blob(DIGEST, 60),
        "schema": DIGEST,
        "sanity": Blob(DIGEST, 70),
        "input_shape": (3, 20),
        "outputs": ("calm", "storm"),
        **changes,
    }
    return Manifest(**fields)


FULL = made(
    base=OTHER,
    delta=Blob(OTHER, 90),
    baseline=Blob(DIGEST, 5),
    report=Blob(OTHER, 6),
    calibration=Calibration(1 / 3, (0.1, -0.2)),
    decision=Decision.threshold(0.3),
    personalization=Personalization(MethodKind.FEDPER, ("head.*",), ("norm.running_mean",)),
    training=TrainingRecord(
        strategy=Strategy.FEDERATED,
        recipe="incremental",
        snapshot="snapshots/2025-06",
        features="feast://air/v3",
        data_from_at=1.5e9,
        data_until_at=1.6e9,
        cohort=40,
        rounds=12,
        epsilon=3.1,
        delta=1e-6,
        scope="the released weights",
        hyperparameters=(("local.lr", 0.1), ("local.batch_size", 32), ("kind", "sgd"), ("nesterov", False)),
        code_version="0.1.0",
        policy=DIGEST,
    ),
)


def changed(manifest=FULL, **fields):
    """The bytes of a manifest with other fields at its top."""
    content = {**json.loads(manifest.to_bytes()), **fields}
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("manifest", [made(), FULL])
def test_what_was_written_is_read_and_the_digest_is_that_of_the_bytes(manifest):
    content = manifest.to_bytes()
    assert Manifest.from_bytes(content) == manifest
    assert manifest.digest == hashlib.sha256(content).hexdigest()
    assert hash(Manifest.from_bytes(content)) == hash(manifest)


def test_one_content_has_one_digest():
    assert made(created_at=8).digest == made(created_at=8.0).digest
    assert made(created_at=-0.0).digest == made(created_at=0.0).digest
    pairs = (("b", 2), ("a", 1))
    one, other = (TrainingRecord(hyperparameters=order) for order in (pairs, pairs[::-1]))
    assert made(training=one).digest == made(training=other).digest


def test_every_field_is_in_the_digest():
    changes = {
        "population": "orchard",
        "version": 4,
        "created_at": 1.0,
        "weights": Blob(OTHER, 400),
        "graph": Blob(DIGEST, 51),
        "pipeline": Blob(OTHER, 60),
        "schema": OTHER,
        "sanity": Blob(OTHER, 70),
        "input_shape": (20, 3),
        "outputs": ("storm", "calm"),
        "base": DIGEST,
        "delta": Blob(OTHER, 91),
        "baseline": Blob(),
        "report": Blob(),
        "calibration": Calibration(),
        "decision": Decision(),
        "personalization": Personalization(),
        "training": TrainingRecord(),
    }
    rest = {f.name for f in dataclasses.fields(Manifest)} - set(changes)
    assert rest == {"objective", "format"}  # a regression needs other outputs; there is one format
    digests = {dataclasses.replace(FULL, **{name: value}).digest for name, value in changes.items()}
    assert len(digests | {FULL.digest}) == len(changes) + 1


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(1e-9, 1e9))
def test_numbers_round_trip_exactly(created_at, scale):
    manifest = made(created_at=created_at, calibration=Calibration(scale))
    again = Manifest.from_bytes(manifest.to_bytes())
    assert (again.created_at, again.calibration.scale) == (created_at, scale)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"surprise": 1}, "surprise"),
        ({"format": 2}, "format"),
        ({"version": "3"}, "version"),
        ({"version": -1}, "version"),
        ({"version": 2**53}, "version"),
        ({"version": True}, "version"),
        ({"created_at": "5"}, "canonical"),
        ({"created_at": 5}, "canonical"),
        ({"schema": DIGEST.upper()}, "digest"),
        ({"base": "../weights"}, "digest"),
        ({"weights": {"digest": DIGEST[:-1], "size_bytes": 1}}, "digest"),
        ({"weights": {"digest": DIGEST, "size_bytes": -1}}, "size_bytes"),
        ({"weights": {"digest": DIGEST, "size_bytes": 2**40}}, "size_bytes"),
        ({"weights": {"digest": DIGEST, "size_bytes": 1, "url": "x"}}, "url"),
        ({"weights": {"digest": "", "size_bytes": 0}}, "weights"),
        ({"delta": {"digest": "", "size_bytes": 7}}, "size_bytes"),
        ({"delta": {"digest": OTHER, "size_bytes": 400}}, "delta"),
        ({"base": ""}, "delta"),
        ({"population": "../etc"}, "population"),
        ({"population": "a/b"}, "population"),
        ({"population": ".."}, "population"),
        ({"population": "a..b"}, "population"),
        ({"population": "a\n"}, "population"),
        ({"population": ""}, "population"),
        ({"population": "a" * 65}, "population"),
        ({"input_shape": []}, "input_shape"),
        ({"input_shape": [3, 0]}, "input_shape"),
        ({"input_shape": [1] * 9}, "input_shape"),
        ({"outputs": []}, "outputs"),
        ({"outputs": ["a", "a"]}, "outputs"),
        ({"outputs": ["a", ""]}, "outputs"),
        ({"outputs": ["a", "b\u0000"]}, "outputs"),
        ({"outputs": ["a", "b" * (MAX_TEXT + 1)]}, "outputs"),
        ({"outputs": ["a", "b", "c"]}, "offsets"),
        ({"objective": "regression"}, "outputs"),
        ({"objective": "guess"}, "objective"),
        ({"calibration": {"scale": 0.0, "offsets": []}}, "scale"),
        ({"calibration": {"scale": 1.0, "offsets": [1.0]}}, "offsets"),
        ({"decision": {"weights": [1.0, 0.0]}}, "weight"),
        ({"personalization": {"method": "magic", "patterns": [], "fixed": []}}, "method"),
        ({"training": {"epsilon": 1.0}}, "epsilon"),
        ({"training": {"policy": "x"}}, "digest"),
        ({"training": {"cohort": -1}}, "cohort"),
        ({"training": {"data_from_at": 2.0, "data_until_at": 1.0}}, "window"),
        ({"training": {"hyperparameters": [["a", 1], ["a", 2]]}}, "hyperparameter"),
        ({"training": {"hyperparameters": [["a", [1]]]}}, "hyperparameters"),
        ({"training": {"hyperparameters": [["a", 2**60]]}}, "hyperparameters"),
        ({"training": {"scope": "two\nlines"}}, "scope"),
        ({"training": {"scope": None}}, "scope"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields, named):
    with pytest.raises(DataError, match=named):
        Manifest.from_bytes(changed(**fields))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{}",
        b"[" * 100_000,
        b'{"version":' + b"1" * 5000 + b"}",
        changed(created_at=float("nan")),
        changed(created_at=float("inf")),
        FULL.to_bytes() + b" ",
        json.dumps(json.loads(FULL.to_bytes())).encode(),
        FULL.to_bytes().replace(b'"version":3', b'"version":9,"version":3'),
        b" " * (MAX_BYTES + 1),
    ],
)
def test_bytes_that_are_no_canonical_manifest_are_refused(content):
    with pytest.raises(DataError):
        Manifest.from_bytes(content)


def test_a_manifest_beyond_the_limit_is_not_written():
    long = TrainingRecord(hyperparameters=tuple((f"name{i}", "v" * MAX_TEXT) for i in range(300)))
    with pytest.raises(DataError, match="at most"):
        made(training=long).to_bytes()


def test_a_regression_has_one_output_and_no_class_weights():
    manifest = made(outputs=("kelvin",), objective=Objective.REGRESSION, calibration=Calibration(2.0, (1.0,)))
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    with pytest.raises(DataError, match="class weights"):
        made(outputs=("kelvin",), objective=Objective.REGRESSION, decision=Decision((1.0,)))


def test_a_blob_knows_its_own_bytes():
    blob = Blob.of(b"x")
    assert blob == Blob(DIGEST, 1)
    assert blob.check(b"x", "graph") == b"x"
    assert not Blob()
    for damaged in (b"", b"z", b"xx"):
        with pytest.raises(DataError, match="graph is damaged"):
            blob.check(damaged, "graph")
