"""What is asked of a candidate before any device serves it: the offline validation, on the pool, on devices' rows, or on both.

Rules of this file:
    * A verdict is taken once for each rollout, and is in the log with its report; an undecided one is asked for again after a day.
    * Devices are asked one signed question at a time. It is over when all have answered, or at its deadline, never at a quorum:
      the quick ones are not the fleet.
    * A device's first answer counts, once, by its certificate. What does not fit the question is a failure of that device, by name.
    * Devices that are kept out, or may not speak any more when it is over, do not count.
    * What single devices counted is removed when the evaluation is over, and of a device that is retired at once: the report stays.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from fedretrain.artifacts.question import Question
from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import DataError
from fedretrain.core.types import FailureKind, Objective
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.verdict import Verdict
from fedretrain.server import validations as table
from fedretrain.server.fleet import Standing
from fedretrain.server.pool import FieldCounts, validate
from fedretrain.server.validations import Answer, Asked, Judged, Validations
from fedretrain.validation.checks import Answered, policy_digest
from fedretrain.validation.config import CheckName, Source
from fedretrain.validation.report import Verdict as Validated
from fedretrain.validation.rows import Layout
from fedretrain.validation.slices import even_cuts
from fedretrain.validation.statistics import merge_all
from fedretrain.wire.answers import decode_answer
from fedretrain.wire.control import MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fedretrain.rollout.state import RolloutState
    from fedretrain.server.event_log import EventLog, Fence
    from fedretrain.server.fleet import Device
    from fedretrain.server.models import Models
    from fedretrain.validation.report import EvaluationReport
    from fedretrain.validation.statistics import DeviceStatistics
    from fedretrain.wire.control import Evaluated

_VERDICTS = {
    Validated.PASS: Verdict.PASS,
    Validated.FAIL: Verdict.FAIL,
    Validated.INCONCLUSIVE: Verdict.INCONCLUSIVE,
}
KEPT_OUT = "kept_out"
"""Why a device that has counted is left out: it was quarantined, revoked or retired meanwhile."""
_SHOWN = (CheckName.OVERALL, CheckName.WORST_DECILE, CheckName.MACRO_F1, CheckName.BRIER)


class Examiner:
    """Of one population. Mutable: it follows its stream.

    Args:
        population: Its name.
        models: Versions, and the pool.
        log: The event log.
        fence: The lease of whoever runs the population.
    """

    def __init__(self, population: str, models: Models, log: EventLog, fence: Fence | None) -> None:
        self._population, self._models, self._log, self._fence = population, models, log, fence
        self._policy = models.policy.validation
        entries = tuple(log.read(table.stream(population)))
        self.known: Validations = table.recall(entries)
        self._forget(table.stale_blobs(entries, self.known))
        self._tried_at: dict[str, float] = {}

    @property
    def question(self) -> Question | None:
        """What devices are asked now."""
        return None if self.known.asked is None else self.known.asked.question

    # ---- what devices say

    def hear(
        self, answers: Mapping[int, tuple[int, Evaluated]], devices: Sequence[Device], now: float
    ) -> Counter[str]:
        """Keep what devices answered to the evaluation that is on.

        Args:
            answers: By device: the number of its record, and what it says.
            devices: Of the population, by number.
            now: Instant, seconds since the epoch.

        Returns:
            What was refused, by name.
        """
        retired = {one.number for one in devices if one.standing is Standing.RETIRED}
        self._forget(one.blob for one in self.known.answers.values() if one.blob and one.device in retired)
        asked, refused = self.known.asked, Counter[str]()
        found = []
        for device, (record, said) in sorted(answers.items()):
            if asked is None or device not in asked.devices or said.evaluation != self.known.evaluation:
                refused["evaluation: not asked"] += 1
                continue
            before = self.known.answers.get(device)
            if before is not None:
                refused["evaluation: repeated"] += before.record != record
                continue
            found.append(self._answer(asked, devices[device], record, said))
        self._append([one.to_record() for one in found], now)
        refused.update(f"evaluation: {one.failure}" for one in found if one.failure == FailureKind.MALFORMED)
        return +refused

    def _answer(self, asked: Asked, device: Device, record: int, said: Evaluated) -> Answer:
        name = asked.question.evaluation
        try:
            counts = _decoded(asked, device, said.content)
        except MalformedError as error:
            return Answer(name, device.number, record, failure=FailureKind.MALFORMED, detail=str(error)[:200])
        if isinstance(counts, FailureKind):
            return Answer(name, device.number, record, failure=counts)
        return Answer(name, device.number, record, blob=self._models.stores.campaigns.put(said.content))

    # ---- the verdict

    def validated(
        self,
        rollout: RolloutState,
        devices: Sequence[Device],
        kept: frozenset[int],
        now: float,
        *,
        may_ask: bool = True,
    ) -> Verdict:
        """The offline verdict on a rollout's candidate.

        Args:
            rollout: Which is open.
            devices: Of the population, by number.
            kept: Numbers of those whose evidence does not count.
            now: Instant, seconds since the epoch.
            may_ask: Whether devices may fetch a candidate now.

        Raises:
            DataError: If a package or an answer is damaged; it is not tried again before a day has passed.
        """
        plan = rollout.plan
        known = self.known.judged.get(plan.candidate)
        fresh = (
            known is not None
            and known.at >= rollout.created_at
            and known.champion == plan.champion
            and known.policy == policy_digest(self._policy)
        )
        if rollout.phase is not Phase.PENDING:
            return _VERDICTS[Validated(known.verdict)] if known is not None and fresh else Verdict.PASS
        if (
            known is not None
            and fresh
            and (known.verdict != Validated.INCONCLUSIVE or now - known.at < DAY_S)
        ):
            return _VERDICTS[Validated(known.verdict)]
        if now - self._tried_at.get(rollout.rollout, -DAY_S) < DAY_S:
            return Verdict.INCONCLUSIVE
        try:
            return self._examine(rollout, devices, kept, now, may_ask=may_ask)
        except DataError:
            self._tried_at = {rollout.rollout: now}
            raise

    def settle(self, rollout: RolloutState | None, now: float) -> None:
        """Ask nobody any more about a candidate that waits for no validation."""
        asked = self.known.asked
        if asked is None:
            return
        waits = rollout is not None and rollout.phase is Phase.PENDING and rollout.is_open
        if not waits or rollout is None or not _is_about(asked, rollout):
            self._append([{"kind": table.ENDED, "evaluation": self.known.evaluation}], now)

    def _examine(
        self,
        rollout: RolloutState,
        devices: Sequence[Device],
        kept: frozenset[int],
        now: float,
        *,
        may_ask: bool,
    ) -> Verdict:
        if self._policy.source is Source.POOL:
            if self._models.pool is None:
                return Verdict.INCONCLUSIVE
            return self._judge(rollout, None, now)
        counted = [one for one in devices if one.standing is Standing.ACTIVE and one.number not in kept]
        asked = self.known.asked
        if asked is None or not _is_about(asked, rollout):
            heard = [one for one in counted if one.seen_at > 0.0]  # sensors without an agent never answer
            if may_ask and heard:
                self._ask(rollout, heard, now)
            return Verdict.INCONCLUSIVE
        if now < asked.question.ends_at and len(self.known.answers) < len(asked.devices):
            return Verdict.INCONCLUSIVE
        return self._judge(rollout, self._counts(asked, devices, {one.number for one in counted}), now)

    def _ask(self, rollout: RolloutState, devices: Sequence[Device], now: float) -> None:
        """Begin a federated evaluation."""
        rules, plan = self._policy.field, rollout.plan
        manifest = self._models.package(plan.candidate).manifest
        num_classes = len(manifest.outputs) if manifest.objective is Objective.CLASSIFICATION else 0
        from_at = max(now - rules.history_s, 0.0)
        question = Question(
            evaluation=f"{self._population}/{plan.candidate}/{self.known.num_asked + 1}",
            population=self._population,
            candidate=self._models.versions.package_of(plan.candidate),
            champion=self._models.versions.package_of(plan.champion),
            layout=Layout.of(self._policy, num_classes, even_cuts(from_at, now, self._policy.num_slices)),
            from_at=from_at,
            until_at=now,
            types=tuple(sorted({one.traits.device_type for one in devices})),
            share=min(1.0, rules.max_devices / len(devices)),
            max_rows=rules.max_rows,
            issued_at=now,
            spread_s=rules.spread_s,
            ends_at=now + rules.deadline_s,
        )
        asked = tuple(one.number for one in devices if question.asks(one.device))
        self._append([Asked(plan.candidate, plan.champion, question, asked).to_record()], now)

    def _counts(self, asked: Asked, devices: Sequence[Device], counted: set[int]) -> FieldCounts:
        """What the devices that count have counted; nothing is looked at where they are too few."""
        rules, failures = self._policy.field, Counter[str]()
        parts: list[DeviceStatistics] = []
        for number in asked.devices:
            answer = self.known.answers.get(number)
            if answer is None or answer.failure:
                failures[FailureKind.TIMEOUT if answer is None else answer.failure] += 1
            elif number not in counted:
                failures[KEPT_OUT] += 1
            else:
                found = _decoded(asked, devices[number], self._models.stores.campaigns.get(answer.blob))
                assert not isinstance(found, FailureKind)  # what failed has no blob
                parts.append(found)
        stats = merge_all(asked.question.layout, parts)
        answered = Answered(
            len(asked.devices),
            stats.num_devices,
            stats.num_rows,
            rules.quorum,
            rules.min_rows,
            tuple(sorted(failures.items())),
        )
        return FieldCounts(stats if answered.is_enough else merge_all(stats.layout, ()), answered)

    def _judge(self, rollout: RolloutState, counts: FieldCounts | None, now: float) -> Verdict:
        plan, models = rollout.plan, self._models
        report = validate(
            self._policy,
            models.pool if self._policy.source is not Source.DEVICES else None,
            models.package(plan.candidate),
            models.package(plan.champion) if plan.champion in models.versions.by_number else None,
            counts,
        )
        content = {"report": report.to_record(), "text": report.to_text()}
        judged = Judged(
            plan.candidate,
            plan.champion,
            report.verdict,
            self._policy.source,
            report.policy,
            models.stores.campaigns.put(json.dumps(content, sort_keys=True).encode()),
            evaluation="" if counts is None else self.known.evaluation,
            figures=_figures(report),
            at=now,
        )
        self._append([judged.to_record()], now)
        return _VERDICTS[report.verdict]

    def _append(self, records: Sequence[dict[str, Any]], now: float) -> None:
        """Write records down and fold them."""
        if not records:
            return
        whole = json.loads(
            json.dumps(list(records))
        )  # what is read back after a restart is what is folded now
        stream, after, blobs = table.stream(self._population), self.known.number, self.known.blobs
        self._log.append(stream, whole, at=now, fence=self._fence, after=after)
        for number, record in enumerate(whole, after + 1):
            self.known = table.fold(self.known, record, number)
        if self.known.asked is None:
            self._forget(blobs)

    def _forget(self, blobs: Iterable[str]) -> None:
        """Remove what devices counted."""
        for blob in blobs:
            self._models.stores.campaigns.remove(blob)


def pool_verdict(models: Models, candidate: int, champion: int) -> Verdict | None:
    """What the pool says of a version beforehand; None where the policy asks devices alone: their rollout asks them.

    Args:
        models: Versions, and the pool.
        candidate: Under trial.
        champion: What serves.
    """
    policy = models.policy.validation
    if policy.source is Source.DEVICES:
        return None
    if models.pool is None:
        return Verdict.INCONCLUSIVE
    theirs = models.package(champion) if champion in models.versions.by_number else None
    return _VERDICTS[validate(policy, models.pool, models.package(candidate), theirs).verdict]


def _is_about(asked: Asked, rollout: RolloutState) -> bool:
    plan = rollout.plan
    same = (asked.candidate, asked.champion) == (plan.candidate, plan.champion)
    return same and asked.question.issued_at >= rollout.created_at


def _decoded(asked: Asked, device: Device, content: bytes) -> DeviceStatistics | FailureKind:
    question = asked.question
    return decode_answer(
        content,
        question.layout,
        device=device.number,
        group=question.group_of(device.traits.device_type),
        from_at=question.from_at,
        until_at=question.until_at,
        max_rows=question.max_rows,
    )


def _figures(report: EvaluationReport) -> dict[str, float]:
    """Numbers of a report that people compare versions by."""
    found = {"devices": float(report.data.num_devices), "rows": float(report.data.num_rows)}
    for check in report.checks:
        if check.name in _SHOWN and not check.part:
            found |= {f"{check.name}.estimate": check.estimate, f"{check.name}.low": check.low}
    return {name: value for name, value in found.items() if math.isfinite(value)}
