"""The end of a training that is not waited for any longer: it is written where what it did is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.server.campaign import campaign_stream, read_campaign
from fedretrain.server.central import central_stream, read_central

if TYPE_CHECKING:
    from fedretrain.server.event_log import EventLog, Fence


def end_given_up(log: EventLog, campaign: str, reason: str, *, at: float, fence: Fence | None) -> None:
    """End a campaign's stream, and that of the central retrain before it; what has an end, or never began, stays as it is.

    Nothing is the result: the last round is not what a campaign that goes on to its end releases.

    Args:
        log: The event log.
        campaign: Which; its processes have ended.
        reason: Why it was given up.
        at: Instant, seconds since the epoch.
        fence: The leader's lease.

    Raises:
        FencedError: If somebody else leads now.
        ConflictError: If something has been appended meanwhile: nothing is written, and it can be tried again.
    """
    ended = {"type": "ended", "reason": reason, "weights": ""}
    central = read_central(log, campaign)
    if central is not None and not central.end:
        log.append(central_stream(campaign), [ended], at=at, fence=fence, after=central.number)
    if log.head(campaign_stream(campaign)).counter:
        record = read_campaign(log, campaign)
        if not record.end:
            log.append(campaign_stream(campaign), [ended], at=at, fence=fence, after=record.number)
