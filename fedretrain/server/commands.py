"""The operator's commands. Each opens what it needs, says what it did, and ends.

Rules of this file:
    * Commands write orders and read the log; they decide nothing, and work while the coordinator is down.
    * With ``--json`` standard output is one JSON document.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.core.checks import positive
from fedretrain.core.clock import HOUR_S
from fedretrain.core.errors import ConfigError, FedretrainError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from fedretrain.server.desk import Desk

    Run = Callable[[argparse.Namespace], int]

ROLLOUT_ORDERS = {
    "pause": "pause",
    "resume": "resume",
    "rollback": "roll_back",
    "de-escalate": "de_escalate",
    "freeze": "freeze",
    "unfreeze": "unfreeze",
    "abort": "roll_back",
}


def add(
    below: argparse._SubParsersAction[argparse.ArgumentParser], check_agent: Callable[[Path], dict[str, str]]
) -> None:
    """Add every command.

    Args:
        below: Where.
        check_agent: Reads an agent's file for ``config check``: what was found, by key.
    """
    _server(below)
    _config(below, check_agent)
    _enrol(below)
    _devices(below)
    _models(below)
    _rollout(below)
    _safety(below)
    _reading(below)


def _command(
    below: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Run,
    text: str,
    *,
    population: bool = True,
) -> argparse.ArgumentParser:
    """A command with what all have in common."""
    made = below.add_parser(name, help=text, description=text)
    made.add_argument("--config", type=Path, default=Path("server.toml"), help="server.toml (default: here)")
    if population:
        made.add_argument("-p", "--population", default="", help="which; not needed where there is one")
    made.add_argument("--json", action="store_true", help="one JSON document on standard output")
    made.set_defaults(run=run)
    return made


def _order(
    below: argparse._SubParsersAction[argparse.ArgumentParser], name: str, run: Run, text: str
) -> argparse.ArgumentParser:
    made = _command(below, name, run, text)
    made.add_argument("--by", required=True, help="who orders it; it goes into the audit log")
    made.add_argument("--reason", default="", help="why")
    return made


def _desk(arguments: argparse.Namespace) -> Desk:
    from fedretrain.server.desk import Desk

    return Desk(arguments.config, arguments.population)


def _content(path: Path) -> bytes:
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


def _say(arguments: argparse.Namespace, found: Any, text: str) -> int:
    print(json.dumps(found, indent=1, sort_keys=True) if arguments.json else text)
    return 0


def _server(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from fedretrain.server.serving import run_server

        return run_server(arguments.config)

    _command(below, "server", run, "run the coordinator", population=False)


def _config(
    below: argparse._SubParsersAction[argparse.ArgumentParser], check_agent: Callable[[Path], dict[str, str]]
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from fedretrain.core.toml_file import read_toml
        from fedretrain.server.desk import check_config

        values = read_toml(arguments.file)
        is_agent = "devices" in values and "populations" not in values
        found = (check_agent if is_agent else check_config)(arguments.file)
        return _say(arguments, found, "\n".join(f"{key}: {value}" for key, value in found.items()))

    group = below.add_parser("config", help="check configuration files").add_subparsers(required=True)
    made = group.add_parser("check", help="server.toml with every file that it names")
    made.add_argument("file", type=Path)
    made.add_argument("--json", action="store_true")
    made.set_defaults(run=run)


def _enrol(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        names = list(arguments.names)
        if arguments.batch is not None:
            names += _content(arguments.batch).decode(errors="replace").split()
        if not names:
            raise ConfigError("no device", where="enrol", fix="name devices, or give --batch FILE")
        positive("--hours", arguments.hours)
        tokens = _desk(arguments).tokens(names, arguments.hours * HOUR_S)
        text = "\n".join(f"{name} {token}" for name, token in tokens)
        return _say(arguments, dict(tokens), text)

    made = _command(below, "enrol", run, "make one-time tokens with which devices enrol")
    made.add_argument("names", nargs="*", metavar="DEVICE")
    made.add_argument("--batch", type=Path, help="a file of names, one on each line")
    made.add_argument("--hours", type=float, default=24.0, help="how long a token counts")


def _devices(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def listed(arguments: argparse.Namespace) -> int:
        found = _desk(arguments).devices()
        lines = [
            f"{one['device']:20} {one['standing']:8} {one['serves'] or 'rules':>8}  {one['seen']}"
            for one in found
        ]
        return _say(arguments, found, "\n".join(lines) or "no device has enrolled")

    def judge(standing: str) -> Run:
        def run(arguments: argparse.Namespace) -> int:
            _desk(arguments).judge(arguments.device, standing)
            return _say(arguments, {arguments.device: standing}, f"{arguments.device}: {standing}")

        return run

    group = below.add_parser("devices", help="list, revoke and retire devices").add_subparsers(required=True)
    _command(group, "list", listed, "every device, and what it serves")
    for name, standing in (("revoke", "revoked"), ("retire", "retired")):
        made = _command(group, name, judge(standing), f"from now on the device is {standing}")
        made.add_argument("device")


def _models(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def listed(arguments: argparse.Namespace) -> int:
        found = _desk(arguments).models_listed()
        lines = [
            f"{one['version']:>4} {one['package'][:12]} {one['role']:12} {one['origin']}" for one in found
        ]
        return _say(arguments, found, "\n".join(lines) or "there is no version yet")

    def imported(arguments: argparse.Namespace) -> int:
        weights = _content(arguments.weights) if arguments.weights else b""
        outputs = tuple(arguments.outputs.split(",")) if arguments.outputs else ()
        found = _desk(arguments).import_first(outputs, weights, arguments.rounds)
        return _say(arguments, found, f"version {found['version']} is {found['package']}")

    def proposed(arguments: argparse.Namespace) -> int:
        version = _desk(arguments).propose(_content(arguments.weights), arguments.by, arguments.reason)
        return _say(arguments, {"version": version}, f"version {version} waits for its rollout")

    def withdrawn(arguments: argparse.Namespace) -> int:
        _desk(arguments).withdraw(arguments.version, arguments.by, arguments.reason)
        return _say(
            arguments,
            {"version": arguments.version},
            f"version {arguments.version} is withdrawn at the next turn",
        )

    group = below.add_parser("models", help="versions of models").add_subparsers(required=True)
    _command(group, "list", listed, "every version, and what it is now")
    made = _command(
        group, "import", imported, "make the first champion: trained on the pool, or from weights"
    )
    made.add_argument(
        "--weights", type=Path, help="safetensors of every parameter; without: train on the pool"
    )
    made.add_argument("--outputs", default="", help="names of the outputs, with commas between")
    made.add_argument("--rounds", type=int, default=20, help="rounds of training on the pool")
    made = _order(group, "propose", proposed, "bring weights as a candidate for a rollout")
    made.add_argument("--weights", type=Path, required=True, help="safetensors of every parameter")
    made = _order(group, "withdraw", withdrawn, "quarantine a version, and take it back wherever it is")
    made.add_argument("version", type=int)


def _rollout(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def status(arguments: argparse.Namespace) -> int:
        found = _desk(arguments).status()
        return _say(arguments, found, _lines(found))

    def answer(word: str) -> Run:
        def run(arguments: argparse.Namespace) -> int:
            _desk(arguments).answer(word, arguments.by, arguments.reason)
            return _say(arguments, {"answer": word}, f"{word} by {arguments.by}; it counts at the next turn")

        return run

    def order(command: str) -> Run:
        def run(arguments: argparse.Namespace) -> int:
            _desk(arguments).order(command, arguments.by, arguments.reason)
            return _say(arguments, {"order": command}, f"{command} is ordered; it counts at the next turn")

        return run

    group = below.add_parser("rollout", help="watch and steer the rollout that is on").add_subparsers(
        required=True
    )
    _command(group, "status", status, "where the rollout stands")
    _order(group, "approve", answer("granted"), "agree to what the rollout asks")
    _order(group, "refuse", answer("refused"), "refuse what the rollout asks")
    for name, command in ROLLOUT_ORDERS.items():
        _order(group, name, order(command), f"{name} the rollout")


def _safety(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def safe_mode(arguments: argparse.Namespace) -> int:
        command = "enter" if arguments.state == "on" else "leave"
        _desk(arguments).safety(command, None, arguments.by, arguments.reason)
        return _say(
            arguments, {"safe_mode": arguments.state}, f"safe mode is {arguments.state} at the next turn"
        )

    def kill(arguments: argparse.Namespace) -> int:
        _desk(arguments).safety(arguments.state, arguments.switch, arguments.by, arguments.reason)
        return _say(
            arguments,
            {arguments.switch: arguments.state},
            f"{arguments.switch}: {arguments.state} at the next turn",
        )

    def retrain(arguments: argparse.Namespace) -> int:
        _desk(arguments).retrain(arguments.by, arguments.reason)
        return _say(arguments, {"retrain": True}, "a retrain is wanted; it is decided at the next turn")

    _order(below, "retrain", retrain, "want a retrain now; budget, safe mode and switches still count")
    made = _order(below, "safe-mode", safe_mode, "serve the rules baseline everywhere, or end that")
    made.add_argument("state", choices=("on", "off"))
    made = _order(below, "kill-switch", kill, "stop or start training, rollouts or installs, each apart")
    made.add_argument("state", choices=("stop", "start"))
    made.add_argument("switch", choices=("training", "rollouts", "installs"))


def _reading(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def status(arguments: argparse.Namespace) -> int:
        found = _desk(arguments).status()
        return _say(arguments, found, _lines(found))

    def log(arguments: argparse.Namespace) -> int:
        found = _desk(arguments).events(arguments.after)
        return _say(arguments, found, "\n".join(f"{_clock(one['at'])} {one['text']}" for one in found))

    def verify(arguments: argparse.Namespace) -> int:
        found = _desk(arguments).verify()
        said = [f"{key}: {value}" for key, value in found["checked"].items()]
        _say(arguments, found, "\n".join([*said, *(f"WRONG {one}" for one in found["wrong"])]))
        if found["wrong"]:
            raise FedretrainError(
                f"{len(found['wrong'])} wrong, first: {found['wrong'][0]} - restore a back-up that "
                "`fedretrain verify` accepts"
            )
        return 0

    _command(below, "status", status, "where a population stands")
    made = _command(below, "log", log, "what has happened, oldest first")
    made.add_argument("--after", type=int, default=0, help="only after this number")
    _command(below, "verify", verify, "recompute every digest of log, store and signed list")


def _lines(found: dict[str, Any]) -> str:
    return "\n".join(f"{key:16} {value}" for key, value in found.items() if value not in (None, "", [], {}))


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
