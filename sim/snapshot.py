"""What objects hold, as bytes, and back into objects that were built anew: a life under way on disk.

Rules of this file:
    * Nothing in the bytes is code: classes are named, looked up among ours, and filled without being called.
    * What is built from the configuration and never changes (`kept`, and functions) is not written; where it stood, the new
      object's own stands.
    * One object under two names is one object under two names afterwards; an array that is a view becomes one of its own.
    * What is of no known kind is refused with its path when it is written: nothing is left out silently.
    * The bytes are one safetensors file: a tree as JSON, the content of all arrays, and the digest of both. What is damaged is
      refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections import Counter, deque
from enum import Enum
from functools import cached_property, lru_cache
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_OURS = ("fedretrain.", "sim.")
_SEQUENCES: dict[str, Any] = {t.__name__: t for t in (list, tuple, set, frozenset, deque)}
_MAPPINGS: dict[str, Any] = {t.__name__: t for t in (dict, Counter)}


def dump(value: Any, *, kept: Callable[[Any], bool] = lambda _: False) -> bytes:
    """What a value holds.

    Args:
        value: Numbers, text, arrays, containers, enums, and objects of our classes.
        kept: What is built from the configuration and never changes; it is not written.

    Raises:
        TypeError: If something in it is of no known kind.
    """
    import safetensors.numpy

    writer = _Writer(kept)
    tree = json.dumps(writer.node(value, type(value).__name__)).encode()
    blob = b"".join(writer.parts)
    arrays = {"tree": tree, "blob": blob, "digest": _digest(tree, blob)}
    return bytes(safetensors.numpy.save({k: np.frombuffer(v, np.uint8) for k, v in arrays.items()}))


def load(data: bytes, where: str, *, into: Any = None) -> Any:
    """The value of `dump`.

    Args:
        data: The bytes.
        where: Where they come from, for messages.
        into: An object built anew, of the class of the one that was written: it is filled, and what was kept stays its own.

    Raises:
        DataError: If they are damaged, or of another version of our classes.
    """
    import safetensors.numpy
    from safetensors import SafetensorError

    try:
        tree, blob = _checked(safetensors.numpy.load(data))
        return _Reader(blob).value(json.loads(tree), into)
    except (
        SafetensorError,
        KeyError,
        IndexError,
        ValueError,
        TypeError,
        AttributeError,
        ImportError,
    ) as error:
        raise DataError(
            f"the checkpoint is damaged or of another version: {error}",
            where=where,
            fix="start the run again",
        ) from error


def _checked(arrays: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Tree and content of the arrays.

    Raises:
        ValueError: If they are not what was written.
    """
    tree, blob = arrays["tree"].tobytes(), arrays["blob"].tobytes()
    if arrays["digest"].tobytes() != _digest(tree, blob):
        raise ValueError("its content is not what was written")
    return tree, blob


def _digest(*parts: bytes) -> bytes:
    content = hashlib.sha256()
    for part in parts:
        content.update(part)
    return content.digest()


