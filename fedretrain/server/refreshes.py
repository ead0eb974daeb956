"""Refreshes of personal state: who has done what was ordered, and how it went, as notes of the population's stream.

Rules of this file:
    * A device counts once for each refresh, by the first word that came, however often telemetry is read again.
    * What is counted is the verdict alone. A refresh costs no privacy budget and nothing is released by it; that a device
      kept its result or not is telemetry, outside of every epsilon.
    * Only the last `KEPT` refreshes are counted: a device that was away for longer does the newest one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedretrain.training.keep import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fedretrain.wire.control import Refreshed

REFRESHED = "refreshed"
"""The kind of a record: what devices said since the one before."""
KEPT = 8


@dataclass(frozen=True)
class Refresh:
    """One refresh.

    Attributes:
        at: When it was ordered.
        said: Verdicts by the numbers of the devices that have done it.
    """

    at: float
    said: Mapping[int, Verdict] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Devices by what became of it: the re-fit was kept or refused, there was too little to fit on, or no means to."""
        found = Counter(self.said.values())
        return {
            "kept": found[Verdict.KEPT],
            "refused": found[Verdict.FELL] + found[Verdict.NONFINITE],
            "too_few_labels": found[Verdict.TOO_FEW],
            "not_possible": found[Verdict.NOT_POSSIBLE],
        }


Refreshes = dict[int, Refresh]
"""By number."""


def ordered(refreshes: Refreshes, number: int, at: float) -> Refreshes:
    """With one more."""
    return dict(sorted({**refreshes, number: Refresh(at)}.items())[-KEPT:])


def notes(refreshes: Refreshes, said: Iterable[Refreshed], at: float) -> list[dict[str, Any]]:
    """The record of what is new; none where nothing is.

    Args:
        refreshes: What is known.
        said: What devices said, lately or long ago.
        at: Instant, seconds since the epoch.
    """
    new: dict[tuple[int, int], Verdict] = {}
    for one in said:
        known = refreshes.get(one.refresh)
        if known is not None and one.device not in known.said:
            new.setdefault((one.refresh, one.device), one.verdict)
    if not new:
        return []
    outcomes = [[number, device, verdict.value] for (number, device), verdict in sorted(new.items())]
    after = folded(refreshes, {"body": {"outcomes": outcomes}})
    reason = "; ".join(text_of(number, after[number]) for number in sorted({number for number, _ in new}))
    return [{"kind": REFRESHED, "at": at, "body": {"reason": reason, "outcomes": outcomes}}]


def folded(refreshes: Refreshes, record: Mapping[str, Any]) -> Refreshes:
    """After a record of `notes`."""
    found = dict(refreshes)
    for number, device, verdict in record["body"]["outcomes"]:
        before = found.get(number)
        if before is not None:
            found[number] = Refresh(before.at, {**before.said, device: Verdict(verdict)})
    return found


def text_of(number: int, refresh: Refresh) -> str:
    """One refresh for people."""
    said = ", ".join(f"{count} {word.replace('_', ' ')}" for word, count in refresh.counts().items() if count)
    return f"refresh {number}: {said or 'nobody yet'}"


def last(refreshes: Refreshes) -> dict[str, Any] | None:
    """The newest refresh as `status` shows it; None before the first."""
    if not refreshes:
        return None
    number = max(refreshes)
    return {"number": number, "ordered_at": refreshes[number].at, **refreshes[number].counts()}
