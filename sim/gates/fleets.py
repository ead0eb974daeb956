"""Fleets for the Monte-Carlo of gates: how often each device's events succeed, and what is measured of it.

Rules of this file:
    * A device's events arrive as a Poisson process and succeed with the device's own chance, beta distributed over devices with the stated
      between-device correlation (variance of the chances over that of one event).
    * A device's chance before the rollout and during it are not the same: their normal scores correlate by `persistence`. With 1 the record from before
      would promise too much.
    * Drift moves both arms alike. A candidate changes a device's chance by a factor on its successes or on its failures, so that the mean over the fleet
      changes by exactly what the case says.
    * Devices stand at sites, in turn, and are of types, in turn: exposure is even over both. A candidate may change one site alone; it then changes the
      fleet's mean by that site's share of it.
    * Shadow scores both models on the same input: a share of events on which their errors have nothing to do with each other, and on the rest
      they agree.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from fedretrain.core.checks import fraction, positive, require
from fedretrain.rollout.clusters import ClusterBy, make_clusters
from fedretrain.rollout.metrics import DeviceMeans, MetricEvidence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.rollout.clusters import Cluster, ClusterRules

DAY_S = 86_400.0
METRIC = "kpi"
_TABLE = 8192  # points of the quantile table: the mean of the chances is right to 1e-5


@dataclass(frozen=True)
class FleetModel:
    """What a simulated fleet is like.

    Attributes:
        num_devices: Size.
        correlation: Between-device correlation of events.
        kpi: Mean share of successes.
        events_per_day: Per device.
        persistence: Correlation of a device's normal score before and during the rollout.
        before_days: Length of the record from before.
        drift: Relative loss of both arms over `drift_days`.
        drift_days: See `drift`.
        disagreement: Share of events in shadow on which the models err independently.
        num_sites: Sites, of one size.
        num_types: Device types, of one size.
    """

    num_devices: int = 1000
    correlation: float = 0.05
    kpi: float = 0.9
    events_per_day: float = 24.0
    persistence: float = 0.9
    before_days: float = 14.0
    drift: float = 0.03
    drift_days: float = 14.0
    disagreement: float = 0.3
    num_sites: int = 10
    num_types: int = 3

    def __post_init__(self) -> None:
        require(self.num_devices >= 20, f"{self.num_devices} devices", key="gates.num_devices")
        for name in ("correlation", "kpi", "persistence", "drift", "disagreement"):
            fraction(f"gates.{name}", getattr(self, name))
        for name in ("correlation", "events_per_day", "before_days", "drift_days", "disagreement"):
            positive(f"gates.{name}", getattr(self, name))


@dataclass(frozen=True)
class Candidate:
    """What a candidate does to a device's chance of success.

    Attributes:
        name: For people.
        success_factor: Multiplies the chance of success (below 1: harm).
        failure_factor: Multiplies the chance of failure (below 1: gain).
        in_shadow: Whether the change shows in shadow; False: only once it is served.
        harmful: Whether promoting it is an error.
        site: The one site that it harms; the others gain by `elsewhere_factor` on their failures. None: it is everywhere the same.
        elsewhere_factor: See `site`.
    """

    name: str
    success_factor: float = 1.0
    failure_factor: float = 1.0
    in_shadow: bool = True
    harmful: bool = False
    site: int | None = None
    elsewhere_factor: float = 1.0

    def served(self, chance_D: NDArray[np.float64], site_D: NDArray[np.int64]) -> NDArray[np.float64]:
        """Chances of success under this candidate."""
        changed_D = 1.0 - self.failure_factor * (1.0 - self.success_factor * chance_D)
        if self.site is None:
            return changed_D
        return np.where(site_D == self.site, changed_D, 1.0 - self.elsewhere_factor * (1.0 - chance_D))


CANDIDATE_EQUAL = Candidate("equal")


class Fleet:
    """One fleet during one rollout. Mutable: it draws outcomes as time passes.

    Args:
        model: What it is like.
        candidate: What is rolled out.
        seed: Of everything drawn.
    """

    def __init__(self, model: FleetModel, candidate: Candidate, seed: int) -> None:
        self.model, self.candidate = model, candidate
        self.draws = rng.generator(seed)
        num = model.num_devices
        score_2D = self.draws.standard_normal((2, num))
        r = model.persistence
        table, at = _quantiles(model.kpi, model.correlation)
        before_D = np.interp(score_2D[0], at, table)
        self.chance_D = np.interp(r * score_2D[0] + np.sqrt(1.0 - r * r) * score_2D[1], at, table)
        self.device_D = np.arange(num)
        self.site_D, self.type_D = self.device_D % model.num_sites, self.device_D % model.num_types
        self.served_D = candidate.served(self.chance_D, self.site_D)
        events = model.events_per_day * model.before_days
        self.before_D = _share(*self.draws.poisson(events * np.stack([before_D, 1.0 - before_D])))
        self.began_at = 0.0
        self._count_2D = np.zeros((2, num))  # successes and failures since the stage began
        self._count_4D = np.zeros((4, num))  # shadow: both succeed, champion only, candidate only, neither

    def pre_period(self, days: float) -> tuple[DeviceMeans, DeviceMeans]:
        """The champion's record from before and a window of `days` after it: what power is computed from."""
        events = self.model.events_per_day * days
        window_2D = self.draws.poisson(events * np.stack([self.chance_D, 1.0 - self.chance_D]))
        nothing_D = np.full(len(self.device_D), np.nan)
        events_D = np.full(len(self.device_D), self.model.events_per_day * self.model.before_days)
        earlier = DeviceMeans(self.device_D, self.before_D, events_D, nothing_D)
        return earlier, DeviceMeans(
            self.device_D, _share(*window_2D), window_2D.sum(0).astype(float), nothing_D
        )

    def clusters(self, rules: ClusterRules) -> tuple[Cluster, ...]:
        """Its sites and device types."""
        traits = {
            ClusterBy.SITE: self.site_D.astype(np.str_).tolist(),
            ClusterBy.DEVICE_TYPE: self.type_D.astype(np.str_).tolist(),
        }
        return make_clusters(rules, traits, np.ones(len(self.device_D), dtype=np.bool_))

    def begin(self, now: float) -> None:
        """A stage begins: both arms are measured afresh."""
        self.began_at = now
        self._count_2D = np.zeros_like(self._count_2D)
        self._count_4D = np.zeros_like(self._count_4D)

    def serve(self, fraction_: float, start: float, end: float) -> None:
        """Time passes while the first `fraction_` of the devices serves the candidate."""
        chance_D = np.where(self.device_D < self.num_exposed(fraction_), self.served_D, self.chance_D)
        chance_D = chance_D * self._level(start, end)
        events = self.model.events_per_day * (end - start) / DAY_S
        self._count_2D += self.draws.poisson(events * np.stack([chance_D, 1.0 - chance_D]))

    def shadow(self, start: float, end: float) -> None:
        """Time passes while every device scores both models and serves the champion."""
        level = self._level(start, end)
        champion_D = self.chance_D * level
        candidate_D = (self.served_D if self.candidate.in_shadow else self.chance_D) * level
        apart = self.model.disagreement
        # The candidate's chance where it errs on its own, such that its overall chance is `candidate_D`.
        own_D = np.clip(champion_D + (candidate_D - champion_D) / apart, 0.0, 1.0)
        both_D = (1.0 - apart) * champion_D + apart * champion_D * own_D
        cells_4D = np.stack(
            [both_D, champion_D - both_D, apart * (1.0 - champion_D) * own_D, np.zeros_like(both_D)]
        )
        cells_4D[3] = 1.0 - cells_4D.sum(0)
        events = self.model.events_per_day * (end - start) / DAY_S
        self._count_4D += self.draws.poisson(events * np.maximum(cells_4D, 0.0))

    def evidence(self, fraction_: float) -> MetricEvidence:
        """What was measured since the stage began, at `fraction_` of exposure."""
        num = self.num_exposed(fraction_)
        events_D, share_D = self._count_2D.sum(0), _share(*self._count_2D)
        means = DeviceMeans(self.device_D, share_D, events_D, self.before_D)
        treated_D = self.device_D < num
        return MetricEvidence(METRIC, means.take(treated_D), means.take(~treated_D), paired=False)

    def shadow_evidence(self) -> MetricEvidence:
        """Both models on the same devices, since the stage began."""
        both_D, champion_D, candidate_D, _neither_D = self._count_4D
        events_D = self._count_4D.sum(0)
        treated, control = (
            DeviceMeans(self.device_D, _share(won_D, events_D - won_D), events_D, self.before_D)
            for won_D in (both_D + candidate_D, both_D + champion_D)
        )
        return MetricEvidence(METRIC, treated, control, paired=True)

    def totals(self, fraction_: float, start: float, hours: int) -> NDArray[np.float64]:
        """Successes and failures of both arms hour by hour, ``[hours, 2 arms, 2]``: what event-level gates look at.

        Sums of independent Poisson counts are Poisson counts: drawn for a whole arm at once.
        """
        num = self.num_exposed(fraction_)
        sums = np.array([self.served_D[:num].sum(), self.chance_D[num:].sum()])
        sizes = np.array([num, self.model.num_devices - num])
        at = start + 3600.0 * np.arange(hours + 1)
        level_H = np.array([self._level(a, b) for a, b in itertools.pairwise(at)])
        won_H2 = level_H[:, None] * sums[None, :]
        mean_H22 = np.stack([won_H2, sizes[None, :] - won_H2], axis=-1)
        drawn: NDArray[np.float64] = self.draws.poisson(mean_H22 * self.model.events_per_day / 24.0).astype(
            float
        )
        return drawn

    def num_exposed(self, fraction_: float) -> int:
        """Devices that serve the candidate; they are independent draws, so the first ones are a random sample."""
        return round(fraction_ * self.model.num_devices)

    def _level(self, start: float, end: float) -> float:
        """What drift leaves of both arms' chances, on average from `start` to `end`."""
        return 1.0 - self.model.drift * min(0.5 * (start + end) / (self.model.drift_days * DAY_S), 1.0)


def _share(won_D: NDArray[np.float64], lost_D: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of successes, NaN where there was no event."""
    total_D = won_D + lost_D
    return np.divide(won_D, total_D, out=np.full(len(total_D), np.nan), where=total_D > 0)


@lru_cache(maxsize=64)
def _quantiles(kpi: float, correlation: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The beta distribution's quantiles at normal scores: (values, scores)."""
    from scipy import special, stats

    strength = 1.0 / correlation - 1.0
    at = np.linspace(-5.0, 5.0, _TABLE)
    return stats.beta.ppf(special.ndtr(at), kpi * strength, (1.0 - kpi) * strength), at
