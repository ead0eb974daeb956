"""The signed list on the server's disk: written whole, the timestamp last, and nothing signed that was not signed."""

import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.metadata import Metadata

from fedretrain.artifacts.trust import repository as module
from fedretrain.artifacts.trust.repository import Lifetimes, TrustRepository
from fedretrain.artifacts.trust.root import first_root, next_root
from fedretrain.artifacts.trust.words import MAX_BYTES
from fedretrain.core.errors import ConfigError, DataError
from tests.trust_cases import DAY, HOUR, NOW, TrustWorld, target


class Cut(BaseException):
    """The machine stops here."""


@pytest.fixture
def world(tmp_path):
    return TrustWorld(tmp_path)


def names(world):
    return sorted(path.name for path in (world.folder / "repository").iterdir() if path.suffix == ".json")


def contents(world):
    return {name: (world.folder / "repository" / name).read_bytes() for name in names(world)}


def versions(world):
    return {role: Metadata.from_bytes(content).signed.version for role, content in world.files().items()}


def test_the_list_holds_what_was_published_and_not_quarantined(world):
    world.repository.publish([target(2), target(3)], NOW)
    world.repository.quarantine(target(2).digest, NOW)
    assert world.repository.installable() == {target(n).digest: target(n) for n in (1, 3)}
    assert world.root == world.repository.read("1.root.json")


@pytest.mark.parametrize(
    "again",
    [
        lambda world: world.repository.publish([target(1)], NOW + HOUR),
        lambda world: world.repository.publish([], NOW + HOUR),
        lambda world: world.repository.quarantine("f" * 64, NOW + HOUR),
        lambda world: world.repository.install_root(world.root, NOW + HOUR),
    ],
)
def test_a_call_made_again_writes_nothing(world, again):
    before = contents(world)
    again(world)
    assert contents(world) == before


def test_one_digest_has_one_meaning(world):
    other = target(1, "fans")
    with pytest.raises(DataError, match="other data"):
        world.repository.publish([other], NOW)
    assert world.repository.installable() == {target(1).digest: target(1)}


def test_a_refreshed_timestamp_leaves_the_rest_until_half_of_its_life_has_passed(world):
    assert versions(world) == {"timestamp": 2, "snapshot": 2, "targets": 2}
    world.repository.refresh_timestamp(NOW + HOUR)
    assert versions(world) == {"timestamp": 3, "snapshot": 2, "targets": 2}
    world.repository.refresh_timestamp(NOW + 4 * DAY)
    assert versions(world) == {"timestamp": 4, "snapshot": 3, "targets": 2}
    world.repository.refresh_timestamp(NOW + 60 * DAY)
    assert versions(world) == {"timestamp": 5, "snapshot": 4, "targets": 3}


@pytest.mark.parametrize("num_writes", range(3))
@pytest.mark.parametrize("change", ["publish", "quarantine", "rotate"])
def test_a_cut_before_the_timestamp_leaves_the_old_state_and_the_call_can_be_made_again(
    world, monkeypatch, change, num_writes
):
    """Writes of a publication: list, snapshot, timestamp. A rotation writes its root first: see the next test."""
    real, done = module.write_whole, []

    def cut(path, content):
        if len(done) == num_writes + (change == "rotate"):
            raise Cut
        done.append(path)
        real(path, content)

    def run():
        if change == "publish":
            world.repository.publish([target(2)], NOW)
        elif change == "quarantine":
            world.repository.quarantine(target(1).digest, NOW)
        elif (world.folder / "repository" / "2.root.json").exists():
            world.repository = TrustRepository(world.folder / "repository", world.new_keys)
            world.repository.install_root(world.repository.read("2.root.json"), NOW)
        else:
            world.rotate("keys-2", NOW)

    before, listed = world.files(), world.repository.installable()
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_whole", cut)
        with pytest.raises(Cut):
            run()
    assert world.files() == before
    assert world.repository.installable() == listed
    if change == "rotate":
        world.new_keys = world.repository._keys
    run()
    expected = {"publish": {1, 2}, "quarantine": set(), "rotate": {1}}[change]
    assert set(world.repository.installable()) == {target(n).digest for n in expected}
    world.client.refresh(NOW)
    assert [n for n in (1, 2) if world.installs(n)] == sorted(expected)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize("damage", ["edited", "emptied", "gone"])
