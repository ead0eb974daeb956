"""`fedretrain edge`: run the agent, and look at what it keeps.

Rules of this file:
    * What a person did wrong is one line on standard error and exit status 2, as of every command.
    * `status` and `lineage` ask the agent that runs; without one they read what is on the disk. `erase` wants it ended.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fedretrain.core.build import plain
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.exit_status import exit_status
from fedretrain.core.log_lines import log_lines
from fedretrain.core.since_boot import since_boot
from fedretrain.edge.agent import Agent
from fedretrain.edge.api import LocalApi
from fedretrain.edge.config import read_edge
from fedretrain.edge.erasing import erase_leftovers, erase_store
from fedretrain.edge.example_ledger import LEDGER, shown
from fedretrain.edge.examples import Stream
from fedretrain.edge.joining import Joined, read_joined
from fedretrain.edge.library_pages import forget, library_code
from fedretrain.edge.memory import MemoryFile
from fedretrain.edge.slots import Slots
from fedretrain.edge.status import not_enrolled
from fedretrain.edge.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedretrain.edge.config import EdgeConfig

_EXAMPLES = """examples:
  fedretrain edge run --config edge.toml
  fedretrain edge status --config edge.toml --json
  fedretrain edge lineage --config edge.toml --device pump-1 --version DIGEST
  fedretrain edge erase --config edge.toml --device pump-1
"""
_ASK_S = 5.0


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `edge` to the commands of `fedretrain`.

    Args:
        subparsers: What `ArgumentParser.add_subparsers` gave.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "edge",
        help="the device agent",
        description="The device agent: predictions, labels, reports, model installs, training.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _fill(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Carry out `fedretrain edge ...`; the exit status.

    Raises:
        FedretrainError: See `exit_status`.
    """
    work = {"run": _run, "status": _status, "lineage": _lineage, "erase": _erase}[args.action]
    return work(read_edge(Path(args.config)), args)


