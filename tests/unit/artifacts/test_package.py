"""Packages: what was written is read, every damaged or foreign part is refused, a device fetches the smaller way."""

from __future__ import annotations

import importlib.metadata
import json
from importlib.metadata import EntryPoint, EntryPoints

import numpy as np
import pytest
import safetensors.numpy

from fedretrain.artifacts.manifest import Blob, Manifest
from fedretrain.artifacts.package import (
    blobs,
    decode_sanity,
    encode_sanity,
    read_manifest,
    read_package,
    rebuild,
    references,
    write_package,
)
from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.weights import encode_params, params_digest
from fedretrain.core.errors import DataError
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.plugin import GROUP, PlugIn
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.validation.sanity import SanityVectors
from tests.package_cases import ABOUT, OUTPUTS, ROWS, SCHEMA, contents, pipeline, weights


@pytest.fixture
def store(tmp_path):
    return ContentStore(tmp_path)


def wide(seed):
    """Weights of which a delta pays."""
    return {**weights(seed), "body": np.random.default_rng(seed).normal(size=(40, 50)).astype(np.float32)}


def near(tree):
    return {name: leaf + np.float32(0.01) for name, leaf in tree.items()}


def test_a_package_is_read_as_it_was_written(store):
    digest = write_package(store, contents(baseline=b"bins", report=b"page"), **ABOUT)
    package = read_package(store, digest)
    assert package.digest == digest == Manifest.from_bytes(store.get(digest)).digest
    np.testing.assert_equal(package.weights, weights())
    assert (package.graph, package.baseline) == (b"graph", b"bins")
    assert package.pipeline == pipeline()
    np.testing.assert_array_equal(package.sanity.inputs, ROWS)
    manifest = package.manifest
    assert (manifest.input_shape, manifest.outputs, manifest.version) == ((2,), OUTPUTS, 3)
    assert (manifest.schema, manifest.base, manifest.delta) == (SCHEMA.digest, "", Blob())


def test_the_same_contents_have_the_same_digest(tmp_path):
    first, second = (write_package(ContentStore(tmp_path / name), contents(), **ABOUT) for name in "ab")
    assert first == second


def test_with_a_base_the_delta_is_fetched_where_the_base_is_held(store):
    base = wide(0)
    parts = contents(near(base), base)
    manifest = read_manifest(store, write_package(store, parts, **ABOUT))
    assert manifest.base == params_digest(base)
    assert 0 < manifest.delta.size_bytes < manifest.weights.size_bytes
    assert manifest.weights in blobs(manifest)
    assert manifest.delta in blobs(manifest, base_held=True)
    assert manifest.weights not in blobs(manifest, base_held=True)
    rebuilt = rebuild(base, store.get(manifest.delta.digest))
    assert params_digest(rebuilt) == manifest.weights.digest


def test_without_a_delta_the_full_file_is_fetched_and_the_lineage_is_kept(store):
    base = params_digest(weights(1))
    manifest = read_manifest(store, write_package(store, contents(), base=base, **ABOUT))
    assert manifest.base == base
    assert blobs(manifest, base_held=True) == blobs(manifest)


def test_the_report_is_kept_and_not_fetched(store):
    manifest = read_manifest(store, write_package(store, contents(report=b"page"), **ABOUT))
    assert manifest.report not in blobs(manifest)
    assert manifest.report in references(manifest)
    assert {blob.digest for blob in references(manifest)} | {manifest.digest} == set(store.digests())


def test_a_delta_to_a_base_in_the_store_is_applied(store):
    base = wide(0)
    digest = write_package(store, contents(near(base), base), **ABOUT)
    assert read_package(store, digest).manifest.base == store.put(encode_params(base))
    manifest = read_manifest(store, digest)
    delta = store.get(manifest.delta.digest)
    broken = delta[:-1] + bytes([delta[-1] ^ 1])  # the frame's checksum
    assert read_package(store, digest).digest == digest
    content = manifest.to_bytes().replace(manifest.delta.digest.encode(), store.put(broken).encode())
    with pytest.raises(DataError, match="not a delta"):
        read_package(store, store.put(content))


@pytest.mark.parametrize("part", ["weights", "delta", "graph", "pipeline", "sanity", "baseline", "report"])
@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_every_file_is_verified(store, part, damage):
    base = wide(0)
    digest = write_package(store, contents(near(base), base, baseline=b"bins", report=b"page"), **ABOUT)
    path = store._root / getattr(read_manifest(store, digest), part).digest
    if damage == "lost":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=path.name):
        read_package(store, digest)


def test_a_wrong_length_is_damage(store):
    digest = write_package(store, contents(), **ABOUT)
    content = store.get(digest)
    size = read_manifest(store, digest).graph.size_bytes
    forged = content.replace(f'"size_bytes":{size}}}'.encode(), f'"size_bytes":{size + 1}}}'.encode())
    assert forged != content
    with pytest.raises(DataError, match="damaged"):
        read_package(store, store.put(forged))


def test_parts_of_different_models_do_not_make_a_package(store):
    other = Schema((Channel("heat", "K", 0.0, 500.0),))
    one = np.zeros((2, 1), np.float32)
    narrow = Pipeline((Scaler("range"),)).fit(one, other)
    wrong = SanityVectors(ROWS, np.zeros((3, 2)), 1e-4)
    for changes, named in (
        ({"pipeline": narrow}, "raw samples"),
        ({"sanity": wrong}, "3 outputs"),
        ({"pipeline": Pipeline((Scaler("range"),))}, "not fitted"),
    ):
        with pytest.raises(DataError, match=named):
            write_package(store, contents(**changes), **ABOUT)
    with pytest.raises(DataError, match="2 outputs"):
        write_package(store, contents(), **{**ABOUT, "outputs": ("a", "b")})
    base = wide(0)
    with pytest.raises(DataError, match="base"):
        write_package(store, contents(near(base), base), base=params_digest(wide(1)), **ABOUT)
    assert store.digests() == ()  # refused before anything is stored


