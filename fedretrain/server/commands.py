"""The operator's commands. Each opens what it needs, says what it did, and ends.

Rules of this file:
    * Commands write orders and read the log; they decide nothing, and work while the coordinator is down.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.core.checks import positive, require
from fedretrain.core.clock import HOUR_S
from fedretrain.core.errors import ConfigError, FedretrainError
from fedretrain.server import (
    baseline_commands,
    incident_commands,
    label_commands,
    people_commands,
    policy_commands,
    quarantine_commands,
    source_commands,
)
from fedretrain.server.command_line import command, content_of, desk_of, order, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from fedretrain.server.command_line import Run

YEAR_HOURS = 365 * 24
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
    incident_commands.add(below)
    label_commands.add(below)
    baseline_commands.add(below)
    source_commands.add(below)
    policy_commands.add(below)
    people_commands.add(below)
    _safety(below)
    _reading(below)


def _server(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from fedretrain.server.serving import run_server

        return run_server(arguments.config, as_json=arguments.json)

    command(below, "server", run, "run the coordinator", population=False)


def _config(
    below: argparse._SubParsersAction[argparse.ArgumentParser], check_agent: Callable[[Path], dict[str, str]]
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from fedretrain.core.toml_file import read_toml
        from fedretrain.server.config_check import check_config

        values = read_toml(arguments.file)
        is_agent = bool(values.keys() & {"devices", "enrol"}) and "populations" not in values
        found = (check_agent if is_agent else check_config)(arguments.file)
        return say(arguments, found, "\n".join(f"{key}: {value}" for key, value in found.items()))

    group = below.add_parser("config", help="check configuration files").add_subparsers(required=True)
    made = group.add_parser("check", help="server.toml with every file that it names")
    made.add_argument("file", type=Path)
    made.add_argument("--json", action="store_true")
    made.set_defaults(run=run)


def _enrol(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        names = _names(arguments, "enrol")
        positive("--hours", arguments.hours)
        fix = f"give at most {YEAR_HOURS}, and make new ones when they are needed"
        require(arguments.hours <= YEAR_HOURS, "a token for longer than a year", key="--hours", fix=fix)
        tokens = desk_of(arguments).tokens(names, arguments.hours * HOUR_S)
        text = "\n".join(f"{name} {token}" for name, token in tokens)
        return say(arguments, dict(tokens), text)

    made = command(below, "enrol", run, "make one-time tokens with which devices enrol")
    made.add_argument("names", nargs="*", metavar="DEVICE")
    made.add_argument("--batch", type=Path, help="a file of names, one on each line")
    made.add_argument("--hours", type=float, default=24.0, help="how long a token counts; a year at most")


def _names(arguments: argparse.Namespace, where: str) -> list[str]:
    """The devices that a person named, in words or in a file."""
    names = list(arguments.names)
    if arguments.batch is not None:
        names += content_of(arguments.batch).decode(errors="replace").split()
    if not names:
        raise ConfigError("no device", where=where, fix="name devices, or give --batch FILE")
    return names


def _devices(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def listed(arguments: argparse.Namespace) -> int:
        found = desk_of(arguments).devices()
        return say(arguments, found, "\n".join(map(_device_line, found)) or "no device has enrolled")

    def judge(standing: str) -> Run:
        def run(arguments: argparse.Namespace) -> int:
            desk_of(arguments).judge(arguments.device, standing, arguments.by, arguments.reason)
            return say(arguments, {arguments.device: standing}, f"{arguments.device}: {standing}")

        return run

    def watch(arguments: argparse.Namespace) -> int:
        names = _names(arguments, "devices watch")
        source_commands.watch(desk_of(arguments), names, arguments.type, arguments.site)
        return say(arguments, {"watched": names}, f"{len(names)} devices are watched")

    group = below.add_parser(
        "devices", help="list, watch, quarantine, revoke and retire devices"
    ).add_subparsers(required=True)
    command(group, "list", listed, "every device, and what it serves")
    for name, standing in (("revoke", "revoked"), ("retire", "retired")):
        made = order(group, name, judge(standing), f"from now on the device is {standing}")
        made.add_argument("device")
    quarantine_commands.add(group)
    made = command(
        group, "watch", watch, "count the raw samples that brokers bring of devices without an agent"
    )
    made.add_argument("names", nargs="*", metavar="DEVICE")
    made.add_argument("--batch", type=Path, help="a file of names, one on each line")
    made.add_argument("--site", default="", help="where they are: devices are compared by it")
    made.add_argument("--type", default="", help="what they are")


def _models(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def listed(arguments: argparse.Namespace) -> int:
        found = desk_of(arguments).models_listed()
        lines = [
            f"{one['version']:>4} {one['package'][:12]} {one['role']:12} {one['validation']:12} "
            f"{one['simulation']:12} {one['origin']}"
            for one in found
        ]
        return say(arguments, found, "\n".join(lines) or "there is no version yet")

    def reported(arguments: argparse.Namespace) -> int:
        found = desk_of(arguments).report(arguments.version)
        return say(arguments, found["report"], found["text"])

    def imported(arguments: argparse.Namespace) -> int:
        weights = content_of(arguments.weights) if arguments.weights else b""
        outputs = tuple(arguments.outputs.split(",")) if arguments.outputs else ()
        onnx = content_of(arguments.onnx) if arguments.onnx else b""
        found = desk_of(arguments).import_first(outputs, arguments.rounds, weights=weights, onnx=onnx)
        fate = (
            "" if found["retrains"] else "; campaigns cannot retrain it: it is not the training file's model"
        )
        return say(arguments, found, f"version {found['version']} is {found['package']}{fate}")

    group = below.add_parser("models", help="versions of models").add_subparsers(required=True)
    command(
        group,
        "list",
        listed,
        "every version, what it is now, and what its validation and its simulation said",
    )
    made = command(group, "report", reported, "the last offline validation of a version")
    made.add_argument("version", type=int)
    _import_words(
        command(group, "import", imported, "make the first champion: trained on the pool, or of a model")
    )
    _model_orders(group)


def _model_orders(group: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def proposed(arguments: argparse.Namespace) -> int:
        version = desk_of(arguments).propose(content_of(arguments.weights), arguments.by, arguments.reason)
        return say(arguments, {"version": version}, f"version {version} waits for its rollout")

    def withdrawn(arguments: argparse.Namespace) -> int:
        desk_of(arguments).withdraw(arguments.version, arguments.by, arguments.reason)
        return say(
            arguments,
            {"version": arguments.version},
            f"version {arguments.version} is withdrawn at the next turn",
        )

    made = order(group, "propose", proposed, "bring weights as a candidate for a rollout")
    made.add_argument("--weights", type=Path, required=True, help="safetensors of every parameter")
    made = order(group, "withdraw", withdrawn, "quarantine a version, and take it back wherever it is")
    made.add_argument("version", type=int)


def _import_words(made: argparse.ArgumentParser) -> None:
    given = made.add_mutually_exclusive_group()
    given.add_argument(
        "--weights", type=Path, help="safetensors of every parameter of the training file's plan"
    )
    given.add_argument("--onnx", type=Path, help="an ONNX model; its weights are taken out of it")
    made.add_argument("--outputs", default="", help="names of the outputs, with commas between")
    made.add_argument("--rounds", type=int, default=20, help="rounds of training on the pool")


def _rollout(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def status(arguments: argparse.Namespace) -> int:
        found = desk_of(arguments).status()
        return say(arguments, found, _lines(found))

    def answer(word: str) -> Run:
        def run(arguments: argparse.Namespace) -> int:
            desk_of(arguments).answer(word, arguments.by, arguments.reason)
            return say(arguments, {"answer": word}, f"{word} by {arguments.by}; it counts at the next turn")

        return run

    def ordering(what: str) -> Run:
        def run(arguments: argparse.Namespace) -> int:
            desk_of(arguments).order(what, arguments.by, arguments.reason)
            return say(arguments, {"order": what}, f"{what} is ordered; it counts at the next turn")

        return run

    def started(arguments: argparse.Namespace) -> int:
        from fedretrain.server.starting import start

        start(desk_of(arguments), arguments.version, arguments.by, arguments.reason)
        text = f"the rollout of version {arguments.version} is ordered; it counts at the next turn"
        return say(arguments, {"version": arguments.version}, text)

    group = below.add_parser("rollout", help="watch and steer the rollout that is on").add_subparsers(
        required=True
    )
    command(group, "status", status, "where the rollout stands")
    order(group, "approve", answer("granted"), "agree to what the rollout asks")
    order(group, "refuse", answer("refused"), "refuse what the rollout asks")
    made = order(group, "start", started, "start the rollout of a version that is registered and valid")
    made.add_argument("version", type=int)
    for name, what in ROLLOUT_ORDERS.items():
        order(group, name, ordering(what), f"{name} the rollout")


def _safety(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def safe_mode(arguments: argparse.Namespace) -> int:
        what = "enter" if arguments.state == "on" else "leave"
        desk_of(arguments).safety(what, None, arguments.by, arguments.reason)
        return say(
            arguments, {"safe_mode": arguments.state}, f"safe mode is {arguments.state} at the next turn"
        )

    def kill(arguments: argparse.Namespace) -> int:
        desk_of(arguments).safety(arguments.state, arguments.switch, arguments.by, arguments.reason)
        return say(
            arguments,
            {arguments.switch: arguments.state},
            f"{arguments.switch}: {arguments.state} at the next turn",
        )

    def retrain(arguments: argparse.Namespace) -> int:
        desk_of(arguments).retrain(arguments.by, arguments.reason)
        return say(arguments, {"retrain": True}, "a retrain is wanted; it is decided at the next turn")

    order(below, "retrain", retrain, "want a retrain now; budget, safe mode and switches still count")
    made = order(below, "safe-mode", safe_mode, "serve the rules baseline everywhere, or end that")
    made.add_argument("state", choices=("on", "off"))
    made = order(below, "kill-switch", kill, "stop or start training, rollouts or installs, each apart")
    made.add_argument("state", choices=("stop", "start"))
    made.add_argument("switch", choices=("training", "rollouts", "installs"))


def _reading(below: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def status(arguments: argparse.Namespace) -> int:
        found = desk_of(arguments).status()
        return say(arguments, found, _lines(found))

    def log(arguments: argparse.Namespace) -> int:
        if arguments.orders:
            told = desk_of(arguments).ordered()
            return say(arguments, told, "\n".join(_order_line(one) for one in told))
        found = desk_of(arguments).events(arguments.after)
        text = "\n".join(f"{_clock(one['at'])} {one['text']}" for one in found)
        return say(arguments, found, text or "nothing has happened")

    def verify(arguments: argparse.Namespace) -> int:
        found = desk_of(arguments).verify()
        said = [f"{key}: {value}" for key, value in found["checked"].items()]
        say(arguments, found, "\n".join([*said, *(f"WRONG {one}" for one in found["wrong"])]))
        if found["wrong"]:
            raise FedretrainError(
                f"{len(found['wrong'])} wrong, first: {found['wrong'][0]} - restore a back-up that "
                "`fedretrain verify` accepts"
            )
        return 0

    command(below, "status", status, "where a population stands")
    made = command(below, "log", log, "what has happened, oldest first")
    made.add_argument("--after", type=int, default=0, help="only after this number")
    made.add_argument(
        "--orders",
        action="store_true",
        help="instead who ordered what: --by, and the account of the operating system that the command ran under",
    )
    command(
        below,
        "verify",
        verify,
        "recompute every digest of log, store and signed list, and check people's signatures",
    )


def _lines(found: dict[str, Any]) -> str:
    return "\n".join(f"{key:16} {value}" for key, value in found.items() if value not in (None, "", [], {}))


def _device_line(one: dict[str, Any]) -> str:
    kept = f"  in quarantine: {one['quarantine']}" if one["quarantine"] else ""
    return f"{one['device']:20} {one['standing']:8} {one['serves'] or 'rules':>8}  {one['seen']}{kept}"


def _order_line(one: dict[str, Any]) -> str:
    said = " ".join(str(value) for value in one["said"].values())
    who = f"{one['by']} ({one['account'] or 'account unknown'}{', key ' + one['key'][:12] if one['key'] else ''})"
    return f"{_clock(one['at'])} {who} {one['kind']} {said}{' REFUSED: ' + one['refused'] if one['refused'] else ''}"


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
