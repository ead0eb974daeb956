"""What The Update Framework's threat model names (https://theupdateframework.github.io/specification/latest/#goals-to-protect-against-specific-attacks).

Each attack is somebody between the device and the server, or somebody with a stolen key. What was installable before stays so.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from fedretrain.artifacts.trust.words import SIGNED_AT, Block, as_time
from tests.trust_cases import DAY, HOUR, NOW, TrustWorld, block_of, manifest, target

THIEF = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
LATER = NOW + HOUR


@pytest.fixture
def world(tmp_path):
    world = TrustWorld(tmp_path)
    world.client.refresh(NOW)
    return world


def stolen(world, *roles):
    """The keys that somebody signs with who stole those of some roles."""
    return {
        role: getattr(world.online, role) if role in roles else THIEF
        for role in ("targets", "snapshot", "timestamp")
    }


def rollback_of_everything(world):
    old = world.files()["timestamp"]
    world.repository.publish([target(2)], LATER)
    world.client.refresh(LATER)
    world.sent = {"timestamp.json": old}


def rollback_of_the_list_under_new_signatures(world):
    """Who has the timestamp's key shows the snapshot from before."""
    first = world.files()
    world.repository.publish([target(2)], LATER)
    world.client.refresh(LATER)
    old_meta = Metadata.from_bytes(first["timestamp"]).signed.snapshot_meta
    newest = world.files()["timestamp"]
    world.sent["timestamp.json"] = world.edit(
        newest, world.online.timestamp, lambda part: setattr(part, "snapshot_meta", old_meta)
    )


def mix_and_match_of_lists(world):
    """The new snapshot with the list from before."""
    old = world.files()["targets"]
    world.repository.publish([target(2)], LATER)
    version = Metadata.from_bytes(world.files()["targets"]).signed.version
    world.sent = {f"{version}.targets.json": old}


def mix_and_match_of_snapshots(world):
    old = world.files()["snapshot"]
    world.repository.publish([target(2)], LATER)
    version = Metadata.from_bytes(world.files()["snapshot"]).signed.version
    world.sent = {f"{version}.snapshot.json": old}


def forged_with_no_key(world):
    world.forge(9, stolen(world))


def timestamp_key_stolen(world):
    world.forge(9, stolen(world, "timestamp"))


def timestamp_and_snapshot_keys_stolen(world):
    world.forge(9, stolen(world, "timestamp", "snapshot"))


def targets_key_stolen_alone(world):
    world.forge(9, stolen(world, "targets"))


def a_root_of_a_strangers(world):
    found = Metadata.from_bytes(world.root)
    found.signed.version = 2
    found.sign(CryptoSigner(THIEF))
    world.sent = {"2.root.json": found.to_bytes()}


def a_root_that_skips_a_version(world):
    world.rotate("keys2", NOW, root_key=True)
    third = world.rotate("keys3", NOW, root_key=True)
    world.sent = {"2.root.json": third}


def endless_timestamp(world):
    world.sent = {"timestamp.json": lambda: itertools.repeat(b"x" * 1_000)}


def endless_root(world):
    world.sent = {"2.root.json": lambda: itertools.repeat(b"x" * 1_000)}


def endless_list(world):
    world.repository.publish([target(2)], LATER)
    version = Metadata.from_bytes(world.files()["targets"]).signed.version
    world.sent = {f"{version}.targets.json": lambda: itertools.repeat(b"x" * 1_000)}


def no_json(world):
    world.sent = {"timestamp.json": b"not signed, not JSON"}


def another_role_under_the_name(world):
    world.sent = {"timestamp.json": world.files()["targets"]}


def a_timestamp_that_does_not_say_when(world):
    world.sent["timestamp.json"] = world.edit(
        world.files()["timestamp"], world.online.timestamp, lambda part: part.unrecognized_fields.clear()
    )


def slow(world):
    """The caller's deadline ends it."""

    def trickle():
        yield b"{"
        raise TimeoutError("the deadline has passed")

    world.sent = {"timestamp.json": trickle}


def no_answer(world):
    def nobody():
        raise ConnectionRefusedError("nobody listens")
        yield b""

    world.sent = {"timestamp.json": nobody}


