"""`python -m sim fit LOG [OUT.yaml] [--until AT]`: a fleet from an event log, with its uncertainties and its fidelity."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import ConfigError
from sim.fit.fidelity import fidelity, render
from sim.fit.files import write_fleet
from sim.fit.fitted import fit
from sim.fleetlog.reader import read_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.fit.fitted import Fitted

USAGE = "python -m sim fit LOG [OUT.yaml] [--until AT]"


def fit_command(words: Sequence[str], *, until: str = "") -> int:
    """Fit, write, and print what was found and how true it is.

    Args:
        words: The log, and the file to write: by default beside the log.
        until: Fit only what was known at this instant of the log's clock, and predict the rest. Empty: fit it all; the fidelity is
            that of a fit to the first half.

    Returns:
        The exit status, 0.

    Raises:
        UserError: If a word is wrong, the log damaged or the disk full.
    """
    if len(words) not in (1, 2):
        raise ConfigError("a log, and at most a file to write, were expected", fix=USAGE)
    path = Path(words[0])
    out = Path(words[1]) if len(words) == 2 else path.with_suffix(".yaml")
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{out} is no YAML file", where="OUT.yaml", fix=USAGE)
    log = read_log(path)
    begin, end = log.header.begin_at, log.header.end_at
    if until:
        at = _instant(until, begin, end)
        fitted = fit(log.window(begin, at))
        rows = fidelity(log, at, fitted)
    else:
        at = 0.5 * (begin + end)
        fitted = fit(log)
        rows = fidelity(log, at)
    out = out.resolve()  # the command below names its folder
    write_fleet(out, fitted, path.name, rows)
    _say(fitted)
    for reason, count in sorted(log.refused.items()):
        print(f"refused: {count} lines, {reason}")
    print(f"\nfitted to what was known at {at:g} s, beside what happened until {end:g} s:\n{render(rows)}\n")
    print(
        f"fleet    {out}  (python -m sim --config-dir {out.parent.parent} +{out.parent.name}={out.stem} ...)"
    )
    print(f"evidence {out.with_suffix('.json')}")
    return 0


def _instant(text: str, begin: float, end: float) -> float:
    try:
        at = float(text)
    except ValueError:
        at = math.nan
    if not begin < at < end:
        raise ConfigError(
            f"{text!r} is no instant inside the log",
            where="--until",
            fix=f"give seconds from {begin:g} to {end:g}",
        )
    return at


def _say(fitted: Fitted) -> None:
    print(f"log sha256 {fitted.log_digest}: {fitted.num_devices} devices")
    scores = ", ".join(f"{kind} {score:.4f}" for kind, score in fitted.presence.held_out.items())
    print(f"availability: {fitted.presence.kind} (log likelihood of a heartbeat held out: {scores})")
    if fitted.delay is not None:
        print(f"label delay: {fitted.delay.kind}")
    for drift in fitted.drift:
        over = f", over after {drift.duration_s / DAY_S:.3g} days" if drift.duration_s else ""
        print(
            f"drift: {drift.kind}, {drift.shape}, size {drift.magnitude:.3g}, {drift.device_fraction:.1%} of devices{over}"
        )
    for name, one in fitted.estimates.items():
        interval = "" if one.low is None else f" ({one.low:.5g} to {one.high:.5g})"
        print(f"  {name:<40} {one.value:.5g}{interval}")
    for part in fitted.unknown:
        print(f"not in the log, left at its default: {part}")
