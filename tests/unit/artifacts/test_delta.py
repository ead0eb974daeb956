"""Canonical int8 deltas: the same digest by every way, half a step of error, no malformed input gets through."""

import hashlib
from fractions import Fraction

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedretrain.artifacts.delta import (
    HEADER,
    MAGIC,
    Delta,
    _sum,
    apply_delta,
    decode_delta,
    encode_delta,
    quantise,
    release,
)
from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.weights import decode_params, params_digest
from fedretrain.core.errors import DataError

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@st.composite
def pairs(draw):
    """A base and new weights of the same names and shapes."""
    shapes = draw(
        st.dictionaries(st.text(max_size=3).filter(lambda n: n != "__metadata__"), SHAPES, max_size=3)
    )
    return tuple(
        {name: draw(hnp.arrays(np.float32, shape, elements=FLOATS)) for name, shape in shapes.items()}
        for _ in range(2)
    )


def model(seed=0, shift=0.01):
    rng = np.random.default_rng(seed)
    base = {
        "conv": rng.normal(size=(8, 4, 3)).astype(np.float32),
        "bias": rng.normal(size=8).astype(np.float32),
        "temperature": np.float32(1.5),
        "unused": np.zeros((0, 5), np.float32),
        "hollow": np.zeros((5, 0), np.float32),
        "frozen": rng.normal(size=(16, 64)).astype(np.float32),
    }
    new = {
        name: leaf if name == "frozen" else (leaf + rng.normal(0, shift, np.shape(leaf))).astype(np.float32)
        for name, leaf in base.items()
    }
    return base, new


BASE, NEW = model()
ENCODED = encode_delta(quantise(BASE, NEW))


def scales_by_name(delta):
    out, start = {}, 0
    for name, shape in zip(delta.layout.names, delta.layout.shapes, strict=True):
        rows = shape[0] if shape else 1
        out[name] = (
            delta.scales[start : start + rows].astype(np.float64).reshape((rows,) + (1,) * (len(shape) - 1))
        )
        start += rows
    assert start == delta.scales.size
    return out


@settings(max_examples=300, deadline=None)
@given(pairs())
def test_every_way_leads_to_the_released_digest_within_half_a_step(pair):
    base, new = pair
    released = release(base, new)
    delta = quantise(base, new)
    result = apply_delta(base, decode_delta(encode_delta(delta), base))
    assert params_digest(result) == released.digest == params_digest(released.weights)
    assert released.digest == hashlib.sha256(released.full_bytes).hexdigest()
    assert params_digest(decode_params(released.full_bytes)) == released.digest
    if released.delta_bytes is not None:
        assert len(released.delta_bytes) < len(released.full_bytes)
        shipped = apply_delta(base, decode_delta(released.delta_bytes, base))
        assert params_digest(shipped) == released.digest
    assert delta.residuals.dtype == np.int8
    assert delta.residuals.min(initial=0) >= -127
    scales = scales_by_name(delta)
    for name, leaf in result.items():
        assert leaf.dtype == np.float32
        assert leaf.shape == new[name].shape
        error = np.abs(leaf.astype(np.float64) - new[name])
        scale = scales[name] if leaf.ndim else scales[name].reshape(())
        # Half a step, and half a unit in the last place for the one rounding to float32.
        larger = np.maximum(np.abs(leaf), np.abs(new[name])).astype(np.float64)
        rounding = np.maximum(larger * 2.0**-24, 2.0**-150)
        assert (error <= scale / 2 * (1 + 1e-12) + rounding).all()


def test_the_released_weights_are_base_plus_scale_times_residual():
    base = {"w": np.array([[1.0, 2.0], [0.5, 0.5], [3.0, 3.0]], np.float32)}
    new = {"w": np.array([[1.0, 129.0], [0.5, 0.5], [-124.0, 3.25]], np.float32)}
    delta = quantise(base, new)
    assert delta.scales.tolist() == [1.0, 0.0, 1.0]
    assert delta.residuals.tolist() == [0, 127, 0, 0, -127, 0]
    assert apply_delta(base, delta)["w"].tolist() == [[1.0, 129.0], [0.5, 0.5], [-124.0, 3.0]]


