"""How true a fitted fleet is: what it says of time that it was not fitted to, beside what happened then.

Rules of this file:
    * Predictions come from the simulator itself, run with the fitted configuration over the same devices and instants: what is tested is what will be
      used, not a formula beside it.
    * Every observed figure has an interval over devices, wider by what the fit itself is uncertain by: both are samples, and a
      fit to a stretch as long as the other is as uncertain. A distance (between curves, between mixes) has the distance
      that sampling alone would give beside it.

Shape letters: D devices, S slots, H hours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from fedretrain.core.build import build
from fedretrain.core.clock import DAY_S, HOUR_S
from sim.availability import Availability, AvailabilityConfig
from sim.devices import Traits
from sim.fit.drift import fit_drift
from sim.fit.fitted import fit, share_interval
from sim.fit.label_rates import fit_label_rates
from sim.fit.mix import class_counts, cluster_shares
from sim.fit.timing import fit_dropouts
from sim.fleetlog.log import cluster_of
from sim.labels import Labels, LabelsConfig
from sim.network import Network, NetworkConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.fit.fitted import Fitted
    from sim.fleetlog.log import FleetLog

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float64]

_SEEDS = tuple(range(9_000, 9_010))  # of the simulated repetitions; their mean is the prediction
_RESAMPLES = 200
_HALF_NORMAL = 0.798  # mean absolute value of a standard normal number
_MOST_ROWS = 60_000  # predictions whose labels are simulated


@dataclass(frozen=True)
class Compared:
    """One row of the table.

    Attributes:
        measure: What is compared.
        predicted: By the fitted fleet.
        observed: On the time held out.
        low: Lower end of the observed 95 % interval.
        high: Upper end.
        unit: Of all four.
        is_distance: Whether `predicted` is a distance between both sides, and `observed` what chance alone would give.
    """

    measure: str
    predicted: float
    observed: float
    low: float
    high: float
    unit: str = ""
    is_distance: bool = False

    def widened(self, by: float) -> Compared:
        """With an interval so many times as wide around what was observed; a distance has that in it already.

        So has what is infinite: the delay of labels of which most never come.
        """
        if self.is_distance or not np.isfinite(self.observed):
            return self
        low, high = (
            self.observed - by * (self.observed - self.low),
            self.observed + by * (self.high - self.observed),
        )
        return replace(self, low=low, high=high)

    @property
    def inside(self) -> bool:
        """Whether the prediction lies in the observed interval."""
        return bool(self.low <= self.predicted <= self.high)


def fidelity(log: FleetLog, split_at: float, fitted: Fitted | None = None) -> list[Compared]:
    """Fit on what was known at an instant, predict the rest.

    Args:
        log: The whole log.
        split_at: The instant.
        fitted: The fit to what was known then, if it is there already.
    """
    begin, end = log.header.begin_at, log.header.end_at
    fitted = fitted or fit(log.window(begin, split_at), intervals=False)
    late = log.window(split_at, end)
    world = _World(fitted, late)
    wider = float(np.sqrt(1.0 + (end - split_at) / (split_at - begin)))
    rows = [
        *_online(world, late),
        *_latency(world, late),
        *_dropouts(fitted, late),
        *_labels(world, late),
        *_rates(fitted, late),
        *_mix(fitted, late),
        *_drift(fitted, log),
    ]
    return [one.widened(wider) for one in rows]


class _World:
    """The fitted fleet over the log's devices, for one seed at a time."""

    def __init__(self, fitted: Fitted, log: FleetLog) -> None:
        self.fitted, self._header = fitted, log.header
        values = fitted.config()
        self._availability = build(AvailabilityConfig, values["availability"], where="availability")
        self._network = build(NetworkConfig, values.get("network", {}), where="network")
        # Delays are of all classes together: nobody knows the class of what is not labelled.
        delays = {} if fitted.delay is None else fitted.delay.config()
        self._labels = build(LabelsConfig, delays, where="labels")

    def _traits(self, devices: Ids) -> Traits:
        site = np.asarray(self._header.site, dtype=np.int64)
        kind = np.asarray(self._header.device_type, dtype=np.int64)
        return Traits(devices, site[devices], kind[devices])

    def availability(self, seed: int) -> Availability:
        return Availability(self._availability, seed, self._traits)

    def network(self, seed: int) -> Network:
        return Network(self._network, seed, self._traits)

    def labels(self, seed: int) -> Labels:
        return Labels(self._labels, seed, self.availability(seed).delivered_at)


