"""KPIs that a user defines, the sequential test of their limits (recipe C), and confidence decay (recipe B).

Rules of this file:
    * A KPI travels as additive (total, weight), for example detections and device-hours; its value is total / weight.
    * The device is the unit: a device enters a sequential test once, with one summary after a fixed exposure, in an order
      that does not depend on the summaries (the caller shuffles). Events are never counted as if they were devices.
    * Looking at the same devices again is another test (`guardrails.py`).
    * The sequential test is for *absolute* limits only. Against a concurrent control there are the gates of a rollout:
      when the world moves, a one-sample test with a fixed limit stops good models too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.checks import finite, fraction, not_negative, positive, require
from fedretrain.core.errors import DataError
from fedretrain.monitoring.intervals import divide, share_above
from fedretrain.monitoring.predictions import low_share

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class Better(StrEnum):
    """Which way a KPI should move."""

    HIGHER = "higher"
    LOWER = "lower"


class LimitKind(StrEnum):
    """What a guardrail's limit is measured in."""

    ABSOLUTE = "absolute"  # the KPI's own unit
    RELATIVE = "relative"  # a fraction of the baseline by which the KPI may get worse


class KpiTest(StrEnum):
    """How a champion's KPI is held against its limit."""

    SPRT = "sprt"  # a KPI at its limit is told with a stated power, one as the champion's with a stated risk
    INTERVAL = "interval"  # told once the whole interval over devices is beyond the limit


@dataclass(frozen=True)
class Kpi:
    """A KPI of the user's.

    Attributes:
        name: The key under which devices report it.
        better: Which way it should move.
        unit: For people, for example ``"detections per device-hour"``.
        limit: The guardrail, if it has one.
        limit_kind: What `limit` is measured in.
        test: How a champion is held against it; None: `sprt` for an absolute limit, `interval` for a relative one, whose
            limit is an estimate itself.
    """

    name: str
    better: Better
    unit: str = ""
    limit: float | None = None
    limit_kind: LimitKind = LimitKind.ABSOLUTE
    test: KpiTest | None = None

    def __post_init__(self) -> None:
        require(bool(self.name), "a KPI needs a name", key="kpis.name")
        require(
            self.test is not KpiTest.SPRT or self.limit_kind is LimitKind.ABSOLUTE,
            "the sequential test is for absolute limits",
            key=f"kpis.{self.name}.test",
            fix="give an absolute limit, or test: interval",
        )
        if self.limit is not None:
            check = not_negative if self.limit_kind is LimitKind.RELATIVE else finite
            check(f"kpis.{self.name}.limit", self.limit)

    @property
    def sequential(self) -> bool:
        """Whether the limit, if there is one, is held by the sequential test."""
        chosen = self.test or (KpiTest.SPRT if self.limit_kind is LimitKind.ABSOLUTE else KpiTest.INTERVAL)
        return self.limit is not None and chosen is KpiTest.SPRT

    def bound(self, baseline: float | None = None) -> float:
        """The value beyond which the KPI is breached, in its own unit.

        Args:
            baseline: The KPI under the champion; needed by a relative limit.

        Raises:
            DataError: No limit, or a relative one without a baseline.
        """
        if self.limit is None:
            raise DataError("the KPI has no limit", where=f"kpis.{self.name}.limit", fix="give it one")
        if self.limit_kind is LimitKind.ABSOLUTE:
            return self.limit
        if baseline is None or not math.isfinite(baseline):
            raise DataError(
                "a relative limit needs a finite baseline",
                where=f"kpis.{self.name}",
                fix="measure the champion first, or give an absolute limit",
            )
        worse = 1.0 if self.better is Better.LOWER else -1.0
        return baseline + worse * self.limit * abs(baseline)

    def breached(self, value: ArrayLike, baseline: float | None = None) -> NDArray[np.bool_]:
        """Which values are beyond the bound; a missing value (NaN) breaches nothing and proves nothing."""
        value, bound = np.asarray(value, dtype=np.float64), self.bound(baseline)
        return value > bound if self.better is Better.LOWER else value < bound


