"""``fedretrain policy``: which policy decides, what waits for two people, and their word."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fedretrain.coordinator import policy_book
from fedretrain.coordinator.policy_book import Answered
from fedretrain.core.errors import ConfigError
from fedretrain.rollout.evidence import Answer
from fedretrain.server import policies
from fedretrain.server.account import account
from fedretrain.server.command_line import command, desk_of, order, say

if TYPE_CHECKING:
    import argparse

    from fedretrain.server.command_line import Below, Run
    from fedretrain.server.desk import Desk

_ABOUT = """\
A policy file whose decision thresholds differ from those in force (all of monitoring, validation, rollout, gate, safety,
quarantine, on_decay and telemetry) changes nothing when the coordinator starts: the old policy goes on, and the new one waits until two
different people with the right approve_critical have agreed. Their word is about the file as the coordinator read it. Changes of
name and retraining count at once."""


def add(below: Below) -> None:
    """Add the commands."""

    def status(arguments: argparse.Namespace) -> int:
        found = standing(desk_of(arguments))
        lines, waits = [f"in force {found['in_force'][:12]} {found['name']}"], found["waits"]
        if waits is not None:
            agreed = ", ".join(waits["agreed"]) or "nobody"
            lines += [f"waits    {waits['digest'][:12]}", *(f"  {one}" for one in waits["changed"])]
            lines += [f"agreed   {agreed}, of {waits['people']} people"]
        return say(arguments, found, "\n".join(lines))

    def giving(word: Answer) -> Run:
        def run(arguments: argparse.Namespace) -> int:
            found = answer(desk_of(arguments), word, arguments.by, arguments.reason)
            return say(arguments, found, f"{word} by {arguments.by}; it counts at the next turn")

        return run

    made = below.add_parser("policy", help="changed decision thresholds: what waits, and four eyes")
    made.description = _ABOUT
    group = made.add_subparsers(required=True)
    command(group, "status", status, "the policy in force, and the one that waits with what it changes")
    order(group, "approve", giving(Answer.GRANTED), "agree to the policy that waits; two people must")
    order(group, "refuse", giving(Answer.REFUSED), "refuse it: every yes so far is taken back")


def standing(desk: Desk) -> dict[str, Any]:
    """What decides, and what waits."""
    book = desk.policy_book()
    return {
        "in_force": desk.policy.digest,
        "name": desk.policy.name,
        "waits": policies.waits(book, desk.roles, time.time()),
    }


def answer(desk: Desk, word: Answer, by: str, reason: str) -> dict[str, str]:
    """Write somebody's word on the policy that waits.

    Raises:
        ConfigError: If nothing waits, the file is another one by now, or this person may not.
    """
    desk.recognize(by)
    book, now = desk.policy_book(), time.time()
    said = Answered(desk.policy_file.digest, by.strip(), word, reason)
    refused = policy_book.refusal(book, desk.roles, said, now, account())
    if refused:
        raise ConfigError(refused, where="policy", fix="see `fedretrain policy status`")
    policies.answer(desk.log, desk.population, said, now, desk.signer)
    return {"digest": said.digest, "answer": str(word), "by": said.by}
