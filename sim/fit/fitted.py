"""A fleet fitted to a log: every part, each number with its interval.

Rules of this file:
    * Devices are the unit of every interval: a delete-a-group jackknife over ten groups of devices.
    * What a log does not show keeps the simulator's default and is named in `unknown`.

Source: Kott 2001, "The delete-a-group jackknife", Journal of Official Statistics 17(4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.fit.delay import fit_delay
from sim.fit.drift import fit_drift
from sim.fit.label_rates import fit_label_rates
from sim.fit.mix import fit_mix
from sim.fit.presence import MARKOV, fit_presence
from sim.fit.timing import fit_dropouts, fit_timing
from sim.results import Estimate, Over

if TYPE_CHECKING:
    from fedretrain.wire.fleet_log import Header
    from sim.fit.delay import Delay
    from sim.fit.drift import FittedDrift
    from sim.fit.label_rates import LabelRates
    from sim.fit.mix import Mix
    from sim.fit.presence import Presence
    from sim.fit.timing import Dropouts, Timing
    from sim.fleetlog.log import FleetLog

GROUPS = 10
_FEWEST_DEVICES = 2 * GROUPS
NEVER_TOLD = (
    "labels.bias (nobody sees how hard a sample is)",
    "drift: clip (a narrower spread is told as a gain)",
    "drift: seasonal and random_walk (told as what they come to, linear or abrupt)",
    "drift: clock_skew (instants of samples are the device's own)",
    "drift: recalibration (told as the end of what it mended)",
)
"""What a log of daily means and spreads, and of instants, cannot tell."""
NOT_APART = "network: what receiving, training and sending take of a reply's time (told whole, as start_s)"
"""What a log does not tell where devices did not measure it."""
_T_975 = 2.262  # Student's t with 9 degrees of freedom, 97.5 %


@dataclass(frozen=True)
class Fitted:
    """A fitted fleet.

    Attributes:
        log_digest: sha256 of the log.
        begin_at: First instant fitted to.
        end_at: Last one.
        num_devices: Devices of the log.
        presence: When devices are connected.
        timing: How long they take; None where nothing replied.
        dropouts: How often they do not answer.
        delay: When labels come; None where none did.
        label_rates: How often each class is labelled; None where the log does not tell.
        mix: Their classes; None in a regression.
        drift: What happened to the sensors.
        estimates: Each number with its 95 % interval.
        unknown: Parts that the log does not show.
    """

    log_digest: str
    begin_at: float
    end_at: float
    num_devices: int
    presence: Presence
    timing: Timing | None
    dropouts: Dropouts
    delay: Delay | None
    label_rates: LabelRates | None
    mix: Mix | None
    drift: tuple[FittedDrift, ...]
    estimates: dict[str, Estimate]
    unknown: tuple[str, ...]

    def config(self) -> dict[str, Any]:
        """What it sets of an experiment's configuration."""
        coins = {
            "dropout_before": float(f"{self.dropouts.before:.6g}"),
            "dropout_mid": float(f"{self.dropouts.mid:.6g}"),
        }
        values: dict[str, Any] = {"availability": self.presence.config() | coins}
        if self.timing is not None:
            values["network"] = self.timing.config()
        if self.delay is not None:
            values["labels"] = self.delay.config() | self._bias()
        values["drift"] = {"specs": [one.config() for one in self.drift]}
        if self.mix is not None:
            values["fleet"] = {"generator": {"label_skew": round(self.mix.label_skew, 6)}}
        return values

    def _bias(self) -> dict[str, Any]:
        """Which classes are labelled less, if any are."""
        rates = self.label_rates
        if rates is None or not rates.differ:
            return {}
        return {
            "loss_fraction": float(f"{rates.loss_fraction:.6g}"),
            "class_rate": list(rates.class_rate),
        }


