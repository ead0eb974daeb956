"""Key files, roots and targets as values: what is refused, and by which words."""

import dataclasses
import json
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import Metadata, TargetFile

from fedretrain.artifacts.trust.keys import ROLES, create_keys, load_key, load_online, load_public
from fedretrain.artifacts.trust.root import check_next, first_root, next_root, online_keys, read_root
from fedretrain.artifacts.trust.words import Block, TargetInfo, TrustError, check_name, package_path
from fedretrain.core.errors import DataError
from tests.trust_cases import NOW, target


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    create_keys(folder)
    return folder


def test_private_keys_are_for_the_owner_alone_and_the_root_lies_apart(folder):
    private = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.pem"))
    assert private == ["offline/root.pem", *sorted(f"online/{role}.pem" for role in ROLES)]
    for path in folder.rglob("*.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for name in ("offline", "online"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o700


def test_all_keys_differ(folder):
    raws = {
        *load_online(folder / "online").public().values(),
        load_key(folder / "offline" / "root.pem").public_key().public_bytes_raw(),
    }
    assert len(raws) == 5


def test_what_is_there_is_never_replaced_and_what_is_missing_is_made(tmp_path):
    create_keys(tmp_path)
    before = load_online(tmp_path / "online").public()
    (tmp_path / "online" / "timestamp.pem").unlink()
    create_keys(tmp_path)
    after = load_online(tmp_path / "online").public()
    assert {role for role in ROLES if before[role] != after[role]} == {"timestamp"}
    assert load_public(tmp_path / "online" / "public.json") == after


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_that_others_may_read_is_refused(tmp_path, mode):
    create_keys(tmp_path)
    path = tmp_path / "online" / "targets.pem"
    path.chmod(mode)
    with pytest.raises(DataError, match="others may have read it") as caught:
        load_online(tmp_path / "online")
    assert caught.value.where == str(path)


def test_a_missing_key_and_a_file_that_is_none_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_key(tmp_path / "root.pem")
    for content in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        (tmp_path / "root.pem").write_bytes(content)
        (tmp_path / "root.pem").chmod(0o600)
        with pytest.raises(DataError, match="no Ed25519 private key"):
            load_key(tmp_path / "root.pem")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"targets": 1}', json.dumps(dict.fromkeys(ROLES, "00")).encode()]
)
def test_public_keys_that_are_none_are_refused(tmp_path, content):
    (tmp_path / "public.json").write_bytes(content)
    with pytest.raises(DataError, match="public keys"):
        load_public(tmp_path / "public.json")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        create_keys(tmp_path / "file")


def test_a_root_tells_of_every_online_key(folder):
    public = load_public(folder / "online" / "public.json")
    root = first_root(load_key(folder / "offline" / "root.pem"), public, now=NOW)
    assert online_keys(read_root(root).signed) == public


def test_a_next_root_needs_the_old_ones_key(folder, tmp_path):
    create_keys(tmp_path)
    old_key, other = load_key(folder / "offline" / "root.pem"), load_key(tmp_path / "offline" / "root.pem")
    root = first_root(old_key, load_public(folder / "online" / "public.json"), now=NOW)
    with pytest.raises(DataError, match="may not follow"):
        next_root(root, other, now=NOW)
    second = next_root(root, old_key, now=NOW, new_key=other)
    assert read_root(second).signed.version == 2
    with pytest.raises(DataError, match="may not follow"):
        next_root(second, old_key, now=NOW)


@pytest.mark.parametrize("missing", ["old", "new"])
def test_a_root_with_a_new_key_is_signed_by_both(folder, tmp_path, missing):
    create_keys(tmp_path)
    keys = {
        "old": load_key(folder / "offline" / "root.pem"),
        "new": load_key(tmp_path / "offline" / "root.pem"),
    }
    root = first_root(keys["old"], load_public(folder / "online" / "public.json"), now=NOW)
    second = next_root(root, keys["old"], now=NOW, new_key=keys["new"])
    check_next(root, second)
    found = Metadata.from_bytes(second)
    del found.signatures[SSlibKey.from_crypto(keys[missing].public_key()).keyid]
    with pytest.raises(DataError, match="may not follow"):
        check_next(root, found.to_bytes())


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"x" * 100_000])
def test_bytes_that_are_no_root_are_refused(content):
    with pytest.raises(DataError, match="not a root of trust"):
        read_root(content)


def test_another_role_or_a_root_without_our_field_is_no_root(folder):
    root = first_root(
        load_key(folder / "offline" / "root.pem"), load_public(folder / "online" / "public.json"), now=NOW
    )
    found = Metadata.from_bytes(root)
    found.signed.unrecognized_fields.clear()
    with pytest.raises(DataError, match="not a root of trust"):
        read_root(found.to_bytes())


@given(st.binary(max_size=200))
def test_any_bytes_are_no_root(content):
    with pytest.raises(DataError, match="not a root of trust"):
        read_root(content)


@pytest.mark.parametrize(
    "fields",
    [
        {"digest": "../x"},
        {"length": 0},
        {"length": -1},
        {"length": True},
        {"length": 2**24 + 1},
        {"population": ""},
        {"population": "a/b"},
        {"population": None},
        {"version": -1},
        {"version": 1.0},
        {"ledger_counter": "1"},
        {"ledger_hash": "z"},
    ],
)
def test_an_impossible_target_cannot_be_made(fields):
    with pytest.raises(DataError):
        dataclasses.replace(target(1), **fields)


@pytest.mark.parametrize(
    "info", [target(1), dataclasses.replace(target(2), ledger_hash="", ledger_counter=0)]
)
def test_a_target_is_read_back_whole(info):
    assert TargetInfo.from_target(info.to_target()) == info
    assert info.path == package_path(info.digest)


D = target(1).digest
CUSTOM = target(1).to_target().unrecognized_fields


@pytest.mark.parametrize(
    "damaged",
    [
        TargetFile(16, {"sha256": D}, f"packages/{D}"),
        TargetFile(16, {"sha256": D}, f"packages/{D}", {"custom": []}),
        TargetFile(16, {"sha256": D}, f"packages/{D}", {"custom": {**CUSTOM["custom"], "run": "it"}}),
        TargetFile(16, {"sha256": D}, f"packages/{D}", {**CUSTOM, "other": 1}),
        TargetFile(16, {"sha256": "a" * 64}, f"packages/{D}", CUSTOM),
        TargetFile(16, {"sha512": D}, f"packages/{D}", CUSTOM),
        TargetFile(16, {"sha256": D}, D, CUSTOM),
        TargetFile(16, {"sha256": D}, "packages/../x", CUSTOM),
    ],
)
def test_a_target_of_another_shape_is_malformed(damaged):
    with pytest.raises(TrustError) as caught:
        TargetInfo.from_target(damaged)
    assert caught.value.block is Block.MALFORMED


@given(
    st.text(st.characters(exclude_characters="j"), max_size=40)
    | st.builds(
        "{}timestamp.json{}".format, st.sampled_from(["/", "../", "a", "\0", "1.", " "]), st.text(max_size=4)
    )
    | st.builds("{}.targets.json".format, st.text(st.characters(exclude_characters="123456789"), max_size=4))
)
def test_only_the_repositorys_own_names_pass(name):
    with pytest.raises(DataError, match="not a file"):
        check_name(name)


@pytest.mark.parametrize("name", ["timestamp.json", "1.root.json", "12.snapshot.json", "345.targets.json"])
def test_its_own_names_pass(name):
    assert check_name(name) == name
