"""Stores as a configuration wants them: encrypted unless it says development, and one line where the key is lost or wrong."""

from __future__ import annotations

import base64
import os
import sys

import pytest

from fedretrain.artifacts.at_rest import AtRest, StorePlace
from fedretrain.artifacts.encryption import EncryptedStore
from fedretrain.core.build import build, plain
from fedretrain.core.errors import ConfigError, DataError

KEY = base64.b64encode(bytes(range(32))).decode()
CONTENT = b"weights that nobody shall read " * 100


def _place(folder, **at_rest):
    return StorePlace(str(folder / "store"), AtRest(**at_rest), str(folder / "keys" / "store.key"))


def _on_disk(folder):
    return b"".join(path.read_bytes() for path in (folder / "store").iterdir())


def test_files_are_encrypted_unless_development_is_said(tmp_path):
    digest = _place(tmp_path).open().put(CONTENT)
    assert CONTENT[:31] not in _on_disk(tmp_path)
    assert _place(tmp_path).open().get(digest) == CONTENT
    assert (tmp_path / "keys" / "store.key").stat().st_mode & 0o777 == 0o600
    open_folder = tmp_path / "open"
    _place(open_folder, development=True).open().put(CONTENT)
    assert _on_disk(open_folder) == CONTENT


@pytest.mark.parametrize("source", ["key_file", "key_env", "key_command"])
def test_the_key_comes_from_where_it_is_said(tmp_path, monkeypatch, source):
    file = tmp_path / "elsewhere.key"
    monkeypatch.setenv("MY_KEY", KEY)
    given = {
        "key_file": str(file),
        "key_env": "MY_KEY",
        "key_command": (sys.executable, "-c", f"print({KEY!r})"),
    }[source]
    place = _place(tmp_path, **{source: given})
    digest = place.open().put(CONTENT)
    assert place.open().get(digest) == CONTENT
    assert not (tmp_path / "keys").exists()
    if source != "key_file":
        assert EncryptedStore(tmp_path / "store", bytes(range(32))).get(digest) == CONTENT
    else:
        assert len(file.read_bytes()) == 32


def test_a_lost_key_is_one_line_and_no_new_one_is_made(tmp_path):
    _place(tmp_path).open().put(CONTENT)
    file = tmp_path / "keys" / "store.key"
    file.unlink()
    with pytest.raises(ConfigError, match="the key of the stored files is lost"):
        _place(tmp_path).open()
    assert not file.exists()


def test_a_wrong_key_is_one_line_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    _place(tmp_path, key_env="MY_KEY").open().put(CONTENT)
    monkeypatch.setenv("MY_KEY", base64.b64encode(os.urandom(32)).decode())
    with pytest.raises(DataError, match="not the one under which") as caught:
        _place(tmp_path, key_env="MY_KEY").open()
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("text", ["", "c2hvcnQ=", "no base64!", KEY[:-8]])
def test_what_is_no_key_is_named_without_being_shown(tmp_path, monkeypatch, text):
    monkeypatch.setenv("MY_KEY", text)
    with pytest.raises(ConfigError, match="environment's MY_KEY is no key") as caught:
        _place(tmp_path, key_env="MY_KEY").open()
    assert not text or text not in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("/nowhere/unseal",), "cannot be run"),
        ((sys.executable, "-c", "raise SystemExit(3)"), "ended with 3"),
        ((sys.executable, "-c", "print('x')"), "is no key"),
    ],
)
def test_a_command_that_gives_no_key_is_named(tmp_path, words, named):
    with pytest.raises(ConfigError, match=named) as caught:
        _place(tmp_path, key_command=words).open()
    assert caught.value.where == "at_rest.key_command"


def test_a_key_that_others_may_read_is_refused(tmp_path):
    _place(tmp_path).open()
    (tmp_path / "keys" / "store.key").chmod(0o644)
    with pytest.raises(DataError, match="mode 644"):
        _place(tmp_path).open()


def test_a_folder_stays_as_it_was_begun(tmp_path):
    _place(tmp_path).open()
    with pytest.raises(DataError, match="are encrypted, and the configuration says development"):
        _place(tmp_path, development=True).open()
    other = tmp_path / "other"
    _place(other, development=True).open().put(CONTENT)
    with pytest.raises(DataError, match="begun in development"):
        _place(other).open()


def test_a_place_goes_to_another_process_without_a_key(tmp_path):
    place = _place(tmp_path, key_env="MY_KEY")
    assert build(StorePlace, plain(place)) == place


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"key_file": "a", "key_env": "B"}, "at_rest"),
        ({"key_env": "B", "key_command": ["c"]}, "at_rest"),
        ({"development": True, "key_file": "a"}, "at_rest.development"),
    ],
)
def test_what_contradicts_itself_names_its_key(values, key):
    with pytest.raises(ConfigError) as caught:
        build(AtRest, values)
    assert caught.value.where == key