def _online(world: _World, late: FleetLog) -> list[Compared]:
    slots, seen = late.slots(), late.online()
    if not seen.size:
        return []
    hour = np.floor(slots % DAY_S / HOUR_S).astype(np.int64)
    devices = np.arange(len(seen))
    simulated = np.zeros(len(slots))
    for seed in _SEEDS:
        availability = world.availability(seed)
        simulated += [float(availability.online(devices, at).mean()) for at in slots.tolist()]
    by_hour = np.array([seen[:, hour == h].mean() for h in range(24) if (hour == h).any()])
    expected = np.array([(simulated / len(_SEEDS))[hour == h].mean() for h in range(24) if (hour == h).any()])
    error = np.array(
        [seen[:, hour == h].mean(axis=1).std() / np.sqrt(len(seen)) for h in range(24) if (hour == h).any()]
    )
    per_device = seen.mean(axis=1)
    half = 1.96 * float(per_device.std()) / np.sqrt(len(seen))
    mean = float(per_device.mean())
    gap = float(np.abs(by_hour - expected).mean())
    chance = float(_HALF_NORMAL * error.mean())
    return [
        Compared("share online", float(expected.mean()), mean, mean - half, mean + half),
        # Two curves that differ by chance alone are so far apart; three times that is more than chance.
        Compared(
            "share online by hour, mean absolute error", gap, chance, 0.0, 3.0 * chance, is_distance=True
        ),
    ]


def _latency(world: _World, late: FleetLog) -> list[Compared]:
    replies = late.replies
    if world.fitted.timing is None or not len(replies):
        return []
    drawn = []
    for seed in _SEEDS:
        network = world.network(seed)
        # Another round for each repetition of a device, so that its jitter is drawn anew.
        for round_ in np.unique(replies.round).tolist():
            which = np.flatnonzero(replies.round == round_)
            drawn.append(
                network.reply_after_s(
                    replies.device[which],
                    round_=round_,
                    down_bytes=replies.bytes_down[which],
                    up_bytes=replies.bytes_up[which],
                    num_steps=replies.num_steps[which],
                )
            )
    simulated = np.concatenate(drawn)
    return [
        _quantile_row(
            f"reply latency, {q:.0%} quantile",
            simulated,
            _PerDevice.of(replies.device, replies.latency_s),
            q,
            "s",
        )
        for q in (0.5, 0.9, 0.99)
    ]


def _dropouts(fitted: Fitted, late: FleetLog) -> list[Compared]:
    seen = fit_dropouts(late)
    rows = []
    for name, predicted, observed, num in (
        ("no answer at all", fitted.dropouts.before, seen.before, seen.num_asked),
        ("dropped in mid-round", fitted.dropouts.mid, seen.mid, seen.num_begun),
    ):
        if num:
            low, high = share_interval(round(observed * num), num)
            rows.append(Compared(f"drop-outs: {name}", predicted, observed, low, high))
    return rows


def _labels(world: _World, late: FleetLog) -> list[Compared]:
    """Delays of predictions made early enough to have waited for half of the time held out."""
    served, arrivals, header = late.predictions, late.arrivals, late.header
    horizon = 0.5 * (header.end_at - header.begin_at)
    early = served.at <= header.end_at - horizon
    if world.fitted.delay is None or not early.any():
        return []
    device, at = _instants(late, early)
    simulated = [world.labels(seed).label_at(device, np.arange(len(device)), at) - at for seed in _SEEDS[:3]]
    pooled = np.concatenate(simulated)
    delay_s = arrivals.at - arrivals.predicted_at
    came = (arrivals.predicted_at < header.end_at - horizon) & (delay_s <= horizon)
    whole = np.bincount(served.device[early], served.count[early], minlength=header.num_devices)
    seen = _PerDevice(arrivals.device[came], delay_s[came] / HOUR_S, whole.astype(np.float64))
    waited = np.where(pooled <= horizon, pooled, np.inf) / HOUR_S
    return [_quantile_row(f"label delay, {q:.0%} quantile", waited, seen, q, "h") for q in (0.25, 0.5, 0.75)]


def _rates(fitted: Fitted, late: FleetLog) -> list[Compared]:
    """The share of each class's samples whose label comes."""
    if fitted.label_rates is None:
        return []
    seen = fit_label_rates(late, fitted.delay)
    if seen is None:
        return []
    columns = (
        late.header.class_names,
        fitted.label_rates.rate_M.tolist(),
        seen.rate_M.tolist(),
        seen.low_M.tolist(),
        seen.high_M.tolist(),
    )
    return [Compared(f"labels that come, {name}", *numbers) for name, *numbers in zip(*columns, strict=True)]