def test_the_digests_of_a_fixed_release_never_change():
    base = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
    new = {"w": np.linspace(-1, 1.3, 12, dtype=np.float32).reshape(3, 4)}
    assert release(base, new).digest == "43802c7ae4bd228b68def46c67607d9d165c6faad8d3e95100f5c2ef38890bd1"


def test_the_sum_is_that_of_exact_arithmetic_rounded_to_double_then_single():
    delta = quantise(BASE, NEW)
    result, start = apply_delta(BASE, delta), 0
    scales = scales_by_name(delta)
    for name, size in zip(delta.layout.names, delta.layout.sizes, strict=True):
        steps = np.broadcast_to(scales[name], np.atleast_1d(BASE[name]).shape).reshape(-1)
        for place in range(size):
            exact = Fraction(float(BASE[name].reshape(-1)[place]))
            exact += Fraction(float(steps[place])) * int(delta.residuals[start + place])
            assert result[name].reshape(-1)[place] == np.float32(float(exact))
        start += size


def test_a_store_keeps_the_full_file_under_the_released_digest(tmp_path):
    store, released = ContentStore(tmp_path), release(BASE, NEW)
    assert store.put(released.full_bytes) == released.digest
    assert params_digest(decode_params(store.get(released.digest))) == released.digest


@pytest.mark.parametrize("tiny", [1e-45, 1e-43, 1e-38])
def test_the_smallest_changes_survive(tiny):
    base, new = {"w": np.zeros((1, 2), np.float32)}, {"w": np.array([[tiny, 0]], np.float32)}
    assert apply_delta(base, quantise(base, new))["w"][0, 0] > 0


def test_the_largest_change_stays_finite():
    end = np.finfo(np.float32).max
    base, new = {"w": np.array([-end, end])}, {"w": np.array([end, -end])}
    assert np.isfinite(apply_delta(base, quantise(base, new))["w"]).all()


def test_a_small_change_ships_as_a_delta_and_no_change_as_almost_nothing():
    released = release(BASE, NEW)
    assert released.shipped == released.delta_bytes
    assert len(released.shipped) < len(released.full_bytes) / 4
    same = release(BASE, BASE)
    assert params_digest(same.weights) == params_digest(BASE)
    assert len(same.shipped) < HEADER.size + 100


def test_where_the_full_file_is_smaller_it_ships_with_the_same_digest():
    base, new = {"w": np.zeros(1, np.float32)}, {"w": np.full(1, 0.1, np.float32)}
    released = release(base, new)
    assert released.delta_bytes is None
    assert released.shipped == released.full_bytes
    assert released.digest == quantise(base, new).result_digest


def test_a_first_release_is_the_new_weights():
    released = release(None, NEW)
    assert released.delta_bytes is None
    assert released.digest == params_digest(NEW)


@pytest.mark.parametrize(
    "other", [{"w": np.zeros((2, 3))}, {"v": np.zeros((3, 2))}, {}, {"w": np.zeros((3, 2)), "b": np.zeros(1)}]
)
def test_other_names_or_shapes_are_refused(other):
    with pytest.raises(DataError, match="other names or shapes"):
        release({"w": np.zeros((3, 2))}, other)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_on_both_sides(value):
    sound, broken = {"w": np.zeros(2)}, {"w": np.array([0, value])}
    for pair in ((sound, broken), (broken, sound)):
        with pytest.raises(DataError, match="NaN or infinite"):
            quantise(*pair)


def test_a_delta_for_another_base_is_refused():
    with pytest.raises(DataError, match="is for the base"):
        decode_delta(ENCODED, NEW)
    with pytest.raises(DataError, match="is for the base"):
        apply_delta(NEW, quantise(BASE, NEW))


