"""Each step: what it does to numbers, and what it does to the frame."""

import numpy as np
import pytest

from fedretrain.core import rng
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.features.frame import Frame
from fedretrain.features.scaler import KINDS, Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.features.steps import (
    ChannelFirst,
    Clip,
    Flatten,
    Impute,
    LocalContext,
    LogSigned,
    Magnitude,
    MissingIndicator,
    Select,
    Statistics,
)

SCHEMA = Schema(tuple(Channel(n, "g", -2, 2, rate_hz=10.0, missing=True) for n in "abc"), window=4)
FRAME = Frame.of(SCHEMA)
X = rng.generator(1).normal(size=(6, 4, 3)).astype(np.float32)


def with_gaps():
    x = X.copy()
    x[0, 0, 0] = x[0, 2, 0] = x[1, :, 1] = np.nan
    return x


STEPS = [
    Select(("c", "a")),
    MissingIndicator(("b",)),
    Impute("forward"),
    Impute("mean"),
    Impute("constant", 1.0),
    Clip(),
    LogSigned(0.1),
    LogSigned(0.1, ("b",)),
    LogSigned(0.1, ("b", "c"), append=True),
    Magnitude((("a", "b"), ("c",))),
    Statistics(("mean", "correlations")),
    Flatten(),
    ChannelFirst(),
    LocalContext(),
    *(Scaler(how, (0.0,) * (how == "fixed"), (2.0,) * (how == "fixed")) for how in KINDS),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda s: f"{s.kind}-{getattr(s, 'how', '')}")
def test_every_step_is_row_wise_pure_and_names_what_comes_out(step):
    before = X.copy()
    fitted = step.fit(X, FRAME)
    out = fitted.apply(X)
    np.testing.assert_array_equal(X, before)
    axis = 1 if isinstance(step, ChannelFirst) else -1
    names = fitted.frame(FRAME).names
    assert out.shape[axis] == len(names) == len(set(names))
    np.testing.assert_array_equal(np.concatenate([fitted.apply(X[:2]), fitted.apply(X[2:])]), out)
    assert out.dtype == np.float32


def test_select_takes_channels_in_the_order_given():
    np.testing.assert_array_equal(Select(("c", "a")).fit(X, FRAME).apply(X), X[..., [2, 0]])
    with pytest.raises(ConfigError, match="'z'"):
        Select(("z",)).fit(X, FRAME)


def test_forward_fill_uses_the_last_value_then_the_constant():
    x = np.array([[[np.nan], [1.0], [np.nan], [3.0]], [[np.nan]] * 4], dtype=np.float32)
    filled = Impute("forward", value=-5.0).apply(x)
    assert filled[0, :, 0].tolist() == [-5.0, 1.0, 1.0, 3.0]
    assert (filled[1] == -5.0).all()


def test_mean_imputation_ignores_gaps_and_is_pooled():
    x = with_gaps()
    step = Impute("mean").fit(x, FRAME)
    assert step.pooled
    assert step.means[0] == pytest.approx(np.nanmean(x[..., 0]), rel=1e-5)
    assert not np.isnan(step.apply(x)).any()
    assert not Impute("forward").pooled


def test_a_channel_without_any_value_is_imputed_by_the_constant():
    x = np.full((2, 4, 3), np.nan, dtype=np.float32)
    assert Impute("mean", value=2.0).fit(x, FRAME).apply(x) == pytest.approx(2.0)


def test_indicators_say_where_values_are_missing():
    out = MissingIndicator(("a", "b")).fit(X, FRAME).apply(with_gaps())
    np.testing.assert_array_equal(out[..., 3:], np.isnan(with_gaps()[..., :2]))


def test_clip_keeps_nan_and_open_sides():
    schema = Schema((Channel("a", "1", 0, 1), Channel("b", "1", -np.inf, np.inf)))
    x = np.array([[5.0, 5e30], [np.nan, -7.0]], dtype=np.float32)
    out = Clip().fit(x, Frame.of(schema)).apply(x)
    assert out[0].tolist() == [1.0, np.float32(5e30)]
    assert np.isnan(out[1, 0])
    assert out[1, 1] == -7.0


def test_log_signed_is_odd_and_inverts():
    out = LogSigned(0.5).fit(X, FRAME).apply(X)
    np.testing.assert_allclose(np.sign(out) * np.expm1(np.abs(out)) * 0.5, X, rtol=1e-5)
    only = LogSigned(0.5, ("b",)).fit(X, FRAME).apply(X)
    np.testing.assert_array_equal(only[..., [0, 2]], X[..., [0, 2]])
    np.testing.assert_array_equal(only[..., 1], out[..., 1])


