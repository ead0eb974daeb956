"""``python -m benchmarks.detection [LIVES]``: which abrupt drifts the monitors find, how soon, and what they cry without any.

Lives of generated devices, a row an hour, watched by the library's own bins, store, baseline and recipes; no model is trained.
Every `EVERY_DAYS` a drift begins at a random hour on `SHARE` of the devices, in `CHANNELS` of their channels, and lasts
`LASTS_DAYS`; each kind and magnitude of `KINDS` takes its turn. Recipe A is judged on its shortest window alone, a day.

The rows of a generated device are independent of each other, so its windows vary less than a real sensor's:
``benchmarks.monitoring_null`` measures the same rule on real, dependent rows.

Rules of this file:
    * A drift is found in time if `Drifted` is raised within four window lengths of its onset. A drift whose onset falls while
      the last one's verdict still stands could raise nothing: it is counted apart (``blocked``) and in no share.
    * Sizes are of the data, the same for every kind: the largest PSI of any feature, of all of the drift's rows against the
      baseline. Magnitudes are those of `sim.sensors`.
    * One JSON line for each kind and magnitude, one for each band of sizes, one for all from `LEAST_SIZE` on with its two-sided 95 %
      interval (Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404), and one for the false alarms of lives
      without any drift. The exit status is 1 if fewer than `NEEDED` of the drifts from `LEAST_SIZE` on are found in time.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import versions
from benchmarks.results import append
from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.monitoring.alerts import DriftCleared, Drifted
from fedretrain.monitoring.baseline import make_baseline
from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.config import AccuracyRules, DriftRules, MonitoringPolicy, Window
from fedretrain.monitoring.divergence import psi
from fedretrain.monitoring.histogram import count_by
from fedretrain.monitoring.intake import Intake
from fedretrain.monitoring.recipes import decide, fold
from fedretrain.monitoring.reports import NUM_CONFIDENCE_BINS, NUM_LATENCY_BINS, Reports
from fedretrain.monitoring.state import MonitorState
from fedretrain.monitoring.store import FleetStore
from fedretrain.monitoring.view import view
from sim.arm import Arms
from sim.configure import configure
from sim.lifetime.report.detection import Alarms, within
from sim.lifetime.rows import LifeRows
from sim.sensors.config import DriftConfig, DriftKind, DriftSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fedretrain.monitoring.bins import Bins
    from sim.schema import Config

KINDS: dict[DriftKind, tuple[float, ...]] = {
    DriftKind.OFFSET: (0.25, 0.5, 1.0, 2.0, 4.0),
    DriftKind.GAIN: (-0.5, -1.0, -1.6),
    DriftKind.NOISE: (0.25, 0.5, 1.0, 2.0),
    DriftKind.STUCK: (0.0, 4.0),
    DriftKind.DEAD: (1.0,),
    DriftKind.CLIP: (0.5, 0.2, 0.05),
    DriftKind.MISSING: (0.2, 0.5),
}
"""Magnitudes by kind, as `sim.sensors` means them."""
DEVICES, SHARE, CHANNELS = 50, 0.7, 3
EVERY_DAYS, LASTS_DAYS, BASELINE_DAYS, WINDOWS = 12, 5, 14, 4
BANDS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, math.inf)
LEAST_SIZE, NEEDED = 0.3, 0.99
LIVES, QUIET_LIVES = 28, 4
POLICY = MonitoringPolicy(
    windows=(Window(DAY_S, HOUR_S),),
    drift=DriftRules(windows_s=(DAY_S,)),
    accuracy=AccuracyRules(window_s=DAY_S),
)
_SHIPPED = ("experiment=lifetime_synthetic", "runner=local", "availability=always", "drift=none")
_ONE = (1,)  # the version that serves: none is asked


@dataclass(frozen=True)
class Told:
    """What became of one drift.

    Attributes:
        spec: What was injected.
        size: The largest PSI of any feature, of all of its rows.
        delay_s: From its onset to the first alert that is raised before the next; NaN if there was none.
        blocked: The verdict of the last drift still stood.
    """

    spec: DriftSpec
    size: float
    delay_s: float
    blocked: bool

    @property
    def in_time(self) -> bool:
        """Found within so many window lengths."""
        return self.delay_s <= WINDOWS * DAY_S


def specs_of(life: int, days: int, names: Sequence[str]) -> tuple[DriftSpec, ...]:
    """The drifts of one life: each at a random hour, in random channels; kinds and magnitudes go on from life to life."""
    rng = np.random.default_rng(life)
    num = (days - LASTS_DAYS) // EVERY_DAYS
    cases = itertools.cycle([(kind, size) for kind, sizes in KINDS.items() for size in sizes])
    found = []
    for k, (kind, magnitude) in enumerate(itertools.islice(cases, life * num, (life + 1) * num)):
        onset_s = k * EVERY_DAYS * DAY_S + int(rng.integers(24)) * HOUR_S
        channels = tuple(rng.choice(names, CHANNELS, replace=False).tolist())
        found.append(
            DriftSpec(
                kind=kind,
                magnitude=magnitude,
                channels=channels,
                device_fraction=SHARE,
                onset_from_s=onset_s,
                onset_to_s=onset_s,
                duration_s=LASTS_DAYS * DAY_S,
                time_s=6 * HOUR_S,
            )
        )
    return tuple(found)


class Watched:
    """A fleet's telemetry, day by day, on bins and a baseline of its first days.

    Args:
        rows: Of the whole life; the history before instant 0 makes bins and baseline.
        names: Of the features.
    """

    def __init__(self, rows: LifeRows, names: Sequence[str]) -> None:
        self._rows = rows
        history = rows.x[rows.between(-BASELINE_DAYS * DAY_S, 0.0)]
        self.bins: Bins = fit_bins(history, names, num_bins=POLICY.num_bins)
        group = np.zeros(DEVICES, dtype=np.int64)
        self._intake = Intake(
            FleetStore(DEVICES, group, self.bins, HOUR_S, 24 * BASELINE_DAYS, num_outputs=1)
        )
        for day in range(-BASELINE_DAYS, 0):
            self._receive(day)
        end = 24 * BASELINE_DAYS
        self._baseline = make_baseline(
            self._intake.store, 0, end, POLICY, version=1, now=BASELINE_DAYS * DAY_S
        )
        self._state = MonitorState(version=1)

    def day(self, day: int) -> tuple[Drifted | DriftCleared, ...]:
        """Take a day in and judge it; alerts of recipe A."""
        self._receive(day)
        seen = view(self._intake.store, self._baseline, 24 * (BASELINE_DAYS + day + 1), POLICY)
        events = decide(POLICY, self._state, seen, self._baseline)
        self._state = fold(POLICY, self._state, events)
        return tuple(event for event in events if isinstance(event, Drifted | DriftCleared))

    def size(self, start_at: float, end_at: float) -> float:
        """The largest PSI of any feature, of the rows between two instants."""
        x = self._rows.x[self._rows.between(start_at, end_at)]
        counts_FC = count_by(self.bins, x, np.zeros(len(x), dtype=np.int64), 1)[0]
        return float(psi(self._baseline.features_FC, counts_FC).max())

    def _receive(self, day: int) -> None:
        """A day's reports, one for each device and hour."""
        which = self._rows.between(day * DAY_S, (day + 1) * DAY_S)
        slot = np.floor(self._rows.event_at[which] / HOUR_S).astype(np.int64) - 24 * day
        owner = slot * DEVICES + self._rows.device[which]
        num = 24 * DEVICES
        features = count_by(self.bins, self._rows.x[which], owner, num).astype(np.int32)
        slots = np.arange(num) // DEVICES + 24 * (day + BASELINE_DAYS)
        zeros = np.zeros((num, max(NUM_CONFIDENCE_BINS, NUM_LATENCY_BINS)), dtype=np.int32)
        reports = Reports(
            device_K=np.arange(num) % DEVICES,
            slot_K=slots,
            version_K=np.ones(num, dtype=np.int64),
            sequence_K=np.zeros(num, dtype=np.int64),
            sent_at_K=((slots + 1) * HOUR_S).astype(np.float64),
            bins=self.bins.digest,
            features_KFC=features,
            violations_KF=np.zeros(features.shape[:2], dtype=np.int32),
            outputs_KM=zeros[:, :1],
            confidence_KB=zeros[:, :NUM_CONFIDENCE_BINS],
            entropy_KB=zeros[:, :NUM_CONFIDENCE_BINS],
            latency_KL=zeros[:, :NUM_LATENCY_BINS],
        )
        if refused := self._intake.receive(reports, _ONE, (BASELINE_DAYS + day + 1) * DAY_S):
            raise RuntimeError(f"good rows were refused: {refused}")