def test_a_delta_that_leads_elsewhere_is_refused():
    delta = quantise(BASE, NEW)
    wrong = Delta(delta.base_digest, delta.base_digest, delta.layout, delta.scales, delta.residuals)
    with pytest.raises(DataError, match="leads to"):
        apply_delta(BASE, decode_delta(encode_delta(wrong), BASE))


def framed(body, version=1, magic=MAGIC, **options):
    base = {"w": np.zeros((2, 3), np.float32)}
    digest = bytes.fromhex(params_digest(base))
    frame = body if options.get("raw") else zstandard.ZstdCompressor(**options).compress(body)
    return base, HEADER.pack(magic, version, digest, digest) + frame


BODY = bytes(2 * 4 + 6)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (framed(BODY, version=2), "format 2"),
        (framed(BODY, magic=b"FRDELTB\0"), "begin"),
        (framed(BODY[:-1]), "claims 13 bytes"),
        (framed(BODY + b"\0"), "claims 15 bytes"),
        (framed(bytes(1 << 28), level=1), "claims"),
        (framed(BODY, write_content_size=False), "claims -1"),
        (framed(b"", raw=True), "not a delta"),
        (framed(zstandard.compress(BODY) + b"\0", raw=True), "not a delta"),
        (framed(zstandard.compress(BODY)[:-1], raw=True), "not a delta"),
        (framed(np.array([1, np.nan], "<f4").tobytes() + bytes(6)), "scale"),
        (framed(np.array([1, np.inf], "<f4").tobytes() + bytes(6)), "scale"),
        (framed(np.array([1, -1], "<f4").tobytes() + bytes(6)), "scale"),
        (framed(np.array([1, -0.0], "<f4").tobytes() + bytes(6)), "scale"),
        (framed(bytes(8) + b"\x80" + bytes(5)), "residual"),
    ],
)
def test_malformed_deltas_say_why(case, said):
    base, content = case
    with pytest.raises(DataError, match=said) as caught:
        decode_delta(content, base)
    assert caught.value.where == "delta"
    assert caught.value.fix


@pytest.mark.parametrize(
    "change", [lambda f: f + b"\0", lambda f: f[:-1], lambda f: f[:-1] + b"\0", lambda _: b""]
)
def test_noise_after_an_empty_tree_is_refused(change):
    content = encode_delta(quantise({}, {}))
    assert apply_delta({}, decode_delta(content, {})) == {}
    with pytest.raises(DataError, match="not a delta"):
        decode_delta(content[: HEADER.size] + change(content[HEADER.size :]), {})


def test_a_frame_that_hides_its_true_size_is_refused():
    frame = bytearray(zstandard.compress(bytes(1 << 24), level=1))
    place = bytes(frame).index((1 << 24).to_bytes(4, "little"))
    frame[place : place + 4] = len(BODY).to_bytes(4, "little")
    assert zstandard.frame_content_size(bytes(frame)) == len(BODY)
    base, content = framed(bytes(frame), raw=True)
    with pytest.raises(DataError, match="not a delta"):
        decode_delta(content, base)


def decode_and_apply(content):
    """The digest that the bytes lead to, or None where they are refused as they should be."""
    try:
        return params_digest(apply_delta(BASE, decode_delta(content, BASE)))
    except DataError:
        return None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, HEADER.size))
def test_arbitrary_bytes_are_a_data_error(noise, kept):
    assert decode_and_apply(ENCODED[:kept] + noise) is None


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(ENCODED) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_nothing(place, change):
    content = bytearray(ENCODED)
    content[place] ^= change
    assert decode_and_apply(bytes(content)) in {None, release(BASE, NEW).digest}


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(ENCODED) - 1))
def test_a_cut_delta_is_a_data_error(length):
    assert decode_and_apply(ENCODED[:length]) is None


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=14, max_size=14))
def test_well_framed_noise_is_a_data_error_or_finite_weights(body):
    base, content = framed(body)
    try:
        delta = decode_delta(content, base)
    except DataError:
        return
    with np.errstate(all="raise", under="ignore"):
        result = _sum(delta.layout.pack(base), delta.layout, delta.scales, delta.residuals)
    assert np.isfinite(result).all()
