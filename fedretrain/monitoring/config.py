"""What monitoring watches and when it speaks: frozen dataclasses, checked when they are made.

Rules of this file:
    * Plain types only (numbers, enums, tuples, dataclasses), so that a policy file can hold every one of them.
    * Each rule says which window it looks at; a window that is not computed is an error here, not silence later.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fedretrain.core.checks import as_tuples, fraction, not_negative, positive, require
from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.monitoring.kpi import ConfidenceDecay, Kpi


@dataclass(frozen=True)
class Window:
    """A sliding window.

    Attributes:
        length_s: How long it is.
        stride_s: How often it is looked at.
    """

    length_s: float
    stride_s: float

    def __post_init__(self) -> None:
        positive("windows.length_s", self.length_s)
        positive("windows.stride_s", self.stride_s)


class NullKind(StrEnum):
    """By whose baseline windows a feature's PSI is judged."""

    PER_FEATURE = "per_feature"  # its own
    POOLED = "pooled"  # those of all features, each in units of its own median
    AUTO = "auto"  # its own, unless they are too few for a feature that drifts alone


@dataclass(frozen=True)
class DriftRules:
    """Recipe A: PSI above a limit and beyond its empirical null, in several non-overlapping windows in a row.

    Attributes:
        psi: The limit.
        alpha: False-discovery rate over the features of one window.
        null: Whose baseline windows make the null.
        any_dependence: Control the rate under any dependence of the features (Benjamini and Yekutieli), at a price in power.
        num_windows: Windows in a row for an alert.
        clear_windows: Windows in a row without for it to clear.
        min_rows: Sensor rows under which a window says nothing.
        windows_s: Lengths of the windows that are judged, each on its own.
    """

    psi: float = 0.2
    alpha: float = 0.05
    null: NullKind = NullKind.AUTO
    any_dependence: bool = False
    num_windows: int = 3
    clear_windows: int = 3
    min_rows: int = 200
    windows_s: tuple[float, ...] = (DAY_S, 7 * DAY_S)

    def __post_init__(self) -> None:
        as_tuples(self, ("windows_s",))
        object.__setattr__(self, "null", NullKind(self.null))
        positive("drift.psi", self.psi)
        require(0 < self.alpha < 1, f"{self.alpha} is no false-discovery rate", key="drift.alpha")
        for name in ("num_windows", "clear_windows", "min_rows"):
            require(getattr(self, name) >= 1, "at least 1", key=f"drift.{name}")


@dataclass(frozen=True)
class AccuracyRules:
    """The accuracy fell: its whole interval lies below the baseline's less a margin, with enough labels.

    Attributes:
        margin: How much accuracy may be lost; for a regression, by which fraction the RMSE may grow.
        confidence: Of the interval, two-sided.
        min_completeness: Labelled share of the predictions under which a window says nothing.
        min_devices: Labelled devices under which it says nothing.
        num_windows: Non-overlapping windows in a row.
        window_s: The window that is judged.
    """

    margin: float = 0.03
    confidence: float = 0.95
    min_completeness: float = 0.1
    min_devices: int = 3
    num_windows: int = 1
    window_s: float = 7 * DAY_S

    def __post_init__(self) -> None:
        not_negative("accuracy.margin", self.margin)
        fraction("accuracy.min_completeness", self.min_completeness)
        require(0 < self.confidence < 1, f"{self.confidence} is no confidence", key="accuracy.confidence")
        require(self.min_devices >= 2, "at least two devices", key="accuracy.min_devices")
        require(self.num_windows >= 1, "at least one window", key="accuracy.num_windows")


@dataclass(frozen=True)
class KpiRules:
    """Recipe C on the champion itself: the sequential test of a KPI's limit, or its whole interval over devices beyond it.

    A sequential test that cannot be made (the champion is not clearly inside the limit, or its baseline has too few devices)
    leaves its KPI to the interval.

    Attributes:
        confidence: Of the interval, two-sided.
        alpha: In each epoch the sequential test's risk of telling a KPI that is as the champion's was.
        beta: Its risk of passing one that is at the limit.
        exposure_fraction: A device enters with this share of the usual exposure at least.
        max_windows: Windows after which an undecided epoch ends.
        min_devices: Devices under which a window, or a sequential test, says nothing.
        num_windows: Non-overlapping windows in a row: to breach by the interval, and to recover by either. The sequential
            test breaches with its decision.
        window_s: The window that is judged, and a device's exposure in the sequential test.
    """

    confidence: float = 0.98
    alpha: float = 0.001
    beta: float = 0.05
    exposure_fraction: float = 0.5
    max_windows: int = 7
    min_devices: int = 5
    num_windows: int = 2
    window_s: float = DAY_S

    def __post_init__(self) -> None:
        require(0 < self.confidence < 1, f"{self.confidence} is no confidence", key="kpi_rules.confidence")
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            require(0 < value < 0.5, f"{value} is no error rate", key=f"kpi_rules.{name}")
        fraction("kpi_rules.exposure_fraction", self.exposure_fraction)
        require(self.max_windows >= 1, "at least one window", key="kpi_rules.max_windows")
        require(self.min_devices >= 2, "at least two devices", key="kpi_rules.min_devices")
        require(self.num_windows >= 1, "at least one window", key="kpi_rules.num_windows")


