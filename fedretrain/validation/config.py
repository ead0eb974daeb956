"""What a candidate must hold offline before anything ships; part of the policy file.

Rules of this file:
    * A margin is what may be lost against the champion on the same rows: points of accuracy as a fraction (0.01 is one
      point), or, for regression, a share of the champion's own squared error.
    * A check in `required` must PASS: INCONCLUSIVE there holds the candidate. Any other check stops the candidate only
      by failing; what it could not tell is said in the report.
    * Instants are seconds on the fleet's clock; an end that is left out is open.
    * Where devices are asked, `ANSWERS` must pass too: silence never passes a candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fedretrain.core import checks

MAX_DEVICE_ROWS = 500_000
"""Of one device in an evaluation: losses of so many rows fit into 63 bits."""


class CheckName(StrEnum):
    """What is checked."""

    FINITE = "finite"  # weights and predictions are numbers
    SANITY = "sanity"  # known inputs give known decisions, twice
    REPLAY = "replay"  # a backlog leaves no other state than being online
    OVERALL = "overall"  # the mean over devices
    WORST_DECILE = "worst_decile"  # the mean of the worst tenth of the devices
    GROUP = "group"  # each device type or site
    SLICE = "slice"  # each time slice
    LABEL = "label"  # the recall of each label
    LATE_LABELS = "late_labels"  # the rows whose labels came late
    MACRO_F1 = "macro_f1"  # over all rows
    BRIER = "brier"  # probabilities, row by row
    CALIBRATION = "calibration"  # expected calibration error
    FAIRNESS = "fairness"  # gaps between groups and between labels
    CRITICAL = "critical"  # each critical segment of history
    LATENCY = "latency"  # of one prediction
    SIZE = "size"  # of the package
    ANSWERS = "answers"  # enough devices answered, where devices were asked


class Unit(StrEnum):
    """What counts as one independent observation."""

    DEVICE = "device"  # the claim reaches devices like these
    DEVICE_SLICE = "device_slice"  # the claim is about exactly these devices (a fleet of four has no others)


@dataclass(frozen=True)
class Margins:
    """What may be lost, each at least 0.

    Attributes:
        overall: By the mean over devices.
        worst_decile: By the mean of the worst tenth of the devices.
        group: By any device type or site.
        slice: By any time slice.
        late: By the rows whose labels came late.
        gap: By which the gap of a group or label to the rest may widen.
    """

    overall: float = 0.01
    worst_decile: float = 0.03
    group: float = 0.03
    slice: float = 0.05
    late: float = 0.03
    gap: float = 0.05

    def __post_init__(self) -> None:
        for name in ("overall", "worst_decile", "group", "slice", "late", "gap"):
            checks.not_negative(f"margins.{name}", getattr(self, name))


class Source(StrEnum):
    """Whose labelled rows a candidate is validated on."""

    POOL = "pool"  # what the server holds
    DEVICES = "devices"  # a federated evaluation: devices count on their own rows, and send the counts
    BOTH = "both"  # it must hold on each of them


@dataclass(frozen=True)
class FieldRules:
    """How devices are asked to evaluate a candidate on the rows that they hold.

    Attributes:
        max_devices: Asked at most so many, drawn by a public coin of each device and evaluation.
        quorum: The fewest devices whose counts are looked at; with fewer nothing is decided.
        min_rows: The fewest rows of all devices together; likewise.
        deadline_s: What comes later is not waited for.
        spread_s: Devices begin at an instant of their own within so long.
        history_s: How far back rows are taken.
        max_rows: Of one device, the newest.
    """

    max_devices: int = 1000
    quorum: int = 20
    min_rows: int = 1000
    deadline_s: float = 6 * 3600.0
    spread_s: float = 600.0
    history_s: float = 30 * 86_400.0
    max_rows: int = 20_000

    def __post_init__(self) -> None:
        for name in ("max_devices", "quorum", "min_rows", "deadline_s", "history_s", "max_rows"):
            checks.positive(f"field.{name}", getattr(self, name))
        checks.not_negative("field.spread_s", self.spread_s)
        checks.require(
            self.quorum <= self.max_devices,
            f"a quorum of {self.quorum} of {self.max_devices} devices",
            key="field.quorum",
            fix="give at most field.max_devices",
        )
        checks.require(
            self.spread_s < self.deadline_s,
            "devices would begin after the deadline",
            key="field.spread_s",
            fix="give less than field.deadline_s",
        )
        checks.require(
            self.max_rows <= MAX_DEVICE_ROWS,
            f"{self.max_rows} rows of a device",
            key="field.max_rows",
            fix=f"give at most {MAX_DEVICE_ROWS}: losses are summed in 63 bits",
        )


@dataclass(frozen=True)
class CriticalSegment:
    """A part of history on which the candidate may not be worse.

    Attributes:
        name: For the report.
        from_at: Its first instant; None: from the beginning.
        until_at: The instant after its last one; None: to the end.
        labels: The labels that belong to it; empty: all (and must be empty for regression).
        groups: The device groups that belong to it; empty: all.
        max_fall: What may be lost on exactly these rows. 0: nothing.
    """

    name: str
    from_at: float | None = None
    until_at: float | None = None
    labels: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    max_fall: float = 0.0

    def __post_init__(self) -> None:
        checks.as_tuples(self, ("labels", "groups"))
        checks.require(bool(self.name), "a critical segment needs a name", key="segments.name")
        checks.not_negative("segments.max_fall", self.max_fall)
        if self.from_at is not None and self.until_at is not None:
            checks.require(
                self.from_at < self.until_at,
                f"the segment {self.name!r} ends at {self.until_at:g}, before it begins",
                key="segments.until_at",
            )


@dataclass(frozen=True)
class ValidationPolicy:
    """The offline gate.

    Attributes:
        alpha: The risk of passing a candidate that is at a margin (each check), and the risk of failing one that
            equals the champion (all checks together).
        unit: What counts as one independent observation.
        min_devices: Units below which a check rests on the exact sign-flip test (or is INCONCLUSIVE where there is
            none); with fewer than five no check of 5 % can be decided.
        accuracy: Margins of a classifier, in fractions of the rows.
        error: Margins of a regression, in shares of the champion's squared error.
        label_margin: What the recall of one label may lose.
        macro_f1_margin: What macro-F1 may lose.
        brier_margin: By how much the Brier score (0 to 2) may rise.
        calibration_margin: By how much the expected calibration error may rise.
        min_label_rows: Rows of a label below which it is not judged alone.
        max_slowdown: Latency over the champion's.
        latency_budget_s: Latency of one prediction; None: no absolute budget.
        max_growth: Package size over the champion's.
        size_budget_bytes: Package size; None: no absolute budget.
        num_slices: Time slices of cross-validation and backtest.
        late_after_s: Labels later than this are late; None: no label is, and the check is left out.
        confidence_bins: Equal bins of the confidence, for calibration.
        segments: Critical segments of history.
        required: Checks that must PASS.
        seed: Of the sign-flip test's draws.
        source: Whose rows. (The simulator validates on its devices' rows, whatever this says: it holds them all.)
        field: How devices are asked, where they are.
    """

    alpha: float = 0.05
    unit: Unit = Unit.DEVICE
    min_devices: int = 8
    accuracy: Margins = Margins()
    error: Margins = Margins(overall=0.05, worst_decile=0.15, group=0.15, slice=0.2, late=0.15, gap=0.2)
    label_margin: float = 0.05
    macro_f1_margin: float = 0.03
    brier_margin: float = 0.02
    calibration_margin: float = 0.05
    min_label_rows: int = 50
    max_slowdown: float = 1.5
    latency_budget_s: float | None = None
    max_growth: float = 1.5
    size_budget_bytes: int | None = None
    num_slices: int = 5
    late_after_s: float | None = 86_400.0
    confidence_bins: int = 10
    segments: tuple[CriticalSegment, ...] = ()
    required: tuple[CheckName, ...] = (
        CheckName.FINITE,
        CheckName.SANITY,
        CheckName.OVERALL,
        CheckName.CRITICAL,
    )
    seed: int = 0
    source: Source = Source.POOL
    field: FieldRules = FieldRules()

    def __post_init__(self) -> None:
        checks.as_tuples(self, ("segments", "required"))
        checks.require(
            0.0 < self.alpha < 0.5,
            f"an alpha of {self.alpha} is no error rate",
            key="validation.alpha",
            fix="give a number above 0 and below 0.5",
        )
        for name in ("label_margin", "macro_f1_margin", "brier_margin", "calibration_margin"):
            checks.not_negative(f"validation.{name}", getattr(self, name))
        for name in ("max_slowdown", "max_growth", "num_slices", "confidence_bins", "min_label_rows"):
            checks.positive(f"validation.{name}", getattr(self, name))
        for name in ("latency_budget_s", "size_budget_bytes"):
            if getattr(self, name) is not None:
                checks.positive(f"validation.{name}", getattr(self, name))
        if self.late_after_s is not None:
            checks.not_negative("validation.late_after_s", self.late_after_s)
        checks.require(
            self.min_devices >= 2,
            "one device has no spread",
            key="validation.min_devices",
            fix="give 2 or more",
        )
        names = [segment.name for segment in self.segments]
        checks.require(len(set(names)) == len(names), "two segments have one name", key="validation.segments")
