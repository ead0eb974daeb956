"""What the simulation gate found, for people and for programs.

Rules of this file:
    * The data is named by digest: log, fleet, candidate, champion, their configurations, every simulated fleet.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.checkpoint import config_digest
from sim.gating.replay import params_digest
from sim.outputs import SUMMARY, disk_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sim.fit.files import FleetFile
    from sim.gating.config import GateConfig
    from sim.gating.gate import Contender, GateResult
    from sim.gating.judge import GateCheck
    from sim.results import Run

FORMAT, VERSION = "fedretrain.simulationgate", 1


def sources(
    fleet: FleetFile, candidate: Contender | None, champion: Contender | None, runs: Mapping[str, Run]
) -> dict[str, str]:
    """Everything that the verdict rests on, by digest."""
    found = {"fleet": fleet.digest, "fleet's log": fleet.log_digest or "not known"}
    for role, one in (("candidate", candidate), ("champion", champion)):
        if one is None:
            continue
        found[f"{role}'s configuration"] = config_digest(one.config)
        if one.start is not None:
            found[f"{role}'s beginning"] = params_digest(one.start)
        if role in runs:
            found[f"{role}'s data"] = runs[role].summary.data_digest
            found[f"{role}'s run"] = _file_digest(Path(one.name) / SUMMARY)
    return found


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_json(config: GateConfig, result: GateResult, found: Mapping[str, str]) -> None:
    """Write `GateConfig.out`.

    Raises:
        UserError: If the disk refuses it.
    """
    values = {
        "format": FORMAT,
        "version": VERSION,
        "verdict": str(result.verdict),
        "request": asdict(config),
        "seeds": list(result.seeds),
        "sha256": dict(found),
        "simulated_fleets": dict(result.fleets),
        "checks": [_plain(asdict(check)) for check in result.checks],
    }
    path = Path(config.out)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: None."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def render(result: GateResult, found: Mapping[str, str]) -> str:
    """The report for people."""
    header = ("condition", "check", "candidate", "reference", "difference", "margin", "verdict")
    rows = [_row(check) for check in result.checks]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]
    ]
    lines.append("")
    lines += [f"{name:<28} sha256 {digest}" for name, digest in found.items()]
    lines.append(f"{len(result.seeds)} seeds: {', '.join(map(str, result.seeds))}")
    lines += [
        f"{str(c.verdict).upper()}: {c.name}, {c.condition}: {c.reason}"
        for c in result.checks
        if str(c.verdict) != "pass"
    ]
    lines.append(f"simulation gate: {str(result.verdict).upper()}")
    return "\n".join(lines)


def _row(check: GateCheck) -> tuple[str, ...]:
    difference = ""
    if check.difference is not None:
        one = check.difference
        interval = "" if one.low is None else f" ({one.low:+.4f} to {one.high:+.4f})"
        difference = f"{one.value:+.4f}{interval}"
    return (
        check.condition,
        check.name,
        f"{check.candidate:.4f}",
        f"{check.reference:.4f}",
        difference,
        f"{check.margin:g}",
        str(check.verdict).upper(),
    )
