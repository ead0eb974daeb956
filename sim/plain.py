"""Frozen dataclasses to JSON values and back, and the JSON Schema that both obey.

Rules of this file:
    * The annotations are the only source: scalars, enums, dataclasses, `X | None`, `tuple[X, ...]`, `Mapping[str, X]`.
    * JSON has no NaN and no infinity: they are written as null, and a null where a float is required reads as NaN.
    * A value that does not fit its annotation raises ValueError with the path to it, never a half-read record.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

_JSON_TYPES: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


@lru_cache(maxsize=256)
def hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of a dataclass, in the order of its fields."""
    resolved = typing.get_type_hints(cls)
    return {f.name: resolved[f.name] for f in dataclasses.fields(cls)}


def is_record(hint: Any) -> bool:
    """Whether an annotation is a dataclass."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def optional(hint: Any) -> tuple[Any, bool]:
    """The annotation without its None, and whether it had one."""
    if typing.get_origin(hint) not in {types.UnionType, typing.Union}:
        return hint, False
    kept = [a for a in typing.get_args(hint) if a is not type(None)]
    assert len(kept) == 1, f"unions other than X | None have no schema: {hint}"
    return kept[0], True


def to_plain(value: Any) -> Any:
    """A JSON value of dicts, lists, strings, numbers, booleans and None."""
    if value is None or type(value) in {str, int, bool}:  # most values by far
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def from_plain(cls: type[T], value: Any, where: str = "") -> T:
    """The record that `to_plain` wrote.

    Args:
        cls: A dataclass, or any annotation listed in this file's rules.
        value: A JSON value.
        where: Path to the value, for messages.

    Raises:
        ValueError: If a field is missing, unknown or of another type.
    """
    read: T = _read(cls, value, where or getattr(cls, "__name__", ""))
    return read


def _read(hint: Any, value: Any, where: str) -> Any:
    bare, may_be_none = optional(hint)
    if value is None:
        if may_be_none:
            return None
        if bare is float:
            return math.nan
        raise ValueError(f"{where} is null")
    if is_record(bare):
        return _read_record(bare, value, where)
    origin = typing.get_origin(bare)
    if origin is tuple:
        _expect(isinstance(value, list), where, "a list")
        return tuple(_read(typing.get_args(bare)[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is Mapping:
        _expect(isinstance(value, dict), where, "an object")
        return {k: _read(typing.get_args(bare)[1], v, f"{where}.{k}") for k, v in value.items()}
    return _read_scalar(bare, value, where)


def _read_record(cls: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where, "an object")
    wanted = hints(cls)
    unknown = sorted(set(value) - set(wanted))
    _expect(not unknown, where, f"free of {unknown}")
    required = {f.name for f in dataclasses.fields(cls) if _is_required(f)}
    missing = sorted(required - set(value))
    _expect(not missing, where, f"complete: {missing} missing")
    return cls(**{k: _read(wanted[k], v, f"{where}.{k}") for k, v in value.items()})


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _read_scalar(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError as error:
            raise ValueError(f"{where} is {value!r}, not one of {[m.value for m in hint]}") from error
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    _expect(fits, where, f"of type {hint.__name__}")
    return value


def _expect(condition: bool, where: str, what: str) -> None:
    if not condition:
        raise ValueError(f"{where} is not {what}")


def field_docs(cls: type) -> dict[str, str]:
    """What a dataclass's docstring says of each field, under ``Attributes:``."""
    _, _, text = (cls.__doc__ or "").partition("Attributes:")
    found = re.findall(r"^\s{4,8}(\w+): (.*?)(?=^\s{4,8}\w+: |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return {name: " ".join(words.split()) for name, words in found}


def json_schema(cls: type) -> dict[str, Any]:
    """JSON Schema (draft 2020-12, https://json-schema.org) of a dataclass, descriptions from its docstring."""
    definitions: dict[str, Any] = {}
    body = _schema_of(cls, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": cls.__name__,
        **body,
        "$defs": definitions,
    }


def _schema_of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    bare, may_be_none = optional(hint)
    if may_be_none:
        return {"anyOf": [_schema_of(bare, definitions), {"type": "null"}]}
    if is_record(bare):
        if bare.__name__ not in definitions:
            definitions[bare.__name__] = {}  # a placeholder, should a record ever hold its own kind
            definitions[bare.__name__] = _schema_of_record(bare, definitions)
        return {"$ref": f"#/$defs/{bare.__name__}"}
    origin = typing.get_origin(bare)
    if origin is tuple:
        return {"type": "array", "items": _schema_of(typing.get_args(bare)[0], definitions)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _schema_of(typing.get_args(bare)[1], definitions)}
    if isinstance(bare, type) and issubclass(bare, Enum):
        return {"enum": [m.value for m in bare]}
    if bare is float:
        return {"type": ["number", "null"]}  # null: not finite
    return {"type": _JSON_TYPES[bare]}


def _schema_of_record(cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    docs = field_docs(cls)
    properties = {}
    for name, hint in hints(cls).items():
        said = {"description": docs[name]} if name in docs else {}
        properties[name] = {**_schema_of(hint, definitions), **said}
    return {
        "type": "object",
        "description": (cls.__doc__ or "").strip().split("\n", 1)[0],
        "properties": properties,
        "required": [f.name for f in dataclasses.fields(cls) if _is_required(f)],
        "additionalProperties": False,
    }
