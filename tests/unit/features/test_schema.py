"""The schema: what it refuses, and where it says the fault is."""

import json
import math

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.features.schema import Channel, Compatibility, Schema

SCHEMA = Schema(
    (Channel("ax", "g", -8, 8, rate_hz=50.0), Channel("t", "degC", -40, 60, missing=True)), window=3
)


def rows(n=4):
    return np.zeros((n, 3, 2), dtype=np.float32)


def test_good_rows_pass_and_nan_where_declared():
    x = rows()
    x[1, 2, 1] = np.nan
    before = x.copy()
    SCHEMA.validate(x)
    SCHEMA.validate(x, ranges=True)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("value", "channel", "says"),
    [(np.nan, 0, "NaN"), (np.inf, 1, "infinity"), (-np.inf, 0, "infinity")],
)
def test_bad_values_name_device_row_step_and_channel(value, channel, says):
    x = rows()
    x[2, 1, channel] = value
    with pytest.raises(DataError) as caught:
        SCHEMA.validate(x, device="watch 7", where="file.npz")
    text = str(caught.value)
    assert says in text
    assert "row 2, step 1" in text
    assert "device watch 7" in text
    assert "file.npz" in text
    assert repr(SCHEMA.names[channel]) in text
    assert "\n" not in text


def test_ranges_are_held_only_when_asked():
    x = rows()
    x[0, 0, 0] = 9.0
    SCHEMA.validate(x)
    with pytest.raises(DataError, match=r"9 is not in -8\.\.8 g"):
        SCHEMA.validate(x, ranges=True)


@pytest.mark.parametrize("shape", [(4, 2), (4, 2, 3), (4, 3, 1)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(DataError, match=r"\[rows, 3, 2\]"):
        SCHEMA.validate(np.zeros(shape, dtype=np.float32))


def test_text_is_refused():
    with pytest.raises(DataError, match="give numbers"):
        SCHEMA.validate(np.array([["a"]]))


def test_digest_ignores_the_version_and_sees_everything_else():
    later = Schema(SCHEMA.channels, version=2, window=3)
    other = Schema((Channel("ax", "m/s^2", -8, 8, rate_hz=50.0), SCHEMA.channels[1]), window=3)
    assert SCHEMA.digest == later.digest != other.digest
    assert Schema(SCHEMA.channels, window=4).digest != SCHEMA.digest


def test_json_round_trip_keeps_infinite_limits():
    schema = Schema((Channel("a", "1", -math.inf, math.inf), Channel("b", "1", 0, math.inf)))
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict(), allow_nan=False))) == schema


def test_from_dict_refuses_other_content():
    with pytest.raises(DataError, match="not a schema"):
        Schema.from_dict({"channels": [{"name": "a"}], "version": 1, "window": 0})


def changed(**fields):
    first = {**SCHEMA.channels[0].__dict__, **fields}
    return Schema((Channel(**first), SCHEMA.channels[1]), window=3)


@pytest.mark.parametrize(
    ("newer", "verdict"),
    [
        (SCHEMA, Compatibility.SAME),
        (changed(low=-16, high=16), Compatibility.WIDER),
        (changed(missing=True), Compatibility.WIDER),
        (changed(low=-4), Compatibility.BROKEN),
        (changed(unit="m/s^2"), Compatibility.BROKEN),
        (changed(rate_hz=25.0), Compatibility.BROKEN),
        (changed(name="ay"), Compatibility.BROKEN),
        (Schema(SCHEMA.channels, window=6), Compatibility.BROKEN),
    ],
)
def test_compare_says_what_a_change_means(newer, verdict):
    found, lines = SCHEMA.compare(newer)
    assert found is verdict
    assert bool(lines) == (verdict is not Compatibility.SAME)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Schema(()),
        lambda: Schema((Channel("a", "1", 0, 1), Channel("a", "1", 0, 1))),
        lambda: Channel("a", "1", 1, 0),
        lambda: Channel("", "1", 0, 1),
        lambda: Channel("a", "1", 0, 1, rate_hz=-1.0),
        lambda: Channel("a", "1", 0, 1, dtype="float33"),
        lambda: Schema((Channel("a", "1", 0, 1),), version=0),
    ],
)
def test_impossible_schemas_are_refused(make):
    with pytest.raises(ConfigError):
        make()
