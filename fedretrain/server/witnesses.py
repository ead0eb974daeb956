"""Where a population's ledger is seen outside its database, so that a restored back-up cannot spend twice.

Rules of this file:
    * A witness file beside the database has the head of every charge; the signed list the head at each release; each device the
      newest head in any list that it ever verified, and says it with its heartbeats. A back-up of all of the coordinator's folder
      reaches the first two, never the devices.
    * A ledger that is behind any of them trains nobody: what it has forgotten was spent.
    * Witnesses are read before the ledger: one that is charged meanwhile is ahead of them, never behind.
    * A device that is kept out, revoked or retired is no witness: one that lies stops nothing for good.
    * A leader that is new starts no campaign with a ledger before devices had time to speak; one under way ends with the next tick
      after a device has said otherwise.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fedretrain.artifacts.trust.words import newest_charged
from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.file_ledger import WitnessFile
from fedretrain.privacy.ledger import Head, check_witness
from fedretrain.server import fleet
from fedretrain.server.database import reading
from fedretrain.server.database_ledger import DatabaseLedger
from fedretrain.server.fleet import Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from fedretrain.artifacts.trust.repository import TrustRepository
    from fedretrain.server.event_log import EventLog
    from fedretrain.server.fleet import Device
    from fedretrain.server.population import Population

HEARTBEATS = 2
"""For so many a leader that is new listens to its devices before its first campaign with a ledger."""
_NAMED = 5  # devices in one line


def witness_file(folder: Path, population: str) -> Path:
    """The file of a population, below the coordinator's folder."""
    path = folder / "witness" / f"{population}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class Witnesses:
    """Whether campaigns may spend, for as long as one leader leads.

    Args:
        log: The event log.
        folder: The coordinator's.
        trust: The signed list.
        clock: Seconds since the epoch.
        heartbeat_s: How often devices are heard.
    """

    def __init__(
        self,
        log: EventLog,
        folder: Path,
        trust: TrustRepository,
        clock: Callable[[], float],
        heartbeat_s: float,
    ) -> None:
        self._log, self._folder, self._trust, self._clock = log, folder, trust, clock
        self._from_s = time.monotonic() + HEARTBEATS * heartbeat_s
        self._agreed: dict[str, frozenset[Head]] = {}

    def agree(self, population: Population, kept: frozenset[int], *, starts: bool) -> bool:
        """Whether a campaign may go on, or may start already.

        Args:
            population: Whose.
            kept: Numbers of devices that are kept out.
            starts: Whether it does not run yet.

        Raises:
            PrivacyError: If the ledger is not what was seen of it elsewhere.
        """
        training, name = population.models.training, population.name
        charges = training is not None and training.rules.privacy is not None
        if starts and charges and time.monotonic() < self._from_s:
            return False
        said = frozenset(_said(population.devices, kept))
        if starts or not said <= self._agreed.get(name, frozenset()):
            check_ledger(self._log, name, self._folder, self._trust, self._clock, kept)
            self._agreed[name] = said
        return True


def check_ledger(
    log: EventLog,
    population: str,
    folder: Path,
    trust: TrustRepository,
    clock: Callable[[], float],
    kept: frozenset[int],
) -> None:
    """Refuse a ledger that is not what was seen of it elsewhere: older, or another one.

    Args:
        log: The event log.
        population: Whose ledger.
        folder: The coordinator's.
        trust: The signed list.
        clock: Seconds since the epoch.
        kept: Numbers of devices that are kept out.

    Raises:
        PrivacyError: Then.
    """
    file = witness_file(folder, population)
    seen = {str(file): WitnessFile(file).load(), "the signed list": _signed(trust, population)}
    with reading(log.engine) as connection:
        said = _said(fleet.everybody(connection, population), kept)
    heads = DatabaseLedger(log, population, clock=clock).heads
    for where, head in seen.items():
        if head is not None:
            check_witness(head, heads, f"{population}, by {where}")
    _check_devices(said, heads, population)


def _signed(trust: TrustRepository, population: str) -> Head | None:
    """The newest head in the signed list."""
    newest = newest_charged(trust.installable().values(), population)
    return None if newest is None else Head(newest.ledger_counter, newest.ledger_hash)


def _said(devices: Iterable[Device], kept: frozenset[int]) -> dict[Head, list[str]]:
    """Which devices say that they have seen which head."""
    said: dict[Head, list[str]] = {}
    for device in devices:
        counter, hash_ = device.heartbeat.get("ledger", (0, ""))
        if counter and device.standing is Standing.ACTIVE and device.number not in kept:
            said.setdefault(Head(counter, hash_), []).append(device.device)
    return said


def _check_devices(said: Mapping[Head, Sequence[str]], heads: Sequence[Head], population: str) -> None:
    """Refuse a ledger that lacks a head which devices have seen, and name them."""
    lacking = {
        head: names
        for head, names in said.items()
        if head.counter >= len(heads) or heads[head.counter] != head
    }
    if not lacking:
        return
    names = sorted(name for some in lacking.values() for name in some)
    who = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    newest = max(head.counter for head in lacking)
    what = f"the privacy ledger has {len(heads) - 1} events, {who} saw {newest} in a signed list: an old copy"
    if newest < len(heads):
        what = f"event {newest} of the privacy ledger is not the one that {who} saw in a signed list: another copy"
    raise PrivacyError(
        what,
        where=f"{population}, by its devices",
        fix="restore the newest copy of the database: what this one has forgotten was spent, and nothing is trained on it;"
        " or, if a device lies or is damaged, `fedretrain devices revoke` it: then its word does not count",
    )
