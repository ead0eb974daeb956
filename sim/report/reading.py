"""The run in plain words, built from its numbers.

Rules of this file:
    * A difference is paired by seed and device. It is claimed only where its interval excludes zero; otherwise the
      text says that this run cannot tell. One seed is said to be one seed.
    * The devices that a figure is about are named: real ones and virtual ones are never lumped together.
    * What comes from outside is escaped here (`safe`); `Words` must have been given an escaped unit.
    * No causes beyond what differs between two arms, and no promise about another fleet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.compare import pair_scores, served
from sim.report import words
from sim.report.words import NBSP
from sim.statistics import paired
from sim.summarise import population_of

if TYPE_CHECKING:
    from sim.report.words import Words
    from sim.results import ArmSummary, Estimate, Population, PopulationScores, Run


def reading(run: Run, say: Words) -> list[str]:
    """Sentences, a paragraph each."""
    arms = [a for a in run.summary.arms if a.headline is not None]
    if not arms:
        return ["No device was scored, so this run says nothing about accuracy."]
    base = next((a for a in arms if not a.privacy and not is_personal(a)), None)
    personal = next((a for a in arms if not a.privacy and is_personal(a)), None)
    text = [_level(base or arms[0], say)]
    if personal is not None:
        text.append(_personalization(run, base, personal, say))
    text += [_privacy(run, _twin(arms, arm), arm, say) for arm in arms if arm.privacy is not None]
    cold = _cold_start(arms, say)
    return [*text, cold] if cold else text


def is_personal(arm: ArmSummary) -> bool:
    """Whether devices of this arm serve personalized models."""
    return arm.headline is not None and arm.headline.personalized is not None


def served_scores(found: PopulationScores) -> Estimate:
    """The mean score of what devices of a population would serve."""
    return (found.personalized or found.global_model).score.mean


def difference(run: Run, a: str, b: str, population: Population) -> Estimate | None:
    """Arm b minus arm a on the devices that both have in a population; None where there are none."""
    own = [[d for d in run.devices if d.arm == arm and population_of(d) is population] for arm in (a, b)]
    left, right = pair_scores(own[0], own[1], served, served)
    return paired(left, right) if left else None


def _level(arm: ArmSummary, say: Words) -> str:
    head = arm.headline
    assert head is not None
    score = (head.personalized or head.global_model).score
    model = "personalized models reach" if head.personalized else "one global model for all reaches"
    return (
        f"On {words.people(head.population, head.num_devices)}, with {_b(safe(arm.title))}, {model} "
        f"{_b(say.score(score.mean.value))} {say.name} on average{_interval(score.mean, say)}, "
        f"{say.score(score.p10.value)} on the 10th-percentile device and {say.score(score.worst.value)} on the worst."
    )


def _personalization(run: Run, base: ArmSummary | None, arm: ArmSummary, say: Words) -> str:
    head = arm.headline
    assert head is not None
    against = f"the global model of {_b(safe(base.title))}" if base else "the same arm's global model"
    found = difference(run, base.arm, arm.arm, head.population) if base else _gain(head, say)
    change = _change(found, say, against)
    score = (head.personalized or head.global_model).score
    return (
        f"{_b('What personalization gives.')} Personal parts that stay on each device ({safe(arm.method)}) bring the mean "
        f"to {_b(say.score(score.mean.value))} and the worst device to {say.score(score.worst.value)}: {change}."
    )


def _gain(head: PopulationScores, say: Words) -> Estimate | None:
    """The gain, which counts improvements as positive, as a plain difference of scores."""
    from dataclasses import replace

    gain = head.gain
    if gain is None or say.metric.higher_is_better:
        return gain
    low, high = (None if v is None else -v for v in (gain.high, gain.low))
    return replace(gain, value=-gain.value, low=low, high=high)


def _privacy(run: Run, twin: ArmSummary | None, arm: ArmSummary, say: Words) -> str:
    head, p = arm.headline, arm.privacy
    assert head is not None
    assert p is not None
    cost = ""
    if twin is not None:
        change = _change(
            difference(run, twin.arm, arm.arm, head.population), say, f"{_b(safe(twin.title))} without DP"
        )
        cost = f" It ends at {say.score(served_scores(head).value)}: {change}."
    claim = (
        f"{_b('What privacy costs.')} {_b(safe(arm.title))} spends epsilon {_b(f'{p.epsilon:.2f}')} at delta {words.power(p.delta)} "
        f"for each {safe(p.unit)} ({_term(p.relation)} relation, {_term(p.sampling)} sampling, {safe(p.accountant.upper())} accountant)."
    )
    return claim + cost + (f" {safe(p.advice)}" if p.advice else "")


def _twin(arms: list[ArmSummary], arm: ArmSummary) -> ArmSummary | None:
    """The arm that differs by DP alone: the same method without it, else any without it."""
    without = [a for a in arms if a.privacy is None]
    return next((a for a in without if a.method == arm.method), next(iter(without), None))


def _change(found: Estimate | None, say: Words, against: str) -> str:
    if found is None:
        return f"no device can be paired with {against}"
    told, ends = say.change(found.value), say.change_interval(found)
    if found.value == 0.0:
        within = f" (95{NBSP}% interval {ends}, {words.over(found)})" if found.low or found.high else ""
        return f"no different from {against}{within}"
    if not ends:
        return f"{told} than {against}, on too few devices for an interval"
    interval = f" (95{NBSP}% interval {ends}, {words.over(found)})"
    if found.low is not None and found.high is not None and found.low <= 0.0 <= found.high:
        return (
            f"{told} than {against}{interval}; with zero in its interval, this run cannot tell the two apart"
        )
    return f"{_b(told)} than {against}{interval}"


def _interval(estimate: Estimate, say: Words) -> str:
    shown = say.interval(estimate)
    return f" (95{NBSP}% interval {shown} {words.over(estimate)})" if shown else ""


def _cold_start(arms: list[ArmSummary], say: Words) -> str:
    parts = []
    for arm in arms:
        found = next((p for p in arm.populations if p.population.value.startswith("cold_start")), None)
        if found is not None:
            score = say.score(served_scores(found).value)
            parts.append(f"{safe(arm.title)} {score} ({words.count(found.num_devices)})")
    if not parts:
        return ""
    return (
        f"{_b('Cold start.')} Devices that never took part are left out of every figure above. "
        f"Their mean {say.name}, and how many they are:{NBSP}{words.listing(parts)}."
    )


def safe(text: str) -> str:
    """Text from a record, made safe for a page."""
    from html import escape

    return escape(text)


def _term(name: str) -> str:
    return safe(words.term(name))


def _b(markup: str) -> str:
    return f"<b>{markup}</b>"
