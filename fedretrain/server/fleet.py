"""The fleet's devices: what each is, what it was last told, what it last said.

Rules of this file:
    * A device is the name and the key of its certificate: a message's own words about who sent it are never believed.
    * A device keeps its number through re-enrolment, and with it its budget, its separation and its quarantine.
    * Functions take the connection of the caller's transaction, so that what belongs together changes together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, case, func, insert, select, tuple_, update

from fedretrain.core.build import build, plain
from fedretrain.core.errors import DataError
from fedretrain.server.database import hold
from fedretrain.server.event_log import check_fence
from fedretrain.server.tables import devices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy import Connection, Engine, Row

    from fedretrain.server.event_log import Fence

_READ_AT_ONCE = 400


class Standing(StrEnum):
    """Whether a device may speak."""

    ACTIVE = "active"
    REVOKED = "revoked"  # its key is not trusted any more; enrolling anew ends that
    RETIRED = "retired"  # it is gone for good
    WATCHED = "watched"  # its samples are counted; it has no agent, so it runs no model of ours and no key speaks for it


@dataclass(frozen=True)
class Traits:
    """What a device said of itself when it enrolled.

    Attributes:
        device_type: For strata and views.
        site: Likewise.
        person: Whose device it is, where the unit of privacy is the person.
        trains: Whether it can train shared layers.
        methods: Personalization methods that it can re-fit.
        node_key: Public key (PEM) of the SuperNode that trains for it: its own, or that of another device of the same agent.
        sealing_key: Public key (X25519, hexadecimal) for which files are sealed; empty: they are not.
    """

    device_type: str = ""
    site: str = ""
    person: str = ""
    trains: bool = False
    methods: tuple[str, ...] = ()
    node_key: str = ""
    sealing_key: str = ""


@dataclass(frozen=True)
class Device:
    """A row of the fleet.

    Attributes:
        population: Of which it is part.
        device: Its name.
        number: Its number in the population, from 0: what arrays are indexed by.
        fingerprint: SHA-256 of its public key: stays when its certificate is renewed.
        standing: Whether it may speak.
        traits: What it is.
        assignment: The newest signed envelope; None before the first.
        counter: Of that assignment.
        seen_at: When it was last heard of; 0 for never.
        heartbeat: What it said then.
    """

    population: str
    device: str
    number: int
    fingerprint: str
    standing: Standing
    traits: Traits
    assignment: bytes | None = None
    counter: int = 0
    seen_at: float = 0.0
    heartbeat: Mapping[str, Any] = field(default_factory=dict)


def stream(population: str) -> str:
    """Where it is written down who revoked or retired which device, and why."""
    return f"population/{population}/devices"


def enrol(
    connection: Connection, population: str, device: str, fingerprint: str, traits: Traits, at: float
) -> Device:
    """Add a device, or give a known one its new key.

    Raises:
        DataError: If the device was retired, or now names another person: what was charged to the first is theirs for good.
    """
    told = {
        "fingerprint": fingerprint,
        "standing": Standing.ACTIVE,
        "record": json.dumps(plain(traits), sort_keys=True),
        "changed_at": at,
    }
    hold(connection, f"devices of {population}")  # numbers count up
    known = _found(connection, population, device)
    if known is None:
        last = select(func.max(devices.c.number)).where(devices.c.population == population)
        number = connection.scalar(last)
        number = 0 if number is None else number + 1
        connection.execute(
            insert(devices).values(population=population, device=device, number=number, **told)
        )
    elif known.standing is Standing.RETIRED:
        raise DataError(
            f"the device {device} was retired", where=population, fix="enrol it under another name"
        )
    elif known.traits.person != traits.person:
        raise DataError(
            f"the device {device} is {known.traits.person or 'nobody'}'s, and now says {traits.person or 'nobody'}'s",
            where=population,
            fix="name the same person in edge.toml, or enrol it under another name",
        )
    else:
        connection.execute(update(devices).where(_is(population, device)).values(**told))
    found = find(connection, population, device)
    assert found is not None
    return found


def watch(connection: Connection, population: str, device: str, traits: Traits, at: float) -> Device:
    """Add a device without an agent: what a broker brings of it is counted.

    Raises:
        DataError: If the name is of a device that had an agent.
    """
    hold(connection, f"devices of {population}")
    known = _found(connection, population, device)
    if known is not None and known.standing is not Standing.WATCHED:
        raise DataError(
            f"the device {device} is {known.standing}", where=population, fix="watch it under another name"
        )
    found = enrol(connection, population, device, "", traits, at)
    query = update(devices).where(_is(population, device)).values(standing=Standing.WATCHED)
    connection.execute(query)
    return replace(found, standing=Standing.WATCHED)


def find(connection: Connection, population: str, device: str) -> Device | None:
    """A device by its name."""
    row = connection.execute(select(devices).where(_is(population, device))).one_or_none()
    return None if row is None else _device(row)


def _found(connection: Connection, population: str, device: str) -> Device | None:
    """As `find`, and nobody else changes it before this transaction ends."""
    row = connection.execute(select(devices).where(_is(population, device)).with_for_update()).one_or_none()
    return None if row is None else _device(row)


def everybody(connection: Connection, population: str) -> list[Device]:
    """Every device of a population that was ever enrolled, by number."""
    query = select(devices).where(devices.c.population == population).order_by(devices.c.number)
    return [_device(row) for row in connection.execute(query)]


def outside(devices: Iterable[Device]) -> tuple[int, ...]:
    """Numbers of the devices that no campaign can ask: they are only watched, or retired."""
    return tuple(one.number for one in devices if one.standing in (Standing.WATCHED, Standing.RETIRED))


def keep_traits(connection: Connection, population: str, device: str, traits: Traits, at: float) -> None:
    """What a device says of itself anew."""
    told = {"record": json.dumps(plain(traits), sort_keys=True), "changed_at": at}
    connection.execute(update(devices).where(_is(population, device)).values(**told))


def set_standing(connection: Connection, population: str, device: str, standing: Standing, at: float) -> None:
    """Revoke a device's key, or retire it.

    Raises:
        DataError: If there is no such device, or it is retired: a revoked one might enrol again.
    """
    known = _found(connection, population, device)
    if known is None:
        raise DataError(f"there is no device {device}", where=population, fix="see `fedretrain devices list`")
    if known.standing is Standing.RETIRED and standing is not Standing.RETIRED:
        raise DataError(
            f"the device {device} was retired", where=population, fix="enrol it under another name"
        )
    query = update(devices).where(_is(population, device)).values(standing=standing, changed_at=at)
    connection.execute(query)


def heard(connection: Connection, said: Iterable[tuple[str, str, float, Mapping[str, Any]]]) -> None:
    """Keep the newest words of devices: population, name, instant, heartbeat."""
    rows = [
        {"of": population, "named": device, "at": at, "words": json.dumps(heartbeat, sort_keys=True)}
        for population, device, at, heartbeat in sorted(
            said, key=lambda one: one[:2]
        )  # see `database`: one order
    ]
    if rows:
        query = update(devices).where(_is(bindparam("of"), bindparam("named")))
        connection.execute(query.values(seen_at=bindparam("at"), heartbeat=bindparam("words")), rows)


def assign(connection: Connection, population: str, due: Sequence[tuple[str, bytes, int]], at: float) -> None:
    """Keep the newest signed assignments of devices.

    Args:
        connection: Of the transaction.
        population: Whose.
        due: Name, envelope, and its counter; one that is not newer changes nothing.
        at: Instant, seconds since the epoch.
    """
    rows = [
        {"named": device, "envelope": envelope, "count": counter}
        for device, envelope, counter in sorted(due)  # see `database`: one order
    ]
    if rows:
        newer = devices.c.counter < bindparam("count")
        query = update(devices).where(_is(population, bindparam("named")), newer)
        told = {"assignment": bindparam("envelope"), "counter": bindparam("count"), "changed_at": at}
        connection.execute(query.values(**told), rows)


def tell(
    engine: Engine,
    fence: Fence | None,
    population: str,
    due: Sequence[tuple[str, bytes, int]],
    clock: Callable[[], float],
) -> None:
    """Keep the newest signed assignments of devices, in a transaction of their own.

    They are dated when they are written, not when their turn began, however long that took: who follows the table looks
    only a little way back.

    Args:
        engine: The database.
        fence: The lease of whoever tells.
        population: Whose devices.
        due: As for `assign`.
        clock: Seconds since the epoch.

    Raises:
        FencedError: If somebody else tells devices now. Nothing is written then.
    """
    with engine.begin() as connection:
        check_fence(connection, fence)
        assign(connection, population, due, clock())


Marks = dict[tuple[str, str], tuple[float, int, str, str]]
"""What tells one state of a device's row from another: when it changed, its counter, its fingerprint, its standing."""


