"""What devices are told: what is urgent before anybody's own assignment, until everybody has one; and only by the leader."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedretrain.artifacts import assignment, notice
from fedretrain.coordinator import cycle
from fedretrain.coordinator.cycle import Begun, CycleEvent, Withdraw
from fedretrain.coordinator.policy import Policy
from fedretrain.rollout.assignment import unassigned
from fedretrain.rollout.safety import SafetyCommand, SafetyOrder
from fedretrain.server import announcements, fleet
from fedretrain.server.database import reading
from fedretrain.server.event_log import EventLog, FencedError
from fedretrain.server.fleet import Standing, Traits
from fedretrain.server.telling import Telling
from fedretrain.server.versions import Version, Versions

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
KEYS = SimpleNamespace(
    online=SimpleNamespace(assignment=KEY, public=lambda: {"assignment": PUBLIC}),
)
A, B, W = "a" * 64, "b" * 64, "c" * 64
POLICY = Policy()


class World:
    """Three devices and a leader."""

    def __init__(self, engine) -> None:
        self.engine, self.log = engine, EventLog(engine)
        self.fence = self.log.acquire("coordinator", "me", now=0.0, ttl_s=1e9)
        with engine.begin() as connection:
            for name in ("d0", "d1", "d2"):
                fleet.enrol(connection, "p", name, name, Traits(), 0.0)
        self.state, self.is_ordered, self.pauses = cycle.begin(CycleEvent(0.0, Begun(2))), False, []
        self.telling = self.leader()

    def leader(self):
        return Telling("p", self.log, KEYS, self.fence, 100.0, lambda: 0.0, self.pauses.append)

    def order(self, *orders):
        for event in cycle.tick(POLICY, self.state, cycle.Evidence(orders=orders), 1.0):
            self.state = cycle.apply(POLICY, self.state, event)

    def devices(self):
        with reading(self.engine) as connection:
            return fleet.everybody(connection, "p")

    def population(self, serves=2):
        memory = SimpleNamespace(
            state=self.state,
            is_exposed=False,
            assignments=replace(unassigned(np.linspace(0.0, 0.9, 3), 2), version_D=np.resize(serves, 3)),
        )
        models = SimpleNamespace(
            versions=Versions({1: Version(1, A, W, "", 0.0), 2: Version(2, B, W, "", 0.0)})
        )
        return SimpleNamespace(
            policy=POLICY,
            memory=memory,
            models=models,
            examiner=SimpleNamespace(question=None),
            devices=self.devices(),
            is_ordered=self.is_ordered,
        )

    def turn(self, now, *, serves=2, ends=True):
        """What the leader tells, as the steward has it done; what is announced."""
        population = self.population(serves)
        self.telling.announce(population, now)
        if ends:
            self.telling.assign(population, {}, now)
        with reading(self.engine) as connection:
            return announcements.told(connection).get("p", announcements.Announcement())

    def told(self):
        """What each device was told last."""
        return [
            assignment.verify(one.assignment, [PUBLIC], device=one.device, population="p", now=0.0)
            for one in self.devices()
        ]


@pytest.fixture
def world(engine):
    return World(engine)


def test_what_is_withdrawn_is_announced_before_anybody_is_told_and_until_everybody_was(world):
    assert world.turn(1.0, serves=1) == announcements.Announcement()
    assert {one.serve for one in world.told()} == {A}
    world.order(Withdraw(1, "anna"))
    said = world.turn(5.0, ends=False)
    found = notice.verify(said.notice, [PUBLIC], population="p", now=5.0)
    assert (found.withdrawn, found.serve, found.issued_at, found.ends_at) == ((A,), B, 5.0, 105.0)
    assert said.hasten
    assert {one.serve for one in world.told()} == {A}  # nobody was told yet: the leader ended here
    assert world.turn(6.0).notice  # and begins anew: those that were told are not held by it
    assert {(one.serve, one.withdrawn, one.issued_at) for one in world.told()} == {(B, (A,), 6.0)}
    assert world.turn(66.0) == announcements.Announcement()


@pytest.mark.parametrize("another", [False, True])
def test_what_a_notice_has_changed_is_made_good_though_the_order_is_taken_back_before_anybody_was_told(
    world, another
):
    world.turn(1.0)
    world.order(SafetyOrder(SafetyCommand.ENTER, "anna"))
    said = world.turn(5.0, ends=False)  # the leader, or the disk, fails here
    world.order(SafetyOrder(SafetyCommand.LEAVE, "anna"))
    if another:
        world.telling = world.leader()
    # Who heard it is in safe mode, and was told nothing of it: the same again would be nothing new.
    assert world.turn(6.0).notice == said.notice
    assert {(one.safe_mode, one.issued_at) for one in world.told()} == {(False, 6.0)}
    assert world.turn(7.0) == announcements.Announcement()
    assert {one.issued_at for one in world.told()} == {6.0}


def test_who_heeded_a_notice_that_another_replaced_is_told_anew_by_the_next_leader(world):
    mixed = [1, 2, 2]
    world.turn(1.0, serves=mixed)
    world.order(SafetyOrder(SafetyCommand.ENTER, "anna"))
    world.turn(5.0, serves=mixed, ends=False)
    world.order(SafetyOrder(SafetyCommand.LEAVE, "anna"), Withdraw(1, "anna"))
    said = world.turn(6.0, serves=mixed, ends=False)
    assert notice.verify(said.notice, [PUBLIC], population="p", now=6.0).withdrawn == (A,)
    world.telling = world.leader()
    world.turn(7.0)
    assert {(one.serve, one.safe_mode, one.issued_at) for one in world.told()} == {(B, False, 7.0)}


def test_a_notice_that_an_earlier_leader_signed_with_a_key_that_was_rotated_is_made_good_for_all(world):
    world.turn(1.0)
    told = announcements.Announcement(notice=b"of another key")
    announcements.tell(world.engine, world.fence, "p", told)
    world.telling = world.leader()
    world.turn(6.0)
    assert {one.issued_at for one in world.told()} == {6.0}


def test_many_are_told_with_pauses_unless_somebody_orders_something(world, monkeypatch):
    monkeypatch.setattr("fedretrain.server.assigning.TOLD_AT_ONCE", 1)
    world.turn(1.0, serves=1)
    assert len(world.pauses) == 3
    world.is_ordered = True
    world.order(SafetyOrder(SafetyCommand.ENTER, "anna"))
    assert world.turn(7.0).notice
    assert {one.safe_mode for one in world.told()} == {True}
    assert len(world.pauses) == 3


def test_another_leader_knows_what_devices_were_told(world):
    world.turn(1.0, serves=1)
    world.order(Withdraw(1, "anna"))
    world.telling = world.leader()
    assert notice.verify(world.turn(5.0).notice, [PUBLIC], population="p", now=5.0).withdrawn == (A,)


def test_what_a_device_that_is_gone_was_told_is_urgent_for_nobody(world, engine):
    world.turn(1.0, serves=1)
    with engine.begin() as connection:
        for name in ("d0", "d1", "d2"):
            fleet.set_standing(connection, "p", name, Standing.RETIRED, 2.0)
    world.order(Withdraw(1, "anna"))
    assert world.turn(5.0) == announcements.Announcement()


def test_nobody_is_told_the_same_again_before_half_of_its_time(world):
    world.turn(1.0)
    before = world.told()
    world.turn(50.0)
    assert world.told() == before
    world.turn(51.0)
    assert {one.counter for one in world.told()} == {2}


def test_who_lost_the_lease_tells_nobody_anything(world):
    world.turn(1.0, serves=1)
    world.log.acquire("coordinator", "another", now=2e9, ttl_s=1.0)
    world.order(Withdraw(1, "anna"))
    with pytest.raises(FencedError):
        world.turn(5.0)
    with pytest.raises(FencedError):
        world.telling.assign(world.population(), {}, 5.0)
    assert {one.serve for one in world.told()} == {A}
