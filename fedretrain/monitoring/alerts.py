"""What monitoring says: events with their evidence, plain values that a log can keep.

Rules of this file:
    * An event carries the numbers that caused it; nothing has to be computed again to explain it.
    * `WindowJudged` is what the counters live from; the others are raised by it, each only when something changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fedretrain.monitoring.kpi import KpiTest, SprtDecision


class Told(StrEnum):
    """What one window says about one question."""

    UNKNOWN = "unknown"
    QUIET = "quiet"
    BAD = "bad"


@dataclass(frozen=True)
class Alert:
    """What every event carries.

    Attributes:
        at: The judged window's end, seconds.
        version: The champion.
    """

    at: float
    version: int


@dataclass(frozen=True)
class KpiLook:
    """A KPI's sequential test after a window.

    Attributes:
        kpi: Its name.
        epoch: Number of the epoch; each device enters once in it.
        decision: Of the test.
        log_ratio: Log likelihood ratio of bad over good.
        num_devices: Devices that have entered in the epoch.
        devices: Those that entered in this window, as long as nothing is decided.
    """

    kpi: str
    epoch: int
    decision: SprtDecision
    log_ratio: float
    num_devices: int
    devices: tuple[int, ...] = ()


@dataclass(frozen=True)
class WindowJudged(Alert):
    """One window, looked at by every rule that it is meant for.

    Attributes:
        window_s: Its length.
        counted: It overlaps no window counted before, so streaks move.
        features: What it says about each feature (recipe A), by name; empty if recipe A does not look at such windows.
        published: Features above the limit, significant or not: the published rule that runs beside.
        psi: PSI by feature, for the evidence of an alert; unknown ones are absent.
        p: p-values by feature.
        confidence: Recipe B's share, p-value and number of devices, or None if not looked at.
        confidence_exceeded: Recipe B counts this window.
        kpis: What it says about each guarded KPI (recipe C).
        looks: The sequential tests behind them.
        accuracy: What labels say.
        pace: What their arrival says.
        devices_judged: Whether outliers were looked for.
        outliers: Devices found.
        outlier_features: In what they, or what their scope names, moved.
        outlier_p: Their p-values.
        evidence: Everything else that explains the above, by name.
    """

    window_s: float
    counted: bool
    features: tuple[tuple[str, Told], ...] = ()
    published: tuple[str, ...] = ()
    psi: tuple[tuple[str, float], ...] = ()
    p: tuple[tuple[str, float], ...] = ()
    confidence: tuple[float, float, int] | None = None
    confidence_exceeded: bool = False
    kpis: tuple[tuple[str, Told], ...] = ()
    looks: tuple[KpiLook, ...] = ()
    accuracy: Told = Told.UNKNOWN
    pace: Told = Told.UNKNOWN
    devices_judged: bool = False
    outliers: tuple[int, ...] = ()
    outlier_features: tuple[str, ...] = ()
    outlier_p: tuple[float, ...] = ()
    evidence: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Drifted(Alert):
    """Recipe A: tag the champion `drifted`.

    Attributes:
        window_s: Length of the windows that said so.
        num_windows: How many in a row.
        features: Features whose every window did.
        psi: Their PSI in the last one.
        p: Their p-values in the last one.
    """

    window_s: float
    num_windows: int
    features: tuple[str, ...]
    psi: tuple[float, ...]
    p: tuple[float, ...]


@dataclass(frozen=True)
class DriftCleared(Alert):
    """No feature of windows of this length is drifted any more.

    Attributes:
        window_s: Length of the windows.
        num_windows: Windows in a row without.
    """

    window_s: float
    num_windows: int


@dataclass(frozen=True)
class PublishedRuleFired(Alert):
    """The published rule, PSI above the limit without a test of significance: counted, never acted upon.

    Attributes:
        window_s: Length of the windows.
        num_windows: How many in a row.
        features: Features that were above.
    """

    window_s: float
    num_windows: int
    features: tuple[str, ...]


@dataclass(frozen=True)
class ConfidenceDecayed(Alert):
    """Recipe B: serve the fallback model, schedule a retrain.

    Attributes:
        share: Share of unsure predictions.
        p_value: Of "it is above its limit", with the device as the unit.
        num_devices: Devices behind it.
        limit: The share that is allowed.
    """

    share: float
    p_value: float
    num_devices: int
    limit: float


@dataclass(frozen=True)
class ConfidenceRecovered(Alert):
    """Recipe B is over.

    Attributes:
        share: Share of unsure predictions.
    """

    share: float


@dataclass(frozen=True)
class KpiBreached(Alert):
    """Recipe C: a KPI is beyond its guardrail's limit, by the sequential test or by its whole interval.

    Attributes:
        kpi: Its name.
        value: The fleet's.
        low: Lower bound.
        high: Upper bound.
        bound: The limit in the KPI's unit.
        num_windows: How many in a row.
        test: What says so.
        num_devices: Devices that said so: all of the window, or those that the sequential test needed.
    """

    kpi: str
    value: float
    low: float
    high: float
    bound: float
    num_windows: int
    test: KpiTest = KpiTest.INTERVAL
    num_devices: int = 0


@dataclass(frozen=True)
class KpiRecovered(Alert):
    """A guardrail holds again.

    Attributes:
        kpi: Its name.
        value: The fleet's.
    """

    kpi: str
    value: float


@dataclass(frozen=True)
class AccuracyFell(Alert):
    """Labels say that the champion got worse than the margin allows.

    Attributes:
        value: Accuracy, or RMSE of a regression.
        low: Lower bound.
        high: Upper bound.
        bound: The baseline's less (for RMSE: times one plus) the margin.
        completeness: Labelled share of the predictions.
        num_devices: Labelled devices.
    """

    value: float
    low: float
    high: float
    bound: float
    completeness: float
    num_devices: int


@dataclass(frozen=True)
class AccuracyRecovered(Alert):
    """It is not worse any more.

    Attributes:
        value: Accuracy, or RMSE.
    """

    value: float


@dataclass(frozen=True)
class LabelPaceChanged(Alert):
    """Labels come sooner or later than in the baseline: what rests on how complete they are must be looked at again.

    Attributes:
        surplus: Labels that came beyond what a common pace predicts, as a share of that; below 0 they come later.
        p_value: With the device as the unit.
        num_devices: Devices behind it.
        num_windows: How many in a row.
    """

    surplus: float
    p_value: float
    num_devices: int
    num_windows: int


@dataclass(frozen=True)
class LabelPaceRestored(Alert):
    """Labels come as in the baseline again.

    Attributes:
        surplus: As above.
    """

    surplus: float


@dataclass(frozen=True)
class DeviceQuarantined(Alert):
    """One device's data is left out of retraining and gates: its sensor is broken, not the model.

    Attributes:
        device: Which.
        num_windows: Windows in a row as an outlier.
        features: In what it moved, as far as the window's place names it.
        p_value: In the last window.
    """

    device: int
    num_windows: int
    features: tuple[str, ...]
    p_value: float


@dataclass(frozen=True)
class DeviceReleased(Alert):
    """A device is like its own record again.

    Attributes:
        device: Which.
        num_windows: Windows in a row without.
    """

    device: int
    num_windows: int


MonitorEvent = (
    WindowJudged
    | Drifted
    | DriftCleared
    | PublishedRuleFired
    | ConfidenceDecayed
    | ConfidenceRecovered
    | KpiBreached
    | KpiRecovered
    | AccuracyFell
    | AccuracyRecovered
    | LabelPaceChanged
    | LabelPaceRestored
    | DeviceQuarantined
    | DeviceReleased
)
