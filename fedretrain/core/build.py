"""From a plain dictionary to frozen configuration dataclasses, and back; every mistake is one clear line.

Rules of this file:
    * The dataclass is the schema: an unknown key, a wrong type or an impossible value names the key, what was found
      and what would do.
    * Numbers are not guessed: ``"3"`` is no integer. An integer is accepted where a float is wanted.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from fedretrain.core.errors import ConfigError

T = TypeVar("T")


def build(cls: type[T], values: Any, *, where: str = "") -> T:
    """An instance of the dataclass `cls` from a dictionary.

    Args:
        cls: A dataclass; its fields may be dataclasses, enums, tuples, dictionaries and plain values.
        values: A mapping from field names to values.
        where: The dotted key of `values`, for messages.

    Raises:
        ConfigError: If a key is unknown or missing, or a value is not of its type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"a group of keys was expected, not {values!r}", where=where or "configuration")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(
                f"there is no key {key!r}", where=where or "configuration", fix=_near(str(key), fields)
            )
    missing = [name for name, field in fields.items() if name not in values and _is_needed(field)]
    if missing:
        raise ConfigError(
            f"there is no {' and no '.join(missing)}",
            where=where or "configuration",
            fix="give it: it has no default",
        )
    hints = _hints(typing.cast("type", cls))
    built = {key: _convert(hints[key], value, _join(where, key)) for key, value in values.items()}
    try:
        return cls(**built)
    except ConfigError as error:
        is_group = error.where == where.rsplit(".", 1)[-1]
        named = where if is_group else _join(where, error.where)
        raise ConfigError(error.what, where=named, fix=error.fix) from error
    except TypeError as error:
        raise ConfigError(str(error), where=where or "configuration") from error


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@lru_cache(maxsize=1024)
def _hints(cls: type[Any]) -> dict[str, Any]:
    """The types of a class's fields, whose names are looked up once: rows of a fleet are built ten thousand at a time."""
    return get_type_hints(cls)


def _join(where: str, key: str) -> str:
    """``a.b`` and ``b.c`` make ``a.b.c``: a dataclass names its own group, or only the field."""
    if not where or not key or key.startswith(where):
        return key or where
    last = where.rsplit(".", 1)[-1]
    return f"{where}.{key.removeprefix(last + '.')}"


def _near(key: str, known: typing.Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(names))}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _convert_union(hint, value, where)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where=where)  # type: ignore[arg-type]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _convert_enum(hint, value, where)
    if origin in (tuple, list):
        return _convert_sequence(hint, value, where)
    if origin is dict or hint is dict or (origin is not None and issubclass(origin, typing.Mapping)):
        if not isinstance(value, dict):
            raise ConfigError(f"a group of keys was expected, not {value!r}", where=where)
        inner = get_args(hint)[1] if get_args(hint) else Any
        return {str(k): _convert(inner, v, _join(where, str(k))) for k, v in value.items()}
    return _convert_scalar(hint, value, where)


def _convert_union(hint: Any, value: Any, where: str) -> Any:
    options = [option for option in get_args(hint) if option is not type(None)]
    if value is None and len(options) < len(get_args(hint)):
        return None
    for option in options[:-1]:
        try:
            return _convert(option, value, where)
        except ConfigError:
            continue
    return _convert(options[-1], value, where)


def _convert_enum(hint: type[Enum], value: Any, where: str) -> Any:
    if isinstance(value, hint):
        return value
    if isinstance(value, bool):
        value = "on" if value else "off"  # what YAML 1.1 makes of these words; nobody means it so
    for member in hint:
        if value == member.value or (isinstance(value, str) and value.lower() == member.name.lower()):
            return member
    known = ", ".join(str(member.value) for member in hint)
    close = difflib.get_close_matches(str(value), [str(member.value) for member in hint], n=1)
    raise ConfigError(
        f"{value!r} is not one of {known}", where=where, fix=f"did you mean {close[0]!r}?" if close else ""
    )


def _convert_sequence(hint: Any, value: Any, where: str) -> Any:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise ConfigError(f"a list was expected, not {value!r}", where=where)
    args = get_args(hint)
    if get_origin(hint) is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise ConfigError(f"{len(args)} values were expected, not {len(value)}", where=where)
        return tuple(
            _convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True))
        )
    inner = args[0] if args else Any
    return get_origin(hint)(_convert(inner, v, f"{where}[{i}]") for i, v in enumerate(value))


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise ConfigError("a number was expected, not one of so many digits", where=where) from None
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 as text; nobody means it so.
        try:
            value = float(value)
        except ValueError:
            raise ConfigError(f"a number was expected, not {value!r}", where=where) from None
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"a value of type {hint.__name__} was expected, not {value!r}", where=where)
    if hint is float and math.isnan(value):
        raise ConfigError("NaN is no setting", where=where)
    return value


def plain(value: Any) -> Any:
    """Dataclasses, enums and tuples as dictionaries, strings and lists, ready for YAML or JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
