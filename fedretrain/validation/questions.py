"""The statistical questions: is the candidate worse than the champion by more than a margin, here or there?

Rules of this file:
    * PASS: a loss of the margin or more is excluded at `alpha`. All checks must pass, so each may use the whole alpha (an
      intersection-union test: Berger 1982, https://doi.org/10.1080/00401706.1982.10487790).
    * FAIL: the estimate is beyond the margin *and* the candidate is worse than the champion beyond chance, at `alpha`
      divided by the number of questions: an equal candidate fails by any of them with probability alpha at most.
    * Neither is INCONCLUSIVE, and so is a question without data.
    * Up to 64 units the sign-flip test must agree at alpha; below `min_devices` a figure without one is INCONCLUSIVE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.validation.config import CheckName
from fedretrain.validation.gains import (
    Scores,
    brier_scores,
    calibration_gain,
    gain,
    macro_f1_gain,
    scores,
    tail_gain,
)
from fedretrain.validation.report import Check, Verdict
from fedretrain.validation.statistics import LATE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fedretrain.validation.config import Margins, ValidationPolicy
    from fedretrain.validation.intervals import Estimate
    from fedretrain.validation.statistics import DeviceStatistics

TAIL_FRACTION = 0.1
MIN_TAIL_DEVICES = 20  # two devices in the worst tenth


@dataclass(frozen=True)
class Question:
    """One comparison of candidate and champion.

    Attributes:
        name: The check.
        part: Which group, slice or label.
        estimate: Candidate minus champion.
        margin: What may be lost.
        num_devices: Devices with a row in it.
        num_rows: Rows.
        shortage: Why it cannot be judged; empty: it can.
        excuse: Why a loss would not count; empty: it would.
    """

    name: CheckName
    part: str
    estimate: Estimate
    margin: float
    num_devices: int
    num_rows: int
    shortage: str = ""
    excuse: str = ""


def ask(policy: ValidationPolicy, stats: DeviceStatistics) -> list[Question]:
    """Every question that the policy puts to these statistics, fairness apart."""
    margins = policy.accuracy if stats.layout.num_classes else policy.error
    asked = [
        *_fleet(policy, stats, margins),
        *_groups(policy, stats, margins),
        *_slices(policy, stats, margins),
    ]
    if stats.layout.num_classes:
        asked += [*_labels(policy, stats), *_probabilities(policy, stats)]
    return asked


def _question(name: CheckName, part: str, found: Estimate, margin: float, on: Scores) -> Question:
    return Question(name, part, found, margin, on.num_devices, on.num_rows)


def _fleet(policy: ValidationPolicy, stats: DeviceStatistics, margins: Margins) -> Iterator[Question]:
    whole = scores(stats)
    yield _question(CheckName.OVERALL, "", gain(whole, policy.unit), margins.overall, whole)
    few = whole.num_devices < MIN_TAIL_DEVICES
    yield Question(
        CheckName.WORST_DECILE,
        "",
        tail_gain(whole, TAIL_FRACTION),
        margins.worst_decile,
        whole.num_devices,
        whole.num_rows,
        shortage=f"{whole.num_devices} devices have no worst tenth (at least {MIN_TAIL_DEVICES})"
        if few
        else "",
    )
    if policy.late_after_s is not None:
        late = scores(stats, timeliness=LATE)
        found = gain(late, policy.unit, by_rows=True)
        yield _question(CheckName.LATE_LABELS, "", found, margins.late, late)


def _groups(policy: ValidationPolicy, stats: DeviceStatistics, margins: Margins) -> Iterator[Question]:
    whole = scores(stats)
    for group in np.unique(stats.group_D):
        part = whole.only(devices=stats.group_D == group)
        yield _question(CheckName.GROUP, str(group), gain(part, policy.unit), margins.group, part)


def _slices(policy: ValidationPolicy, stats: DeviceStatistics, margins: Margins) -> Iterator[Question]:
    whole = scores(stats)
    for s in range(stats.layout.num_slices):
        part = whole.only(slice_=s)
        yield _question(CheckName.SLICE, str(s), gain(part, policy.unit, by_rows=True), margins.slice, part)


def _labels(policy: ValidationPolicy, stats: DeviceStatistics) -> Iterator[Question]:
    for label in range(stats.layout.num_classes):
        part = scores(stats, labels=np.array([label]))
        short = part.num_rows < policy.min_label_rows
        yield Question(
            CheckName.LABEL,
            str(label),
            gain(part, policy.unit, by_rows=True),
            policy.label_margin,
            part.num_devices,
            part.num_rows,
            shortage=f"{part.num_rows} rows of this label (at least {policy.min_label_rows})"
            if short
            else "",
        )


def _probabilities(policy: ValidationPolicy, stats: DeviceStatistics) -> Iterator[Question]:
    whole = scores(stats)
    brier = gain(brier_scores(stats), policy.unit)
    yield _question(CheckName.BRIER, "", brier, policy.brier_margin, whole)
    calibration = _question(
        CheckName.CALIBRATION, "", calibration_gain(stats), policy.calibration_margin, whole
    )
    yield replace(calibration, excuse=_better_scored(policy, brier))
    yield _question(CheckName.MACRO_F1, "", macro_f1_gain(stats), policy.macro_f1_margin, whole)


def _better_scored(policy: ValidationPolicy, brier: Estimate) -> str:
    """Why a greater calibration error would not count: the probabilities are better by a proper score.

    Calibration error is none: who says of every row how often he is right in general has an error of 0 and knows nothing. Held against such a
    champion (the rules baseline is one) every model that tells rows apart errs more, the perfect one too.
    """
    flips = brier.flips_below(0.0, policy.seed)
    if math.isnan(brier.value) or brier.below(0.0) > policy.alpha or (flips or 0.0) > policy.alpha:
        return ""
    low, _ = brier.interval(policy.alpha)
    return f"the Brier score, which is proper, is better by {brier.value:.4f} (at least {low:.4f})"


def answer(policy: ValidationPolicy, asked: Sequence[Question]) -> list[Check]:
    """One check for each question; together they fail an equal candidate with probability alpha at most."""
    return [_judge(policy, question, policy.alpha / len(asked)) for question in asked]


def _judge(policy: ValidationPolicy, question: Question, alpha_worse: float) -> Check:
    found, margin = question.estimate, question.margin
    low, high = found.interval(policy.alpha)
    p_worse = found.above(0.0)
    verdict, why = _verdict(policy, question, alpha_worse)
    figures = f"{found.value:+.4f} [{low:+.4f}, {high:+.4f}] against a margin of {margin:g}"
    return Check(
        name=question.name,
        part=question.part,
        verdict=verdict,
        reason=f"{why} ({figures}; {question.num_devices:,} devices, {question.num_rows:,} rows)",
        required=question.name in policy.required,
        estimate=found.value,
        low=low,
        high=high,
        margin=margin,
        p_worse=p_worse,
        num_devices=question.num_devices,
        num_rows=question.num_rows,
    )


def _verdict(policy: ValidationPolicy, question: Question, alpha_worse: float) -> tuple[Verdict, str]:
    found, margin = question.estimate, question.margin
    if question.excuse:
        return Verdict.PASS, question.excuse
    if question.shortage:
        return Verdict.INCONCLUSIVE, question.shortage
    if math.isnan(found.value):
        return Verdict.INCONCLUSIVE, "no data"
    few = found.num_units < policy.min_devices
    if few and found.share_U is None:
        return Verdict.INCONCLUSIVE, f"{found.num_units:.1f} effective units are too few"
    if found.value < -margin:
        flips = found.flips_above(0.0, policy.seed)
        if found.above(0.0) <= alpha_worse and (flips is None or flips <= policy.alpha):
            return Verdict.FAIL, "worse than the champion, by more than the margin"
        return Verdict.INCONCLUSIVE, "worse by more than the margin, but it may be chance"
    flips = found.flips_below(-margin, policy.seed)
    if found.below(-margin) <= policy.alpha and (flips is None or flips <= policy.alpha):
        return Verdict.PASS, "a loss of the margin is excluded"
    return Verdict.INCONCLUSIVE, "a loss of the margin is not excluded"