ATTACKS = {
    "rollback": (rollback_of_everything, Block.ROLLBACK),
    "rollback_under_a_stolen_timestamp_key": (rollback_of_the_list_under_new_signatures, Block.ROLLBACK),
    "mix_and_match_lists": (mix_and_match_of_lists, Block.MISMATCH),
    "mix_and_match_snapshots": (mix_and_match_of_snapshots, Block.MISMATCH),
    "arbitrary_install_unsigned": (forged_with_no_key, Block.BAD_SIGNATURE),
    "timestamp_key_stolen": (timestamp_key_stolen, Block.BAD_SIGNATURE),
    "timestamp_and_snapshot_keys_stolen": (timestamp_and_snapshot_keys_stolen, Block.BAD_SIGNATURE),
    "targets_key_stolen_alone": (targets_key_stolen_alone, Block.BAD_SIGNATURE),
    "strangers_root": (a_root_of_a_strangers, Block.BAD_SIGNATURE),
    "root_skips_a_version": (a_root_that_skips_a_version, Block.BAD_SIGNATURE),
    "endless_timestamp": (endless_timestamp, Block.OVERSIZE),
    "endless_root": (endless_root, Block.OVERSIZE),
    "endless_list": (endless_list, Block.OVERSIZE),
    "no_json": (no_json, Block.MALFORMED),
    "another_role_under_the_name": (another_role_under_the_name, Block.MALFORMED),
    "timestamp_without_its_time": (a_timestamp_that_does_not_say_when, Block.MALFORMED),
    "slow_retrieval": (slow, Block.UNREACHABLE),
    "no_answer": (no_answer, Block.UNREACHABLE),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_by_name_and_takes_nothing_away(world, name):
    attack, block = ATTACKS[name]
    attack(world)
    assert block_of(world.client.refresh, LATER) is block
    assert world.installs(1, LATER) == target(1)
    assert world.installs(9, LATER) is None


SIGNED_WITH_THE_TIMESTAMPS_KEY = {
    "rollback_under_a_stolen_timestamp_key",
    "timestamp_key_stolen",
    "timestamp_and_snapshot_keys_stolen",
    "timestamp_without_its_time",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_after_an_attack_the_true_list_is_taken_again(world, name):
    attack, _ = ATTACKS[name]
    attack(world)
    block_of(world.client.refresh, LATER)
    world.sent = {}
    if name in SIGNED_WITH_THE_TIMESTAMPS_KEY:  # a device may hold a number that the server has not reached
        world.rotate("new-keys", LATER)
    world.repository.publish([target(3)], LATER)
    world.client.refresh(LATER)
    assert world.installs(1, LATER) == target(1)
    assert world.installs(3, LATER) == target(3)
    assert world.installs(9, LATER) is None


def test_all_three_online_keys_together_can_install_and_rotation_ends_it(world):
    """Where the protection stops: nothing but the offline root undoes this."""
    keys = stolen(world, "targets", "snapshot", "timestamp")
    world.forge(9, keys)
    world.client.refresh(NOW)
    assert world.installs(9) == target(9)
    world.sent = {}
    world.rotate("new-keys", LATER)
    world.repository.publish([target(2)], LATER)
    world.client.refresh(LATER)
    assert world.installs(9, LATER) is None
    assert world.installs(2, LATER) == target(2)
    world.forge(9, keys)
    assert block_of(world.client.refresh, LATER) is Block.BAD_SIGNATURE


def test_freeze_an_old_list_counts_until_its_timestamp_expires(world):
    frozen = world.files()["timestamp"]
    world.repository.quarantine(target(1).digest, LATER)
    world.sent = {"timestamp.json": frozen}
    world.client.refresh(LATER)
    assert world.installs(1, LATER) == target(1)
    late = NOW + DAY
    assert block_of(world.client.refresh, late) is Block.EXPIRED
    assert block_of(world.installs, 1, late) is Block.EXPIRED


def test_freeze_by_hiding_the_server_ends_the_same_way(world):
    no_answer(world)
    assert block_of(world.client.refresh, NOW + DAY) is Block.UNREACHABLE
    assert world.installs(1, NOW + DAY - 1) == target(1)
    assert block_of(world.installs, 1, NOW + DAY) is Block.EXPIRED


def test_freeze_with_a_clock_that_was_set_back_is_blocked(world):
    world.repository.refresh_timestamp(NOW + 10 * DAY)
    world.client.refresh(NOW + 10 * DAY)
    assert block_of(world.installs, 1, NOW) is Block.CLOCK_BEHIND
    assert block_of(world.client.refresh, NOW) is Block.CLOCK_BEHIND
    assert block_of(world.client.recall, NOW) is Block.CLOCK_BEHIND
    restarted = world.new_client("device")
    assert block_of(restarted.recall, 1_000.0) is Block.CLOCK_BEHIND
    assert block_of(restarted.refresh, 1_000.0) is Block.CLOCK_BEHIND
    restarted.refresh(NOW + 10 * DAY)
    assert world.installs(1, NOW + 10 * DAY, restarted) == target(1)


def test_a_clock_a_little_behind_is_no_reason(world):
    assert world.installs(1, NOW - 300) == target(1)
    assert block_of(world.installs, 1, NOW - 301) is Block.CLOCK_BEHIND


def test_a_stolen_timestamp_key_can_block_but_a_rotation_lifts_it(world):
    def far_future(part):
        part.version = 10**6
        part.expires = as_time(NOW + 9_000 * DAY)
        part.unrecognized_fields[SIGNED_AT] = int(NOW + 8_000 * DAY)

    world.sent["timestamp.json"] = world.edit(world.files()["timestamp"], world.online.timestamp, far_future)
    assert block_of(world.client.refresh, NOW) is Block.CLOCK_BEHIND
    world.sent = {}
    assert block_of(world.client.refresh, NOW) is Block.ROLLBACK
    world.rotate("new-keys", LATER)
    world.client.refresh(LATER)
    assert world.installs(1, LATER) == target(1)


def test_quarantine_removes(world):
    world.repository.publish([target(2)], NOW)
    world.client.refresh(NOW)
    assert world.installs(2) == target(2)
    world.repository.quarantine(target(2).digest, LATER)
    world.client.refresh(LATER)
    assert world.installs(2, LATER) is None
    assert world.installs(1, LATER) == target(1)


@pytest.mark.parametrize("content", [manifest(2), manifest(1) + b" ", manifest(1)[:-1], b""])
def test_wrong_software_is_refused_by_its_hash(world, content):
    info = world.installs(1)
    assert info.check(manifest(1)) == manifest(1)
    assert block_of(info.check, content) is Block.MISMATCH


def test_a_manifest_of_another_length_than_was_signed_is_refused(world):
    info = dataclasses.replace(world.installs(1), length=7)
    assert block_of(info.check, manifest(1)) is Block.MISMATCH


def test_another_fleets_package_is_not_installable(world):
    world.repository.publish([target(5, "fans")], NOW)
    world.client.refresh(NOW)
    assert world.client.installable(target(5).digest, population="fans", now=NOW) == target(5, "fans")
    assert world.installs(5) is None


@pytest.mark.parametrize("how", [{"root_key": True, "online": False}, {"online": True}, {"root_key": True}])
def test_a_device_that_slept_through_several_roots_follows_them(world, how):
    sleeper = world.new_client("sleeper")
    for number in range(1, 4):
        world.rotate(f"keys-{number}", NOW + number * 100 * DAY, **how)
    now = NOW + 400 * DAY  # the first root has expired meanwhile
    world.repository.publish([target(2)], now)
    for client in (world.client, sleeper):
        client.refresh(now)
        assert world.installs(2, now, client) == target(2)
        assert client.assignment_key() == world.online.public()["assignment"]


def test_a_root_that_nobody_renewed_blocks(world):
    now = NOW + 366 * DAY
    world.repository.refresh_timestamp(now)
    assert block_of(world.client.refresh, now) is Block.EXPIRED


def test_an_old_roots_key_makes_no_further_root(world):
    old_root_key = world.offline
    world.rotate("keys-2", NOW, root_key=True)
    world.client.refresh(NOW)
    found = Metadata.from_bytes((world.folder / "repository" / "2.root.json").read_bytes())
    world.sent = {"3.root.json": world.edit(found.to_bytes(), old_root_key, lambda _part: None)}
    assert block_of(world.client.refresh, NOW) is Block.BAD_SIGNATURE