def kpi_value(total_weight_2: ArrayLike, min_weight: float = 0.0) -> NDArray[np.float64]:
    """``[...]`` value of a KPI; NaN where its weight is 0 or under `min_weight`.

    Args:
        total_weight_2: ``[..., 2]`` (total, weight), additive over devices and slots.
        min_weight: The exposure below which there is no value.
    """
    pair = np.asarray(total_weight_2, dtype=np.float64)
    if np.any(pair[..., 1] < 0):
        raise DataError("a KPI's weight is negative", where="kpis")
    return np.where(pair[..., 1] >= min_weight, divide(pair[..., 0], pair[..., 1]), np.nan)


class SprtDecision(StrEnum):
    """What a sequential test says."""

    UNDECIDED = "undecided"
    ACCEPT = "accept"  # the mean is taken to be good
    REJECT = "reject"  # the mean is taken to be beyond the limit


@dataclass(frozen=True)
class SprtState:
    """A sequential test so far.

    Attributes:
        log_ratio: Log likelihood ratio of bad over good; frozen once decided.
        entered: Devices that were counted; each can be only once.
        decision: Final once it is not undecided.
    """

    log_ratio: float = 0.0
    entered: frozenset[int] = frozenset()
    decision: SprtDecision = SprtDecision.UNDECIDED


