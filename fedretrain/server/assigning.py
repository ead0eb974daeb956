"""From decisions to signed assignments: what each device shall run, and who must be told anew.

Rules of this file:
    * Level-triggered: each time everything is worked out from the state, and only who must be told something else, or whose
      assignment runs out, gets a new one.
    * What serves where no rollout exposes a device is `coordinator.cycle.served`; in safe mode that is all.
    * A device that has seen a higher counter than this database knows (it was restored from a back-up) gets one above that: it
      would follow nothing else.
    * A package that is withdrawn is named in every assignment, so that a device that was away leaves it before it predicts. Those that are
      there are told by one notice before their assignments are made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.artifacts.assignment import MAX_WITHDRAWN, Assignment, CampaignInvite, sign
from fedretrain.artifacts.notice import Notice
from fedretrain.coordinator.cycle import refresh_due, served
from fedretrain.rollout.assignment import confirm, shadowing, unassigned
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.exposure import JOINED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from fedretrain.coordinator.cycle_state import CycleState
    from fedretrain.coordinator.policy import Policy
    from fedretrain.rollout.assignment import Assignments
    from fedretrain.server.fleet import Device
    from fedretrain.server.versions import Versions

TOLD_AT_ONCE = 1000
"""Assignments in one transaction: a second's work at most, for the sake of those that wait to write, and of devices that come meanwhile."""
_TAKEN_BACK = (Phase.ROLLING_BACK, Phase.FROZEN)
"""Nobody serves the candidate of a rollout that is there, whether it is withdrawn or not."""
_MOST_SEEN = 2**53
"""What a device says of itself is not believed without end: each assignment adds one."""


@dataclass(frozen=True)
class Wanted:
    """What a device shall run.

    Attributes:
        serve: Package digest; empty is the rules baseline.
        shadow: Package digest that it scores beside; empty is none.
        safe_mode: Whether the fleet is in safe mode.
        withdrawn: Packages that may not be served, sorted.
        invite: The campaign that it may train in.
        refresh: The refresh of its personal state that it shall have done.
    """

    serve: str
    shadow: str = ""
    safe_mode: bool = False
    withdrawn: tuple[str, ...] = ()
    invite: CampaignInvite | None = None
    refresh: int = 0


def grown(assignments: Assignments, num_devices: int, champion: int) -> Assignments:
    """The assignments of a fleet that devices have joined: they run the champion, and wait for a promotion."""
    more = num_devices - len(assignments.rank_D)
    if more <= 0:
        return assignments
    new = unassigned(np.full(more, JOINED), champion)

    def joined(name: str) -> Any:
        return np.concatenate([getattr(assignments, name), getattr(new, name)])

    return replace(
        assignments,
        rank_D=joined("rank_D"),
        version_D=joined("version_D"),
        ever_D=joined("ever_D"),
        target_D=joined("target_D"),
        confirmed_D=joined("confirmed_D"),
        failed_D=joined("failed_D"),
    )


def withdrawn_of(state: CycleState, versions: Versions) -> tuple[str, ...]:
    """Packages that nobody may run, sorted."""
    # The latest first: there is a limit, and what was withdrawn long ago is not installable anyway.
    gone, digests = sorted(state.quarantined, reverse=True), versions.digests
    return tuple(sorted([digests[version] for version in gone if version in digests][:MAX_WITHDRAWN]))


def urgent(
    policy: Policy,
    state: CycleState,
    versions: Versions,
    told: Collection[Assignment],
    *,
    population: str,
    now: float,
    valid_s: float,
) -> Notice | None:
    """What devices must leave at once, by what they were told last; None where there is nothing.

    Signing and writing an assignment for each of ten thousand devices takes seconds, this one statement none.

    Args:
        policy: The population's.
        state: Where the loop stands.
        versions: Packages by number.
        told: The newest assignment of each device that has one.
        population: Its name.
        now: Instant, seconds since the epoch: also of the assignments that follow.
        valid_s: How long an assignment is good for, and so a notice.
    """
    withdrawn, safe = set(withdrawn_of(state, versions)), state.safety.safe_mode
    serves, scores = {one.serve for one in told}, {one.shadow for one in told}
    leave = withdrawn & (serves | scores)
    everybody = served(policy, state)
    rollout = state.rollout
    # An earlier champion may be a candidate again, and serve all the same where the champion was withdrawn or has decayed.
    if rollout is not None and rollout.phase in _TAKEN_BACK and rollout.plan.candidate != everybody:
        leave |= {versions.digests.get(rollout.plan.candidate, "")} & serves - {""}
    enters = safe and not all(one.safe_mode for one in told)
    if not leave and not enters:
        return None
    serve = versions.digests.get(everybody, "")
    serve = "" if serve in withdrawn else serve
    return Notice(population, tuple(sorted(leave)), serve, safe, issued_at=now, ends_at=now + valid_s)


