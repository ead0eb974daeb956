"""Fairness across device types and labels: gaps with intervals, and whether the candidate widens one.

Rules of this file:
    * A gap is the score of a group (or the recall of a label) minus that of the rest; below 0 is disadvantaged.
    * A candidate widens a gap where its part is further behind the rest than under the champion, or, where the champion
      favoured the part, than parity: an advantage may go.
    * A part that does not lose is no reason to stop a candidate that helps the others more: levelling down is no remedy. The
      gap is reported all the same.
    * A label loses where its F1 falls, not where its recall does: a champion that has drifted into saying one label too
      often has a high recall of it, and whoever mends that lowers it. (A recall that falls by `label_margin` fails the
      check of the label all the same.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.validation.config import CheckName
from fedretrain.validation.gains import Scores, gain, label_f1_gain, level, scores
from fedretrain.validation.questions import Question
from fedretrain.validation.report import Gap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedretrain.validation.config import ValidationPolicy
    from fedretrain.validation.intervals import Estimate
    from fedretrain.validation.statistics import DeviceStatistics


@dataclass(frozen=True)
class _Part:
    """A part of the fleet's data and the rest of it; `loss` is what the candidate costs the part itself."""

    kind: str
    name: str
    inside: Scores
    rest: Scores
    by_rows: bool
    loss: float


def _parts(policy: ValidationPolicy, stats: DeviceStatistics) -> Iterator[_Part]:
    """Each group, and each label with rows enough, against the rest; nothing where there is no rest."""
    whole = scores(stats)
    groups = np.unique(stats.group_D)
    for group in groups if len(groups) > 1 else ():
        member = stats.group_D == group
        inside = whole.only(devices=member)
        loss = -gain(inside, policy.unit).value
        yield _Part("group", str(group), inside, whole.only(devices=~member), by_rows=False, loss=loss)
    labels = np.arange(stats.layout.num_classes)
    for label in labels:
        inside, rest = (
            scores(stats, labels=labels[labels == label]),
            scores(stats, labels=labels[labels != label]),
        )
        if min(inside.num_rows, rest.num_rows) >= policy.min_label_rows:
            loss = -label_f1_gain(stats, int(label))
            yield _Part("label", str(label), inside, rest, by_rows=True, loss=loss)


def compare_parts(
    policy: ValidationPolicy, stats: DeviceStatistics
) -> tuple[tuple[Gap, ...], tuple[Question, ...]]:
    """Every gap with its interval, and whether the candidate widens it."""
    found = [_compare(policy, stats, part) for part in _parts(policy, stats)]
    return tuple(gap for gap, _ in found), tuple(question for _, question in found)


def _compare(policy: ValidationPolicy, stats: DeviceStatistics, part: _Part) -> tuple[Gap, Question]:
    now, before = _gap(policy, part, champion=False), _gap(policy, part, champion=True)
    low, high = now.interval(policy.alpha)
    margins = policy.accuracy if stats.layout.num_classes else policy.error
    reported = Gap(part.kind, part.name, now.value, low, high, before.value, part.inside.num_devices)
    question = Question(
        CheckName.FAIRNESS,
        f"{part.kind} {part.name}",
        now - before if before.value < 0.0 else now,
        margins.gap,
        part.inside.num_devices,
        part.inside.num_rows,
        excuse="it does not lose itself" if part.loss <= 0.0 else "",
    )
    return reported, question


def _gap(policy: ValidationPolicy, part: _Part, *, champion: bool) -> Estimate:
    inside = level(part.inside, policy.unit, champion=champion, by_rows=part.by_rows)
    return inside - level(part.rest, policy.unit, champion=champion, by_rows=part.by_rows)
