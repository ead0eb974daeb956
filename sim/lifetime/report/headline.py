"""What each policy came to over its seeds: the figures that head the page and the terminal.

Rules of this file:
    * A figure is the mean over seeds with Student's t interval; a single seed has no interval.
    * A difference between policies is paired by seed: both lived on the same fleet with the same luck.
    * Nothing here rounds; `sim.report.words` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.report.style import arm_colours
from sim.statistics import FRACTION, UNBOUNDED, over_seeds

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.lifetime.records import Life, LifetimeRun, PolicySummary
    from sim.results import Estimate
    from sim.statistics import Bounds

_COUNT: Bounds = (0.0, UNBOUNDED[1])


@dataclass(frozen=True)
class Headline:
    """One policy over all its seeds.

    Attributes:
        policy: Its name.
        colour: Of matplotlib, the same on the whole page.
        accuracy: Oracle, over all scored rows.
        change: Accuracy minus that of the first policy, paired by seed; None for the first.
        segments: Accuracy by named part of the life.
        worst_decile: Mean accuracy of the worst tenth of the devices.
        bad_hours: Device-hours served by a bad model.
        bad_share: The same as a share of all device-hours.
        counts: Retrains, promotions, bytes and the like, by field of `PolicySummary`.
        epsilon: None without DP.
    """

    policy: str
    colour: str
    accuracy: Estimate
    change: Estimate | None
    segments: dict[str, Estimate]
    worst_decile: Estimate
    bad_hours: Estimate
    bad_share: Estimate
    counts: dict[str, Estimate]
    epsilon: Estimate | None


COUNTS = (
    "retrains",
    "personal_refreshes",
    "deferred",
    "promoted",
    "rolled_back",
    "bytes_up",
    "bytes_down",
    "labels_used",
    "wall_s",
)
"""Fields of `PolicySummary` that are counted or measured, not scored."""


def lives_of(run: LifetimeRun, policy: str) -> list[Life]:
    """A policy's lives, by seed."""
    return sorted((life for life in run.lives if life.summary.policy == policy), key=lambda x: x.summary.seed)


def headlines(run: LifetimeRun) -> list[Headline]:
    """Every policy that has lived, in the order in which they are shown."""
    colours = dict(zip(run.policies, arm_colours(len(run.policies)), strict=True))
    found = [
        (policy, [life.summary for life in lives])
        for policy in run.policies
        if (lives := lives_of(run, policy))
    ]
    base = {s.seed: s.accuracy for s in found[0][1]} if found else {}
    return [
        _headline(policy, colours[policy], summaries, None if i == 0 else base)
        for i, (policy, summaries) in enumerate(found)
    ]


def privacy_scopes(run: LifetimeRun) -> list[str]:
    """What each policy's epsilon, the largest over the seeds, says and does not say; one line where policies spent alike."""
    whose: dict[str, list[str]] = {}
    for policy in run.policies:
        spent = [s for life in lives_of(run, policy) if (s := life.summary).epsilon is not None]
        if spent:
            worst = max(spent, key=lambda s: s.epsilon or 0.0)
            whose.setdefault(worst.privacy_scope, []).append(policy)
    seeds = " (most charged seed)" if len(run.seeds) > 1 else ""
    return [f"{', '.join(policies)}{seeds}: {scope}" for scope, policies in whose.items()]


def _headline(
    policy: str, colour: str, found: list[PolicySummary], base: dict[int, float] | None
) -> Headline:
    def mean(value: Callable[[PolicySummary], float], bounds: Bounds = FRACTION) -> Estimate:
        return over_seeds([value(s) for s in found], bounds)

    spent = [s.epsilon for s in found if s.epsilon is not None]
    names = list(dict.fromkeys(name for s in found for name in s.by_segment))
    return Headline(
        policy=policy,
        colour=colour,
        accuracy=mean(lambda s: s.accuracy),
        change=None if base is None else _change(found, base),
        segments={name: over_seeds(_known(found, name), FRACTION) for name in names},
        worst_decile=mean(lambda s: s.worst_decile),
        bad_hours=mean(lambda s: s.bad_device_hours, _COUNT),
        bad_share=mean(lambda s: s.bad_device_hours / s.device_hours if s.device_hours else float("nan")),
        counts={name: over_seeds([float(getattr(s, name)) for s in found], _COUNT) for name in COUNTS},
        epsilon=over_seeds(spent, _COUNT) if spent else None,
    )


def _known(found: list[PolicySummary], name: str) -> list[float]:
    """A segment's accuracy, one value for each seed."""
    return [s.by_segment.get(name, float("nan")) for s in found]


def _change(found: list[PolicySummary], base: dict[int, float]) -> Estimate | None:
    paired = [s.accuracy - base[s.seed] for s in found if s.seed in base]
    return over_seeds(paired) if paired else None


def featured(heads: list[Headline]) -> Headline:
    """The policy that single-policy figures are drawn for: the most accurate, the later one of equals.

    Raises:
        ValueError: Without any.
    """
    return max(enumerate(heads), key=lambda e: (_rank(e[1].accuracy.value), e[0]))[1]


def _rank(value: float) -> float:
    return value if math.isfinite(value) else -1.0  # a policy without scored rows comes last
