"""Recipe C by a sequential test: what it takes from the champion, and how the same devices are looked at again.

Rules of this file:
    * A device enters once in an *epoch*, with one summary after one window's exposure, in an order drawn from the epoch's
      number. Its next window is not new data, so it waits for the next epoch.
    * An epoch ends with a decision, with a window that brings nobody new, or after its longest time; then all devices may
      enter again. What was undecided is forgotten: it must not be added to looks at the same devices.
    * The error rates are those of one epoch, over fleets drawn like this one: a KPI at the champion's mean is rejected with
      probability at most ``alpha / (1 - beta)``, one at its limit accepted with at most ``beta / (1 - alpha)`` (Wald). Over a
      year of E epochs at most E times as many are false. In between the test does not care which way it goes.
    * One device alone decides nothing: `SPREAD` bounds what its summary is worth, and a decision needs some devices.

Shapes: W windows, D devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from fedretrain.core.errors import DataError
from fedretrain.monitoring.alerts import KpiLook
from fedretrain.monitoring.kpi import Better, DeviceSprt, SprtDecision, SprtState, kpi_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.monitoring.config import KpiRules
    from fedretrain.monitoring.kpi import Kpi

SPREAD = 3.0
"""A summary counts as at most so many standard deviations beyond the champion's mean or the limit."""


@dataclass(frozen=True)
class KpiRecord:
    """How a KPI was on the champion's devices, in windows as long as those that will be judged.

    Attributes:
        mean: Mean over devices of their own means.
        error: Standard error of a later window's mean against it: devices are a sample, and windows differ.
        std: Standard deviation between devices in one window.
        num_devices: Devices behind it.
        least_weight: The exposure below which a window says nothing about a device.
    """

    mean: float
    error: float
    std: float
    num_devices: int
    least_weight: float


def kpi_record(pair_WD2: NDArray[np.float64], exposure_fraction: float = 0.5) -> KpiRecord | None:
    """The record of some windows that do not overlap; None with fewer than two devices.

    Args:
        pair_WD2: ``[W, D, 2]`` (total, weight) of each device.
        exposure_fraction: A device's window counts from this share of the usual (median) weight on.
    """
    weights = pair_WD2[..., 1][pair_WD2[..., 1] > 0]
    if not len(weights):
        return None
    least_weight = exposure_fraction * float(np.median(weights))
    value_WD = kpi_value(pair_WD2, least_weight)
    known_WD = np.isfinite(value_WD)
    value_WD, known_WD = value_WD[:, known_WD.any(axis=0)], known_WD[:, known_WD.any(axis=0)]
    num_devices = value_WD.shape[1]
    windows_W = known_WD.sum(axis=1) >= 2
    if num_devices < 2 or not windows_W.any():
        return None
    mean_D = np.nansum(value_WD, axis=0) / known_WD.sum(axis=0)
    value_WD, known_WD = value_WD[windows_W], known_WD[windows_W]
    mean_W = np.nansum(value_WD, axis=1) / known_WD.sum(axis=1)
    squares = float(np.nansum(np.square(value_WD - mean_W[:, None])))
    std = math.sqrt(squares / float((known_WD.sum(axis=1) - 1).sum()))
    between = float(mean_W.var(ddof=1)) if len(mean_W) > 1 else 0.0
    error = math.sqrt(float(mean_D.var(ddof=1)) / num_devices + between)
    return KpiRecord(float(mean_D.mean()), error, std, num_devices, least_weight)


def guardrail(kpi: Kpi, record: KpiRecord, rules: KpiRules) -> DeviceSprt:
    """The sequential test of a KPI's limit, with the champion's record for its good mean and its spread.

    Both are estimates: each is moved by one standard error to the careful side, the mean toward the limit and the spread up,
    so that few baseline devices make the test slower rather than wrong.

    Args:
        kpi: With a limit.
        record: The champion's.
        rules: Error rates.

    Raises:
        DataError: Devices without any spread, or a champion that is beyond the limit or not clearly inside it.
    """
    bound = kpi.bound(record.mean)
    good = record.mean + (1.0 if kpi.better is Better.LOWER else -1.0) * record.error
    if record.std == 0.0 or good == bound or kpi.breached(good, record.mean):
        raise DataError(
            f"the champion itself ({record.mean:g} over {record.num_devices} devices) is not clearly inside the limit {bound:g}",
            where=f"kpis.{kpi.name}.limit",
            fix="give a limit that the champion keeps, or a baseline of more devices",
        )
    std = record.std * (1 + 1 / math.sqrt(2 * (record.num_devices - 1)))
    return DeviceSprt(good, bound, std, rules.alpha, rules.beta, rules.min_devices)


@dataclass(frozen=True)
class KpiEpoch:
    """A KPI's sequential test so far. Bounded by the number of devices.

    Attributes:
        number: Epochs begun.
        num_windows: Windows of the one under way; 0 if none is.
        sprt: Its test.
    """

    number: int = 0
    num_windows: int = 0
    sprt: SprtState = field(default_factory=SprtState)

    def after(self, look: KpiLook) -> KpiEpoch:
        """The state after a look."""
        if look.decision is not SprtDecision.UNDECIDED:
            return KpiEpoch(look.epoch)
        same = look.epoch == self.number
        entered = self.sprt.entered if same else frozenset()
        sprt = SprtState(look.log_ratio, entered | set(look.devices))
        return KpiEpoch(look.epoch, self.num_windows + 1 if same else 1, sprt)


def look(
    test: DeviceSprt,
    epoch: KpiEpoch,
    pair_D2: NDArray[np.float64],
    least_weight: float,
    *,
    kpi: str,
    longest: int,
    seed: int,
) -> KpiLook | None:
    """One window's devices enter the test; None where no device has exposure enough.

    Args:
        test: Of the KPI.
        epoch: So far.
        pair_D2: ``[D, 2]`` (total, weight) of each device in the window.
        least_weight: The exposure that a device needs.
        kpi: Its name.
        longest: Windows after which an epoch ends undecided.
        seed: Of the order in which devices enter, with the epoch's number.
    """
    value_D = kpi_value(pair_D2, least_weight)
    ready = np.flatnonzero(np.isfinite(value_D))
    if not len(ready):
        return None
    fresh = ready[~np.isin(ready, sorted(epoch.sprt.entered))]
    if not (0 < epoch.num_windows < longest and len(fresh)):
        epoch, fresh = KpiEpoch(epoch.number + 1), ready
    order = np.argsort(rng.seeds_for(seed, epoch.number, fresh, f"kpi {kpi}"), kind="stable")
    devices = fresh[order]
    low, high = sorted((test.good, test.bad))
    value_K = np.clip(value_D[devices], low - SPREAD * test.std, high + SPREAD * test.std)
    after = test.update(epoch.sprt, devices, value_K)
    decided = after.decision is not SprtDecision.UNDECIDED
    return KpiLook(
        kpi,
        epoch.number,
        after.decision,
        after.log_ratio,
        len(after.entered),
        () if decided else tuple(devices.tolist()),
    )