class _Writer:
    """Turns values into nodes: plain JSON for what JSON has, else a list that begins with its kind."""

    def __init__(self, kept: Callable[[Any], bool]) -> None:
        self._kept = kept
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []  # an id is an object's own for as long as it lives
        self._size = 0
        self.parts: list[bytes] = []

    def node(self, value: Any, path: str) -> Any:
        """The node of a value that stands at a path."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, (FunctionType, MethodType)) or self._kept(value):
            return ["kept"]
        if isinstance(value, Enum):
            return ["enum", _name(type(value), path), value.value]
        if isinstance(value, np.generic):
            return ["scalar", value.dtype.str, value.item()]
        if isinstance(value, (tuple, frozenset)):
            return self._fixed(value, path)
        if id(value) in self._numbers:
            return ["same", self._numbers[id(value)]]
        self._numbers[id(value)] = len(self._alive)
        self._alive.append(value)
        return self._array(value, path) if isinstance(value, np.ndarray) else self._object(value, path)

    def _object(self, value: Any, path: str) -> Any:
        """Of what may change, or be known by several names."""
        kind = type(value).__name__
        if type(value) is _SEQUENCES.get(kind):
            return [kind, [self.node(one, f"{path}[{i}]") for i, one in enumerate(value)]]
        if type(value) is _MAPPINGS.get(kind):
            pairs = value.items()
            return [kind, [[self.node(k, path), self.node(v, f"{path}[{k!r}]")] for k, v in pairs]]
        name = _name(type(value), path)
        return ["object", name, {k: self.node(v, f"{path}.{k}") for k, v in _held(value).items()}]

    def _fixed(self, value: Any, path: str) -> Any:
        """Of what never changes: equality is enough, no number is needed."""
        nodes = [self.node(one, f"{path}[{i}]") for i, one in enumerate(value)]
        if type(value) in (tuple, frozenset):
            return [type(value).__name__, nodes]
        return ["named", _name(type(value), path), nodes]

    def _array(self, value: np.ndarray[Any, Any], path: str) -> Any:
        if value.dtype.kind not in "biuf":
            raise TypeError(f"{path} is an array of {value.dtype}: a checkpoint has no place for it")
        content = np.ascontiguousarray(value).tobytes()
        self.parts.append(content)
        self._size += len(content)
        return ["array", value.dtype.str, list(value.shape), self._size - len(content)]


class _Reader:
    """Turns nodes back into values."""

    def __init__(self, blob: bytes) -> None:
        self._blob = blob
        self._made: list[Any] = []
        self._filled: set[int] = set()

    def value(self, node: Any, current: Any = None) -> Any:
        """The value of a node; `current` is what stands in its place in the object built anew."""
        if not isinstance(node, list):
            return node
        kind, *rest = node
        if kind == "kept":
            if current is None:
                raise ValueError("nothing stands where something was kept")
            return current
        if kind == "same":
            return self._made[rest[0]]
        if kind == "enum":
            return _find(rest[0])(rest[1])
        if kind == "scalar":
            return np.dtype(rest[0]).type(rest[1])
        if kind == "array":
            return self._array(*rest)
        if kind == "object":
            return self._object(rest[0], rest[1], current)
        return self._container(kind, rest, current)

    def _array(self, dtype: str, shape: list[int], offset: int) -> Any:
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(self._blob, np.dtype(dtype), count, offset).reshape(shape).copy()
        self._made.append(array)
        return array

    def _container(self, kind: str, rest: list[Any], current: Any) -> Any:
        if kind in ("tuple", "frozenset"):
            return _SEQUENCES[kind](self._children(rest[0], current))
        if kind == "named":
            return tuple.__new__(_find(rest[0]), self._children(rest[1], current))
        made: Any = (_SEQUENCES | _MAPPINGS)[kind]()
        self._made.append(made)
        if kind in _MAPPINGS:
            old = current if isinstance(current, dict) else {}
            for key_node, node in rest[0]:
                key = self.value(key_node)
                made[key] = self.value(node, old.get(key))
        else:
            add = made.add if kind == "set" else made.append
            for one in self._children(rest[0], current):
                add(one)
        return made

    def _children(self, nodes: list[Any], current: Any) -> list[Any]:
        old = list(current) if isinstance(current, (list, tuple)) and len(current) == len(nodes) else []
        return [self.value(node, old[i] if old else None) for i, node in enumerate(nodes)]

    def _object(self, name: str, nodes: dict[str, Any], current: Any) -> Any:
        cls = _find(name)
        anew = type(current) is not cls or _is_frozen(cls) or id(current) in self._filled
        self._filled.add(id(current))
        made = object.__new__(cls) if anew else current
        self._made.append(made)
        wanted = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else None
        wanted = set(_held(current)) if not anew else wanted
        if wanted is not None and wanted != set(nodes):
            raise ValueError(f"{name} has other fields: {sorted(wanted ^ set(nodes))}")
        values = {key: self.value(node, getattr(current, key, None)) for key, node in nodes.items()}
        vars(made).clear()  # with whatever was worked out from what it held
        vars(made).update(values)
        return made


def _held(value: Any) -> dict[str, Any]:
    """What an object holds, without what it works out from that."""
    cls = type(value)
    return {k: v for k, v in vars(value).items() if not isinstance(getattr(cls, k, None), cached_property)}


def _name(cls: type, path: str) -> str:
    ours = cls.__module__.startswith(_OURS) and "<" not in cls.__qualname__
    if not ours:
        raise TypeError(f"{path} is a {cls.__module__}.{cls.__qualname__}: a checkpoint has no place for it")
    return f"{cls.__module__}:{cls.__qualname__}"


@lru_cache(maxsize=512)
def _find(name: str) -> Any:
    """A class of ours by its name.

    Raises:
        ValueError: If it names anything else.
    """
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module) if module.startswith(_OURS) else None
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not found.__module__.startswith(_OURS):
        raise ValueError(f"there is no class {name}")
    return found


def _is_frozen(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) and bool(cls.__dataclass_params__.frozen)  # type: ignore[attr-defined]