def watched(config: Config, seed: int, specs: Sequence[DriftSpec]) -> Watched:
    """The fleet of a configuration with these drifts, ready to be watched."""
    fleet = Arms().get(replace(config, drift=DriftConfig(tuple(specs))), seed).world.fleet
    return Watched(LifeRows.of(fleet), fleet.pipeline.feature_names(fleet.schema))


def live(config: Config, life: int) -> list[Told]:
    """One life with its drifts."""
    days = int(config.lifetime.duration_s // DAY_S)
    names = [f"s{i}" for i in range(config.fleet.generator.num_features)]
    specs = specs_of(life, days, names)
    fleet = watched(config, config.seed + life, specs)
    return judge(fleet, specs, [(day, event) for day in range(days) for event in fleet.day(day)])


def judge(
    fleet: Watched, specs: Sequence[DriftSpec], alerts: Sequence[tuple[int, Drifted | DriftCleared]]
) -> list[Told]:
    """What became of each drift, given the day and kind of every alert."""
    told = []
    for spec in specs:
        onset, until = spec.onset_from_s, spec.onset_from_s + EVERY_DAYS * DAY_S
        earlier = [event for day, event in alerts if (day + 1) * DAY_S <= onset]
        later = [
            (day + 1) * DAY_S - onset
            for day, event in alerts
            if isinstance(event, Drifted) and onset < (day + 1) * DAY_S <= until
        ]
        told.append(
            Told(
                spec=spec,
                size=fleet.size(onset, onset + spec.duration_s),
                delay_s=min(later, default=math.nan),
                blocked=bool(earlier) and isinstance(earlier[-1], Drifted),
            )
        )
    return told


def quiet(config: Config, seed: int) -> Alarms:
    """The alarms of a life without drift."""
    days = int(config.lifetime.duration_s // DAY_S)
    fleet = watched(config, seed, ())
    num = sum(isinstance(event, Drifted) for day in range(days) for event in fleet.day(day))
    return Alarms("recipe A", num, days / 365.25 * fleet.bins.num_features)


def share_of(found: Sequence[Told]) -> dict[str, Any]:
    """How many were found in time, and how soon."""
    judged = [one for one in found if not one.blocked]
    num, good = len(judged), sum(one.in_time for one in judged)
    delays = [one.delay_s for one in judged]
    low, high = clopper_pearson(good, num)
    return {
        "drifts": num,
        "in_time": good,
        "share": round(good / num, 4) if num else None,
        "interval": [round(low, 4), round(high, 4)],
        "median_windows": _windows(within(delays, 0.5)),
        "p90_windows": _windows(within(delays, 0.9)),
        "blocked": len(found) - num,
    }


def _windows(delay_s: float) -> float | None:
    """In window lengths; None for never."""
    return round(delay_s / DAY_S, 2) if math.isfinite(delay_s) else None


def clopper_pearson(good: int, num: int) -> tuple[float, float]:
    """The two-sided 95 % interval of a share; all of [0, 1] without any."""
    from scipy.special import betaincinv

    low = float(betaincinv(good, num - good + 1, 0.025)) if good else 0.0
    return low, float(betaincinv(good + 1, num - good, 0.975)) if good < num else 1.0


def lines(found: Sequence[Told]) -> Iterator[dict[str, Any]]:
    """By kind and magnitude, by size, and all from `LEAST_SIZE` on."""
    for kind, sizes in KINDS.items():
        for magnitude in sizes:
            own = [one for one in found if (one.spec.kind, one.spec.magnitude) == (kind, magnitude)]
            if own:
                size = round(float(np.median([one.size for one in own])), 3)
                yield {"case": f"{kind}_{magnitude:g}", "median_size": size, **share_of(own)}
    for low, high in itertools.pairwise(BANDS):
        yield {
            "case": f"size_{low:g}_to_{high:g}",
            **share_of([one for one in found if low <= one.size < high]),
        }
    yield {
        "case": f"size_from_{LEAST_SIZE:g}",
        **share_of([one for one in found if one.size >= LEAST_SIZE]),
    }


def measure(num_lives: int, num_quiet: int, words: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Every line.

    Args:
        num_lives: Lives with drifts.
        num_quiet: Lives without.
        words: Overrides of the experiment.
    """
    config = configure([*_SHIPPED, f"fleet.num_devices={DEVICES}", "fleet.num_sites=1", *words])
    yield from lines([one for life in range(num_lives) for one in live(config, life)])
    alarms = [quiet(config, config.seed + num_lives + k) for k in range(num_quiet)]
    total = Alarms("recipe A", sum(a.num for a in alarms), sum(a.feature_years for a in alarms))
    yield {
        "case": "false_alarms",
        "alarms": total.num,
        "feature_years": round(total.feature_years, 1),
        "per_feature_year": round(total.rate, 4),
        "interval": [round(total.least, 4), round(total.most, 4)],
    }


def main(arguments: Sequence[str]) -> int:
    """Print the lines; 1 if too few of the drifts that are large enough are found in time."""
    num_lives = int(arguments[0]) if arguments else LIVES
    failed = False
    for line in measure(num_lives, min(QUIET_LIVES, num_lives)):
        line |= {"lives": num_lives, "versions": versions("numpy", "fedretrain")}
        print(json.dumps(line), flush=True)
        append("detection", line)
        failed |= line["case"] == f"size_from_{LEAST_SIZE:g}" and not (line["share"] or 0.0) >= NEEDED
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