@dataclass(frozen=True)
class PlaceRules:
    """Where the drift lives, and when a device is quarantined (`locate.py` states the rule and its error rates).

    Attributes:
        psi: How far a device must be from its own record, beyond the bias of PSI.
        alpha: False-discovery rate over the devices of one window.
        moved_alpha: One device's chance to count as moved by accident in the majorities of a group or of the fleet.
        min_rows: A device's rows under which it is not judged.
        min_group: Judged members that a group needs for a verdict of its own.
        max_device_fraction: Beyond this share of outliers it is no longer about single devices.
        num_windows: Windows in a row as an outlier before a device is quarantined.
        release_windows: Windows in a row without before it is released.
        window_s: The window that is judged.
    """

    psi: float = 0.2
    alpha: float = 0.05
    moved_alpha: float = 0.01
    min_rows: int = 50
    min_group: int = 3
    max_device_fraction: float = 0.2
    num_windows: int = 2
    release_windows: int = 7
    window_s: float = DAY_S

    def __post_init__(self) -> None:
        positive("place.psi", self.psi)
        for name in ("alpha", "moved_alpha"):
            value = getattr(self, name)
            require(0 < value < 0.5, f"{value} is no error rate", key=f"place.{name}")
        fraction("place.max_device_fraction", self.max_device_fraction)
        for name in ("min_rows", "min_group", "num_windows", "release_windows"):
            require(getattr(self, name) >= 1, "at least 1", key=f"place.{name}")


@dataclass(frozen=True)
class PaceRules:
    """Labels come at another pace than in the champion's baseline: the log-rank test over devices, and by how much.

    Attributes:
        alpha: Significance of each window.
        surplus: How many more or fewer labels than a common pace predicts, as a share of them.
        min_devices: Devices with predictions old enough, in the window and in the baseline.
        num_windows: Non-overlapping windows in a row, to tell it and to take it back.
        window_s: The window that is judged; None: the longest, which has the oldest predictions.
    """

    alpha: float = 0.001
    surplus: float = 0.1
    min_devices: int = 5
    num_windows: int = 1
    window_s: float | None = None

    def __post_init__(self) -> None:
        require(0 < self.alpha < 0.5, f"{self.alpha} is no error rate", key="pace.alpha")
        not_negative("pace.surplus", self.surplus)
        require(self.min_devices >= 2, "at least two devices", key="pace.min_devices")
        require(self.num_windows >= 1, "at least one window", key="pace.num_windows")


@dataclass(frozen=True)
class MonitoringPolicy:
    """Everything that monitoring is told.

    Attributes:
        num_bins: Bins of a numeric feature.
        windows: The windows that are computed.
        drift: Recipe A.
        confidence: Recipe B.
        confidence_window_s: The window that recipe B looks at.
        kpis: The KPIs that devices report; those with a limit are guardrails.
        kpi_rules: Recipe C.
        accuracy: When labels say that the champion got worse.
        place: Where drift lives, and quarantine.
        pace: When labels come at another pace.
        label_wait_s: How long a label may wait for its own telemetry.
        clock_tolerance_s: How far a device's clock may be ahead.
    """

    num_bins: int = 10
    windows: tuple[Window, ...] = (Window(DAY_S, HOUR_S), Window(7 * DAY_S, DAY_S))
    drift: DriftRules = field(default_factory=DriftRules)
    confidence: ConfidenceDecay = field(default_factory=ConfidenceDecay)
    confidence_window_s: float = DAY_S
    kpis: tuple[Kpi, ...] = ()
    kpi_rules: KpiRules = field(default_factory=KpiRules)
    accuracy: AccuracyRules = field(default_factory=AccuracyRules)
    place: PlaceRules = field(default_factory=PlaceRules)
    pace: PaceRules = field(default_factory=PaceRules)
    label_wait_s: float = HOUR_S
    clock_tolerance_s: float = 300.0

    def __post_init__(self) -> None:
        as_tuples(self, ("windows", "kpis"))
        require(self.num_bins >= 2, "at least two bins", key="monitoring.num_bins")
        not_negative("monitoring.label_wait_s", self.label_wait_s)
        not_negative("monitoring.clock_tolerance_s", self.clock_tolerance_s)
        names = [kpi.name for kpi in self.kpis]
        require(len(set(names)) == len(names), "two KPIs share a name", key="monitoring.kpis")
        lengths = {window.length_s for window in self.windows}
        require(bool(lengths), "at least one window", key="monitoring.windows")
        asked = {
            **dict.fromkeys(self.drift.windows_s, "drift.windows_s"),
            self.confidence_window_s: "confidence_window_s",
            self.kpi_rules.window_s: "kpi_rules.window_s",
            self.accuracy.window_s: "accuracy.window_s",
            self.place.window_s: "place.window_s",
            self.pace_window_s: "pace.window_s",
        }
        for length_s, key in asked.items():
            fix = f"choose from {sorted(lengths)}, or add a window"
            require(
                length_s in lengths, f"no window is {length_s:g} s long", key=f"monitoring.{key}", fix=fix
            )

    @property
    def pace_window_s(self) -> float:
        """The window in which the pace of labels is judged."""
        longest = max(window.length_s for window in self.windows)
        return longest if self.pace.window_s is None else self.pace.window_s
