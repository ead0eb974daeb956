"""``fedretrain devices quarantine`` and ``release``: keep a device out by hand, and let it in again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.server.command_line import desk_of, order, say

if TYPE_CHECKING:
    import argparse

    from fedretrain.server.command_line import Below


def add(group: Below) -> None:
    """Add the commands to those of ``fedretrain devices``."""

    def kept_out(arguments: argparse.Namespace) -> int:
        from fedretrain.server.keeping_out import keep_out

        keep_out(desk_of(arguments), arguments.device, arguments.by, arguments.reason)
        text = f"{arguments.device} is kept out from the next turn on"
        return say(arguments, {arguments.device: "quarantine"}, text)

    def let_in(arguments: argparse.Namespace) -> int:
        from fedretrain.server.keeping_out import let_in

        let_in(desk_of(arguments), arguments.device, arguments.by, arguments.reason)
        text = f"{arguments.device} counts again from the next turn on"
        return say(arguments, {arguments.device: "released"}, text)

    for name, run, text in (
        (
            "quarantine",
            kept_out,
            "keep a device out: it goes on serving, what it measures and trains does not count",
        ),
        (
            "release",
            let_in,
            "let a device that is kept out in again, whether a person or a monitor keeps it out",
        ),
    ):
        made = order(group, name, run, text, must_say_why=True)
        made.add_argument("device")
