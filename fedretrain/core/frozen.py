"""Frozen dataclasses with arrays as bytes, and back: baselines and bins that a process writes and another one reads.

Rules of this file:
    * The same value gives the same bytes; what is read has the same types and bits, NaN and infinity among them.
    * Nothing in the bytes names code: the reader says which class it wants, and its annotations say the rest.
    * Sizes are checked before an array is made.
"""

from __future__ import annotations

import base64
import binascii
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedretrain.core.errors import DataError

T = TypeVar("T")
_DTYPES = frozenset(
    ("float64", "float32", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
)
_NAMES: Mapping[str, Any] = {
    "NDArray": NDArray,
    "np": np,
    "Mapping": Mapping,
    "Sequence": Sequence,
}
"""What modules import for type checking only, and annotations name."""


def freeze(value: Any) -> bytes:
    """A dataclass as bytes.

    Args:
        value: Of dataclasses, mappings, tuples, arrays, enums and plain values.

    Raises:
        TypeError: If something else is in it.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":")).encode()


def thaw(cls: type[T], content: bytes, *parts: type) -> T:
    """The dataclass of `freeze`.

    Args:
        cls: Its class.
        content: The bytes.
        parts: Classes that annotations name and their module imports for type checking only.

    Raises:
        DataError: If the bytes are none of this class.
    """
    try:
        value: T = _read(cls, json.loads(content), {**_NAMES, **{part.__name__: part for part in parts}})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error) as error:
        raise DataError(
            f"these are not the bytes of a {cls.__name__}: {error}", where=cls.__name__
        ) from error
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if str(value.dtype) not in _DTYPES:
            raise TypeError(f"an array of {value.dtype}")
        flat = np.ascontiguousarray(value)
        return [str(value.dtype), list(value.shape), base64.b64encode(flat.tobytes()).decode()]
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be kept")


def _read(hint: Any, value: Any, names: dict[str, Any]) -> Any:
    origin = typing.get_origin(hint)
    if hint is np.ndarray or origin is np.ndarray:
        return _array(value)
    if origin in (typing.Union, types.UnionType):
        kinds = [one for one in typing.get_args(hint) if one is not type(None)]
        return None if value is None else _read(kinds[0], value, names)
    if origin is not None and issubclass(origin, Mapping):
        key, item = typing.get_args(hint)
        return {_read(key, name, names): _read(item, one, names) for name, one in value.items()}
    if origin is not None and issubclass(origin, (tuple, Sequence)):
        return tuple(_read(typing.get_args(hint)[0], one, names) for one in value)
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint, localns=names)
        made: Any = hint
        return made(**{name: _read(hints[name], one, names) for name, one in value.items()})
    return hint(value)


def _array(value: Any) -> np.ndarray[Any, Any]:
    dtype, shape, text = value
    if dtype not in _DTYPES:
        raise ValueError(f"an array of {dtype!r}")
    raw = base64.b64decode(text, validate=True)
    if any(size < 0 for size in shape) or len(raw) != int(np.prod(shape)) * np.dtype(dtype).itemsize:
        raise ValueError(f"an array whose bytes are not of the shape {shape}")
    return np.frombuffer(raw, dtype).reshape(shape).copy()
