"""The figures of scores over time: what each shows, its one sentence, its legend and its table.

Rules of this file:
    * A figure without data is left out, never drawn empty.
    * The sentence under a title is computed from the data that is drawn, and claims no cause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.lifetime.report import plots
from sim.lifetime.report.headline import privacy_scopes
from sim.lifetime.report.series import over_time
from sim.lifetime.report.told import percent, table_rows
from sim.report import words
from sim.report.figures import Figure
from sim.report.plots import Line
from sim.report.style import MUTED
from sim.report.words import NBSP

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.lifetime.records import StepRecord
    from sim.lifetime.report.told import Told
    from sim.report.series import Curve


def accuracy(told: Told) -> Figure | None:
    """Accuracy over time, with parts of the life and injected drifts."""
    lines = told.lines(lambda step: step.accuracy)
    if not lines:
        return None
    drifted = _drifted(told)
    least = [
        f"{line.name} {percent(float(line.curve.mean.min()))} after "
        f"{told.when(float(line.curve.at[int(line.curve.mean.argmin())]))} {told.span.unit[1]}"
        for line in lines
    ]
    gains = _gains(told)
    num = len(told.run.seeds)
    band = f" Bands are 95{NBSP}% intervals over {num} seeds." if num > 1 else ""
    drift = " Dotted lines are injected drifts (truth), by letter." if told.span.onsets else ""
    return Figure(
        name="accuracy",
        title="Accuracy over time, as only the simulator can know it (oracle)",
        says=f"Lowest: {words.listing(least)}; {told.smoothed}.{band}{drift}",
        plot=lambda: plots.scores(lines, gains, drifted, told.span, told.heads[0].policy),
        legend=tuple((MUTED, "dash", _onset_name(told, i)) for i in range(len(told.span.onsets))),
        header=(told.time_name, *(line.name for line in lines)),
        rows=table_rows(told, [line.curve for line in lines]),
        wide=True,
    )


def _gains(told: Told) -> list[Line]:
    """Every other policy's accuracy above that of the first, paired by seed."""
    base = told.lives[told.heads[0].policy]
    made = [
        Line(h.policy, h.colour, over_time(told.lives[h.policy], lambda s: s.accuracy, told.window, base))
        for h in told.heads[1:]
    ]
    return [line for line in made if len(line.curve)]


def _onset_name(told: Told, index: int) -> str:
    """What a letter stands for."""
    onset = told.span.onsets[index]
    several = "" if onset.last_at == onset.first_at else " (shaded: over seeds)"
    return f"{onset.sign} {onset.kind}, {words.count(onset.num_devices)} devices{several}"


def _drifted(told: Told) -> Curve | None:
    """Share of devices with an injected drift: the same under every policy."""
    if not told.run.truth or not told.run.num_devices:
        return None
    found = told.curve(told.heads[0], lambda step: step.drifted_devices / told.run.num_devices, window=1)
    return found if len(found) else None


def worst(told: Told) -> Figure | None:
    """The worst tenth of the devices over time."""
    return _trend(
        told,
        "worst",
        "The worst tenth of the devices (oracle)",
        "Mean accuracy of the tenth of the devices that were served worst lately",
        "Accuracy, %",
        lambda step: step.worst_decile,
    )


def badly(told: Told) -> Figure | None:
    """Devices served by a bad model."""
    num = max(1, told.run.num_devices)
    return _trend(
        told,
        "badly",
        "Devices served by a bad model (oracle)",
        "Bad: the device\u2019s recent accuracy lies well below its own record",
        "Share of the devices, %",
        lambda step: step.bad_devices / num,
    )


def _trend(
    told: Told, name: str, title: str, says: str, axis: str, value: Callable[[StepRecord], float]
) -> Figure | None:
    lines = told.lines(value)
    if not lines:
        return None
    return Figure(
        name=name,
        title=title,
        says=f"{says}; {told.smoothed}.",
        plot=lambda: plots.trend(lines, 100.0, axis, told.span),
        header=(told.time_name, *(line.name for line in lines)),
        rows=table_rows(told, [line.curve for line in lines]),
    )


def epsilon(told: Told) -> Figure | None:
    """Privacy spent over time."""
    made = [
        Line(h.policy, h.colour, over_time(told.lives[h.policy], lambda step: step.epsilon))
        for h in told.heads
    ]
    lines = [line for line in made if len(line.curve)]
    if not lines:
        return None
    ends = words.listing([f"{line.name} {words.significant(float(line.curve.mean[-1]))}" for line in lines])
    mean = "the mean over seeds" if len(told.run.seeds) > 1 else "with the one seed"
    return Figure(
        name="epsilon",
        title="Privacy spent",
        says=f"At the end, {mean}: {ends}. Covers the released shared weights. {' '.join(privacy_scopes(told.run))}",
        plot=lambda: plots.trend(lines, 1.0, "Epsilon", told.span),
        header=(told.time_name, *(line.name for line in lines)),
        rows=table_rows(told, [line.curve for line in lines], words.significant),
    )
