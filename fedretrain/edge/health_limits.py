"""When a model is not well, and what well looks like on this device: the limits of `health`, and the record they are held against.

Rules of this file:
    * Latency is recorded at the pace of service: a processor that idles between predictions is slower than one in a tight loop.
    * What chance made of a record is not held against the version that is judged by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.checks import fraction, positive, require
from fedretrain.core.errors import DataError
from fedretrain.edge.health_checks import ShareLimit
from fedretrain.monitoring.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_TRIAL = 1000
"""Predictions of a latency record: the p99 of fewer is off by more than about 5 %."""


class Check(StrEnum):
    """What is looked at."""

    SANITY = "sanity"
    ERRORS = "errors"
    LATENCY_RATIO = "latency_ratio"
    LATENCY_LIMIT = "latency_limit"
    MEMORY_GROWTH = "memory_growth"
    MEMORY_LIMIT = "memory_limit"
    ACCURACY = "accuracy"


@dataclass(frozen=True)
class HealthLimits:
    """When a model is not well.

    Attributes:
        latency_ratio: The p99 may be so many times the one of the record.
        latency_p99_s: The p99 may be so long whatever the record says; None: no such limit.
        slow: Which share may be slower than either.
        errors: Which share of predictions may fail; the allowed 3 % is three times a usual floor of 1 %.
        growth_mib_per_min: Memory may grow so fast for five minutes.
        growth_added_mib_per_min: Or so much faster than it ever did in the last day: a leak comes on top of what the device always did.
        memory_mib: Memory may be so much whatever it was before; None: no such limit.
        accuracy_tolerance: How much less right than the version before a new one may be.
        accuracy_alpha: The chance that a version no worse than that is ever rolled back for its labels.
        min_labels: The labels that the version before must have.
    """

    latency_ratio: float = 1.5
    latency_p99_s: float | None = None
    slow: ShareLimit = field(default_factory=lambda: ShareLimit(limit=0.01, allowed=0.0025))
    errors: ShareLimit = field(default_factory=lambda: ShareLimit(limit=0.06, allowed=0.03))
    growth_mib_per_min: float = 0.6
    growth_added_mib_per_min: float = 0.3
    memory_mib: float | None = None
    accuracy_tolerance: float = 0.05
    accuracy_alpha: float = 1e-4
    min_labels: int = 50

    def __post_init__(self) -> None:
        require(self.latency_ratio > 1, f"{self.latency_ratio} is not above 1", key="health.latency_ratio")
        for name in ("latency_p99_s", "growth_mib_per_min", "growth_added_mib_per_min", "memory_mib"):
            if getattr(self, name) is not None:
                positive(f"health.{name}", getattr(self, name))
        fraction("health.accuracy_tolerance", self.accuracy_tolerance)
        require(
            0 < self.accuracy_alpha < 1, f"{self.accuracy_alpha} is no chance", key="health.accuracy_alpha"
        )
        require(self.min_labels >= 1, f"{self.min_labels} labels are no record", key="health.min_labels")

    def slow_s(self, record: HealthRecord) -> float:
        """How long a prediction may take by the model's own record; infinite without one."""
        return math.inf if record.latency_p99_s is None else self.latency_ratio * record.latency_p99_s


@dataclass(frozen=True)
class HealthRecord:
    """What this device looks like when it is well.

    Attributes:
        latency_p99_s: Of the model that is served, measured at install (`p99_of`); None: its latency has no ratio to break.
        growth_mib_per_min: The fastest growth of a window in the last day under the version before (`HealthState.growth_seen`).
        num_labelled: Labels of the version before.
        num_correct: How many of its predictions they confirmed.
    """

    latency_p99_s: float | None = None
    growth_mib_per_min: float = 0.0
    num_labelled: int = 0
    num_correct: int = 0

    def accuracy_floor(self, limits: HealthLimits) -> float | None:
        """The accuracy that is defended, or None where there is none to defend.

        The lower end of Wilson's 99 % interval less the tolerance: what chance made of the earlier record is not held against the new version.
        """
        if self.num_labelled < limits.min_labels:
            return None
        floor = _lowest_accuracy(self.num_correct, self.num_labelled) - limits.accuracy_tolerance
        return floor if floor > 0 else None


@lru_cache(maxsize=64)  # asked at each sample, and the record does not change
def _lowest_accuracy(num_correct: int, num_labelled: int) -> float:
    return float(wilson(num_correct, num_labelled, 0.99).low)


def p99_of(latencies_s: Sequence[float]) -> float:
    """The p99 of the predictions that were timed at install.

    Raises:
        DataError: If they are fewer than `MIN_TRIAL`.
    """
    if len(latencies_s) < MIN_TRIAL:
        raise DataError(
            f"{len(latencies_s)} predictions are too few for a p99",
            where="health record",
            fix=f"time {MIN_TRIAL} predictions, at the pace of service",
        )
    return float(np.quantile(np.asarray(latencies_s, dtype=np.float64), 0.99, method="higher"))