def fit(log: FleetLog, *, intervals: bool = True) -> Fitted:
    """Fit a fleet to a log.

    Args:
        log: Everything known, up to the instant of the fit.
        intervals: Whether to compute them (eleven fits instead of one).
    """
    presence, timing, dropouts = fit_presence(log), fit_timing(log), fit_dropouts(log)
    delay, mix, header = fit_delay(log), fit_mix(log), log.header
    missing = {"network": timing is None, "labels": delay is None, "class mix": mix is None}
    rates = fit_label_rates(log, delay)
    missing |= {"drop-outs": not dropouts.num_asked, "drift": not len(log.telemetry)}
    missing |= {NOT_APART: timing is not None and not timing.in_parts}
    missing |= {"labels.class_rate": rates is None, **dict.fromkeys(NEVER_TOLD, True)}
    found = Fitted(
        log.digest,
        header.begin_at,
        header.end_at,
        header.num_devices,
        presence,
        timing,
        dropouts,
        delay,
        rates,
        mix,
        fit_drift(log),
        {},
        tuple(name for name, absent in missing.items() if absent),
    )
    values = _values(presence, timing, dropouts, delay, mix)
    estimates = _jackknife(log, values) if intervals else {name: Estimate(v) for name, v in values.items()}
    estimates |= _rate_estimates(rates, header)
    for one in found.drift:
        estimates |= _drift_estimates(one, header.num_devices)
    object.__setattr__(found, "estimates", estimates)
    return found


def _values(
    presence: Presence, timing: Timing | None, dropouts: Dropouts, delay: Delay | None, mix: Mix | None
) -> dict[str, float]:
    """The numbers of a fit by the key of the configuration that they set."""
    values = {"availability.share_online": presence.share, "availability.keep": presence.keep}
    if presence.kind == MARKOV:
        values |= {
            "availability.markov.mean_on_s": presence.mean_on_s,
            "availability.markov.mean_off_s": presence.mean_off_s,
        }
    values |= {"availability.dropout_before": dropouts.before, "availability.dropout_mid": dropouts.mid}
    if timing is not None:
        values |= {f"network.{name}": value for name, value in timing.estimates().items()}
        values |= {f"network.type_speed[{t}]": v for t, v in enumerate(timing.type_speed) if t}
    if delay is not None:
        values |= {"labels.delay_s": delay.delay_s, "labels.sigma": delay.sigma}
        values |= {"labels.batch_hour": delay.batch_hour, "labels.loss_fraction": delay.loss_fraction}
    if mix is not None:
        values |= {"fleet.label_alpha": mix.label_alpha, "fleet.generator.label_skew": mix.label_skew}
    return values


def _jackknife(log: FleetLog, values: dict[str, float]) -> dict[str, Estimate]:
    """Every value with its interval; without one in a fleet of fewer than twenty devices."""
    num = log.header.num_devices
    if num < _FEWEST_DEVICES:
        return {name: Estimate(value, num=num) for name, value in values.items()}
    group = np.arange(num) % GROUPS
    parts = []
    for one in range(GROUPS):
        rest = log.of_devices(group != one)
        parts.append(
            _values(fit_presence(rest), fit_timing(rest), fit_dropouts(rest), fit_delay(rest), fit_mix(rest))
        )
    found = {}
    for name, value in values.items():
        without = np.array([part.get(name, math.nan) for part in parts])
        if not np.isfinite(without).all():  # another kind was chosen without some devices
            found[name] = Estimate(value, num=num)
            continue
        error = math.sqrt((GROUPS - 1) / GROUPS * float(((without - without.mean()) ** 2).sum()))
        half = _T_975 * error
        found[name] = Estimate(value, value - half, value + half, num, Over.DEVICES)
    return found


def _rate_estimates(rates: LabelRates | None, header: Header) -> dict[str, Estimate]:
    """The share of each class's samples whose label comes."""
    if rates is None:
        return {}
    columns = (header.class_names, rates.rate_M.tolist(), rates.low_M.tolist(), rates.high_M.tolist())
    return {
        f"labels: share that comes, {name}": Estimate(rate, low, high, header.num_devices, Over.DEVICES)
        for name, rate, low, high in zip(*columns, strict=True)
    }


def _drift_estimates(one: FittedDrift, num_devices: int) -> dict[str, Estimate]:
    low, high = share_interval(one.num_devices, num_devices)
    share = Estimate(one.device_fraction, low, high, num_devices, Over.DEVICES)
    return {
        f"drift.{one.kind}.device_fraction": share,
        f"drift.{one.kind}.magnitude": Estimate(one.magnitude, num=one.num_devices),
    }


def share_interval(hits: float, num: float, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share.

    Source: Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404
    """
    from scipy.special import betaincinv

    if num <= 0:
        return 0.0, 1.0
    tail = (1.0 - level) / 2.0
    low = float(betaincinv(hits, num - hits + 1.0, tail)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1.0, num - hits, 1.0 - tail)) if hits < num else 1.0
    return low, high
