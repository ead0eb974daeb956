"""The command line ``fedretrain``: the coordinator, the device, and what operating them takes.

Rules of this file:
    * Heavy libraries are imported by the command that needs them: ``--help`` answers at once.
    * What a person did wrong is one line on standard error and exit status 2; Ctrl-C is 130.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.core.exit_status import exit_status

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPILOG = """\
examples:
  fedretrain demo                                        the whole story on this machine, in minutes
  fedretrain config check server.toml
  fedretrain server --config server.toml
  fedretrain enrol --config server.toml -p pumps pump-1 pump-2
  fedretrain rollout status --config server.toml -p pumps
  fedretrain rollout approve --config server.toml -p pumps --by anna
  fedretrain edge run --config edge.toml
"""


def parser(command: str = "") -> argparse.ArgumentParser:
    """The whole command line.

    Args:
        command: The one that will be run: the agent's libraries are not imported for another's sake.
    """
    from fedretrain.server import commands
    from fedretrain.server.examples import show_examples

    root = argparse.ArgumentParser(
        "fedretrain",
        description="Keeps the models of a fleet of sensor devices right.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    below = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add(below, _check_agent)
    if command == "edge":
        from fedretrain.edge import cli as edge

        edge.add_parser(below).set_defaults(run=edge.run)
    else:
        below.add_parser("edge", help="the device agent: run, status, lineage, erase")
    demo = below.add_parser("demo", help="the whole story on this machine, in minutes")
    demo.add_argument(
        "--folder", type=Path, default=None, help="where to write; default: a new temporary folder"
    )
    demo.add_argument("--json", action="store_true", help="one JSON document on each line")
    demo.set_defaults(run=_demo)
    show_examples(root)
    return root


def _check_agent(path: Path) -> dict[str, str]:
    """What an agent's file says; a mistake in it is a `ConfigError`."""
    from fedretrain.edge.config import read_edge
    from fedretrain.edge.joining import read_authority

    config = read_edge(path)
    read_authority(config)
    names = ", ".join(device.name for device in config.devices)
    found = {"folder": config.folder, "enrol": config.enrol, "authority": config.authority, "devices": names}
    return found | {"at rest": config.at_rest.says}


def _demo(arguments: argparse.Namespace) -> int:
    from fedretrain.demo.run import run_demo

    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="fedretrain-demo-"))
    return run_demo(folder, as_json=arguments.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: The words after ``fedretrain``; those of this process if not given.

    Returns:
        The exit status: 0, 1 where something that was checked is not right, 2 for a user's error, 130 for Ctrl-C.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser(words[0] if words else "").parse_args(words)
    return exit_status(lambda: int(arguments.run(arguments)))
