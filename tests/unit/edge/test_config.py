"""`edge.toml`: what is read, and that every mistake is one line with its key."""

from __future__ import annotations

import pytest

from fedretrain.core.errors import ConfigError
from fedretrain.edge.config import read_edge

GOOD = """
folder = "kept"
enrol = "coordinator.example:7444"
authority = "ca.pem"
slots_kept = 3
[[devices]]
name = "pump-1"
token_file = "pump-1.token"
trains = true
[[devices]]
name = "pump-2"
token = "secret"
[api]
http = "127.0.0.1:0"
socket = "edge.sock"
[health]
latency_ratio = 2.0
[health.errors]
limit = 0.1
allowed = 0.05
[refit.keep]
tolerance = 0.01
"""


def read(folder, text):
    path = folder / "edge.toml"
    path.write_text(text)
    return read_edge(path)


def test_everything_is_read_and_paths_are_relative_to_the_file(tmp_path):
    config = read(tmp_path, GOOD)
    assert config.folder == str(tmp_path / "kept")
    assert config.devices[0].token_file == str(tmp_path / "pump-1.token")
    assert config.api.socket == str(tmp_path / "edge.sock")
    assert (config.slots_kept, config.health.errors.limit, config.refit.keep.tolerance) == (3, 0.1, 0.01)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("slots_kept = 3", "slots_kept = 0", "slots_kept"),
        ("slots_kept = 3", "slots_kpet = 3", "slots_kpet"),
        ("slots_kept = 3", "heartbeat_s = 0.0", "heartbeat_s"),
        ("slots_kept = 3", "heartbeat_s = 86401.0", "an order waits so long until this device hears of it"),
        ('name = "pump-2"', 'name = "pump-1"', "two devices"),
        ('name = "pump-2"', 'name = "../x"', "no name"),
        ('token = "secret"', 'token = "s"\ntoken_file = "x"', "two tokens"),
        ('http = "127.0.0.1:0"', 'http = "0.0.0.0:80"', "loopback"),
        ('http = "127.0.0.1:0"', 'http = "192.168.0.2:80"', "loopback"),
        ('http = "127.0.0.1:0"', 'http = "127.0.0.1"', "host:port"),
        ("latency_ratio = 2.0", "latency_ratio = 0.5", "latency_ratio"),
        ('enrol = "coordinator.example:7444"', 'enrol = "nowhere"', "enrol"),
        ('folder = "kept"', "folder = [", "TOML"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path, old, new, key):
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, GOOD.replace(old, new))
    assert key in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        read_edge(tmp_path / "nowhere.toml")
