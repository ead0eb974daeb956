"""What every operator's command has in common: its flags, its desk, and how it answers.

Rules of this file:
    * With ``--json`` standard output is one JSON document.
    * An order has a name behind it, and where it lets something back in, a reason.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fedretrain.core.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from fedretrain.server.desk import Desk

    Run: TypeAlias = Callable[[argparse.Namespace], int]
    Below: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - argparse has no other name for it


KEY = "FEDRETRAIN_KEY"
"""The environment variable that names the file of a person's key."""


def command(
    below: Below, name: str, run: Run, text: str, *, population: bool = True
) -> argparse.ArgumentParser:
    """A command with what all have in common."""
    made = below.add_parser(name, help=text, description=text)
    made.add_argument("--config", type=Path, default=Path("server.toml"), help="server.toml (default: here)")
    if population:
        made.add_argument("-p", "--population", default="", help="which; not needed where there is one")
    made.add_argument("--json", action="store_true", help="one JSON document on standard output")
    made.set_defaults(run=run)
    return made


def order(
    below: Below, name: str, run: Run, text: str, *, must_say_why: bool = False
) -> argparse.ArgumentParser:
    """A command that orders something."""
    made = command(below, name, run, text)
    made.add_argument("--by", required=True, help="who orders it; it goes into the audit log")
    made.add_argument("--reason", default="", required=must_say_why, help="why")
    named = os.environ.get(KEY)
    made.add_argument(
        "--key",
        type=Path,
        default=Path(named) if named else None,
        help=f"file of their private key, if they have one (default: ${KEY})",
    )
    return made


def desk_of(arguments: argparse.Namespace) -> Desk:
    """The desk of the population that was named."""
    from fedretrain.server.desk import Desk

    return Desk(arguments.config, arguments.population, getattr(arguments, "key", None))


def content_of(path: Path) -> bytes:
    """A file that a person named.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"it cannot be read: {error.strerror}", where=str(path), fix="name a file"
        ) from error


def say(arguments: argparse.Namespace, found: Any, text: str) -> int:
    """Answer, as JSON or in words; the exit status."""
    sys.stdout.write(f"{json.dumps(found, indent=1, sort_keys=True) if arguments.json else text}\n")
    return 0