@pytest.mark.parametrize("how", ["standard", "local"])
def test_standard_scaling_gives_mean_0_and_deviation_1(how):
    out = Scaler(how).fit(X, FRAME).apply(X)
    np.testing.assert_allclose(out.mean(axis=(0, 1)), 0.0, atol=1e-5)
    np.testing.assert_allclose(out.std(axis=(0, 1)), 1.0, atol=1e-4)


def test_scalers_leave_gaps_alone_and_ignore_them():
    x = with_gaps()
    for how in ("standard", "robust", "minmax", "instance", "local"):
        out = Scaler(how).fit(x, FRAME).apply(x)
        np.testing.assert_array_equal(np.isnan(out), np.isnan(x))


def test_minmax_and_range_scaling_reach_their_bounds():
    out = Scaler("minmax").fit(X, FRAME).apply(X)
    assert out.min() == 0.0
    assert out.max() == pytest.approx(1.0)
    ends = np.array([[[-2.0, 0.0, 2.0]] * 4], dtype=np.float32)
    assert Scaler("range").fit(ends, FRAME).apply(ends)[0, 0].tolist() == [-1.0, 0.0, 1.0]


def test_range_scaling_does_not_look_at_the_data():
    assert Scaler("range").fit(X, FRAME) == Scaler("range").fit(100.0 * X, FRAME)


def test_robust_scaling_ignores_one_wild_value():
    x = rng.generator(2).normal(size=(500, 1)).astype(np.float32)
    frame = Frame.of(Schema((Channel("a", "1", -np.inf, np.inf),)))
    wild = x.copy()
    wild[0] = 1e6
    calm, shaken = (Scaler("robust").fit(v, frame).scale[0] for v in (x, wild))
    assert shaken == pytest.approx(calm, rel=0.05)
    assert calm == pytest.approx(1.0, abs=0.15)


def test_instance_scaling_forgets_gain_and_offset():
    scaler = Scaler("instance")
    np.testing.assert_allclose(scaler.apply(X), scaler.apply(3.0 * X + 5.0), atol=2e-4)


def test_constant_channels_are_centred_not_divided():
    x = np.full((5, 4, 3), 3.0, dtype=np.float32)
    for how in ("standard", "robust", "minmax", "local", "instance"):
        assert (Scaler(how).fit(x, FRAME).apply(x) == 0.0).all()


def test_clip_bounds_what_a_scaler_gives_out():
    assert np.abs(Scaler("fixed", (0.0,), (0.01,), clip=3.0).apply(X)).max() == 3.0


def test_a_short_past_pulls_a_local_scaler_to_the_identity():
    few, many = (Scaler("local", prior=10.0).fit(np.repeat(X[:1] + 1.0, n, axis=0), FRAME) for n in (1, 1000))
    assert abs(few.center[0]) < 0.2 * abs(many.center[0])


def test_devices_without_a_past_get_neutral_local_numbers():
    empty = X[:0]
    assert Scaler("local").fit(empty, FRAME).apply(X) == pytest.approx(X)
    context = LocalContext().fit(empty, FRAME).apply(X)
    assert (context[..., 3:] == 0.0).all()


def test_local_context_appends_the_devices_own_mean():
    context = LocalContext().fit(X, FRAME).apply(X[:1])
    np.testing.assert_allclose(context[0, 0, 3:], X.mean(axis=(0, 1)), atol=1e-6)
    shrunk = LocalContext(prior=6.0).fit(X, FRAME).apply(X[:1])
    np.testing.assert_allclose(shrunk[0, 0, 3:], X.mean(axis=(0, 1)) / 2, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scaler("zscore"),
        lambda: Scaler("fixed"),
        lambda: Impute("backward"),
        lambda: LogSigned(0.0),
        lambda: Statistics(("kurtosis",)),
    ],
)
def test_impossible_steps_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_unfitted_numbers_and_empty_fits_are_refused():
    with pytest.raises(DataError, match="no numbers yet"):
        Scaler("standard").apply(X)
    with pytest.raises(DataError, match="no rows"):
        Scaler("standard").fit(X[:0], FRAME)
    with pytest.raises(DataError, match="context is not known"):
        LocalContext().apply(X)
    with pytest.raises(DataError, match="need windows"):
        Statistics(("mean",)).apply(X[:, 0])