def heeding(notice: Notice, told: Mapping[int, Assignment]) -> set[int]:
    """Numbers of the devices that a notice lets do something else than they were told, if they hear it.

    Args:
        notice: To all.
        told: The newest assignment of each device that has one, by number.
    """
    leave = set(notice.withdrawn)
    return {
        number
        for number, one in told.items()
        if one.issued_at < notice.issued_at
        and ({one.serve, one.shadow} & leave or (notice.safe_mode and not one.safe_mode))
    }


def wanted(
    policy: Policy,
    state: CycleState,
    assignments: Assignments,
    versions: Versions,
    invites: Mapping[int, CampaignInvite],
) -> list[Wanted]:
    """What each device shall run, by number.

    Args:
        policy: The population's.
        state: Where the loop stands.
        assignments: Who is exposed to what by the present order.
        versions: Packages by number.
        invites: Campaigns by the numbers of the devices that are asked.
    """
    digests, safe = versions.digests, state.safety.safe_mode
    withdrawn = withdrawn_of(state, versions)
    everybody, refresh = served(policy, state), refresh_due(state)
    rollout = state.rollout if state.rollout_open else None
    shadow = "" if rollout is None or safe else digests.get(rollout.plan.candidate, "")
    scores_D = shadowing(assignments) if shadow else np.zeros(len(assignments.rank_D), np.bool_)
    found = []
    for number, version in enumerate(assignments.version_D.tolist()):
        runs = everybody if safe or version == state.champion else version
        serve = digests.get(runs, "")
        serve = "" if serve in withdrawn else serve
        scores = shadow if scores_D[number] and shadow not in withdrawn else ""
        found.append(Wanted(serve, scores, safe, withdrawn, invites.get(number), refresh))
    return found


def renewed(
    devices: Iterable[Device],
    told: Mapping[int, Assignment],
    wishes: list[Wanted],
    *,
    now: float,
    valid_s: float,
) -> list[tuple[Device, Assignment]]:
    """The assignments that are to be given now.

    Args:
        devices: Who is in the fleet.
        told: The newest assignment of each device that has one, by number.
        wishes: By number.
        now: Instant, seconds since the epoch.
        valid_s: How long an assignment is good for; it is renewed after half of that.
    """
    found = []
    for device in devices:
        wish, last = wishes[device.number], told.get(device.number)
        counter, seen = max(device.counter, 0 if last is None else last.counter), _seen(device)
        if (
            last is not None
            and seen <= counter
            and _says(last) == wish
            and now < last.expires_at - valid_s / 2
        ):
            continue
        found.append(
            (
                device,
                Assignment(
                    population=device.population,
                    device=device.device,
                    serve=wish.serve,
                    shadow=wish.shadow,
                    counter=max(counter, seen) + 1,
                    issued_at=now,
                    expires_at=now + valid_s,
                    withdrawn=wish.withdrawn,
                    safe_mode=wish.safe_mode,
                    invite=wish.invite,
                    refresh=wish.refresh,
                ),
            )
        )
    return found


def in_parts(found: Iterable[tuple[Device, Assignment]]) -> list[list[tuple[Device, Assignment]]]:
    """Assignments as they are signed and written: `TOLD_AT_ONCE` together, first for devices that were heard longest ago, which come next."""
    ordered = sorted(found, key=lambda one: one[0].seen_at)
    return [ordered[first : first + TOLD_AT_ONCE] for first in range(0, len(ordered), TOLD_AT_ONCE)]


def signed(
    found: Iterable[tuple[Device, Assignment]], key: Ed25519PrivateKey
) -> list[tuple[Device, Assignment, bytes]]:
    """Assignments with their envelopes."""
    return [(device, assignment, sign(assignment, key)) for device, assignment in found]


def _seen(device: Device) -> int:
    """The highest counter that a device says it has verified; 0 where nobody can have signed so high a one."""
    said = device.heartbeat.get("counter", 0)
    return said if said <= _MOST_SEEN else 0


def _says(assignment: Assignment) -> Wanted:
    return Wanted(
        assignment.serve,
        assignment.shadow,
        assignment.safe_mode,
        assignment.withdrawn,
        assignment.invite,
        assignment.refresh,
    )


def confirmed(
    found: Assignments, devices: Sequence[Device], digests: Mapping[int, str], now: float
) -> Assignments:
    """What is assigned, with what devices say of the present order in their heartbeats.

    Args:
        found: So far.
        devices: Of the population.
        digests: Packages by version.
        now: Instant, seconds since the epoch.
    """
    if found.order is None:
        return found
    said: dict[tuple[str, bool], list[int]] = {}
    for device in devices:
        words = device.heartbeat
        # A device answers the newest assignment that it was given, which was made of the present order.
        if not words or words.get("counter") != device.counter or device.seen_at < found.issued_at:
            continue
        if words.get("healthy"):
            said.setdefault((words.get("serves", ""), True), []).append(device.number)
        if words.get("refused"):
            said.setdefault((words["refused"], False), []).append(device.number)
    counter = found.order.counter
    for (digest, healthy), numbers in said.items():
        found, _ = confirm(found, numbers, counter, digest, digests, now, healthy=healthy)
    return found