def test_nothing_is_signed_on_top_of_a_file_that_was_not_signed(world, role, damage):
    name = "timestamp.json" if role == "timestamp" else f"2.{role}.json"
    path = world.folder / "repository" / name
    content = path.read_bytes()
    if (
        damage == "gone" and role == "timestamp"
    ):  # as if it had never been: it begins anew, and clients refuse that as a rollback
        world.client.refresh(NOW)
        path.unlink()
        world.repository.publish([target(2)], NOW)
        with pytest.raises(DataError, match="rollback"):
            world.client.refresh(NOW)
        return
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content.replace(b'"version":2', b'"version":3') if damage == "edited" else b"")
    before = contents(world)
    with pytest.raises(DataError, match="damaged or was not signed"):
        world.repository.publish([target(2)], NOW)
    assert contents(world) == before


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_consistent_chain_with_one_strangers_signature_is_not_signed_on(world, role):
    """Who can write to the folder, and lacks one key, waits for the server to sign over what was slipped in."""
    keys = {name: getattr(world.online, name) for name in ("timestamp", "snapshot", "targets")}
    world.forge(9, {**keys, role: Ed25519PrivateKey.generate()})
    for name, content in world.sent.items():
        (world.folder / "repository" / name).write_bytes(content)
    for call in (world.repository.installable, lambda: world.repository.publish([target(2)], NOW)):
        with pytest.raises(DataError, match="damaged or was not signed"):
            call()


def test_an_older_list_put_back_by_hand_is_not_signed_again(world):
    old = world.repository.read("1.targets.json")
    (world.folder / "repository" / "2.targets.json").write_bytes(old)
    with pytest.raises(DataError, match="damaged or was not signed"):
        world.repository.refresh_timestamp(NOW)


def test_old_versions_are_cleared_away_roots_never(world):
    world.rotate("keys-2", NOW)
    for number in range(2, 30):
        world.repository.publish([target(number)], NOW)
    kept = [name for name in names(world) if "targets" in name]
    assert len(kept) == 16
    assert {"1.root.json", "2.root.json", "timestamp.json"} <= set(names(world))
    world.client.refresh(NOW)
    assert world.installs(29) == target(29)


def test_a_list_that_no_client_would_read_is_not_written(world, monkeypatch):
    before = contents(world)
    monkeypatch.setattr(module, "MAX_BYTES", {**MAX_BYTES, "targets": 1_000})
    with pytest.raises(DataError, match="no client reads it"):
        world.repository.publish([target(number) for number in range(2, 9)], NOW)
    assert contents(world) == before


def test_roots_come_in_order_and_name_the_servers_keys(world, tmp_path):
    second = next_root(world.root, world.offline, now=NOW)
    third = next_root(second, world.offline, now=NOW)
    with pytest.raises(DataError, match="may not follow"):
        world.repository.install_root(third, NOW)
    stranger = TrustWorld(tmp_path / "other")
    with pytest.raises(DataError, match="other online keys"):
        world.repository.install_root(stranger.root, NOW)
    own_root = first_root(stranger.offline, world.online.public(), now=NOW)
    forged = next_root(own_root, stranger.offline, now=NOW)
    with pytest.raises(DataError, match="may not follow"):
        world.repository.install_root(forged, NOW)
    world.repository.install_root(second, NOW)
    world.repository.install_root(third, NOW)
    empty = TrustRepository(tmp_path / "empty", world.online)
    with pytest.raises(DataError, match="not the first"):
        empty.install_root(third, NOW)
    with pytest.raises(ConfigError, match="no root"):
        empty.publish([target(1)], NOW)


def test_a_server_with_other_keys_than_the_root_names_signs_nothing(world, tmp_path):
    before = contents(world)
    other = TrustRepository(world.folder / "repository", TrustWorld(tmp_path / "other").online)
    with pytest.raises(ConfigError, match="other online keys"):
        other.refresh_timestamp(NOW)
    assert contents(world) == before


def test_it_says_when_the_root_must_be_renewed(world):
    assert world.repository.root_expires_at() == NOW + 365 * DAY
    world.repository.install_root(next_root(world.root, world.offline, now=NOW + 100 * DAY), NOW)
    assert world.repository.root_expires_at() == NOW + 465 * DAY


def test_a_full_disk_is_one_line(world, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_whole", full)
    with pytest.raises(DataError, match="No space left"):
        world.repository.publish([target(2)], NOW)


def test_the_folder_must_be_one(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    world = TrustWorld(tmp_path / "world")
    with pytest.raises(DataError, match="cannot be written"):
        TrustRepository(tmp_path / "file" / "deep", world.online)


@pytest.mark.parametrize("key", ["targets_s", "snapshot_s", "timestamp_s"])
def test_a_lifetime_is_positive(key):
    with pytest.raises(ConfigError, match=key):
        Lifetimes(**{key: 0.0})


def test_files_are_for_the_owner_alone(world):
    for path in (world.folder / "repository").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_publishers_wait_for_each_other(world):
    """Each has the folder open by itself, as two processes would."""

    def publish(number):
        TrustRepository(world.folder / "repository", world.online).publish([target(number)], NOW)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(publish, range(2, 14)))
    assert set(world.repository.installable()) == {target(number).digest for number in range(1, 14)}
    assert versions(world) == {"timestamp": 14, "snapshot": 14, "targets": 14}
