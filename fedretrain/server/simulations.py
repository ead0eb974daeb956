"""What the simulation gate has found of versions, kept.

Rules of this file:
    * The stream ``population/NAME/simulation`` holds each verdict with the digest of its report; reports are in the content store.
    * A simulation has a record when it begins and one when it ends. One that has no end was interrupted: it is repeated, under
      another number, and nothing that an interrupted one might have found counts.
    * Every append is fenced, and names the end of the stream that its writer has seen: a verdict counts once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedretrain.rollout.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fedretrain.artifacts.store import ContentStore
    from fedretrain.server.event_log import Entry, EventLog, Fence


@dataclass(frozen=True)
class Found:
    """What is known of one version.

    Attributes:
        attempt: The last one that began, from 1; 0: none.
        running: Whether that one has not ended.
        verdict: Of the last one that ended.
        reason: For people.
        report: Digest of its report; empty where there is none.
        ended_at: When it ended; None before the first.
        rollout: Which asked for it; empty: nobody said.
    """

    attempt: int = 0
    running: bool = False
    verdict: Verdict = Verdict.INCONCLUSIVE
    reason: str = ""
    report: str = ""
    ended_at: float | None = None
    rollout: str = ""

    @property
    def said(self) -> str:
        """The last verdict, in a word like those of validations; empty before the first."""
        return "" if self.ended_at is None else self.verdict.value.upper()


@dataclass(frozen=True)
class Simulations:
    """All of them, as the fold of the stream.

    Attributes:
        found: By version.
        number: Of the last record.
    """

    found: Mapping[int, Found] = field(default_factory=dict)
    number: int = 0

    def of(self, version: int) -> Found:
        """What is known of a version."""
        return self.found.get(version, Found())

    def after(self, entries: Iterable[Entry]) -> Simulations:
        """With more records."""
        found, number = dict(self.found), self.number
        for entry in entries:
            record, number = entry.record, entry.number
            key = int(record["version"])
            found[key] = _after(found.get(key, Found()), record, entry.at)
        return Simulations(found, number)


def _after(known: Found, record: Mapping[str, Any], at: float) -> Found:
    if record["type"] == "begun":
        rollout = record.get("rollout", "")
        before = known if rollout == known.rollout else Found(rollout=rollout)
        return replace(before, attempt=record["attempt"], running=True)
    verdict = Verdict(record["verdict"])
    return Found(record["attempt"], False, verdict, record["reason"], record["report"], at, known.rollout)


def stream(population: str) -> str:
    """Where a population's simulations are."""
    return f"population/{population}/simulation"


class SimulationBook:
    """The simulations of a population, to read and to write. Mutable.

    Args:
        population: Whose.
        log: The event log.
        store: Where reports are.
        fence: The lease of whoever writes.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        population: str,
        log: EventLog,
        store: ContentStore,
        fence: Fence | None,
        clock: Callable[[], float],
    ) -> None:
        self._stream, self._log, self._store = stream(population), log, store
        self._fence, self._clock = fence, clock
        self._known = Simulations()

    def of(self, version: int, rollout: str = "") -> Found:
        """What is known of a version now.

        Args:
            version: Which.
            rollout: Only what was found for it: a version that is tried again is simulated again. Empty: of any.
        """
        self._known = self._known.after(self._log.read(self._stream, after=self._known.number))
        found = self._known.of(version)
        return found if rollout in ("", found.rollout) else Found(found.attempt)

    def begin(self, version: int, rollout: str = "") -> int:
        """A job begins, for a rollout; the number of the attempt."""
        attempt = self.of(version).attempt + 1
        self._append({"type": "begun", "version": version, "attempt": attempt, "rollout": rollout})
        return attempt

    def end(
        self,
        version: int,
        verdict: Verdict,
        reason: str = "",
        report: Mapping[str, Any] | None = None,
    ) -> None:
        """What the job that began last has found.

        Args:
            version: Of which.
            verdict: What it says.
            reason: For people.
            report: All of it, JSON-ready; None where there is none.
        """
        content = b"" if report is None else json.dumps(report, sort_keys=True, allow_nan=False).encode()
        record = {
            "type": "ended",
            "version": version,
            "attempt": self.of(version).attempt,
            "verdict": verdict.value,
            "reason": reason,
            "report": self._store.put(content) if content else "",
        }
        self._append(record)

    def report(self, digest: str) -> dict[str, Any]:
        """A report that was kept.

        Raises:
            DataError: If it is missing or damaged.
        """
        found: dict[str, Any] = json.loads(self._store.get(digest))
        return found

    def _append(self, record: dict[str, Any]) -> None:
        self._log.append(
            self._stream, [record], at=self._clock(), fence=self._fence, after=self._known.number
        )
