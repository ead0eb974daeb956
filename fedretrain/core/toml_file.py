"""Configuration files of the coordinator and the agent: TOML, paths relative to the file, addresses."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from fedretrain.core.checks import require
from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}")


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}", where=str(path), fix="name the file") from None
    except OSError as error:
        raise ConfigError(
            f"it cannot be read: {error.strerror}", where=str(path), fix="name a file"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"it cannot be read: {error}", where=str(path), fix="write TOML") from error


def under(base: Path, path: str) -> str:
    """A path as the file means it; empty stays empty."""
    return str(base / path) if path else ""


def check_address(key: str, value: str) -> None:
    """Refuse what is no ``host:port``.

    Raises:
        ConfigError: Then.
    """
    found = _ADDRESS.fullmatch(value)
    ok = found is not None and int(value.rsplit(":", 1)[1]) < 2**16
    require(ok, f"{value!r} is no address", key=key, fix="write host:port")
