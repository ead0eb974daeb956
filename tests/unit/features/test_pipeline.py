"""Pipelines: fit, apply, JSON, what may be used under differential privacy, plug-ins."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedretrain.core import rng
from fedretrain.core.errors import ConfigError, DataError, PrivacyError
from fedretrain.features.pipeline import Pipeline, windows
from fedretrain.features.plugin import PlugIn
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.features.steps import (
    ChannelFirst,
    Clip,
    Impute,
    LocalContext,
    LogSigned,
    Magnitude,
    MissingIndicator,
    Select,
    Statistics,
)

SCHEMA = Schema(
    tuple(Channel(n, "g", -8, 8, rate_hz=50.0, missing=True) for n in ("ax", "ay", "az")), window=20
)
X = rng.generator(5).normal(size=(30, 20, 3)).astype(np.float32)
DEVICE = np.repeat([0, 1, 2], 10)
FULL = Pipeline(
    (
        Clip(),
        MissingIndicator(("ax",)),
        Impute("mean"),
        Magnitude((("ax", "ay", "az"),)),
        LogSigned(1.0),
        Statistics(("mean", "std", "bands", "correlations")),
        Scaler("robust", clip=5.0),
    )
)
SIGNAL = Pipeline((Select(("az", "ax")), Impute("forward"), Scaler("range"), ChannelFirst()))
LOCAL = Pipeline(
    (Impute("forward"), Statistics(("mean", "std")), Scaler("local"), LocalContext(), Scaler("standard"))
)


@pytest.mark.parametrize("pipeline", [FULL, SIGNAL, LOCAL], ids=["full", "signal", "local"])
def test_json_round_trip_is_exact(pipeline):
    fitted = pipeline.fit(X, SCHEMA, device=DEVICE).localize(X[:10])
    again = Pipeline.from_json(fitted.to_json())
    assert again == fitted
    assert again.digest == fitted.digest
    np.testing.assert_array_equal(again.apply(X), fitted.apply(X))


@pytest.mark.parametrize("pipeline", [FULL, SIGNAL, LOCAL], ids=["full", "signal", "local"])
def test_names_and_shape_say_what_comes_out(pipeline):
    out = pipeline.fit(X, SCHEMA, device=DEVICE).localize(X).apply(X)
    assert out.shape[1:] == pipeline.output_shape(SCHEMA)
    assert len(pipeline.feature_names(SCHEMA)) == out.shape[1]
    assert out.dtype == np.float32
    assert out.flags.c_contiguous


@given(cut=st.integers(0, 30))
@settings(max_examples=15, deadline=None)
def test_a_rows_inputs_do_not_depend_on_the_rows_beside_it(cut):
    fitted = FULL.fit(X, SCHEMA)
    np.testing.assert_array_equal(
        np.concatenate([fitted.apply(X[:cut]), fitted.apply(X[cut:])]), fitted.apply(X)
    )


def test_the_future_does_not_change_what_was_fitted():
    fitted = FULL.fit(X, SCHEMA)
    before = fitted.digest
    fitted.apply(100.0 * X)
    assert fitted.digest == before


def test_a_local_step_uses_the_devices_own_past_alone():
    fitted = LOCAL.fit(X, SCHEMA, device=DEVICE)
    own = fitted.localize(X[:10])
    assert fitted.has_local
    assert fitted.steps[2].center == ()
    assert own.steps[2].center != ()
    # What follows a local step is fitted once, for everybody, and not again on the device.
    assert own.steps[4] == fitted.steps[4]
    with pytest.raises(DataError, match="localize"):
        fitted.apply(X)
    with pytest.raises(DataError, match="device by device"):
        LOCAL.fit(X, SCHEMA)


def test_without_local_steps_localize_changes_nothing():
    fitted = FULL.fit(X, SCHEMA)
    assert fitted.localize(X[:3]) is fitted


def test_pooled_numbers_are_refused_under_differential_privacy():
    with pytest.raises(PrivacyError, match="2:impute, 6:scaler"):
        FULL.require_private()
    SIGNAL.require_private()
    Pipeline((Scaler("local"), LocalContext(), Scaler("instance"))).require_private()


def test_inputs_that_are_not_finite_are_refused_by_name():
    x = X.copy()
    x[4, :, 1] = np.nan
    fitted = Pipeline((Statistics(("mean",)),)).fit(x, SCHEMA)
    with pytest.raises(DataError, match=r"'mean\(ay\)' of row 4"):
        fitted.apply(x)
    signal = Pipeline((ChannelFirst(),)).fit(x, SCHEMA)
    with pytest.raises(DataError, match="'ay' of row 4"):
        signal.apply(x)


def test_other_shapes_and_unfitted_pipelines_are_refused():
    with pytest.raises(DataError, match="its schema says"):
        FULL.fit(X, SCHEMA).apply(X[:, :10])
    with pytest.raises(DataError, match="not fitted"):
        FULL.apply(X)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"format": 9}, "format 9"),
        ({"format": 1, "steps": [{"step": "fourier"}]}, "'fourier'"),
        ({"format": 1, "steps": [{"step": "clip", "low": 1}]}, "no field 'low'"),
    ],
)
def test_other_json_is_refused(content, says):
    with pytest.raises(DataError, match=says):
        Pipeline.from_json(json.dumps(content))
    with pytest.raises(DataError, match="not JSON"):
        Pipeline.from_json("{")


@pytest.mark.parametrize(
    ("length", "stride", "expected"), [(20, 0, [0, 20, 40]), (20, 10, [0, 10, 20, 30, 40, 50]), (80, 0, [])]
)
def test_windows_are_cut_where_they_should(length, stride, expected):
    signal = np.arange(70.0)[:, None] * np.ones(2)
    cut = windows(signal, length, stride)
    assert cut.shape == (len(expected), length, 2)
    assert cut[:, 0, 0].tolist() == expected
    assert np.all(np.diff(cut[:, :, 0], axis=1) == 1.0)


def double(x, *, factor=2.0):
    return x * factor


def drop_rows(x):
    return x[1:]


def test_a_plug_in_is_pinned_by_version(monkeypatch):
    monkeypatch.setitem(
        __import__("sys").modules, "plug_in_under_test", __import__("types").SimpleNamespace(double=double)
    )
    step = PlugIn("plug_in_under_test:double", "numpy", options=(("factor", 3.0),))
    fitted = Pipeline((Impute(), step)).fit(X, SCHEMA)
    np.testing.assert_allclose(fitted.apply(X), 3.0 * X)
    assert fitted.steps[1].version == np.__version__
    again = Pipeline.from_json(fitted.to_json())
    np.testing.assert_array_equal(again.apply(X), fitted.apply(X))
    other = fitted.to_json().replace(f'"version": "{np.__version__}"', '"version": "0.1"')
    with pytest.raises(ConfigError, match=r"recorded in version 0\.1"):
        Pipeline.from_json(other).apply(X)


def test_bad_plug_ins_are_refused(monkeypatch):
    monkeypatch.setitem(
        __import__("sys").modules, "plug_in_under_test", __import__("types").SimpleNamespace(drop=drop_rows)
    )
    with pytest.raises(ConfigError, match="no import path"):
        PlugIn("numpy.abs")
    with pytest.raises(ConfigError, match="not installed"):
        PlugIn("numpy:abs", "no-such-distribution").fit(X, None)
    with pytest.raises(ConfigError, match="cannot be imported"):
        PlugIn("numpy:no_such_function").apply(X)
    with pytest.raises(DataError, match="made 29 rows of 30"):
        PlugIn("plug_in_under_test:drop").apply(X)
