"""``fedretrain labels``: annotations that came later, and what they say of the heuristics that labelled before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.server.command_line import command, content_of, desk_of, order, say

if TYPE_CHECKING:
    import argparse

    from fedretrain.server.command_line import Below


def add(below: Below) -> None:
    """Add the commands."""

    def imported(arguments: argparse.Namespace) -> int:
        from fedretrain.server.labelling import import_labels

        content, name = content_of(arguments.file), arguments.file.name
        found = import_labels(desk_of(arguments), content, name, arguments.by, arguments.reason)
        text = ", ".join(f"{count} {word.replace('_', ' ')}" for word, count in found.items())
        return say(arguments, found, f"{text}; devices are told at their next heartbeat")

    def reported(arguments: argparse.Namespace) -> int:
        from fedretrain.server.labelling import report_labels

        found = report_labels(desk_of(arguments))
        lines = [f"{key:12} {found[key]}" for key in ("annotations", "waiting", "found", "not_found")]
        lines += [
            f"heuristic {name}: {one['wrong']} of {one['num']} wrong, "
            f"{one['error_fraction']:.1%} [{one['low']:.1%}, {one['high']:.1%}]"
            for name, one in found["heuristics"].items()
        ]
        return say(arguments, found, "\n".join(lines))

    group = below.add_parser("labels", help="annotations that came later").add_subparsers(required=True)
    made = order(group, "import", imported, "bring labels for predictions that devices made, each once")
    made.add_argument("file", type=Path, help="CSV or JSON lines: device, prediction (or sample), label")
    command(group, "report", reported, "how far they have come, and the error of heuristic labels by source")
