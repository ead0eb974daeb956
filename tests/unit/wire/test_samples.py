"""Raw samples as messages: what comes back, and what is refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedretrain.wire.control import MalformedError
from fedretrain.wire.samples import MAX_BYTES, MAX_ROWS, Samples, decode_samples, encode_samples
from fedretrain.wire.sequence import Key, Priority

KEY = Key("0" * 32, 3, Priority.SAMPLES, 17)


def test_samples_come_back_as_they_were():
    made = Samples(np.array([1.5, 2.5]), np.array([[1.0, np.nan], [0.1, -3.0]]), KEY, 2)
    found = decode_samples(encode_samples(made))
    np.testing.assert_array_equal(found.rows, made.rows)
    np.testing.assert_array_equal(found.at_N, made.at_N)
    assert (found.key, found.oldest_boot) == (KEY, 2)


def test_windows_and_one_instant_for_all_rows():
    found = decode_samples(b'{"at": 5, "rows": [[[1], [2]], [[3], [null]]]}')
    assert found.rows.shape == (2, 2, 1)
    assert found.at_N.tolist() == [5.0, 5.0]
    assert found.key is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": None}, "rows"),
        ({"rows": []}, "rows"),
        ({"rows": [1.0]}, "rows"),
        ({"rows": [[1.0], [1.0, 2.0]]}, "rows"),
        ({"rows": [["1"]]}, "rows"),
        ({"rows": [[True]]}, "rows"),
        ({"rows": [[10**400]]}, "rows"),
        ({"rows": [[float("inf")]]}, "rows"),
        ({"rows": [[{"a": 1}]]}, "rows"),
        ({"rows": [[0.0]] * (MAX_ROWS + 1)}, "rows"),
        ({"at": None}, "at"),
        ({"at": "now"}, "at"),
        ({"at": float("nan")}, "at"),
        ({"at": -1.0}, "at"),
        ({"at": [1.0, 2.0]}, "at"),
        ({"at": True}, "at"),
        ({"sequence": -1}, "sequence"),
        ({"sequence": 2**53}, "sequence"),
        ({"boot": 1.0}, "boot"),
        ({"installation": "0" * 31}, "installation"),
        ({"installation": "G" * 32}, "installation"),
        ({"oldest_boot": "1"}, "oldest_boot"),
        ({"more": 1}, "message"),
    ],
)
def test_what_is_wrong_is_named(change, named):
    said = {"at": 1.0, "rows": [[1.0]], "installation": "0" * 32, "boot": 1, "sequence": 0}
    with pytest.raises(MalformedError, match=f"^{named}: "):
        decode_samples(json.dumps(said | change).encode())


@pytest.mark.parametrize("missing", ["installation", "boot", "sequence"])
def test_half_a_number_is_none(missing):
    said = {"at": 1.0, "rows": [[1.0]], "installation": "0" * 32, "boot": 1, "sequence": 0}
    del said[missing]
    with pytest.raises(MalformedError, match=f"^{missing}: missing"):
        decode_samples(json.dumps(said).encode())


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b" " * (MAX_BYTES + 1)])
def test_what_is_no_message_is_refused(payload):
    with pytest.raises(MalformedError, match=r"^message: "):
        decode_samples(payload)


_VALUE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_JSON = _VALUE | st.lists(_VALUE | st.lists(_VALUE | st.lists(_VALUE, max_size=2), max_size=3), max_size=3)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=200)
    | st.fixed_dictionaries({"at": _JSON, "rows": _JSON}).map(json.dumps).map(str.encode)
)
def test_nothing_that_is_sent_raises_anything_else(payload):
    try:
        found = decode_samples(payload)
    except MalformedError:
        return
    assert len(found.at_N) == len(found.rows) > 0
