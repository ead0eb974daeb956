"""Numbers in words: the one place where the report rounds.

Rules of this file:
    * Accuracy is shown in percent with one decimal, its differences in percentage points; an error in its own unit
      with three significant digits.
    * A minus is a minus sign, a range has an en dash or brackets, and a number keeps its unit (no line break).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sim.results import Metric, Over, Population

if TYPE_CHECKING:
    from sim.results import Estimate

NBSP = "\u00a0"
MINUS = "\u2212"
DASH = "\u2014"

POPULATIONS = {
    Population.REAL: "real devices",
    Population.VIRTUAL: "virtual devices",
    Population.COLD_START_REAL: "real devices that never took part",
    Population.COLD_START_VIRTUAL: "virtual devices that never took part",
}


class Words:
    """How this run's scores are written.

    Args:
        metric: The run's main metric.
        unit: The score's unit; empty for a fraction.
    """

    def __init__(self, metric: Metric, unit: str) -> None:
        self.metric, self.unit = metric, unit
        self.name = "accuracy" if metric is Metric.ACCURACY else "RMSE"
        self.axis = "accuracy, %" if metric is Metric.ACCURACY else f"RMSE, {unit}" if unit else "RMSE"
        self.scale = 100.0 if metric is Metric.ACCURACY else 1.0

    def score(self, value: float) -> str:
        """``91.2 %`` or ``21.5 µg/m³``."""
        if not math.isfinite(value):
            return "n/a"
        if self.metric is Metric.ACCURACY:
            return f"{100 * value:.1f}{NBSP}%"
        return _united(significant(value), self.unit)

    def cell(self, value: float) -> str:
        """A score in a table whose header names the unit: ``91.2 %`` or ``21.5``."""
        return self.score(value) if self.metric is Metric.ACCURACY else significant(value)

    def difference(self, value: float) -> str:
        """A size without a sign: ``3.1 points`` or ``2.4 µg/m³``."""
        if not math.isfinite(value):
            return "n/a"
        if self.metric is Metric.ACCURACY:
            return f"{abs(100 * value):.1f}{NBSP}points"
        return _united(significant(abs(value)), self.unit)

    def interval(self, estimate: Estimate) -> str:
        """``[89.0, 93.1]``; empty where there is none."""
        if estimate.low is None or estimate.high is None:
            return ""
        digits = [
            f"{100 * v:.1f}" if self.metric is Metric.ACCURACY else significant(v) for v in _ends(estimate)
        ]
        return minus(f"[{digits[0]},{NBSP}{digits[1]}]")

    def change(self, value: float) -> str:
        """A difference in words: ``3.1 points better``."""
        verdict = "better" if self.better(value) else "worse"
        return f"{self.difference(value)} {verdict}" if value else self.difference(value)

    def change_interval(self, estimate: Estimate) -> str:
        """The ends of a difference's interval in words: ``1.8 points worse to 0.5 points better``; or empty."""
        if estimate.low is None or estimate.high is None:
            return ""
        first, last = _ends(estimate)
        small, large = sorted((first, last), key=abs) if first * last > 0 else (first, last)
        if first * last > 0:
            return f"{self.difference(small)} to {self.change(large)}"
        return f"{self.change(small)} to {self.change(large)}"

    def better(self, value: float) -> bool:
        """Whether a difference is an improvement."""
        return (value > 0) is self.metric.higher_is_better


def _ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def _united(text: str, unit: str) -> str:
    return f"{text}{NBSP}{unit}" if unit else text


def minus(text: str) -> str:
    """With real minus signs."""
    return text.replace("-", MINUS)


def significant(value: float) -> str:
    """Three significant digits without an exponent for common sizes."""
    if not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return minus(f"{value:.{digits}f}" if digits < 7 else f"{value:.2e}")


def fraction(value: float | None) -> str:
    """A macro-F1 or R squared: three decimals."""
    return DASH if value is None or not math.isfinite(value) else minus(f"{value:.3f}")


def count(value: float) -> str:
    """A count, or a mean of counts: no decimals where there are none."""
    return f"{value:,.0f}" if abs(value - round(value)) < 0.05 else f"{value:,.1f}"


def size(num_bytes: float) -> str:
    """``3.4 MB``, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g}{NBSP}{unit}" if unit != "B" else f"{num_bytes:.0f}{NBSP}B"
        num_bytes /= 1000
    return f"{num_bytes:.3g}{NBSP}TB"


def memory(num_bytes: float) -> str:
    """``812 MiB``, binary units."""
    mib = num_bytes / 2**20
    return f"{mib:,.0f}{NBSP}MiB" if mib < 10_240 else f"{mib / 1024:,.1f}{NBSP}GiB"


def seconds(value: float) -> str:
    """``8.2 s`` or ``1 min 33 s``."""
    if value < 60:
        return f"{value:.1f}{NBSP}s"
    return f"{int(value // 60)}{NBSP}min {int(value % 60):02d}{NBSP}s"


def time_unit(span_s: float) -> tuple[float, str]:
    """The unit in which a stretch of virtual time reads well: (seconds, name)."""
    for unit_s, name in ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes")):
        if span_s >= 2 * unit_s:
            return unit_s, name
    return 1.0, "seconds"


def over(estimate: Estimate) -> str:
    """What an interval rests on: ``over 5 seeds``; empty where there is none."""
    return "" if estimate.over is Over.NOTHING else f"over {estimate.num} {estimate.over.value}"


def power(value: float) -> str:
    """A small probability: ``1e-5``, not ``1e-05``."""
    return f"{value:g}".replace("e-0", "e-")


_TERMS = {
    "add_remove": "add/remove",
    "replace_one": "replace-one",
    "zero_out": "zero-out",
    "poisson": "Poisson",
    "fixed_size": "fixed-size",
    "min_separation": "minimum-separation",
}


def term(name: str) -> str:
    """A relation or a kind of sampling as papers write it."""
    return _TERMS.get(name, name.replace("_", " "))


def people(population: Population, num: float) -> str:
    """``19 real devices``, ``1 virtual device``."""
    name = POPULATIONS[population]
    return f"{count(num)} {name.replace('devices', 'device', 1) if num == 1 else name}"


def listing(parts: list[str]) -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
