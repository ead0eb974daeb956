"""Raw samples of devices that have no agent, counted as an agent counts its own.

Rules of this file:
    * Pipeline, bins and counting are the champion's and `monitoring.counting`'s: the same rows give the same counts as on a
      device. There is no prediction, so what is counted is sensor data and nothing else.
    * Pure: no database, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.monitoring.counting import Predictions, group, telemetry
from fedretrain.wire.control import MalformedError

if TYPE_CHECKING:
    from fedretrain.features.pipeline import Pipeline
    from fedretrain.monitoring.bins import Bins
    from fedretrain.monitoring.reports import Reports
    from fedretrain.wire.samples import Samples

MAX_SLOTS = 64
"""That one message may touch."""
_NO_CLASS = -1


@dataclass(frozen=True, eq=False)
class Binner:
    """How a population's samples are counted while a version is champion.

    Attributes:
        package: Its digest.
        pipeline: From raw rows to model inputs.
        bins: Pinned, of the flattened model inputs.
        num_outputs: M.
        slot_s: Length of a slot.
        tolerance_s: How far a device's clock may be ahead.
    """

    package: str
    pipeline: Pipeline
    bins: Bins
    num_outputs: int
    slot_s: float
    tolerance_s: float

    def count(self, device: int, samples: Samples, now: float) -> Reports:
        """One row for each slot that the samples touch.

        Args:
            device: The device's number.
            samples: What it sent.
            now: Instant, seconds since the epoch.

        Raises:
            MalformedError: If the samples are not what the model reads, or of the future. Names the field first.
        """
        if self.pipeline.has_local:
            raise MalformedError("pipeline: it needs the device's own past, which only an agent has")
        if samples.at_N.max() > now + self.tolerance_s:
            raise MalformedError("at: in the future")
        try:
            inputs = self.pipeline.apply(samples.rows).reshape(len(samples.rows), -1)
        except DataError as error:
            raise MalformedError(f"rows: {error.what}") from error
        if inputs.shape[1] != self.bins.num_features:
            raise MalformedError("bins: of another model than the pipeline")
        num = len(inputs)
        slot_N = np.floor(samples.at_N / self.slot_s).astype(np.int64)
        senders, owner_N = group(np.full(num, device, dtype=np.int64), slot_N, np.zeros(num, dtype=np.int64))
        if len(senders.slot_K) > MAX_SLOTS:
            raise MalformedError(f"at: of more than {MAX_SLOTS} slots")
        nothing = np.zeros(num)
        none = Predictions(np.full(num, _NO_CLASS, dtype=np.int64), nothing, nothing, nothing)
        return telemetry(senders, owner_N, inputs, none, self.bins, self.num_outputs, now)
