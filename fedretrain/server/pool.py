"""Labelled data that the server holds: from a laboratory, consented, or synthetic. What candidates are validated on.

Rules of this file:
    * Files are safetensors: raw rows ``x``, labels ``y``, instants ``at``, and where they are known ``device`` and ``group``.
    * Nothing of a device's own data comes here by itself: a person puts the files there.
    * The candidate and the champion answer the same rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from fedretrain.artifacts.decision import class_probabilities
from fedretrain.artifacts.inference import Predictor
from fedretrain.core.errors import DataError
from fedretrain.core.types import Objective
from fedretrain.validation.checks import Footprint, Inspection, evaluate
from fedretrain.validation.count import count_rows
from fedretrain.validation.rows import Labelled, Layout, Rows
from fedretrain.validation.slices import even_cuts

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from fedretrain.artifacts.package import Package
    from fedretrain.validation.config import ValidationPolicy
    from fedretrain.validation.report import EvaluationReport


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
    parts, digest = [], hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(hashlib.sha256(content).digest())
        parts.append(_rows(content, file))
        if parts[-1][0].shape[1:] != parts[0][0].shape[1:]:
            raise DataError(
                f"its rows have the shape {parts[-1][0].shape[1:]}, those of {files[0].name} {parts[0][0].shape[1:]}",
                where=str(file),
                fix="put rows of one schema into a pool",
            )
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    x, y, at, device, group = joined
    return Pool(x, Labelled(device, group, at, np.zeros(len(x)), y), digest.hexdigest())


def write_pool(
    path: Path, x: NDArray[Any], y: NDArray[Any], at: NDArray[np.float64], **more: NDArray[Any]
) -> None:
    """Write one file of a pool; `more` may hold ``device`` and ``group``."""
    arrays = {"x": x, "y": y, "at": at, **more}
    safetensors.numpy.save_file({name: np.ascontiguousarray(one) for name, one in arrays.items()}, path)


def validate(
    policy: ValidationPolicy, pool: Pool, candidate: Package, champion: Package | None
) -> EvaluationReport:
    """What the pool says of a candidate.

    Args:
        policy: Margins and required checks.
        pool: Labelled rows.
        candidate: Its package.
        champion: What serves; None is the rules baseline, the most frequent answer of the pool.
    """
    manifest = candidate.manifest
    num_classes = len(manifest.outputs) if manifest.objective is Objective.CLASSIFICATION else 0
    at = pool.labelled.at_N
    cuts = even_cuts(float(at.min()), float(at.max()), policy.num_slices) if at.min() < at.max() else ()
    theirs = _prior(pool, num_classes) if champion is None else _answers(champion, pool.x)
    counted = count_rows(
        Layout.of(policy, num_classes, cuts), Rows(pool.labelled, _answers(candidate, pool.x), theirs)
    )
    found = Inspection(
        nonfinite_weights=sum(int((~np.isfinite(leaf)).sum()) for leaf in candidate.weights.values()),
        sanity=Predictor.of(candidate).check(candidate.sanity),
        footprint=_footprint(candidate),
        champion_footprint=None if champion is None else _footprint(champion),
    )
    number = 0 if champion is None else champion.manifest.version
    return evaluate(policy, counted, found, candidate=manifest.version, champion=number)


def _answers(package: Package, x: NDArray[Any]) -> NDArray[np.float32]:
    outputs = Predictor.of(package).outputs(x)
    return class_probabilities(outputs) if package.manifest.objective is Objective.CLASSIFICATION else outputs


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
