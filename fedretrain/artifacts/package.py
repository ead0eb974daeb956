"""A model package: a manifest and the files that it names, in a content store.

Rules of this file:
    * A package is written files first, manifest last: a manifest that is in the store has all its files.
    * Reading verifies everything: each file's digest and length, the weights' canonical form, that the delta is the
      one from the base to the weights, that pipeline, schema, input shape and outputs fit together.
    * A pipeline from elsewhere is checked before it runs: its size, and that its plug-ins are offered as such by what is
      installed.
    * What a device fetches is the smaller of delta and full weights, and never the evaluation report.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import safetensors.numpy

from fedretrain.artifacts.delta import apply_delta, decode_delta, delta_digests
from fedretrain.artifacts.manifest import Blob, Manifest
from fedretrain.artifacts.weights import decode_params
from fedretrain.core.errors import DataError, UserError
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.plugin import PlugIn
from fedretrain.validation.sanity import SanityVectors

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from numpy.typing import NDArray

    from fedretrain.artifacts.decision import Calibration, Decision
    from fedretrain.artifacts.delta import Release
    from fedretrain.artifacts.manifest import Personalization, TrainingRecord
    from fedretrain.artifacts.store import ContentStore
    from fedretrain.core.types import Objective
    from fedretrain.features.schema import Schema

_TENSORS = {"inputs", "outputs", "tolerance"}
_MAX_VECTORS = 10_000
_MAX_ROW = 2**24  # values in a raw row: more is no window, and would be allocated only to find its shape


@dataclass(frozen=True, eq=False)
class Contents:
    """What a package is made of.

    Attributes:
        release: The released weights, in full and as a delta.
        graph: The ONNX graph without weights.
        pipeline: Fitted; from raw samples to model inputs.
        sanity: What the model must answer, from raw samples to scores.
        baseline: Bins and baseline of monitoring; empty for none.
        report: The evaluation report; empty for none.
    """

    release: Release
    graph: bytes
    pipeline: Pipeline
    sanity: SanityVectors
    baseline: bytes = b""
    report: bytes = b""


class About(TypedDict, total=False):
    """`Manifest`'s fields that have a default and are no files."""

    objective: Objective
    calibration: Calibration
    decision: Decision
    personalization: Personalization
    training: TrainingRecord


@dataclass(frozen=True, eq=False)
class Package:
    """A model version whose files were verified.

    Attributes:
        manifest: What it says of itself.
        weights: The released weights.
        graph: The ONNX graph without weights.
        pipeline: From raw samples to model inputs.
        sanity: What the model must answer.
        baseline: Bins and baseline of monitoring; empty for none.
    """

    manifest: Manifest
    weights: dict[str, NDArray[np.float32]]
    graph: bytes
    pipeline: Pipeline
    sanity: SanityVectors
    baseline: bytes

    @cached_property
    def digest(self) -> str:
        """The identity of the model version."""
        return self.manifest.digest


def write_package(
    store: ContentStore,
    contents: Contents,
    *,
    population: str,
    version: int,
    created_at: float,
    outputs: tuple[str, ...],
    base: str = "",
    **about: Unpack[About],
) -> str:
    """Store a package durably; its manifest's digest.

    Args:
        store: Where the files go.
        contents: The files.
        population: Whose model it is.
        version: Counts up within the population.
        created_at: Seconds since the epoch.
        outputs: The names of the outputs.
        base: Digest of the weights that it was trained from; where there is a delta, it says so itself.
        about: More fields of the manifest.

    Raises:
        DataError: If the parts do not fit together, or cannot be stored.
    """
    schema, delta = _schema(contents.pipeline), contents.release.delta_bytes or b""
    files = _files(contents)
    manifest = Manifest(
        population=population,
        version=version,
        created_at=created_at,
        schema=schema.digest,
        input_shape=_shape(contents.pipeline),
        outputs=outputs,
        base=base or (delta_digests(delta)[0] if delta else ""),
        weights=Blob.of(files["weights"]),
        delta=_optional(delta),
        graph=Blob.of(files["graph"]),
        pipeline=Blob.of(files["pipeline"]),
        sanity=Blob.of(files["sanity"]),
        baseline=_optional(contents.baseline),
        report=_optional(contents.report),
        **about,
    )
    by_digest = {Blob.of(content): content for content in files.values()}
    assemble(manifest, by_digest.__getitem__)
    _check_delta(manifest, delta)
    for content in files.values():
        store.put(content)
    return store.put(manifest.to_bytes())


