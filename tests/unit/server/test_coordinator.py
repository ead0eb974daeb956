"""Which files of packages leave the store."""

from __future__ import annotations

from fedretrain.artifacts.package import read_manifest, references, write_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.server.coordinator import _files_of
from tests.package_cases import ABOUT, contents, weights


def test_a_damaged_manifest_keeps_no_other_package_from_devices(tmp_path):
    store = ContentStore(tmp_path / "packages")
    sound = write_package(store, contents(), **ABOUT)
    broken = write_package(store, contents(weights(1)), **{**ABOUT, "version": ABOUT["version"] + 1})
    whole = (tmp_path / "packages" / broken).read_bytes()
    (tmp_path / "packages" / broken).write_bytes(b"damaged")
    assert _files_of(store, sound) == {
        sound,
        *(one.digest for one in references(read_manifest(store, sound))),
    }
    assert _files_of(store, broken) == set()
    (tmp_path / "packages" / broken).write_bytes(whole)
    assert broken in _files_of(store, broken)
