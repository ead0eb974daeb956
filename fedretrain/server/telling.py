"""What devices are told: each its signed assignment, and all of a population at once what is urgent.

Rules of this file:
    * Assignments and notices are signed here and nowhere else; a device that has to hear nothing new gets nothing new.
    * What is urgent is announced before assignments are made: thousands of those take seconds. It stays until each device that it concerns
      has a newer assignment, whatever is decided meanwhile, and whoever leads: what a notice has changed no other word takes back.
    * Everything told is fenced: a leader that lost its lease tells nobody anything.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from fedretrain.artifacts.assignment import verify
from fedretrain.artifacts.notice import sign as sign_notice
from fedretrain.artifacts.notice import verify as verify_notice
from fedretrain.artifacts.question import sign as sign_question
from fedretrain.core.errors import FedretrainError
from fedretrain.server import announcements, fleet
from fedretrain.server.announcements import Announcement
from fedretrain.server.assigning import heeding, in_parts, renewed, signed, urgent, wanted
from fedretrain.server.database import reading
from fedretrain.server.fleet import Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fedretrain.artifacts.assignment import Assignment, CampaignInvite
    from fedretrain.artifacts.notice import Notice
    from fedretrain.server.event_log import EventLog, Fence
    from fedretrain.server.fleet import Device
    from fedretrain.server.keys import Keys
    from fedretrain.server.population import Population


class Telling:
    """Tells one population's devices. One leader has one for each.

    Args:
        name: Of the population.
        log: The event log.
        keys: What it signs with.
        fence: The leader's lease.
        valid_s: How long an assignment is good for.
        clock: Seconds since the epoch.
        pause: Waits for so many seconds.
    """

    def __init__(
        self,
        name: str,
        log: EventLog,
        keys: Keys,
        fence: Fence,
        valid_s: float,
        clock: Callable[[], float],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._name, self._log, self._keys, self._fence = name, log, keys, fence
        self._valid_s, self._clock, self._pause = valid_s, clock, pause
        self._told: dict[int, Assignment] = {}
        self._owed: set[int] = set()
        self._announced: Announcement | None = None

    def announce(self, population: Population, now: float) -> None:
        """Let every gateway tell what is urgent, the federated evaluation that is on, and whether devices shall be heard sooner.

        Args:
            population: What was decided.
            now: Instant of the turn, seconds since the epoch.

        Raises:
            FencedError: If somebody else tells them now.
        """
        self._recall(population)
        key, question, notice = (
            self._keys.online.assignment,
            population.examiner.question,
            self._urgent(population, now),
        )
        assert self._announced is not None
        said = self._announced.notice if self._owed & {one.number for one in _active(population)} else b""
        if notice is not None:
            said, self._owed = sign_notice(notice, key), self._owed | heeding(notice, self._told)
        announced = Announcement(
            b"" if question is None else sign_question(question, key),
            # Also until all have their own assignment: who comes late hears so much sooner what it must leave.
            hasten=population.memory.is_exposed or bool(said),
            notice=said,
        )
        if self._announced != announced:
            announcements.tell(self._log.engine, self._fence, self._name, announced)
            self._announced = announced

    def assign(self, population: Population, invites: Mapping[int, CampaignInvite], now: float) -> None:
        """Give each device that shall do something else, or whose assignment runs out, a new one.

        Args:
            population: What was decided.
            invites: Campaigns by the numbers of the devices that are asked.
            now: Instant of the turn, seconds since the epoch.

        Raises:
            FencedError: If somebody else tells them now.
        """
        state = population.memory.state
        if state is None:
            return
        self._recall(population)
        models, told = population.models, self._told
        # Who heeds a notice does something else than it was told, whatever it shall do now.
        certain = {number: one for number, one in told.items() if number not in self._owed}
        wishes = wanted(population.policy, state, population.memory.assignments, models.versions, invites)
        due = renewed(_active(population), certain, wishes, now=now, valid_s=self._valid_s)
        for part in in_parts(due):
            begun_s = time.monotonic()
            envelopes = [
                (device.device, envelope, assignment.counter)
                for device, assignment, envelope in signed(part, self._keys.online.assignment)
            ]
            fleet.tell(self._log.engine, self._fence, self._name, envelopes, self._clock)
            told |= {device.number: assignment for device, assignment in part}
            self._owed -= {device.number for device, _ in part}
            if not population.is_ordered:
                # What is urgent is told already. A gateway that waits for the machine, or reads what changed, keeps devices waiting,
                # who then come more rarely; so it has half of the time.
                self._pause(time.monotonic() - begun_s)

    def _urgent(self, population: Population, now: float) -> Notice | None:
        state = population.memory.state
        if state is None:
            return None
        last = [self._told[one.number] for one in _active(population) if one.number in self._told]
        versions = population.models.versions
        return urgent(
            population.policy, state, versions, last, population=self._name, now=now, valid_s=self._valid_s
        )

    def _recall(self, population: Population) -> None:
        """What an earlier leader told: each device, and all of them at once."""
        if self._announced is not None:
            return
        keys = [self._keys.online.public()["assignment"]]
        for device in population.devices:
            if device.assignment is None:
                continue
            # One that is signed with a key that was rotated is not known: a new one is given.
            with contextlib.suppress(FedretrainError):
                self._told[device.number] = verify(
                    device.assignment, keys, device=device.device, population=self._name, now=0.0
                )
        with reading(self._log.engine) as connection:
            announced = announcements.told(connection).get(self._name, Announcement())
        if announced.notice:
            try:
                notice = verify_notice(announced.notice, keys, population=self._name, now=0.0)
                # This one may have taken the place of another: who was not told since may have heeded either.
                self._owed = {
                    number for number, one in self._told.items() if one.issued_at < notice.issued_at
                }
            except FedretrainError:
                self._owed = set(self._told)
        self._announced = announced


def _active(population: Population) -> list[Device]:
    return [one for one in population.devices if one.standing is Standing.ACTIVE]