@dataclass(frozen=True)
class DeviceSprt:
    """Wald's sequential probability ratio test of a mean over devices.

    One summary per device, taken as normal with a known spread between devices. Between `good` and `bad` the test does
    not care which way it goes.

    Source: Wald 1945, Sequential tests of statistical hypotheses, Annals of Mathematical Statistics 16,
    https://doi.org/10.1214/aoms/1177731118

    Attributes:
        good: A mean that should be accepted.
        bad: A mean that should be rejected; above `good` where lower is better, below it otherwise.
        std: Standard deviation *between devices* of their summaries, from the champion. One that is too small makes both
            errors more frequent, so round it up.
        alpha: Probability of rejecting at `good`, at most (Wald's inequality: alpha / (1 - beta)).
        beta: Probability of accepting at `bad`, at most (beta / (1 - alpha)).
        min_devices: Devices before which nothing is decided. Waiting makes neither error more frequent.
    """

    good: float
    bad: float
    std: float
    alpha: float = 0.05
    beta: float = 0.1
    min_devices: int = 1

    def __post_init__(self) -> None:
        finite("sprt.good", self.good)
        finite("sprt.bad", self.bad)
        positive("sprt.std", self.std)
        require(
            self.good != self.bad, "good and bad are equal", key="sprt.bad", fix="leave a gap between them"
        )
        for key, value in (("sprt.alpha", self.alpha), ("sprt.beta", self.beta)):
            require(
                0 < value < 0.5, f"{value} is not an error rate", key=key, fix="give a number in (0, 0.5)"
            )

    @property
    def reject_at(self) -> float:
        """The log ratio from which the mean is taken to be bad."""
        return math.log((1 - self.beta) / self.alpha)

    @property
    def accept_at(self) -> float:
        """The log ratio down to which the mean is taken to be good."""
        return math.log(self.beta / (1 - self.alpha))

    def init(self) -> SprtState:
        """No device yet."""
        return SprtState()

    def update(self, state: SprtState, device_K: ArrayLike, value_K: ArrayLike) -> SprtState:
        """The state after more devices, in the order given; nothing changes a decision.

        Args:
            state: So far.
            device_K: ``[K]`` devices, none of which entered before.
            value_K: ``[K]`` their summaries, finite.

        Raises:
            DataError: A device enters twice, or a summary is not finite.
        """
        devices, value_K = np.asarray(device_K, dtype=np.int64), np.asarray(value_K, dtype=np.float64)
        entering = set(devices.tolist())
        again = state.entered & entering
        if again or len(entering) != len(devices):
            raise DataError(
                "a device enters a sequential test twice" + (f": {min(again)}" if again else ""),
                where="device_K",
                fix="give each device once, after its exposure: looking again is not new data",
            )
        if not np.all(np.isfinite(value_K)):
            raise DataError(
                "a device's summary is NaN or infinite", where="value_K", fix="leave that device out"
            )
        if state.decision is not SprtDecision.UNDECIDED:
            return state
        path_K = state.log_ratio + np.cumsum(self._steps(value_K))
        enough_K = len(state.entered) + np.arange(1, len(path_K) + 1) >= self.min_devices
        out = np.flatnonzero(enough_K & ((path_K >= self.reject_at) | (path_K <= self.accept_at)))
        used = int(out[0]) + 1 if len(out) else len(path_K)
        if used == 0:
            return state
        last = float(path_K[used - 1])
        decision = self._decision(last) if len(out) else SprtDecision.UNDECIDED
        return SprtState(last, state.entered | set(devices[:used].tolist()), decision)

    def acceptance_probability(self, mean: float) -> float:
        """Wald's approximation of the probability of accepting at a mean (it neglects the overshoot)."""
        tilt = (self.good + self.bad - 2 * mean) / (self.bad - self.good)
        if abs(tilt) < 1e-9:
            return self.reject_at / (self.reject_at - self.accept_at)
        above, below = math.exp(tilt * self.reject_at), math.exp(tilt * self.accept_at)
        return (above - 1) / (above - below)

    def expected_devices(self, mean: float) -> float:
        """Wald's approximation of the mean number of devices until a decision."""
        accepts = self.acceptance_probability(mean)
        drift = float(self._steps(np.array(mean)))
        if abs(drift) < 1e-12:
            return -self.reject_at * self.accept_at * (self.std / (self.bad - self.good)) ** 2
        return (accepts * self.accept_at + (1 - accepts) * self.reject_at) / drift

    def _steps(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        """The log ratio's step for each summary."""
        gap = self.bad - self.good
        return np.asarray(gap / self.std**2 * (value - (self.good + self.bad) / 2), dtype=np.float64)

    def _decision(self, log_ratio: float) -> SprtDecision:
        if log_ratio >= self.reject_at:
            return SprtDecision.REJECT
        return SprtDecision.ACCEPT if log_ratio <= self.accept_at else SprtDecision.UNDECIDED


@dataclass(frozen=True)
class DecayState:
    """Confidence decay so far.

    Attributes:
        streak: Windows in a row that said the same against the present verdict.
        decayed: The present verdict.
    """

    streak: int = 0
    decayed: bool = False


@dataclass(frozen=True)
class DecayEvidence:
    """What one window says.

    Attributes:
        share: Share of low-confidence predictions; NaN without any.
        p_value: Of "the share is above its limit", with the device as the unit.
        num_devices: Devices that predicted something.
        exceeded: Whether this window counts toward decay.
    """

    share: float
    p_value: float
    num_devices: int
    exceeded: bool


@dataclass(frozen=True)
class ConfidenceDecay:
    """Recipe B: too many unsure predictions, in several windows in a row.

    It clears after as many windows in a row that do not exceed the limit. A window with too few devices says nothing and
    leaves the state as it is.

    Attributes:
        below: Confidence under which a prediction is unsure; an edge of the confidence bins.
        max_share: Unsure share of the predictions that is allowed.
        alpha: Significance of each window.
        num_windows: Non-overlapping windows in a row.
        min_devices: Devices that a window needs.
    """

    below: float = 0.6
    max_share: float = 0.2
    alpha: float = 0.01
    num_windows: int = 3
    min_devices: int = 10

    def __post_init__(self) -> None:
        for name in ("below", "max_share", "alpha"):
            fraction(f"confidence_decay.{name}", getattr(self, name))
        low_share(np.zeros(10), self.below)
        require(self.num_windows >= 1, "at least one window", key="confidence_decay.num_windows")
        require(self.min_devices >= 2, "at least two devices", key="confidence_decay.min_devices")

    def init(self) -> DecayState:
        """Not decayed."""
        return DecayState()

    def judge(self, confidence_DB: ArrayLike) -> DecayEvidence:
        """What one window says.

        Args:
            confidence_DB: ``[D, B]`` confidence counts of each device.
        """
        counts_DB = np.asarray(confidence_DB, dtype=np.float64)
        total_D = counts_DB.sum(axis=-1)
        low_D = np.nan_to_num(low_share(counts_DB, self.below)) * total_D
        num_devices = int((total_D > 0).sum())
        p_value = share_above(low_D, total_D, self.max_share)
        share = float(divide(low_D.sum(), total_D.sum()))
        exceeded = num_devices >= self.min_devices and share > self.max_share and p_value <= self.alpha
        return DecayEvidence(share, p_value, num_devices, exceeded)

    def update(self, state: DecayState, evidence: DecayEvidence) -> DecayState:
        """The state after a window."""
        if evidence.num_devices < self.min_devices:
            return state
        if evidence.exceeded == state.decayed:
            return DecayState(0, state.decayed)
        if state.streak + 1 >= self.num_windows:
            return DecayState(0, not state.decayed)
        return DecayState(state.streak + 1, state.decayed)