def main(words: Sequence[str] | None = None) -> int:
    """``python -m fedretrain.edge``."""
    parser = argparse.ArgumentParser(
        prog="python -m fedretrain.edge",
        description="The device agent.",
        epilog=_EXAMPLES.replace("fedretrain edge", "python -m fedretrain.edge"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _fill(parser)
    args = parser.parse_args(words)
    return exit_status(lambda: run(args))


def _fill(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (
        ("run", "run the agent until SIGTERM"),
        ("status", "how the devices are"),
        ("lineage", "which examples a version saw"),
        ("erase", "forget what a device has learnt, and its examples"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("--config", required=True, metavar="FILE", help="edge.toml")
        action.add_argument("--json", action="store_true", help="one JSON document on standard output")
        if name in {"lineage", "erase"}:
            action.add_argument("--device", default="", metavar="NAME", help="needed where there are several")
        if name == "lineage":
            action.add_argument("--version", required=True, metavar="DIGEST", help="of the model package")


def _run(config: EdgeConfig, args: argparse.Namespace) -> int:
    log_lines(as_json=args.json)
    libraries = library_code()
    agent = Agent(config)
    api = LocalApi(agent, config.api)

    def serve() -> None:
        api.start()
        where = [one for one in (config.api.http and f"127.0.0.1:{api.port}", config.api.socket) if one]
        told = {"devices": sorted(agent.devices), "waiting": sorted(agent.waiting), "api": where}
        more = f"; not enrolled yet: {', '.join(told['waiting'])}" if told["waiting"] else ""
        _say(args, told, f"ready: {', '.join(where)}{more}")
        forget(libraries)

    try:
        agent.run(serve)
    finally:
        api.close()
    return 0


def _status(config: EdgeConfig, args: argparse.Namespace) -> int:
    found = _ask(config, "/v1/status")
    if found is None:
        found = {"running": False, "devices": [_at_rest(config, one.name) for one in config.devices]}
    else:
        found["running"] = True
    lines = [
        f"{one['device']}: {_serves(one)}"
        f"{', safe mode' if one['safe_mode'] else ''}{', refused ' + one['refused'][:12] if one['refused'] else ''}"
        f"{_spent(one['example_privacy'])}"
        for one in found["devices"]
    ]
    _say(args, found, "\n".join(["running" if found["running"] else "not running", *lines]))
    return 0


def _serves(told: dict[str, Any]) -> str:
    """What a device answers with."""
    if not told["enrolled"]:
        return f"not enrolled: {told['mistake']}" if told["mistake"] else "not enrolled yet"
    return f"serves {told['serves'][:12]}" if told["serves"] else "the rules baseline"


def _spent(told: dict[str, Any] | None) -> str:
    """What example-level DP has cost a device, beside whom and what it protects."""
    if told is None:
        return ""
    if "problem" in told:
        return f"\n  {told['problem']}"
    limit = f" of {told['budget']:g}" if told["budget"] else ""
    return (
        f"\n  example-level epsilon {told['epsilon']:.3g}{limit} at delta {told['delta']:g} for {told['unit']} "
        f"({told['relation']}), {told['num_updates']} updates; scope: {told['scope']}"
    )


def _at_rest(config: EdgeConfig, name: str) -> dict[str, Any]:
    """A device whose agent does not run, by what is on the disk."""
    folder = Path(config.folder) / name
    joined = read_joined(folder)
    privacy = shown(folder / LEDGER, config.training.example_budget)
    if joined is None:
        return {**not_enrolled(name), "example_privacy": privacy}
    found = {"device": name, "enrolled": True, "example_privacy": privacy}
    told = MemoryFile(folder).value
    serves = "" if told.safe_mode or not told.serve else Slots(folder / "models").state.current
    return {**found, "serves": serves, **plain(told), "serve": told.serve}


def _lineage(config: EdgeConfig, args: argparse.Namespace) -> int:
    name = _named(config, args.device)
    found = _ask(config, f"/v1/lineage?device={quote(name)}&version={quote(args.version)}")
    if found is None:
        with _open(config, name) as store, store.database.mutex:
            found = {"device": name, "version": args.version, "uses": plain(store.lineage.of(args.version))}
    lines = [
        f"{one['campaign']}: {len(one['examples'])} examples, {one['commitment']}" for one in found["uses"]
    ]
    _say(args, found, "\n".join(lines) or "it saw no example of this device")
    return 0


def _erase(config: EdgeConfig, args: argparse.Namespace) -> int:
    name = _named(config, args.device)
    folder = Path(config.folder) / name
    with _open(config, name) as store:
        erase_store(store, folder, folder / "personal")
    erase_leftovers(Path(config.folder))
    text = f"{name}: examples, labels, lineage, personal parameters and what waited to be sent are erased"
    _say(args, {"erased": name}, text)
    return 0


def _named(config: EdgeConfig, name: str) -> str:
    names = [device.name for device in config.devices]
    if not name and len(names) == 1:
        return names[0]
    if name not in names:
        raise ConfigError(f"there is no device {name!r}", where="--device", fix=f"one of {', '.join(names)}")
    return name


def _open(config: EdgeConfig, name: str) -> Store:
    """The database of a device whose agent does not run."""
    folder = Path(config.folder) / name
    joined: Joined | None = read_joined(folder)
    if joined is None:
        raise DataError(f"the device {name} was never enrolled", where=str(folder), fix="run the agent")
    return Store.open(
        folder, Stream(name, joined.population), config.outbox, monotonic=since_boot, wall=time.time
    )


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_ASK_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_ASK_S)
        self.sock.connect(self._path)


def _ask(config: EdgeConfig, path: str) -> dict[str, Any] | None:
    """What the agent that runs answers; None if none does.

    Raises:
        DataError: If it answers with an error.
    """
    api = config.api
    connection = _SocketConnection(api.socket) if api.socket else None
    if connection is None and api.http:
        connection = http.client.HTTPConnection(api.http, timeout=_ASK_S)  # type: ignore[assignment]
    if connection is None:
        return None
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        found: dict[str, Any] = json.loads(reply.read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    if reply.status != http.HTTPStatus.OK:
        raise DataError(str(found.get("error", reply.status)), where=path)
    return found


def _say(args: argparse.Namespace, content: dict[str, Any], text: str) -> None:
    sys.stdout.write(f"{json.dumps(content, sort_keys=True) if args.json else text}\n")
    sys.stdout.flush()
