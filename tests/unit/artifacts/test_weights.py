"""Canonical weights: one tree, one sequence of bytes, one digest."""

import hashlib

import numpy as np
import pytest
import safetensors.numpy

from fedretrain.artifacts.weights import decode_params, encode_params, params_digest
from fedretrain.core.errors import DataError

TREE = {
    "head.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "é": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "bias": np.array([1.0, -0.0], np.float64),
}


def test_the_library_reads_what_is_written():
    read = safetensors.numpy.load(encode_params(TREE))
    assert sorted(read) == sorted(TREE)
    for name, leaf in TREE.items():
        assert read[name].dtype == np.float32
        assert read[name].shape == np.shape(leaf)
        assert read[name].tobytes() == np.asarray(leaf, np.float32).tobytes()


def test_the_digest_is_that_of_the_bytes_and_never_changes():
    assert params_digest(TREE) == hashlib.sha256(encode_params(TREE)).hexdigest()
    written = b'\x38\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    assert encode_params({"a": np.ones(1)}) == written.ljust(64) + b"\0\0\x80?"


def test_order_type_and_memory_layout_do_not_change_the_digest():
    other = {name: np.asfortranarray(np.asarray(TREE[name], ">f8")) for name in reversed(TREE)}
    other["é"] = np.array(2.5, np.float16)
    assert params_digest(other) == params_digest(TREE)


@pytest.mark.parametrize(
    "other",
    [
        TREE | {"bias": np.array([1.0, 0.0])},
        TREE | {"head.weight": TREE["head.weight"].reshape(3, 2)},
        TREE | {"empty": np.zeros((0, 2))},
        {name + "x": leaf for name, leaf in TREE.items()},
    ],
)
def test_another_tree_has_another_digest(other):
    assert params_digest(other) != params_digest(TREE)


@pytest.mark.parametrize("tree", [TREE, {}])
def test_decode_returns_the_tree(tree):
    read = decode_params(encode_params(tree))
    assert list(read) == sorted(tree)
    assert encode_params(read) == encode_params(tree)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 40,
        encode_params(TREE)[:-1],
        encode_params(TREE) + b"\0",
        safetensors.numpy.save({"a": np.ones(2, np.float32)}, metadata={"by": "hand"}),
        safetensors.numpy.save({"a": np.ones(2, np.float64)}),
        safetensors.numpy.save({"a": np.ones(2, np.int32)}),
        safetensors.numpy.save({"a": np.full(2, np.nan, np.float32)}),
    ],
)
def test_bytes_that_are_not_canonical_are_refused(content):
    with pytest.raises(DataError):
        decode_params(content)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_refused_by_name(value):
    with pytest.raises(DataError, match="NaN or infinite") as caught:
        params_digest({"w": np.array([0.0, value])})
    assert caught.value.where == "w"


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.complex64, object])
def test_other_types_are_refused_by_name(dtype):
    with pytest.raises(DataError, match="floating-point") as caught:
        params_digest({"steps": np.ones(2, dtype)})
    assert caught.value.where == "steps"


@pytest.mark.parametrize("name", ["__metadata__", "\ud800", 3])
def test_names_that_a_file_cannot_hold_are_refused(name):
    with pytest.raises(DataError, match="cannot name a parameter"):
        params_digest({name: np.ones(1)})
