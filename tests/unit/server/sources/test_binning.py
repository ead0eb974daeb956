"""Raw samples are counted as a device counts its own, and refused by name where they cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.monitoring.histogram import count
from fedretrain.wire.control import MalformedError
from fedretrain.wire.samples import Samples
from tests.source_cases import NOW, SCHEMA, SLOT_S, binner, expected, rows


def test_the_counts_are_those_of_the_bins_by_slot():
    how, raw = binner(), rows(40, 1)
    at = np.where(np.arange(40) < 25, NOW - SLOT_S, NOW)
    found = how.count(7, Samples(at, raw), NOW)
    assert found.slot_K.tolist() == [999, 1000]
    assert found.device_K.tolist() == [7, 7]
    inputs = how.pipeline.apply(raw)
    np.testing.assert_array_equal(found.features_KFC[0], count(how.bins, inputs[:25]))
    np.testing.assert_array_equal(found.features_KFC[1], count(how.bins, inputs[25:]))
    np.testing.assert_array_equal(found.features_KFC.sum(axis=0), expected(how, [1], num=40))
    assert not found.outputs_KM.any()
    assert not found.latency_KL.any()
    assert found.bins == how.bins.digest


def test_values_that_the_schema_does_not_allow_are_counted_as_such():
    found = binner().count(0, Samples(np.array([NOW]), np.array([[99.0, 0.0]])), NOW)
    assert found.features_KFC[0, :, -2].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("samples", "named"),
    [
        (Samples(np.array([NOW + 301.0]), rows(1)), "at"),
        (Samples(np.arange(70) * SLOT_S, rows(70)), "at"),
        (Samples(np.array([NOW]), np.zeros((1, 3))), "rows"),
        (Samples(np.array([NOW]), np.zeros((1, 2, 2))), "rows"),
        (Samples(np.array([NOW]), np.array([[np.nan, 1.0]])), "rows"),
    ],
)
def test_what_cannot_be_counted_is_named(samples, named):
    with pytest.raises(MalformedError, match=f"^{named}: "):
        binner().count(0, samples, NOW)


def test_a_pipeline_that_needs_a_device_s_past_is_refused():
    local = Pipeline((Scaler("local"),)).fit(
        rows(9).astype(np.float32), SCHEMA, device=np.zeros(9, dtype=np.int64)
    )
    with pytest.raises(MalformedError, match=r"^pipeline: "):
        replace(binner(), pipeline=local).count(0, Samples(np.array([NOW]), rows(1)), NOW)
