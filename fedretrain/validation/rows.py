"""What is counted: labelled predictions of candidate and champion on the same rows, and the cells they fall into.

Rules of this file:
    * One layout for everybody: statistics of different cells are never merged.
    * Candidate and champion are scored on the *same* rows, so that every comparison is paired within the device.

Shape letters: N rows, S time slices, M labels (1 for a regression), Q critical segments, B confidence bins.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.build import plain
from fedretrain.core.errors import DataError
from fedretrain.validation.config import CriticalSegment  # noqa: TC001 - `core.build` reads the annotations

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.validation.config import ValidationPolicy


@dataclass(frozen=True)
class Layout:
    """The cells that are counted; equal for everybody, or nothing may be merged.

    Attributes:
        num_classes: M; 0 for a regression.
        cuts_at: Instants between time slices, rising: S - 1 of them. The first and the last slice are open.
        late_after_s: A label's delay above which it is late; None: never.
        confidence_bins: B.
        segments: The critical segments, Q.
    """

    num_classes: int
    cuts_at: tuple[float, ...] = ()
    late_after_s: float | None = None
    confidence_bins: int = 10
    segments: tuple[CriticalSegment, ...] = ()

    def __post_init__(self) -> None:
        if self.num_classes < 0 or self.num_classes == 1:
            raise DataError(
                f"a task of {self.num_classes} classes", fix="give two or more, or 0 for a regression"
            )
        if any(b <= a for a, b in zip(self.cuts_at, self.cuts_at[1:], strict=False)):
            raise DataError("the cuts between time slices do not rise", where="cuts_at")
        if not self.num_classes and any(segment.labels for segment in self.segments):
            raise DataError(
                "a critical segment names labels, but a regression has none", where="segments.labels"
            )

    @classmethod
    def of(cls, policy: ValidationPolicy, num_classes: int, cuts_at: tuple[float, ...]) -> Layout:
        """The cells that a policy asks for."""
        return cls(num_classes, cuts_at, policy.late_after_s, policy.confidence_bins, policy.segments)

    @property
    def num_slices(self) -> int:
        """S."""
        return len(self.cuts_at) + 1

    @property
    def num_labels(self) -> int:
        """M, 1 for a regression."""
        return max(1, self.num_classes)

    @property
    def digest(self) -> str:
        """SHA-256 of its content, in hex."""
        content = {f.name: plain(getattr(self, f.name)) for f in fields(self)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Labelled:
    """Labelled moments of one device or of many, before a model has seen them.

    Attributes:
        device_N: int64.
        group_N: int64 device type or site of the row's device.
        at_N: float64 instant of the prediction.
        delay_s_N: float64 seconds until its label came.
        label_N: ``[N]`` int64 class, or float64 target of a regression.
    """

    device_N: NDArray[np.int64]
    group_N: NDArray[np.int64]
    at_N: NDArray[np.float64]
    delay_s_N: NDArray[np.float64]
    label_N: NDArray[Any]

    def __len__(self) -> int:
        return len(self.device_N)

    def take(self, index: NDArray[Any]) -> Labelled:
        """Some of them, by index or mask."""
        return Labelled(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True)
class Rows:
    """Labelled predictions of two models on the same inputs.

    Attributes:
        labelled: ``[N]``.
        candidate: ``[N, M]`` probabilities, or ``[N]`` values of a regression.
        champion: Likewise.
    """

    labelled: Labelled
    candidate: NDArray[np.floating[Any]]
    champion: NDArray[np.floating[Any]]

    def __len__(self) -> int:
        return len(self.labelled)


def in_segment(segment: CriticalSegment, rows: Labelled) -> NDArray[np.bool_]:
    """``[N]``: the rows that belong to a critical segment."""
    inside = np.ones(len(rows), np.bool_)
    if segment.from_at is not None:
        inside &= rows.at_N >= segment.from_at
    if segment.until_at is not None:
        inside &= rows.at_N < segment.until_at
    if segment.labels:
        inside &= np.isin(rows.label_N, segment.labels)
    if segment.groups:
        inside &= np.isin(rows.group_N, segment.groups)
    return inside


def check_rows(layout: Layout, rows: Rows) -> None:
    """Refuse rows that cannot be counted.

    Raises:
        DataError: If the arrays do not fit each other or the layout, or if a label is not a class.
    """
    given, size, m = rows.labelled, len(rows), layout.num_classes
    for name in ("group_N", "at_N", "delay_s_N", "label_N"):
        if getattr(given, name).shape != (size,):
            raise DataError(f"{name} has the shape {getattr(given, name).shape}, not ({size},)", where=name)
    for name in ("candidate", "champion"):
        shape = getattr(rows, name).shape
        if shape != (size, m) and not (m == 0 and shape in {(size,), (size, 1)}):
            raise DataError(f"predictions of the shape {shape} for {size} rows and {m} classes", where=name)
    if not np.isfinite(given.at_N).all() or np.isnan(given.delay_s_N).any():
        raise DataError("a prediction without an instant, or a label without a delay", where="at_N")
    if not np.isfinite(given.label_N).all() or (m and size and not _are_classes(given.label_N, m)):
        raise DataError(
            f"a label that is none of the {m} classes" if m else "a target that is no number", where="label_N"
        )


def _are_classes(label: NDArray[Any], num_classes: int) -> bool:
    return bool(label.min() >= 0 and label.max() < num_classes and np.all(label == label.astype(np.int64)))
