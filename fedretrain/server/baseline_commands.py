"""``fedretrain baseline``: what normal inputs are, where nobody had data when the model was imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.core.checks import positive
from fedretrain.core.clock import DAY_S
from fedretrain.server.command_line import desk_of, order, say

if TYPE_CHECKING:
    import argparse

    from fedretrain.server.command_line import Below


def add(below: Below) -> None:
    """Add the commands."""

    def collected(arguments: argparse.Namespace) -> int:
        from fedretrain.server.collecting import collect_baseline

        positive("--days", arguments.days)
        desk, least_s = desk_of(arguments), arguments.days * DAY_S
        found = collect_baseline(desk, arguments.by, arguments.reason, least_s)
        text = (
            f"version {found['version']} has bins of {found['num_rows']} rows of {found['num_devices']} devices "
            f"in {found['days']:.1f} days, and waits for its rollout"
        )
        return say(arguments, found, text)

    group = below.add_parser("baseline", help="what normal inputs are").add_subparsers(required=True)
    made = order(group, "collect", collected, "make the champion's bins of what its fleet counted")
    made.add_argument("--days", type=float, default=7.0, help="telemetry must span so many days")
