"""The counts that a device sends of its own predictions and late labels: `monitoring.counting` with one device.

Rules of this file:
    * Only counts leave the device, on the pinned bins of its model.
    * A label is counted once, as it stood when it was counted: counts that were sent cannot be taken back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.monitoring.counting import Predictions, group, late_labels, telemetry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedretrain.edge.examples import Examples
    from fedretrain.monitoring.bins import Bins
    from fedretrain.monitoring.reports import LabelReports, Reports


@dataclass(frozen=True)
class Counter:
    """Counts for one stream.

    Attributes:
        device: The device's index in the reports.
        bins: Pinned bins of the flattened model inputs.
        num_outputs: M.
        slot_s: The telemetry's slot.
        releases: The release number of each package digest.
    """

    device: int
    bins: Bins
    num_outputs: int
    slot_s: float
    releases: Mapping[str, int]

    def telemetry(
        self, examples: Examples, slot: int, now: float, *, since: float = 0.0, package: str | None = None
    ) -> Reports | None:
        """One row for each release that predicted in a slot; None if nothing was predicted.

        Args:
            examples: Of the stream.
            slot: Which.
            now: Instant, seconds since the epoch.
            since: What was predicted before it is left out.
            package: Only its predictions; None: of all.

        Raises:
            DataError: If a prediction is of no known release.
        """
        made = [
            row
            for row in examples.made(max(slot * self.slot_s, since), (slot + 1) * self.slot_s)
            if package is None or row[2] == package
        ]
        if not made:
            return None
        _, inputs, digest, label, confidence, entropy, latency = zip(*made, strict=True)
        num = len(made)
        senders, owner = group(
            np.full(num, self.device, dtype=np.int64),
            np.full(num, slot, dtype=np.int64),
            self._versions(digest),
        )
        x = np.frombuffer(b"".join(inputs), dtype="<f4").reshape(num, -1)
        predictions = Predictions(
            np.array(label, dtype=np.int64),
            np.array(confidence, dtype=np.float32),
            np.array(entropy, dtype=np.float32),
            np.array(latency, dtype=np.float64),
        )
        return telemetry(senders, owner, x, predictions, self.bins, self.num_outputs, now)

    def labels(
        self, examples: Examples, now: float, *, before: float = math.inf, package: str | None = None
    ) -> tuple[LabelReports, tuple[int, ...]] | None:
        """Rows of the labels that were not counted yet; None if there are none.

        Args:
            examples: Of the stream.
            now: Instant, seconds since the epoch.
            before: Labels of predictions that were made at or after it wait.
            package: Only those of its predictions; None: of all.

        Returns:
            The rows, and what to call `Examples.reported` with once they are kept where they will be sent from.

        Raises:
            DataError: If a prediction is of no known release, or a label is of no class.
        """
        arrived = [row for row in examples.arrived(now, before) if package is None or row[2] == package]
        if not arrived:
            return None
        number, at, digest, predicted, confidence, label, label_at = zip(*arrived, strict=True)
        truth, made_at = np.array(label, dtype=np.int64), np.array(at, dtype=np.float64)
        if truth.min() < 0 or truth.max() >= self.num_outputs:
            raise DataError(f"a label is none of {self.num_outputs} classes", where="labels")
        slot = (made_at // self.slot_s).astype(np.int64)
        device = np.full(len(arrived), self.device, dtype=np.int64)
        senders, owner = group(device, slot, self._versions(digest))
        rows = late_labels(
            senders,
            owner,
            truth,
            np.array(predicted, dtype=np.int64),
            np.array(confidence, dtype=np.float32),
            np.array(label_at, dtype=np.float64) - made_at,
            self.num_outputs,
            now,
        )
        return rows, number

    def _versions(self, digests: tuple[str, ...]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        unknown = set(digests) - set(self.releases)
        if unknown:
            raise DataError(f"package {min(unknown)} is no known release", where="telemetry")
        return np.array([self.releases[digest] for digest in digests], dtype=np.int64)