def read_manifest(store: ContentStore, digest: str) -> Manifest:
    """The manifest under a digest.

    Raises:
        DataError: If it is missing, damaged or none.
    """
    return Manifest.from_bytes(store.get(digest))


def open_package(store: ContentStore, digest: str) -> Package:
    """The package under its manifest's digest from a store that has what a device needs, every file verified.

    Raises:
        DataError: If a file is missing or damaged, or the parts do not fit together.
    """
    return assemble(read_manifest(store, digest), lambda blob: _read(store, blob))


def read_package(store: ContentStore, digest: str) -> Package:
    """As `open_package`, with delta and report, which are verified too.

    Raises:
        DataError: If a file is missing or damaged, or the parts do not fit together.
    """
    package = open_package(store, digest)
    manifest = package.manifest
    if manifest.report:
        _read(store, manifest.report)
    if manifest.delta:
        delta = _read(store, manifest.delta)
        _check_delta(manifest, delta)
        if store.has(manifest.base):
            rebuild(decode_params(store.get(manifest.base)), delta)
    return package


def assemble(manifest: Manifest, read: Callable[[Blob], bytes]) -> Package:
    """A package from a manifest and a way to read its files.

    Args:
        manifest: What it says of itself.
        read: Verified bytes of a file.

    Raises:
        DataError: If a file is not what it should be, or the parts do not fit together.
    """
    pipeline = _pipeline(read(manifest.pipeline))
    package = Package(
        manifest=manifest,
        weights=decode_params(read(manifest.weights)),
        graph=read(manifest.graph),
        pipeline=pipeline,
        sanity=decode_sanity(read(manifest.sanity)),
        baseline=read(manifest.baseline) if manifest.baseline else b"",
    )
    _check_fit(package)
    return package


def blobs(manifest: Manifest, *, base_held: bool = False) -> tuple[Blob, ...]:
    """What a device fetches beside the manifest.

    Args:
        manifest: Of the version.
        base_held: Whether it holds the weights `manifest.base`: then the delta replaces the full file, where there is one.
    """
    weights = manifest.delta if base_held and manifest.delta else manifest.weights
    parts = (weights, manifest.graph, manifest.pipeline, manifest.sanity, manifest.baseline)
    return tuple(part for part in parts if part)


def references(manifest: Manifest) -> tuple[Blob, ...]:
    """Every file of a package: what a store keeps as long as it keeps the manifest."""
    parts = (*blobs(manifest), manifest.delta, manifest.report)
    return tuple(part for part in parts if part)


def rebuild(base: dict[str, NDArray[np.float32]], delta: bytes) -> dict[str, NDArray[np.float32]]:
    """The weights that a delta leads to from its base.

    Raises:
        DataError: If the delta is malformed, for another base, or leads elsewhere than it says.
    """
    return apply_delta(base, decode_delta(delta, base))


def encode_sanity(vectors: SanityVectors) -> bytes:
    """Sanity vectors as safetensors bytes."""
    tensors = {
        "inputs": np.ascontiguousarray(vectors.inputs),
        "outputs": np.ascontiguousarray(vectors.outputs, dtype=np.float64),
        "tolerance": np.array([vectors.tolerance], dtype=np.float64),
    }
    content: bytes = safetensors.numpy.save(tensors)
    return content


