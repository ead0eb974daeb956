"""A fitted fleet on disk: a configuration group that Hydra composes, and its evidence beside it.

Rules of this file:
    * ``NAME.yaml`` holds keys of the schema and nothing else, so that it goes on any experiment:
      ``python -m sim --config-dir DIR +GROUP=NAME`` for a file ``DIR/GROUP/NAME.yaml``. What it rests on is in its comments.
    * ``NAME.json`` holds the same evidence for programs: the log's digest, every estimate with its interval, the class mix
      (which a fleet takes by its kind), the fidelity.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import yaml

from fedretrain.core.errors import DataError
from sim.outputs import disk_errors
from sim.plain import to_plain

if TYPE_CHECKING:
    from pathlib import Path

    from sim.fit.fidelity import Compared
    from sim.fit.fitted import Fitted
    from sim.results import Estimate

FORMAT = "fedretrain.fittedfleet"
SECTIONS = ("availability", "network", "labels", "drift", "fleet")


@dataclass(frozen=True)
class FleetFile:
    """A fitted fleet as it is read back.

    Attributes:
        path: The YAML file.
        digest: Its sha256.
        values: Keys of the schema.
        log_digest: sha256 of the log; empty if the file does not say.
        label_alpha: Concentration of the devices' class shares; None if it is not known.
    """

    path: str
    digest: str
    values: dict[str, Any]
    log_digest: str
    label_alpha: float | None


def write_fleet(path: Path, fitted: Fitted, log_name: str, rows: list[Compared]) -> None:
    """Write both files.

    Args:
        path: The YAML file; the other stands beside it.
        fitted: What was fitted.
        log_name: The log's file name.
        rows: Its fidelity.

    Raises:
        UserError: If the disk refuses them.
    """
    text = _text(fitted, log_name, rows)
    evidence = {
        "format": FORMAT,
        "log": log_name,
        "log_sha256": fitted.log_digest,
        "fleet_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "fitted_from_s": fitted.begin_at,
        "fitted_until_s": fitted.end_at,
        "num_devices": fitted.num_devices,
        "unknown": list(fitted.unknown),
        "availability": {"chosen": fitted.presence.kind, "held_out": fitted.presence.held_out},
        "labels": {}
        if fitted.delay is None
        else {"chosen": str(fitted.delay.kind), "scores": fitted.delay.scores},
        "class_mix": _mix(fitted),
        "estimates": {name: to_plain(one) for name, one in fitted.estimates.items()},
        "fidelity": [_finite(asdict(one) | {"inside": one.inside}) for one in rows],
    }
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.with_suffix(".json").write_text(json.dumps(_finite(evidence), indent=2) + "\n", encoding="utf-8")


def _text(fitted: Fitted, log_name: str, rows: list[Compared]) -> str:
    lines = [
        "# @package _global_",
        f"# A fleet fitted to {log_name}, sha256 {fitted.log_digest}",
        f"# {fitted.num_devices} devices, from {fitted.begin_at:g} to {fitted.end_at:g} s of its clock.",
        f"# Availability: {fitted.presence.kind}, the likeliest on time held out.",
    ]
    if fitted.mix is not None:
        lines.append(
            f"# A fleet dealt from a data set takes its class mix by fleet.label_alpha={fitted.mix.label_alpha:.4g}"
        )
    if fitted.unknown:
        lines.append(f"# Not in the log, left at their defaults: {', '.join(fitted.unknown)}")
    lines.append("# Estimates, with 95 % intervals over devices:")
    lines += [f"#   {name} {_estimate(one)}" for name, one in fitted.estimates.items()]
    if rows:
        outside = [one.measure for one in rows if not one.inside]
        said = f"outside their interval: {'; '.join(outside)}" if outside else "all inside their intervals"
        lines.append(f"# Fidelity on time held out: {len(rows)} figures, {said}")
    return "\n".join(lines) + "\n" + yaml.safe_dump(fitted.config(), sort_keys=False)


def _estimate(one: Estimate) -> str:
    if one.low is None or one.high is None:
        return f"{one.value:.5g}"
    return f"{one.value:.5g} ({one.low:.5g} to {one.high:.5g})"


def _mix(fitted: Fitted) -> dict[str, Any]:
    mix = fitted.mix
    if mix is None:
        return {}
    clusters = [
        {"site": site, "device_type": kind, "shares": [round(float(p), 6) for p in row]}
        for (site, kind), row in zip(mix.cluster, mix.shares_QM, strict=True)
    ]
    return {"label_alpha": mix.label_alpha, "label_skew": mix.label_skew, "clusters": clusters}


def _finite(value: Any) -> Any:
    """JSON knows no infinity: None instead."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and abs(value) == float("inf") else value


def read_fleet(path: Path) -> FleetFile:
    """Read a fitted fleet, or any configuration of the world's sections.

    Raises:
        DataError: If it is no such file.
    """
    try:
        data = path.read_bytes()
        values = yaml.safe_load(data)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"the fleet cannot be read: {reason}", where=str(path), fix="write one with python -m sim fit LOG"
        ) from error
    unknown = sorted(set(values) - set(SECTIONS)) if isinstance(values, dict) else ["nothing"]
    if unknown:
        raise DataError(
            f"a fleet has no section {unknown[0]!r}", where=str(path), fix=f"it has {', '.join(SECTIONS)}"
        )
    evidence = _evidence(path.with_suffix(".json"), hashlib.sha256(data).hexdigest())
    mix = evidence.get("class_mix") or {}
    return FleetFile(
        str(path),
        hashlib.sha256(data).hexdigest(),
        values,
        str(evidence.get("log_sha256", "")),
        mix.get("label_alpha"),
    )


def _evidence(path: Path, digest: str) -> dict[str, Any]:
    """The evidence of exactly this fleet; nothing where the fleet was edited or stands alone."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    ours = isinstance(found, dict) and found.get("format") == FORMAT and found.get("fleet_sha256") == digest
    return found if ours else {}