@pytest.mark.parametrize(
    ("part", "forged", "named"),
    [
        ("pipeline", b"{}", "pipeline"),
        ("pipeline", b"\xff", "pipeline"),
        ("pipeline", b"[" * 100_000, "pipeline"),
        ("pipeline", b'{"format":1,"steps":[{"step":"plugin"}]}', "pipeline"),
        ("pipeline", b'{"format":1,"steps":3}', "pipeline"),
        ("pipeline", Pipeline(()).to_json().encode(), "not fitted"),
        ("pipeline", Pipeline((), Schema((Channel("a", "1", 0, 1),))).to_json().encode(), "another schema"),
        ("weights", b"weights", "not weights"),
        ("sanity", b"vectors", "sanity"),
    ],
)
def test_a_signed_manifest_over_nonsense_is_refused(store, part, forged, named):
    manifest = read_manifest(store, write_package(store, contents(), **ABOUT))
    old = getattr(manifest, part)
    content = manifest.to_bytes().replace(
        f'{{"digest":"{old.digest}","size_bytes":{old.size_bytes}}}'.encode(),
        f'{{"digest":"{store.put(forged)}","size_bytes":{len(forged)}}}'.encode(),
    )
    with pytest.raises(DataError, match=named):
        read_package(store, store.put(content))


def with_pipeline(store, pipeline):
    """A manifest over a forged pipeline, as a stolen key might sign it."""
    manifest = read_manifest(store, write_package(store, contents(), **ABOUT))
    forged = json.dumps(pipeline).encode()
    content = manifest.to_bytes().replace(manifest.pipeline.digest.encode(), store.put(forged).encode())
    size = f'"pipeline":{{"digest":"{store.put(forged)}","size_bytes":'.encode()
    old, new = (size + str(n).encode() for n in (manifest.pipeline.size_bytes, len(forged)))
    return store.put(content.replace(old, new))


def steps_of(*steps, **schema):
    return {"format": 1, "steps": list(steps), "schema": {**SCHEMA.to_dict(), **schema}}


@pytest.mark.parametrize(
    "pipeline",
    [
        steps_of({"step": "plugin", "path": "os:system"}),
        steps_of(
            {"step": "plugin", "path": "numpy:save", "distribution": "numpy", "version": np.__version__}
        ),
        steps_of({"step": "plugin", "path": "x:y", "distribution": "nobody-has-this"}),
        steps_of({"step": "select", "names": ["nothing"]}),
        steps_of({"step": "scaler", "how": "fixed", "center": ["a"], "scale": ["b"]}),
        steps_of({"step": "clip", "low": [[1]], "high": None}),
        steps_of(window=10**13),
        steps_of(window="many"),
    ],
)
def test_a_forged_pipeline_is_refused_before_it_does_harm(store, pipeline):
    with pytest.raises(DataError, match="pipeline"):
        read_package(store, with_pipeline(store, pipeline))


def test_a_plug_in_that_an_installed_distribution_offers_is_used(store, monkeypatch):
    class Installed:
        version = "1.0"
        entry_points = EntryPoints(
            [EntryPoint("twice", "numpy:square", GROUP), EntryPoint("x", "os:system", "other")]
        )

    monkeypatch.setattr(importlib.metadata, "distribution", lambda _name: Installed)
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "1.0")
    square = Pipeline((PlugIn("numpy:square", "ours"),)).fit(ROWS, SCHEMA)
    package = read_package(store, write_package(store, contents(pipeline=square), **ABOUT))
    np.testing.assert_array_equal(package.pipeline.apply(ROWS), ROWS**2)
    system = Pipeline((PlugIn("os:system", "ours", "1.0"),), SCHEMA)
    with pytest.raises(DataError, match="offers no plug-in 'os:system'"):
        write_package(store, contents(pipeline=system), **ABOUT)


def test_sanity_vectors_round_trip_with_missing_values():
    inputs = np.array([[1.0, np.nan]], np.float64)
    for outputs in (np.array([[0.25, 1e-300]]), np.array([7.0])):
        vectors = SanityVectors(inputs, outputs, 0.125)
        assert decode_sanity(encode_sanity(vectors)).digest == vectors.digest


@pytest.mark.parametrize(
    "change",
    [
        {"more": np.zeros(1)},
        {"inputs": np.zeros((2, 2))},
        {"outputs": np.zeros((0, 2)), "inputs": np.zeros((0, 2))},
        {"outputs": np.array([[np.nan, 1.0]])},
        {"outputs": np.zeros((1, 2), np.float32)},
        {"tolerance": np.array([-1.0])},
        {"tolerance": np.array([np.nan])},
        {"tolerance": np.array([1.0, 1.0])},
    ],
)
def test_what_is_no_set_of_vectors_is_refused(change):
    tensors = {"inputs": np.zeros((1, 2)), "outputs": np.zeros((1, 2)), "tolerance": np.array([1e-4])}
    assert len(decode_sanity(safetensors.numpy.save(tensors))) == 1
    with pytest.raises(DataError, match="sanity vectors"):
        decode_sanity(safetensors.numpy.save({**tensors, **change}))
