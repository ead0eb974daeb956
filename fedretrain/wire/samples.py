"""Raw samples of a device without our agent, as its gateway sends them over a broker: one JSON object a message.

``{"at": 1764442503.0, "rows": [[20.1, 3.4], [20.2, null]], "installation": "32 hex digits", "boot": 1, "sequence": 17}``

Rules of this file:
    * ``rows`` are what the model's schema says, in its order of channels: ``[N, C]``, or windows ``[N, T, C]``; null is missing.
    * ``at`` is when they were taken, seconds since the epoch: one number, or one for each row.
    * ``installation``, ``boot`` and ``sequence`` number messages as `fedretrain.wire.sequence` says, so that each counts once
      however often it comes: all three, or none where the transport has numbers of its own (Kafka's offsets).
      ``oldest_boot``, if given, is the oldest start whose messages may still come.
    * Sizes are bounded before an array is made, and what cannot be read is a `MalformedError` that names the field.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.wire.control import MalformedError
from fedretrain.wire.sequence import MAX_NUMBER, Key, Priority

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BYTES = 1024 * 1024
MAX_ROWS = 10_000
_KEYS = frozenset(("at", "rows", "installation", "boot", "sequence", "oldest_boot"))
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, eq=False)
class Samples:
    """A message.

    Attributes:
        at_N: ``[N]`` when each row was taken, seconds since the epoch.
        rows: ``[N, ...]`` float64, NaN where a value is missing.
        key: The message's name; None where it has none.
        oldest_boot: The oldest start whose messages may still come.
    """

    at_N: NDArray[np.float64]
    rows: NDArray[np.float64]
    key: Key | None = None
    oldest_boot: int = 0


def encode_samples(samples: Samples) -> bytes:
    """The message of samples."""
    said: dict[str, Any] = {
        "at": samples.at_N.tolist(),
        "rows": np.where(np.isnan(samples.rows), None, samples.rows).tolist(),  # type: ignore[call-overload]
    }
    if samples.key is not None:
        said |= {
            "installation": samples.key.installation,
            "boot": samples.key.boot,
            "sequence": samples.key.sequence,
            "oldest_boot": samples.oldest_boot,
        }
    return json.dumps(said, allow_nan=False).encode()


def decode_samples(payload: bytes) -> Samples:
    """The samples of a message.

    Raises:
        MalformedError: If it is none. Names the field first.
    """
    if len(payload) > MAX_BYTES:
        raise MalformedError(f"message: {len(payload)} bytes, at most {MAX_BYTES}")
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise MalformedError("message: not JSON") from error
    if not isinstance(said, dict):
        raise MalformedError("message: not a JSON object")
    unknown = sorted(set(said) - _KEYS)
    if unknown:
        raise MalformedError(f"message: an unknown key {unknown[0]!r:.40}")
    rows = _rows(said.get("rows"))
    return Samples(_instants(said.get("at"), len(rows)), rows, _key(said), _count(said, "oldest_boot", 0))


def _rows(given: Any) -> NDArray[np.float64]:
    if not isinstance(given, list) or not 0 < len(given) <= MAX_ROWS:
        raise MalformedError(f"rows: not a list of 1 to {MAX_ROWS}")
    try:
        values = np.array(given, dtype=object)
        if not all(value is None or type(value) in (int, float) for value in values.flat):
            raise MalformedError("rows: of different lengths, or not all numbers")
        found = values.astype(np.float64)
    except (ValueError, OverflowError) as error:
        raise MalformedError("rows: of different lengths, or too large") from error
    if found.ndim < 2 or np.isinf(found).any():
        raise MalformedError("rows: not lists of finite numbers")
    return found


def _instants(given: Any, num: int) -> NDArray[np.float64]:
    many = given if isinstance(given, list) else [given] * num
    if len(many) != num:
        raise MalformedError(f"at: {len(many)} instants for {num} rows")
    if not all(type(one) in (int, float) and math.isfinite(one) and 0 <= one < 2**40 for one in many):
        raise MalformedError("at: no seconds since the epoch")
    return np.array(many, dtype=np.float64)


def _key(said: dict[str, Any]) -> Key | None:
    names = ("installation", "boot", "sequence")
    given = [name for name in names if name in said]
    if not given:
        return None
    if len(given) < len(names):
        missing = next(name for name in names if name not in said)
        raise MalformedError(f"{missing}: missing, beside {given[0]}")
    installation = said["installation"]
    if not isinstance(installation, str) or len(installation) != 32 or not set(installation) <= _HEX:
        raise MalformedError("installation: not 32 hexadecimal digits")
    return Key(installation, _count(said, "boot"), Priority.SAMPLES, _count(said, "sequence"))


def _count(said: dict[str, Any], name: str, default: int | None = None) -> int:
    value = said.get(name, default)
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise MalformedError(f"{name}: not a count")
    return value
