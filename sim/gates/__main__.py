"""`python -m sim.gates [KEY=VALUE ...]`: gates by Monte-Carlo.

Rules of this file:
    * A line per case for people as it is done, then what the stated reach says; ``json=FILE`` writes a JSON line per case as well.
    * Keys are those of `GatesConfig`, lists as ``1000,5000``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.core.build import build
from fedretrain.core.errors import ConfigError, UserError
from fedretrain.rollout.power import detectable, detectable_in_clusters, pre_period
from sim.gates.cases import GatesConfig, cases, default_policy, run_case
from sim.gates.fleets import CANDIDATE_EQUAL, DAY_S, Fleet, FleetModel
from sim.gates.report import HEADER, line, reach

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedretrain.coordinator.policy import Policy

USAGE = f"""\
python -m sim.gates [KEY=VALUE ...]   what gates see and miss, by Monte-Carlo; json=FILE writes a JSON line for each case too

keys, lists as 1000,5000: {", ".join(field.name for field in fields(GatesConfig))}"""
_WINDOWS_DAYS = (0.5, 1.0, 2.0, 4.0, 8.0)
_LISTS = ("num_devices", "correlations", "events_per_day", "controllers")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; 0, or 2 for a user's error."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h"} & set(words):
        print(USAGE)
        return 0
    try:
        config, file = read(words)
        run(config, file)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read(words: list[str]) -> tuple[GatesConfig, Path | None]:
    """The configuration of a command line, and where JSON lines go."""
    values: dict[str, Any] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator:
            raise ConfigError(f"{word!r} is not KEY=VALUE", where="gates")
        values[key] = [_scalar(part) for part in value.split(",")] if key in _LISTS else _scalar(value)
    file = values.pop("json", None)
    return build(GatesConfig, values, where="gates"), None if file is None else Path(str(file))


def _scalar(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def run(config: GatesConfig, file: Path | None = None) -> None:
    """Simulate every case, print it, and write the JSON lines."""
    policy = default_policy()
    for text in stated(config, policy):
        print(text)
    print(f"\n{config.num_rollouts} rollouts a case; rates in % with one-sided 95 % bounds\n{HEADER}")
    summaries = []
    for case in cases(config):
        summaries.append(run_case(case, policy, config.num_rollouts, config.seed))
        print(line(summaries[-1]), flush=True)
    print("\nreach (our gates)")
    for text in reach(summaries):
        print(text)
    if file is not None:
        lines = [json.dumps(summary.to_record(), sort_keys=True) for summary in summaries]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def stated(config: GatesConfig, policy: Policy) -> list[str]:
    """What each step can see, stated before the start from one simulated pre-period of each kind of fleet."""
    said = []
    for events in config.events_per_day:
        for num in config.num_devices:
            for correlation in config.correlations:
                model = FleetModel(num, correlation, events_per_day=events, persistence=config.persistence)
                fleet = Fleet(model, CANDIDATE_EQUAL, config.seed)
                before = [pre_period(*fleet.pre_period(days), span_s=days * DAY_S) for days in _WINDOWS_DAYS]
                plan = policy.look_plan()
                said.append(f"{num} devices, correlation {correlation}, {events:.0f} events a day:")
                rule = policy.rollout.metrics[0]
                clusters = fleet.clusters(plan.policy.clusters)
                fleet_wide = detectable(rule, before, plan, num, clusters=clusters)
                said += [f"  {power.text}" for power in fleet_wide]
                apart = detectable_in_clusters(rule, before, plan, num, clusters)
                by_size = {(one.num_devices, one.cluster.rpartition(" ")[0]): one for one in apart}
                said += [f"  {power.text}" for power in by_size.values()]
    return said


if __name__ == "__main__":
    raise SystemExit(main())
