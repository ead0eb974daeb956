"""The simulation gate's verdict from replays.

Rules of this file:
    * Every difference is candidate minus reference in the same world with the same seed; the seed is the unit, the interval Student's t.
    * PASS: the whole interval lies above minus the margin. FAIL: the difference is beyond the margin, and significantly worse than the
      reference. INCONCLUSIVE otherwise: too near the margin for so few seeds.
    * A campaign that releases no model at all FAILs: there is no candidate to judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.rollout.verdict import Verdict
from sim.statistics import over_seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.results import Estimate


@dataclass(frozen=True)
class GateCheck:
    """One thing that was checked.

    Attributes:
        name: What.
        condition: Under which condition.
        verdict: What it says.
        reason: Why, for people.
        candidate: The candidate's figure, mean over seeds.
        reference: What it is compared with.
        difference: Candidate minus reference, positive is better, with its interval; None where nothing is compared.
        margin: How much worse is allowed.
    """

    name: str
    condition: str
    verdict: Verdict
    reason: str
    candidate: float
    reference: float
    difference: Estimate | None
    margin: float


def compare(
    name: str,
    condition: str,
    candidate: Sequence[float],
    reference: Sequence[float],
    margin: float,
    *,
    relative: bool,
) -> GateCheck:
    """Judge a difference over seeds.

    Args:
        name: What is compared.
        condition: Where.
        candidate: ``[R]`` more is better.
        reference: ``[R]`` the same seeds.
        margin: How much worse is allowed.
        relative: Whether it is a fraction of the reference's size (errors) instead of points (accuracy).
    """
    theirs, ours = np.asarray(reference, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    scale = np.maximum(np.abs(theirs), 1e-12) if relative else np.ones_like(theirs)
    found = over_seeds((ours - theirs) / scale)
    known = np.isfinite(theirs).all() and found.low is not None and found.high is not None
    if not known:
        verdict, reason = Verdict.INCONCLUSIVE, "nothing to compare with"
        if np.isfinite(theirs).all() and not np.isfinite(ours).all():
            verdict, reason = Verdict.FAIL, "the candidate's score is not a number"
    else:
        verdict, reason = _judged(found, margin)
    return GateCheck(
        name, condition, verdict, reason, float(ours.mean()), float(theirs.mean()), found, margin
    )


def _judged(found: Estimate, margin: float) -> tuple[Verdict, str]:
    low, high = found.low or 0.0, found.high or 0.0
    if low >= -margin:
        return Verdict.PASS, "not worse by more than the margin"
    if found.value < -margin and high < 0.0:
        return Verdict.FAIL, "worse by more than the margin"
    return Verdict.INCONCLUSIVE, "too near the margin for so few seeds"


def combine(checks: Sequence[GateCheck]) -> Verdict:
    """FAIL if one fails, else INCONCLUSIVE if one is so, else PASS; nothing checked is INCONCLUSIVE."""
    verdicts = {check.verdict for check in checks}
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    return Verdict.PASS if verdicts == {Verdict.PASS} else Verdict.INCONCLUSIVE
