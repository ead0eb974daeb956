"""Labelled data that the server holds: from a laboratory, consented, or synthetic. What candidates are validated on.

Rules of this file:
    * Files are safetensors: raw rows ``x``, labels ``y``, instants ``at``, and where they are known ``device`` and ``group``.
    * Nothing of a device's own data comes here by itself: a person puts the files there.
    * The candidate and the champion answer the same rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from fedretrain.artifacts.inference import Predictor
from fedretrain.core.errors import DataError
from fedretrain.core.types import Objective
from fedretrain.validation.checks import Footprint, Inspection, evaluate
from fedretrain.validation.count import count_rows
from fedretrain.validation.rows import Labelled, Layout, Rows
from fedretrain.validation.slices import even_cuts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from fedretrain.artifacts.package import Package
    from fedretrain.validation.checks import Answered
    from fedretrain.validation.config import ValidationPolicy
    from fedretrain.validation.report import EvaluationReport
    from fedretrain.validation.statistics import DeviceStatistics


@dataclass(frozen=True, eq=False)
class Pool:
    """All rows of a folder, in the order of its file names.

    Attributes:
        x: ``[N, ...]`` raw rows.
        labelled: Whose they are, when, and what is right.
        digest: SHA-256 over the files: which data it was.
    """

    x: NDArray[Any]
    labelled: Labelled
    digest: str

    def __len__(self) -> int:
        return len(self.x)


def read_pool(folder: Path) -> Pool:
    """The rows of a folder.

    Raises:
        DataError: If there are none, or a file is not what it should be.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError("the pool holds no *.safetensors", where=str(folder), fix="put labelled rows there")
    return _pool([(file, file.read_bytes()) for file in files])


def _pool(files: Sequence[tuple[Path, bytes]]) -> Pool:
    parts, digest = [], hashlib.sha256()
    for file, content in files:
        digest.update(hashlib.sha256(content).digest())
        parts.append(_rows(content, file))
        if parts[-1][0].shape[1:] != parts[0][0].shape[1:]:
            raise DataError(
                f"its rows have the shape {parts[-1][0].shape[1:]}, those of {files[0][0].name} {parts[0][0].shape[1:]}",
                where=str(file),
                fix="put rows of one schema into a pool",
            )
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    x, y, at, device, group = joined
    return Pool(x, Labelled(device, group, at, np.zeros(len(x)), y), digest.hexdigest())


def read_pool_file(file: Path) -> Pool:
    """The rows of one file.

    Raises:
        DataError: If it is not what it should be.
    """
    return _pool([(file, file.read_bytes())])


def write_pool(
    path: Path, x: NDArray[Any], y: NDArray[Any], at: NDArray[np.float64], **more: NDArray[Any]
) -> None:
    """Write one file of a pool; `more` may hold ``device`` and ``group``."""
    arrays = {"x": x, "y": y, "at": at, **more}
    safetensors.numpy.save_file({name: np.ascontiguousarray(one) for name, one in arrays.items()}, path)


@dataclass(frozen=True, eq=False)
class FieldCounts:
    """What devices counted on the rows that they hold.

    Attributes:
        stats: Of those that count, merged.
        answered: What became of asking them.
    """

    stats: DeviceStatistics
    answered: Answered


def validate(
    policy: ValidationPolicy,
    pool: Pool | None,
    candidate: Package,
    champion: Package | None,
    field: FieldCounts | None = None,
) -> EvaluationReport:
    """What labelled rows say of a candidate: the pool's, those of devices, or each of both.

    Args:
        policy: Margins and required checks.
        pool: Labelled rows of the server; None: they are not asked.
        candidate: Its package.
        champion: What serves; None is the rules baseline, the most frequent answer of the pool.
        field: What devices counted; None: they were not asked.

    Raises:
        DataError: If there is neither, or a label of the pool is no class.
    """
    if pool is None and field is None:
        raise DataError("there is nothing to validate on", where="pool", fix="name a pool, or ask devices")
    counted = None if pool is None else count_pool(policy, pool, candidate, champion)
    found = replace(inspect(candidate, champion), answered=None if field is None else field.answered)
    number = 0 if champion is None else champion.manifest.version
    first, beside = (field.stats, counted) if field is not None else (counted, None)
    assert first is not None  # one of the two is there
    return evaluate(
        policy, first, found, candidate=candidate.manifest.version, champion=number, beside=beside
    )


