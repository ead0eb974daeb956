"""What the devices of the benchmark measure, and what they report of it: real histograms on the champion's bins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.artifacts.inference import Predictor
from fedretrain.core.frozen import thaw
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.monitoring.bins import Bins
from fedretrain.monitoring.counting import Predictions, group, late_labels, telemetry
from fedretrain.wire.control import encode_labels, encode_report

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.artifacts.package import Package

NUM_FEATURES = 16
OUTPUTS = ("idle", "runs", "worn")
FEATURES_FILE = Pipeline(
    (Scaler("range"),), Schema(tuple(Channel(f"s{i}", "1", -8.0, 8.0) for i in range(NUM_FEATURES)))
)
_CENTERS = np.random.default_rng(11).normal(scale=1.6, size=(len(OUTPUTS), NUM_FEATURES))


def lab_rows(num: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Raw rows and their labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, len(OUTPUTS), num)
    return (_CENTERS[y] + rng.normal(size=(num, NUM_FEATURES))).astype(np.float32), y.astype(np.int64)


def payloads(package: Package, num_rows: int = 60) -> tuple[bytes, bytes]:
    """A report and a row of labels of one device for slot 0, as messages.

    Args:
        package: What predicts.
        num_rows: Predictions in the slot: one a second, for a minute.
    """
    x, y = lab_rows(num_rows, seed=5)
    answers = Predictor.of(package)(x)
    none = np.zeros(num_rows, np.int64)
    senders, owner = group(none, none, none)
    said = Predictions(answers.label, answers.confidence, answers.entropy, np.full(num_rows, 0.001))
    inputs = package.pipeline.apply(x).reshape(num_rows, -1)
    made = telemetry(senders, owner, inputs, said, thaw(Bins, package.baseline), len(OUTPUTS), 0.0)
    late = late_labels(
        senders, owner, y, answers.label, answers.confidence, np.full(num_rows, 2.0), len(OUTPUTS), 0.0
    )
    return encode_report(made, package.digest), encode_labels(late, package.digest)
