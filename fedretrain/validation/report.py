"""What validation found: for machines (`EvaluationReport.to_record`, `SCHEMA`) and for people (`EvaluationReport.to_text`).

Rules of this file:
    * One FAIL fails the candidate; else one INCONCLUSIVE among the required checks holds it; else it passes.
    * Each check says why, with its figures and with what it rests on.
    * The report names the data that it rests on by digest, counts and period, and the policy by digest.
    * A record is plain JSON: what is not a finite number is null.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedretrain.validation.config import CheckName, Unit


class Verdict(StrEnum):
    """What a check, or all of them, came to."""

    PASS = "PASS"  # noqa: S105
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What was checked.
        part: Which group, slice, label or segment; empty where there is one only.
        verdict: PASS, FAIL or INCONCLUSIVE.
        reason: Why, in words.
        required: Whether INCONCLUSIVE holds the candidate.
        estimate: Candidate minus champion, above 0 where the candidate is better; NaN where the check has no figure.
        low: One-sided lower bound at the policy's alpha.
        high: One-sided upper bound.
        margin: What may be lost.
        p_worse: P value of "not worse than the champion".
        num_devices: Devices that it rests on.
        num_rows: Rows that it rests on.
    """

    name: CheckName
    part: str
    verdict: Verdict
    reason: str
    required: bool = False
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    margin: float = math.nan
    p_worse: float = math.nan
    num_devices: int = 0
    num_rows: int = 0


@dataclass(frozen=True)
class Gap:
    """How far a group's accuracy, or a label's recall, is from that of the rest; below 0: disadvantaged.

    Attributes:
        kind: ``group`` or ``label``.
        part: Which.
        candidate: The gap under the candidate.
        low: Its one-sided lower bound at the policy's alpha.
        high: Its one-sided upper bound.
        champion: The gap under the champion.
        num_devices: Devices of the part.
    """

    kind: str
    part: str
    candidate: float
    low: float
    high: float
    champion: float
    num_devices: int


@dataclass(frozen=True)
class DataUsed:
    """What a verdict rests on.

    Attributes:
        digest: SHA-256 of the statistics.
        num_devices: Devices.
        num_groups: Their groups.
        num_rows: Labelled predictions, each scored by both models.
        num_late: Those whose labels came late.
        first_at: Instant of the first; NaN without any.
        last_at: Instant of the last.
        unit: What counted as one observation.
    """

    digest: str
    num_devices: int
    num_groups: int
    num_rows: int
    num_late: int
    first_at: float
    last_at: float
    unit: Unit


@dataclass(frozen=True)
class EvaluationReport:
    """The verdict on a candidate before anything ships.

    Attributes:
        candidate: Version under trial.
        champion: Version that serves.
        policy: Digest of the policy.
        data: What it rests on.
        checks: Every check.
        gaps: Fairness: gaps with intervals.
    """

    candidate: int
    champion: int
    policy: str
    data: DataUsed
    checks: tuple[Check, ...]
    gaps: tuple[Gap, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """FAIL if a check failed, else INCONCLUSIVE if a required one is, else PASS; without checks INCONCLUSIVE."""
        if any(check.verdict is Verdict.FAIL for check in self.checks):
            return Verdict.FAIL
        undecided = any(check.required and check.verdict is Verdict.INCONCLUSIVE for check in self.checks)
        return Verdict.INCONCLUSIVE if undecided or not self.checks else Verdict.PASS

    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.verdict is Verdict.FAIL)

    def to_record(self) -> dict[str, Any]:
        """Plain JSON values, as `SCHEMA` says."""
        return {
            "candidate": self.candidate,
            "champion": self.champion,
            "verdict": self.verdict.value,
            "policy": self.policy,
            "data": _record(self.data),
            "checks": [_record(check) for check in self.checks],
            "gaps": [_record(gap) for gap in self.gaps],
        }

    def to_text(self) -> str:
        """For people: the verdict, the data, then each check, failed ones first."""
        rank = {Verdict.FAIL: 0, Verdict.INCONCLUSIVE: 1, Verdict.PASS: 2}
        ordered = sorted(self.checks, key=lambda c: (rank[c.verdict], not c.required))
        title = f"Candidate {self.candidate} against champion {self.champion}: {self.verdict}"
        return "\n".join([title, self._data_text(), *map(_check_text, ordered), *map(_gap_text, self.gaps)])

    def _data_text(self) -> str:
        data = self.data
        return (
            f"Data: {data.num_rows:,} labelled predictions of {data.num_devices:,} devices in {data.num_groups} groups, "
            f"{data.num_late:,} with late labels, from {data.first_at:.0f} s to {data.last_at:.0f} s; unit {data.unit}; "
            f"statistics {data.digest[:12]}, policy {self.policy[:12]}"
        )


def _check_text(check: Check) -> str:
    part = f" {check.part}" if check.part else ""
    need = " (required)" if check.required else ""
    return f"  {check.verdict:<12} {check.name}{part}{need}: {check.reason}"


def _gap_text(gap: Gap) -> str:
    return (
        f"  gap of {gap.kind} {gap.part} to the rest: {gap.candidate:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}], "
        f"under the champion {gap.champion:+.4f} ({gap.num_devices} devices)"
    )


def _record(value: Any) -> dict[str, Any]:
    return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }


_TEXT: dict[str, Any] = {"type": "string"}
_NUMBER: dict[str, Any] = {"type": ["number", "null"]}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_VERDICT: dict[str, Any] = {"enum": [verdict.value for verdict in Verdict]}
_DIGEST: dict[str, Any] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "EvaluationReport",
    **_object(
        candidate={"type": "integer"},
        champion={"type": "integer"},
        verdict=_VERDICT,
        policy=_DIGEST,
        data=_object(
            digest=_DIGEST,
            num_devices=_COUNT,
            num_groups=_COUNT,
            num_rows=_COUNT,
            num_late=_COUNT,
            first_at=_NUMBER,
            last_at=_NUMBER,
            unit=_TEXT,
        ),
        checks={
            "type": "array",
            "items": _object(
                name=_TEXT,
                part=_TEXT,
                verdict=_VERDICT,
                reason=_TEXT,
                required={"type": "boolean"},
                estimate=_NUMBER,
                low=_NUMBER,
                high=_NUMBER,
                margin=_NUMBER,
                p_worse=_NUMBER,
                num_devices=_COUNT,
                num_rows=_COUNT,
            ),
        },
        gaps={
            "type": "array",
            "items": _object(
                kind=_TEXT,
                part=_TEXT,
                candidate=_NUMBER,
                low=_NUMBER,
                high=_NUMBER,
                champion=_NUMBER,
                num_devices=_COUNT,
            ),
        },
    ),
}
"""The JSON schema (draft 2020-12) of `EvaluationReport.to_record`."""
