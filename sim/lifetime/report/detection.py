"""How drifts were noticed and mended, measured against the truth.

Rules of this file:
    * A drift that was never noticed counts as infinitely late: quantiles are over all drifts, not over the lucky ones.
    * So does one whose harm was not mended for as long as it was watched: it is censored, and counted, not dropped. A quantile
      that falls on such a one is only known to be later than a bound (`Restored`).
    * Alerts are not attributed: the first alert after an onset counts, whatever raised it, and the page says so.
    * False alarms are counted only in the time without any injected drift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.clock import DAY_S, HOUR_S
from sim.report import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.lifetime.records import DetectionRecord, Life, LifetimeRun

NEVER = "not at all"
"""Of what did not happen within the life; a policy may be called never."""


@dataclass(frozen=True)
class Restored:
    """A quantile of the times from an onset until accuracy was back.

    Attributes:
        value_s: With the censored ones later than all others; infinite if it is one of them, NaN without any drift.
        least_s: It is no less than this, whatever the censored ones came to: each at least as long as it was watched.
    """

    value_s: float
    least_s: float

    @property
    def shown(self) -> str:
        """``3.2 days``, or ``over 21 days`` where it is one that was not restored."""
        known = math.isfinite(self.value_s)
        return span_days(self.value_s) if known else f"over{words.NBSP}{span_days(self.least_s)}"


@dataclass(frozen=True)
class Found:
    """One kind of drift under one policy, over all seeds.

    Attributes:
        kind: What happened to the sensors.
        policy: Name of the policy.
        num: Drifts of that kind.
        cost: Mean accuracy that the hit devices lost while it was watched; NaN if unknown.
        noticed: Share that was.
        median_s: Delay within which half were noticed; infinite if fewer ever were.
        late_s: Delay within which nine in ten were.
        harmed: Drifts that harmed their devices noticeably.
        restored: How many of these accuracy came back from; the others are censored.
        half: Time from the onset within which it did for half of them.
        late: For nine in ten.
    """

    kind: str
    policy: str
    num: int
    cost: float
    noticed: float
    median_s: float
    late_s: float
    harmed: int
    restored: int
    half: Restored
    late: Restored

    @property
    def censored(self) -> int:
        """Drifts whose harm was not mended for as long as they were watched."""
        return self.harmed - self.restored


@dataclass(frozen=True)
class Alarms:
    """False alarms of one policy, over all seeds.

    Attributes:
        policy: Name of the policy.
        num: Drift alerts while no injected drift was active.
        feature_years: Watched in that time.
    """

    policy: str
    num: int
    feature_years: float

    @property
    def rate(self) -> float:
        """Per feature and year; NaN if no time was without drift."""
        return self.num / self.feature_years if self.feature_years else math.nan

    @property
    def most(self) -> float:
        """Upper end of the rate's two-sided 95 % interval for a Poisson count.

        Source: Garwood 1936, https://doi.org/10.2307/2333958
        """
        return _poisson_upper(self.num) / self.feature_years if self.feature_years else math.nan

    @property
    def least(self) -> float:
        """Its lower end."""
        return _poisson_lower(self.num) / self.feature_years if self.feature_years else math.nan


def found(run: LifetimeRun) -> list[Found]:
    """Every kind under every policy, kinds in the order of the records."""
    records = [d for life in run.lives for d in life.detections]
    kinds = list(dict.fromkeys(d.kind for d in records))
    return [
        _found(kind, policy, own)
        for kind in kinds
        for policy in run.policies
        if (own := [d for d in records if d.kind == kind and d.policy == policy])
    ]


def _found(kind: str, policy: str, own: Sequence[DetectionRecord]) -> Found:
    noticed = [d.detected_after_s for d in own]
    harmed = [d for d in own if d.restored_after_s != 0]
    return Found(
        kind=kind,
        policy=policy,
        num=len(own),
        cost=_mean([d.cost for d in own]),
        noticed=float(np.isfinite(noticed).mean()),
        median_s=within(noticed, 0.5),
        late_s=within(noticed, 0.9),
        harmed=len(harmed),
        restored=sum(math.isfinite(d.restored_after_s) for d in harmed),
        half=_restored(harmed, 0.5),
        late=_restored(harmed, 0.9),
    )


def _restored(harmed: Sequence[DetectionRecord], share: float) -> Restored:
    times = [d.restored_after_s for d in harmed]
    least = [d.restored_after_s if math.isfinite(d.restored_after_s) else d.watched_s for d in harmed]
    return Restored(within(times, share), within(least, share))


def within(delays: Sequence[float], share: float) -> float:
    """The delay within which at least a share of all is done; NaN counts as never; NaN without any."""
    if not delays:
        return math.nan
    ordered = np.sort(np.where(np.isnan(delays), np.inf, delays))
    return float(ordered[math.ceil(share * len(ordered)) - 1])


def alarms(run: LifetimeRun) -> list[Alarms]:
    """False alarms of every policy."""
    return [
        _alarms(policy, lives)
        for policy in run.policies
        if (lives := [life for life in run.lives if life.summary.policy == policy])
    ]


def _alarms(policy: str, lives: Sequence[Life]) -> Alarms:
    years = sum(life.summary.feature_years for life in lives)
    return Alarms(policy, sum(life.summary.false_alarms for life in lives), years)


def shown_delay(value: float) -> str:
    """``6 h``, ``3.2 days`` or `NEVER`."""
    return span_days(value) if math.isfinite(value) else NEVER


def span_days(value: float) -> str:
    """A stretch of virtual time: hours below two days, else days."""
    if value < 2 * DAY_S:
        return f"{words.count(value / HOUR_S)}{words.NBSP}h"
    return f"{words.count(value / DAY_S)}{words.NBSP}days"


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def _poisson_upper(num: int) -> float:
    from scipy.special import gammaincinv

    return float(gammaincinv(num + 1, 0.975))


def _poisson_lower(num: int) -> float:
    from scipy.special import gammaincinv

    return float(gammaincinv(num, 0.025)) if num else 0.0