Summary = tuple[Any, ...]
"""Of some rows: how many there are, their newest instant and the sum of all, the sum of their counters, how many may speak."""


def summary_since(connection: Connection, at: float) -> Summary:
    """What differs as soon as a device is enrolled, judged or told anew at an instant or later.

    One row of numbers, where a turn that tells ten thousand devices something new changes as many.

    Args:
        connection: To read with.
        at: Instant, seconds since the epoch.
    """
    c = devices.c
    speaks = case((c.standing == Standing.ACTIVE, 1), else_=0)
    instants = func.max(c.changed_at), func.sum(c.changed_at - at)
    query = select(func.count(), *instants, func.sum(c.counter), func.sum(speaks)).where(c.changed_at >= at)
    return tuple(connection.execute(query).one())


def changed_since(connection: Connection, at: float, known: Marks) -> tuple[list[Device], Marks]:
    """Devices that were enrolled, judged or told anew at an instant or later.

    Args:
        connection: To read with.
        at: Instant, seconds since the epoch.
        known: What was seen before: those rows are not read again.

    Returns:
        The devices, and the marks of all rows since the instant.
    """
    c = devices.c
    columns = (c.population, c.device, c.changed_at, c.counter, c.fingerprint, c.standing)
    rows = connection.execute(select(*columns).where(c.changed_at >= at)).all()
    marks: Marks = {(row[0], row[1]): (row[2], row[3], row[4], row[5]) for row in rows}
    fresh = [name for name, mark in marks.items() if known.get(name) != mark]
    found = []
    for first in range(0, len(fresh), _READ_AT_ONCE):
        some = fresh[first : first + _READ_AT_ONCE]
        query = select(devices).where(tuple_(c.population, c.device).in_(some))
        found += [_device(row) for row in connection.execute(query)]
    return found, marks


def _is(population: Any, device: Any) -> Any:
    return (devices.c.population == population) & (devices.c.device == device)


def _device(row: Row[Any]) -> Device:
    return Device(
        row.population,
        row.device,
        row.number,
        row.fingerprint,
        Standing(row.standing),
        _traits(row.record),
        row.assignment,
        row.counter,
        row.seen_at,
        json.loads(row.heartbeat),
    )


@lru_cache(maxsize=1 << 17)
def _traits(record: str) -> Traits:
    """What a row says that a device is: it seldom changes, and every turn reads every row."""
    return build(Traits, json.loads(record), where="devices.record")
