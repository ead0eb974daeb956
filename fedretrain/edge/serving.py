"""What answers on a device: a model version with the device's own state, or rules where there is none that may.

Rules of this file:
    * Values: whoever predicts takes the present one and keeps it until the answer is there.
    * A sample that does not fit the schema is its sender's mistake (`DataError`); a model that raises, or whose output is
      not finite, is the model's, and the rules answer in its place.
    * The rules baseline is the label that the device was told most often; before any, it abstains.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.artifacts.decision import NOT_FINITE, Answers
from fedretrain.artifacts.inference import Predictor
from fedretrain.core.errors import DataError
from fedretrain.core.types import Objective

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from fedretrain.artifacts.package import Package
    from fedretrain.core.params import Params

RAW = "raw"
"""Preprocessing of samples that no pipeline has seen."""
_FAULTS = (DataError, ArithmeticError, MemoryError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Rules:
    """The conservative baseline.

    Attributes:
        told: How often each class was a label on this device.
    """

    told: Mapping[int, int] = field(default_factory=dict)

    def answer(self, num: int) -> Answers:
        """The same answer for each of so many rows."""
        total = sum(self.told.values())
        if not total:
            label, confidence, entropy = NOT_FINITE, 0.0, 1.0
        else:
            label = max(self.told, key=lambda one: (self.told[one], -one))
            shares = [count / total for count in self.told.values()]
            confidence = self.told[label] / total
            spread = -sum(share * math.log(share) for share in shares if share)
            entropy = spread / math.log(max(len(shares), 2))
        return Answers(
            np.full(num, label, dtype=np.int64),
            np.full(num, confidence, dtype=np.float32),
            np.full(num, entropy, dtype=np.float32),
        )


@dataclass(frozen=True, eq=False)
class Served:
    """A version that is ready to answer.

    Attributes:
        package: Verified.
        predictor: With the device's own state.
    """

    package: Package
    predictor: Predictor

    @classmethod
    def of(cls, package: Package, personal: Params | None = None, past: NDArray[Any] | None = None) -> Served:
        """A package with what the device added to it.

        Raises:
            DataError: If the state is not of this model, the model cannot be loaded, or it answers with no class.
        """
        if package.manifest.objective is not Objective.CLASSIFICATION:
            raise DataError(
                f"the agent serves classes, and this model is for {package.manifest.objective.value}",
                where="objective",
                fix="release a classification model for this population",
            )
        return cls(package, Predictor.of(package, personal=personal, past=past))

    @property
    def digest(self) -> str:
        """Of the version."""
        return self.package.digest

    @cached_property
    def preprocessing(self) -> str:
        """Examples of different ones are never trained on together: the package's, with the device's own numbers in it."""
        pipeline = self.predictor.pipeline
        if not pipeline.has_local:
            return self.package.manifest.pipeline.digest
        return hashlib.sha256(pipeline.to_json().encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Scored:
    """What became of rows.

    Attributes:
        inputs: ``[N, *F]`` float32, finite.
        preprocessing: What made them.
        answers: N of them.
        version: Digest of what answered; empty: the rules.
        latency_s: Of each row.
        failed: Whether the model failed, and the rules answered in its place.
    """

    inputs: NDArray[np.float32]
    preprocessing: str
    answers: Answers
    version: str
    latency_s: float
    failed: bool = False


def score(
    rows: NDArray[Any],
    model: Served | None,
    rules: Rules,
    *,
    by_rules: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Scored:
    """Answer rows.

    Args:
        rows: ``[N, ...]`` raw samples.
        model: What serves; None before the first install.
        rules: What answers where the model does not.
        by_rules: Safe mode: the model only prepares the inputs.
        clock: Seconds, for the latency.

    Raises:
        DataError: If the rows are not what the model's schema says, or are no numbers.
    """
    begun = clock()
    if model is None:
        return _by_rules(_raw(rows), RAW, rules, clock() - begun)
    inputs = model.predictor.pipeline.apply(
        rows
    )  # holds the rows to the schema: what it refuses is their fault
    if by_rules:
        return _by_rules(inputs, model.preprocessing, rules, clock() - begun)
    try:
        answers = model.predictor.answers(inputs)
        failed = bool((answers.label == NOT_FINITE).any())
    except _FAULTS:
        failed = True
    each_s = (clock() - begun) / max(len(rows), 1)
    if failed:
        found = rules.answer(len(rows))
        return Scored(inputs, model.preprocessing, found, "", each_s, failed=True)
    return Scored(inputs, model.preprocessing, answers, model.digest, each_s)


def _raw(rows: NDArray[Any]) -> NDArray[np.float32]:
    if rows.ndim < 2 or rows.dtype.kind not in "fiu":
        raise DataError(
            f"samples of {rows.dtype} with the shape {rows.shape}",
            where="rows",
            fix="give numbers: a list of samples, each a list",
        )
    return np.nan_to_num(rows.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def _by_rules(inputs: NDArray[np.float32], preprocessing: str, rules: Rules, spent_s: float) -> Scored:
    num = len(inputs)
    return Scored(inputs, preprocessing, rules.answer(num), "", spent_s / max(num, 1))
