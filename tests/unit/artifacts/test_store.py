"""Content-addressed files: whole or absent, hashed on every read, never outside the folder."""

import hashlib
import os

import pytest

from fedretrain.artifacts.encryption import EncryptedStore
from fedretrain.artifacts.store import ContentStore
from fedretrain.core.errors import DataError

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Cut(BaseException):
    """The machine stops here."""


STORES = {"plain": ContentStore, "encrypted": lambda root: EncryptedStore(root, bytes(32))}


@pytest.fixture(params=STORES)
def store(tmp_path, request):
    return STORES[request.param](tmp_path / "deep" / "store")


def path_of(store, digest=DIGEST):
    return store._root / digest


@pytest.mark.parametrize("content", [CONTENT, b"", bytes(range(256)) * 1000])
def test_what_was_put_is_got(store, content):
    digest = store.put(content)
    assert digest == hashlib.sha256(content).hexdigest()
    assert store.get(digest) == content
    assert store.has(digest)
    assert store.digests() == (digest,)


def test_put_is_idempotent_and_leaves_the_file_alone(store):
    store.put(CONTENT)
    inode = path_of(store).stat().st_ino
    assert store.put(CONTENT) == DIGEST
    assert path_of(store).stat().st_ino == inode
    assert [path.name for path in store._root.iterdir()] == [DIGEST]


def test_another_store_on_the_folder_sees_the_content(store, request):
    store.put(CONTENT)
    other = STORES[request.node.callspec.params["store"]](store._root)
    assert other.get(DIGEST) == CONTENT


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "", DIGEST[:-1], DIGEST + "0", DIGEST.upper(), DIGEST + "\n", "g" * 64, None],
)
def test_anything_but_a_digest_is_refused_by_name(store, name):
    for call in (store.get, store.has):
        with pytest.raises(DataError) as caught:
            call(name)
        assert repr(name) in caught.value.what


def test_missing_content_names_digest_file_and_mend(store):
    assert not store.has(DIGEST)
    with pytest.raises(DataError) as caught:
        store.get(DIGEST)
    assert DIGEST in caught.value.what
    assert caught.value.where == str(path_of(store))
    assert "fetch it" in caught.value.fix


@pytest.mark.parametrize("damage", [b"", b"weightz", b"weights "])
def test_damaged_content_is_refused_found_and_replaced(store, damage):
    sound = store.put(b"other")
    store.put(CONTENT)
    path_of(store).write_bytes(damage)
    with pytest.raises(DataError, match=DIGEST) as caught:
        store.get(DIGEST)
    assert caught.value.where == str(path_of(store))
    assert caught.value.fix
    assert store.verify() == (DIGEST,)
    assert store.get(sound) == b"other"
    store.put(CONTENT)
    assert store.verify() == ()
    assert store.get(DIGEST) == CONTENT


def test_a_folder_under_a_digest_is_an_error_and_damaged(store):
    path_of(store).mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        store.get(DIGEST)
    with pytest.raises(DataError, match="cannot be stored"):
        store.put(CONTENT)
    assert store.verify() == (DIGEST,)


@pytest.mark.parametrize("call", ["replace", "fsync", "fdopen"])
@pytest.mark.parametrize("leftover", [False, True])
def test_a_cut_leaves_nothing_under_the_digest(store, monkeypatch, call, leftover):
    def cut(*_args, **_kwargs):
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(os, call, cut)
        if leftover:  # a machine that stops tidies nothing up
            patch.setattr(os, "unlink", lambda _path: None)
        with pytest.raises(Cut):
            store.put(CONTENT)
    assert bool(list(store._root.iterdir())) == leftover
    assert not store.has(DIGEST)
    assert store.digests() == ()
    assert store.verify() == ()
    assert store.put(CONTENT) == DIGEST
    assert store.get(DIGEST) == CONTENT
    assert store.digests() == (DIGEST,)


def test_a_cut_after_the_rename_leaves_the_whole_content(store, monkeypatch):
    calls = []
    real = os.fsync

    def second_fails(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise Cut
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", second_fails)
        with pytest.raises(Cut):
            store.put(CONTENT)
    assert store.get(DIGEST) == CONTENT


def test_the_steps_are_file_sync_rename_folder_sync(store, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("replace"), replace(a, b)))
    store.put(CONTENT)
    assert steps == ["fsync", "replace", "fsync"]
    store.put(CONTENT)  # an earlier put may have been cut before the folder's fsync
    assert steps == ["fsync", "replace", "fsync", "fsync"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_is_one_line(store, monkeypatch, call):
    def full(*_args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(DataError, match="No space left on device") as caught:
            store.put(CONTENT)
    assert DIGEST in str(caught.value)
    assert list(store._root.iterdir()) == []


def test_a_root_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made"):
        ContentStore(tmp_path / "file")


def test_a_sweep_keeps_what_is_wanted_and_removes_leftovers(store):
    kept, gone = store.put(b"kept"), store.put(b"gone")
    (store._root / ".new-1").write_bytes(b"half")
    (store._root / "notes.txt").write_text("not ours")
    store.sweep([kept, DIGEST])
    assert store.digests() == (kept,)
    assert not store.has(gone)
    assert sorted(path.name for path in store._root.iterdir()) == [kept, "notes.txt"]


def test_one_content_is_removed_and_the_others_stay(store):
    kept, gone = store.put(b"kept"), store.put(b"gone")
    for _ in range(2):
        store.remove(gone)
    assert store.digests() == (kept,)
    with pytest.raises(DataError):
        store.remove("../x")


def test_a_sweep_that_cannot_remove_is_one_line(store):
    (store._root / DIGEST).mkdir()
    (store._root / DIGEST / "inside").write_text("")
    assert store.digests() == (DIGEST,)
    with pytest.raises(DataError, match="cannot be removed"):
        store.sweep([])
