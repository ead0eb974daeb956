"""What is known of a population's offline validations, as the fold of its stream. Pure.

Rules of this file:
    * The stream ``population/NAME/validation`` holds what devices were asked, what each answered, and every verdict with its report.
    * A device's first answer to an evaluation counts, whatever comes after it: it is in the stream once, so a restart in the
      middle neither forgets nor doubles it.
    * Counts themselves are in the store of states, by digest, while their evaluation is on; the report stays there.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedretrain.artifacts.question import Question  # noqa: TC001 - `core.build` reads the annotations
from fedretrain.core.build import build, plain
from fedretrain.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fedretrain.artifacts.store import ContentStore
    from fedretrain.server.event_log import Entry

ASKED, ANSWER, ENDED, JUDGED = "asked", "answer", "ended", "judged"


def stream(population: str) -> str:
    """Where a population's validations are."""
    return f"population/{population}/validation"


@dataclass(frozen=True)
class Asked:
    """A federated evaluation that is on.

    Attributes:
        candidate: Version under trial.
        champion: Version that it is held against.
        question: What devices were asked.
        devices: Their numbers.
    """

    candidate: int
    champion: int
    question: Question
    devices: tuple[int, ...]

    def to_record(self) -> dict[str, Any]:
        """As an event."""
        return {"kind": ASKED, **plain(self)}


@dataclass(frozen=True)
class Answer:
    """What one device answered.

    Attributes:
        evaluation: To which question.
        device: Its number.
        record: Number of its record in the telemetry table.
        blob: Digest of its counts, in the store of states; empty: it has none.
        failure: Why, by a name of `FailureKind`.
        detail: For people.
    """

    evaluation: str
    device: int
    record: int
    blob: str = ""
    failure: str = ""
    detail: str = ""

    def to_record(self) -> dict[str, Any]:
        """As an event."""
        return {"kind": ANSWER, **plain(self)}


@dataclass(frozen=True)
class Judged:
    """A verdict.

    Attributes:
        candidate: Version.
        champion: Version that it was held against.
        verdict: PASS, FAIL or INCONCLUSIVE.
        source: Whose rows.
        policy: Digest of the validation's rules.
        report: Digest of the report, in the store of states.
        evaluation: The federated evaluation that it rests on; empty: none.
        figures: Numbers of the report, by name.
        at: When.
    """

    candidate: int
    champion: int
    verdict: str
    source: str
    policy: str
    report: str
    evaluation: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    at: float = 0.0

    def to_record(self) -> dict[str, Any]:
        """As an event."""
        return {"kind": JUDGED, **plain(self)}


@dataclass(frozen=True)
class Validations:
    """All of it.

    Attributes:
        asked: The federated evaluation that is on; None: none is.
        answers: To it, by device.
        judged: The last verdict on each candidate.
        num_asked: Evaluations so far.
        number: Of the last record that was folded.
    """

    asked: Asked | None = None
    answers: Mapping[int, Answer] = field(default_factory=dict)
    judged: Mapping[int, Judged] = field(default_factory=dict)
    num_asked: int = 0
    number: int = 0

    @property
    def evaluation(self) -> str:
        """The name of the evaluation that is on; empty: none is."""
        return "" if self.asked is None else self.asked.question.evaluation

    @property
    def blobs(self) -> frozenset[str]:
        """Digests of the counts that the evaluation that is on rests on."""
        return frozenset(one.blob for one in self.answers.values() if one.blob)

    @property
    def failures(self) -> Counter[str]:
        """Why devices have not counted, with how many."""
        return Counter(one.failure for one in self.answers.values() if one.failure)

    def describe(self) -> str:
        """The evaluation that is on, for people; empty: none is."""
        if self.asked is None:
            return ""
        failed = self.failures
        said = (
            f", failures: {', '.join(f'{n} {name}' for name, n in sorted(failed.items()))}" if failed else ""
        )
        return (
            f"version {self.asked.candidate}: {len(self.answers) - failed.total()} of {len(self.asked.devices)} devices "
            f"have counted{said}"
        )


def recall(entries: Iterable[Entry]) -> Validations:
    """Fold a stream."""
    found = Validations()
    for entry in entries:
        found = fold(found, entry.record, entry.number)
    return found


def stale_blobs(entries: Iterable[Entry], known: Validations) -> frozenset[str]:
    """Digests of counts of evaluations that are over.

    Args:
        entries: Of the whole stream.
        known: Their fold.
    """
    told = (entry.record.get("blob", "") for entry in entries if entry.record.get("kind") == ANSWER)
    return frozenset(blob for blob in told if blob) - known.blobs


def report_of(known: Validations, version: int, states: ContentStore) -> dict[str, Any]:
    """The last report on a version: under ``report`` its record, under ``text`` the same for people.

    Args:
        known: Of the population.
        version: Which.
        states: Where reports are.

    Raises:
        DataError: If it was never validated, or the report is damaged.
    """
    judged = known.judged.get(version)
    if judged is None:
        raise DataError(
            f"version {version} was not validated", where="models", fix="see `fedretrain models list`"
        )
    found: dict[str, Any] = json.loads(states.get(judged.report))
    return found


def fold(known: Validations, record: Mapping[str, Any], number: int) -> Validations:
    """After one more record.

    Raises:
        DataError: If it is none of the stream's.
    """
    known = replace(known, number=number)
    kind, values = record.get("kind"), {key: value for key, value in record.items() if key != "kind"}
    if kind == ASKED:
        asked = build(Asked, values)
        return replace(known, asked=asked, answers={}, num_asked=known.num_asked + 1)
    if kind == ANSWER:
        answer = build(Answer, values)
        if answer.evaluation != known.evaluation or answer.device in known.answers:
            raise DataError(
                f"device {answer.device} has answered twice, or was not asked", where="validation"
            )
        return replace(known, answers={**known.answers, answer.device: answer})
    if kind == ENDED:
        return replace(known, asked=None, answers={})
    if kind == JUDGED:
        one = build(Judged, values)
        return replace(known, asked=None, answers={}, judged={**known.judged, one.candidate: one})
    raise DataError(f"a record of kind {kind!r}", where="validation", fix="use the release that wrote it")