def count_pool(
    policy: ValidationPolicy, pool: Pool, candidate: Package, champion: Package | None
) -> DeviceStatistics:
    """Both models' statistics on the pool's rows; arguments as for `validate`."""
    manifest = candidate.manifest
    num_classes = len(manifest.outputs) if manifest.objective is Objective.CLASSIFICATION else 0
    at = pool.labelled.at_N
    cuts = even_cuts(float(at.min()), float(at.max()), policy.num_slices) if at.min() < at.max() else ()
    theirs = _prior(pool, num_classes) if champion is None else _answers(champion, pool.x)
    rows = Rows(pool.labelled, _answers(candidate, pool.x), theirs)
    return count_rows(Layout.of(policy, num_classes, cuts), rows)


def inspect(candidate: Package, champion: Package | None) -> Inspection:
    """What is found by looking at the packages."""
    return Inspection(
        nonfinite_weights=sum(int((~np.isfinite(leaf)).sum()) for leaf in candidate.weights.values()),
        sanity=Predictor.of(candidate).check(candidate.sanity),
        footprint=_footprint(candidate),
        champion_footprint=None if champion is None else _footprint(champion),
    )


def _answers(package: Package, x: NDArray[Any]) -> NDArray[np.float32]:
    predictor = Predictor.of(package)
    return predictor.judged(predictor.pipeline.apply(x))


def _prior(pool: Pool, num_classes: int) -> NDArray[np.float32]:
    """The rules baseline's answers: the same for every row."""
    label = pool.labelled.label_N
    if not num_classes:
        return np.full(len(pool), label.mean(), dtype=np.float32)
    if not np.isin(label, np.arange(num_classes)).all():
        raise DataError(
            f"a label that is none of the {num_classes} classes", where="pool", fix="number them from 0"
        )
    share = np.bincount(label.astype(np.int64), minlength=num_classes) / len(label)
    return np.tile(share.astype(np.float32), (len(pool), 1))


def _footprint(package: Package) -> Footprint:
    """Size; latency is measured where models run, on devices."""
    size = sum(leaf.nbytes for leaf in package.weights.values()) + len(package.graph)
    return Footprint(float("nan"), size)


def _rows(content: bytes, file: Path) -> tuple[NDArray[Any], ...]:
    try:
        arrays = safetensors.numpy.load(content)
    except (SafetensorError, ValueError) as error:
        raise DataError(f"it cannot be read: {error}", where=str(file), fix="write safetensors") from error
    missing = [name for name in ("x", "y", "at") if name not in arrays]
    if missing:
        raise DataError(f"it lacks {missing[0]!r}", where=str(file), fix="give x, y and at")
    count = len(arrays["x"])
    nobody = np.zeros(count, dtype=np.int64)
    device, group = arrays.get("device", nobody), arrays.get("group", nobody)
    if {len(one) for one in (arrays["y"], arrays["at"], device, group)} != {count} or not count:
        raise DataError(
            "its arrays are not of one length, or empty", where=str(file), fix="give one entry per row"
        )
    for name, column in (("y", arrays["y"]), ("at", arrays["at"]), ("device", device), ("group", group)):
        if column.ndim != 1 or not np.isfinite(column).all():
            raise DataError(
                f"{name!r} is no column of finite numbers", where=str(file), fix="give one number per row"
            )
    return arrays["x"], arrays["y"], arrays["at"].astype(np.float64), device, group
