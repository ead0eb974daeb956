from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fedretrain.core.errors import ConfigError
from fedretrain.core.toml_file import check_address, read_toml, under

if TYPE_CHECKING:
    from pathlib import Path


def test_the_values_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('folder = "x"\n[tls]\ncert = "c.pem"\n')
    assert read_toml(file) == {"folder": "x", "tls": {"cert": "c.pem"}}


@pytest.mark.parametrize("content", [b"folder = ", b"\xff\xfe"])
def test_what_is_no_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read") as found:
        read_toml(file)
    assert str(file) in str(found.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        read_toml(tmp_path / "none.toml")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Is a directory .* name a file"):
        read_toml(tmp_path)


def test_a_path_is_relative_to_the_file(tmp_path: Path) -> None:
    assert under(tmp_path, "keys/a.pem") == str(tmp_path / "keys" / "a.pem")
    assert under(tmp_path, "/etc/a.pem") == "/etc/a.pem"
    assert under(tmp_path, "") == ""


@pytest.mark.parametrize("value", ["localhost:1", "10.0.0.1:65535", "[::1]:8080"])
def test_addresses(value: str) -> None:
    check_address("listen", value)


@pytest.mark.parametrize("value", ["", "localhost", "localhost:", ":80", "a:65536", "a b:1", "http://a:1"])
def test_what_is_no_address_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        check_address("listen", value)