def _instants(late: FleetLog, early: NDArray[np.bool_]) -> tuple[Ids, Floats]:
    """Devices and instants of predictions, spread evenly over the stretches in which they were served."""
    served = late.predictions
    count = served.count[early]
    device = np.repeat(served.device[early], count)
    start, length = (np.repeat(one[early], count) for one in (served.from_at, served.at - served.from_at))
    keep = np.arange(0, len(device), max(1, len(device) // _MOST_ROWS))
    draws = rng.uniforms_at(rng.seeds_for(_SEEDS[0], -1, keep, "fidelity.labels"), 0)
    return device[keep], start[keep] + draws * length[keep]


def _mix(fitted: Fitted, late: FleetLog) -> list[Compared]:
    """Total variation between predicted and observed shares, mean over clusters."""
    if fitted.mix is None or not len(late.arrivals):
        return []
    observed = cluster_shares(late)
    gap = float((0.5 * np.abs(observed - fitted.mix.shares_QM).sum(axis=1)).mean())
    of, cluster = cluster_of(late.header)
    size = np.zeros(len(cluster))
    np.add.at(size, of, class_counts(late).sum(axis=1))
    before = fitted.mix.num_labels / len(cluster)
    # Both sides are samples; each class is off by a normal error of either.
    variance = observed * (1.0 - observed) * (1.0 / np.maximum(size, 1.0) + 1.0 / before)[:, None]
    chance = float((0.5 * _HALF_NORMAL * np.sqrt(variance).sum(axis=1)).mean())
    return [
        Compared("class mix by cluster, total variation", gap, chance, 0.0, 3.0 * chance, is_distance=True)
    ]


def _drift(fitted: Fitted, log: FleetLog) -> list[Compared]:
    """What has drifted by the end: onsets are taken to go on at the rate seen."""
    whole = {one.kind: one for one in fit_drift(log)}
    header = log.header
    longer = (header.end_at - header.begin_at) / (fitted.end_at - fitted.begin_at)
    rows = []
    for one in fitted.drift:
        seen = whole.get(one.kind)
        if seen is None:
            continue
        low, high = share_interval(seen.num_devices, header.num_devices)
        expected = 1.0 - (1.0 - one.device_fraction) ** longer
        rows.append(Compared(f"drift, {one.kind}: devices", expected, seen.device_fraction, low, high))
        half = 1.96 * max(seen.spread, one.spread) * abs(seen.magnitude) * 1.2533 / np.sqrt(seen.num_devices)
        size = abs(seen.magnitude)
        rows.append(Compared(f"drift, {one.kind}: size", abs(one.magnitude), size, size - half, size + half))
    return rows


@dataclass(frozen=True)
class _PerDevice:
    """Observed values with the device of each.

    Attributes:
        device: ``[N]``.
        value: ``[N]``.
        total_D: How many values each device would have had, those that never came counted too.
    """

    device: Ids
    value: Floats
    total_D: Floats

    @classmethod
    def of(cls, device: Ids, value: Floats) -> _PerDevice:
        return cls(device, value, np.bincount(device).astype(np.float64))


def _quantile_row(measure: str, predicted: Floats, seen: _PerDevice, q: float, unit: str) -> Compared:
    """A quantile beside its bootstrap interval over devices; what never came lies beyond every value."""
    order = np.argsort(seen.value)
    value, device = np.append(seen.value[order], np.inf), seen.device[order]

    def quantile(weight_D: Floats) -> float:
        reached = np.cumsum(weight_D[device])
        return float(value[np.searchsorted(reached, q * float((weight_D * seen.total_D).sum()))])

    num = len(seen.total_D)
    draws = rng.uniforms(rng.seeds_for(0, -1, np.arange(_RESAMPLES), "fidelity.bootstrap"), num)
    drawn = [
        quantile(np.bincount((row * num).astype(np.int64), minlength=num).astype(np.float64)) for row in draws
    ]
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    expected = float(np.quantile(predicted, q, method="lower"))
    return Compared(measure, expected, quantile(np.ones(num)), float(low), float(high), unit)


def render(rows: list[Compared]) -> str:
    """The table for people."""
    header = ("measure", "predicted", "observed", "95 % interval", "")
    lines = [
        (
            one.measure,
            f"{one.predicted:.4g} {one.unit}".rstrip(),
            f"{one.observed:.4g} {one.unit}".rstrip(),
            f"{one.low:.4g} to {one.high:.4g}",
            "inside" if one.inside else "OUTSIDE",
        )
        for one in rows
    ]
    widths = [max(len(row[i]) for row in [header, *lines]) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *lines]
    )
