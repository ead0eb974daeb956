"""What a run of sabotage leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Ended(StrEnum):
    """What became of a candidate."""

    PROMOTED = "promoted"
    STOPPED = "stopped"  # taken back, and blamed
    UNDECIDED = "undecided"  # taken back at a limit: nothing was found, and nothing was proven
    HELD = "held"  # still on at the horizon


@dataclass(frozen=True)
class CaseOutcome:
    """One case with one seed.

    Attributes:
        case: Its name.
        title: For people.
        seed: Of the life.
        wanted: What should have become of the candidate.
        ended: What did.
        as_wanted: Whether that is right.
        stopped_by: Which check, gate or devices; empty if nobody did.
        phase: The last phase on the way up before it was decided (or so far); empty if there was no candidate.
        reason: In the words of the log.
        days: From the candidate's creation to the decision; to the horizon where there was none.
        exposure: Share of the fleet's device-hours of the horizon that the candidate served.
        peak_exposure: The largest share of the fleet that served it before the decision.
        effect: Oracle: accuracy of the candidate where it is served, minus the champion's, on the same rows of the day after its creation.
        worst_site_effect: Oracle: likewise, of the site that it hurts most.
        digest: SHA-256 of the life's event log.
        wall_s: Seconds that the life took to simulate.
    """

    case: str
    title: str
    seed: int
    wanted: str
    ended: str
    as_wanted: bool
    stopped_by: str
    phase: str
    reason: str
    days: float
    exposure: float
    peak_exposure: float
    effect: float
    worst_site_effect: float
    digest: str
    wall_s: float
