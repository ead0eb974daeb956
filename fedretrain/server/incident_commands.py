"""``fedretrain incident``: what went wrong, and whether a failed version tries again or is given up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.server.command_line import command, desk_of, order, say

if TYPE_CHECKING:
    import argparse

    from fedretrain.server.command_line import Below


def add(below: Below) -> None:
    """Add the commands."""

    def show(arguments: argparse.Namespace) -> int:
        from fedretrain.server.incidents import list_incidents, show_incident

        if arguments.incident:
            found = show_incident(desk_of(arguments), arguments.incident)
            return say(arguments, found, f"{found['text']}\npackage {found['package']}\n{_fate(found)}")
        known = list_incidents(desk_of(arguments))
        lines = [
            f"{one['incident']:32} version {one['version']:<4} "
            f"{'open' if one['closed_at'] is None else 'over'}  {one['reason']}"
            for one in known
        ]
        return say(arguments, known, "\n".join(lines) or "there was no incident yet")

    def resubmitted(arguments: argparse.Namespace) -> int:
        from fedretrain.server.incidents import resubmit

        version = resubmit(desk_of(arguments), arguments.incident, arguments.by, arguments.reason)
        text = f"version {version} tries again at the next turn, from validation on"
        return say(arguments, {"version": version}, text)

    def discarded(arguments: argparse.Namespace) -> int:
        from fedretrain.server.incidents import discard

        version = discard(desk_of(arguments), arguments.incident, arguments.by, arguments.reason)
        return say(arguments, {"version": version}, f"version {version} is given up at the next turn")

    group = below.add_parser("incident", help="what went wrong with a version").add_subparsers(required=True)
    made = command(group, "show", show, "list incidents, or show the whole bundle of one")
    made.add_argument("incident", nargs="?", default="", help="its id, or its version's number")
    for name, run, text in (
        ("resubmit", resubmitted, "let a failed version try again; it passes every gate"),
        ("discard", discarded, "give a failed version up: it stays in quarantine for good"),
    ):
        made = order(group, name, run, text, must_say_why=True)
        made.add_argument("incident", help="its id, or its version's number")


def _fate(found: dict[str, object]) -> str:
    if found["discarded"]:
        return "it was given up"
    return "it is in quarantine" if found["quarantined"] else "it is not in quarantine"