def decode_sanity(content: bytes) -> SanityVectors:
    """The inverse of `encode_sanity`.

    Raises:
        DataError: If the bytes are anything else.
    """
    try:
        tensors: dict[str, NDArray[Any]] = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_vectors(str(error)) from error
    if set(tensors) != _TENSORS:
        raise _no_vectors(f"they hold {sorted(tensors)}")
    inputs, outputs, tolerance = (tensors[name] for name in ("inputs", "outputs", "tolerance"))
    if outputs.ndim not in {1, 2} or not 0 < len(outputs) <= _MAX_VECTORS or len(inputs) != len(outputs):
        raise _no_vectors(f"inputs {inputs.shape} do not go with outputs {outputs.shape}")
    if tolerance.shape != (1,) or not np.isfinite(tolerance[0]) or tolerance[0] < 0:
        raise _no_vectors("the tolerance is not a number of at least 0")
    if outputs.dtype != np.float64 or not np.isfinite(outputs).all():
        raise _no_vectors("an output is not a finite float64")
    return SanityVectors(inputs, outputs, float(tolerance[0]))


def _read(store: ContentStore, blob: Blob) -> bytes:
    return blob.check(store.get(blob.digest), "file")


def _optional(content: bytes) -> Blob:
    return Blob.of(content) if content else Blob()


def _files(contents: Contents) -> dict[str, bytes]:
    """The files that there are, by their fields of the manifest."""
    release = contents.release
    files = {
        "weights": release.full_bytes,
        "delta": release.delta_bytes or b"",
        "graph": contents.graph,
        "pipeline": contents.pipeline.to_json().encode(),
        "sanity": encode_sanity(contents.sanity),
        "baseline": contents.baseline,
        "report": contents.report,
    }
    return {name: content for name, content in files.items() if content}


def _schema(pipeline: Pipeline) -> Schema:
    if pipeline.schema is None:
        raise DataError("the pipeline is not fitted", where="pipeline", fix="call Pipeline.fit first")
    return pipeline.schema


_NONSENSE = (UserError, ValueError, TypeError, AttributeError, KeyError, RecursionError, ArithmeticError)
"""What steps with impossible settings raise when they are made or run."""


def _pipeline(content: bytes) -> Pipeline:
    try:
        return Pipeline.from_json(content.decode())
    except _NONSENSE as error:
        raise _no_pipeline(error) from error


def _shape(pipeline: Pipeline) -> tuple[int, ...]:
    """The shape of one row of model inputs."""
    schema = _schema(pipeline)
    if math.prod(schema.row_shape) > _MAX_ROW:
        raise _no_pipeline(f"a row has the shape {schema.row_shape}")
    try:
        for step in pipeline.steps:
            if isinstance(step, PlugIn):
                step.require_offered()
        return pipeline.output_shape(schema)
    except (*_NONSENSE, IndexError) as error:
        raise _no_pipeline(error) from error


def _no_pipeline(why: object) -> DataError:
    return DataError(
        f"the pipeline cannot be used: {why}", where="pipeline", fix="fetch or make the package again"
    )


def _check_fit(package: Package) -> None:
    """Pipeline, schema, input shape, outputs and sanity vectors fit together."""
    manifest, schema = package.manifest, _schema(package.pipeline)
    shape, sanity = _shape(package.pipeline), package.sanity
    for holds, what, where in (
        (
            schema.digest == manifest.schema,
            "the pipeline reads another schema than the manifest says",
            "schema",
        ),
        (
            shape == manifest.input_shape,
            f"the pipeline gives {shape}, not {manifest.input_shape}",
            "input_shape",
        ),
        (
            sanity.inputs.shape[1:] == schema.row_shape,
            f"sanity inputs of the shape {sanity.inputs.shape} are no raw samples {schema.row_shape}",
            "sanity",
        ),
        (
            sanity.outputs.reshape(len(sanity), -1).shape[1] == len(manifest.outputs),
            f"sanity outputs of the shape {sanity.outputs.shape} are not of {len(manifest.outputs)} outputs",
            "sanity",
        ),
    ):
        if not holds:
            raise DataError(what, where=where, fix="make the package from one trained model")


def _check_delta(manifest: Manifest, delta: bytes) -> None:
    if manifest.delta and delta_digests(delta) != (manifest.base, manifest.weights.digest):
        raise DataError(
            "the delta does not lead from the manifest's base to its weights",
            where="delta",
            fix="write the package with the release that the delta belongs to",
        )


def _no_vectors(why: str) -> DataError:
    return DataError(f"these are not sanity vectors: {why}", where="sanity", fix="fetch them again")
