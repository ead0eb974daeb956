"""``fedretrain people``: keys of those who order, and who has one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.core.errors import ConfigError
from fedretrain.server.command_line import command, say

if TYPE_CHECKING:
    import argparse

    from fedretrain.server.command_line import Below

_KEY_IS = """\
Make a private key (Ed25519) in a new file that only its owner may read, and print the lines for server.toml. A person makes their own, on
their own machine: nobody else needs the file."""


def add(below: Below) -> None:
    """Add the commands."""

    def made(arguments: argparse.Namespace) -> int:
        public = make_key(arguments.out)
        lines = (f"[people.{json.dumps(arguments.name)}]", f'key = "{public}"')
        return say(arguments, {"name": arguments.name, "key": public}, "\n".join(lines))

    def listed(arguments: argparse.Namespace) -> int:
        found = people(arguments.config)
        lines = [
            f"{name:20} {one['key'][:12] or 'no key':12}  {', '.join(one['may'])}".rstrip()
            for name, one in found.items()
        ]
        return say(arguments, found, "\n".join(lines) or "server.toml names nobody")

    group = below.add_parser("people", help="keys with which people sign what they order").add_subparsers(
        required=True
    )
    one = group.add_parser("key", help="make a person's private key, and print the lines for server.toml")
    one.description = _KEY_IS
    one.add_argument("name", help="as in --by")
    one.add_argument("--out", type=Path, required=True, help="the new file")
    one.add_argument("--json", action="store_true", help="one JSON document on standard output")
    one.set_defaults(run=made)
    command(group, "list", listed, "who has a key, and who may do what", population=False)


def make_key(path: Path) -> str:
    """Make a private key in a new file; its public half, hexadecimal.

    Raises:
        ConfigError: If there is such a file: a key is never replaced.
        DataError: If it cannot be written.
    """
    from fedretrain.artifacts.signed_order import public_half
    from fedretrain.artifacts.trust.keys import create_key, load_key

    if not create_key(path):
        raise ConfigError("there is such a file", where=str(path), fix="name a new one")
    return public_half(load_key(path))


def people(path: Path) -> dict[str, dict[str, Any]]:
    """Everybody whom ``server.toml`` names: their key, those of before, and what they may do in some population.

    Args:
        path: ``server.toml``.
    """
    from fedretrain.server.config import read_server
    from fedretrain.server.people import Person

    config = read_server(path)
    may: dict[str, set[str]] = {name: set() for name in config.people}
    for role in config.roles.values():
        for name in role.people:
            may.setdefault(name, set()).update(map(str, role.may))
    nobody = Person()
    return {
        name: {
            "key": config.people.get(name, nobody).key,
            "former": list(config.people.get(name, nobody).former),
            "may": sorted(rights),
        }
        for name, rights in sorted(may.items())
    }
