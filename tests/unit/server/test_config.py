"""server.toml: what is read, and each mistake in one line with its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedretrain.coordinator.roles import Right
from fedretrain.core.errors import ConfigError
from fedretrain.edge.config import read_edge
from fedretrain.server.config import read_server

WHOLE = """
folder = "state"
[populations.pumps]
policy = "policy.yaml"
"""


def _written(folder, text):
    (folder / "policy.yaml").write_text("name: x\n")
    path = folder / "server.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path):
    config = read_server(_written(tmp_path, WHOLE))
    assert config.folder == str(tmp_path / "state")
    assert config.populations["pumps"].policy == str(tmp_path / "policy.yaml")
    assert config.populations["pumps"].training == ""
    assert config.database_url == f"sqlite:///{tmp_path}/state/fedretrain.db"


def test_a_database_that_is_named_is_taken(tmp_path):
    url = "postgresql+psycopg://me@host/fleet"
    assert read_server(_written(tmp_path, f'database = "{url}"\n' + WHOLE)).database_url == url


def test_roles_say_who_may_do_what(tmp_path):
    roles = '[roles.release]\nmay = ["approve_champion"]\npeople = ["anna"]\npopulations = ["pumps"]\n'
    config = read_server(_written(tmp_path, WHOLE + roles))
    assert config.roles_of("pumps").lacks("anna", Right.APPROVE_CHAMPION) == ""
    assert "which anna has" in config.roles_of("pumps").lacks("ben", Right.APPROVE_CHAMPION)
    with pytest.raises(ConfigError, match="no population fans") as caught:
        read_server(_written(tmp_path, WHOLE + roles.replace("pumps", "fans")))
    assert "roles.release.populations" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("folder = [", "cannot be read"),
        ("", "folder"),
        ('folder = "state"', "populations"),
        (WHOLE.replace("pumps", '"../x"'), "populations"),
        (WHOLE.replace("policy.yaml", "nothing.yaml"), "populations.pumps.policy"),
        (WHOLE + 'trainig = "x"', "trainig"),
        (WHOLE + '[listen]\ncontrol = "nowhere"', "listen.control"),
        (WHOLE + '[listen]\ncontrol = "a:99999"', "listen.control"),
        (WHOLE + "[listen]\nheartbeat_s = 0.0", "listen.heartbeat_s"),
        (
            WHOLE + "[listen]\nheartbeat_s = 86401.0",
            "86401 s is too long: an order waits so long until a device hears of it [",
        ),
        (WHOLE + "[listen]\nheartbeat_s = 1e21", "listen.heartbeat_s] - give 86400 at most"),
        (WHOLE + "[listen]\nhosts = []", "listen.hosts"),
        (WHOLE + "[quota]\ncalls_per_s = 0.0", "quota.calls_per_s"),
        (WHOLE + "[quota]\nburst_calls = 0", "quota.burst_calls"),
        (WHOLE + "[quota]\nbytes_per_s = -1.0", "quota.bytes_per_s"),
        (WHOLE + "[quota]\nburst_bytes = 1000", "quota.burst_bytes"),
        (WHOLE + '[flower]\nfleet = "x"', "flower.fleet"),
        (WHOLE + "[populations.pumps.watching]\ntick_s = -1.0", "tick_s"),
        (
            WHOLE + "[populations.pumps.watching]\ntick_s = 1e21",
            "pumps.watching.tick_s] - give 0.01 to 86400",
        ),
        (WHOLE + "[populations.pumps.watching]\nslot_s = 1e-9", "pumps.watching.slot_s] - give 1 to 86400"),
        (WHOLE + "[populations.pumps.watching]\nslot_s = 1e21", "pumps.watching.slot_s"),
        (
            WHOLE + "[populations.pumps.watching]\nsettle_s = 1e21",
            "nobody judges what a new champion does for so long [",
        ),
        (
            WHOLE + "[populations.pumps.watching]\nrecord_s = 4e7",
            "pumps.watching.record_s] - give 31622400 at most",
        ),
        (WHOLE + "[populations.pumps.watching]\nrecord_s = 0.0", "pumps.watching.record_s"),
        (WHOLE + "[populations.pumps.watching]\ninputs_s = 1e21", "kept as the record of inputs ["),
        (WHOLE + '[at_rest]\nkey_file = "a"\nkey_env = "B"', "server.toml.at_rest] - name one source"),
    ],
)
def test_each_mistake_is_named(tmp_path, text, named):
    with pytest.raises(ConfigError) as error:
        read_server(_written(tmp_path, text))
    assert named in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        read_server(tmp_path / "server.toml")


@pytest.mark.parametrize("url", ["mysql://a/b", "nonsense"])
def test_a_database_that_is_not_supported_is_named(tmp_path, url):
    with pytest.raises(ConfigError, match="database"):
        read_server(_written(tmp_path, f'database = "{url}"\n' + WHOLE))


def test_the_files_of_the_readme_are_read(tmp_path):
    readme = Path(__file__).parents[3] / "README.md"
    server, edge = (text.partition("```")[0] for text in readme.read_text().split("```toml\nfolder")[1:])
    for name in ("policy.yaml", "training.yaml", "features.json"):
        (tmp_path / name).touch()
    (tmp_path / "pool").mkdir()
    (tmp_path / "server.toml").write_text("folder" + server)
    assert list(read_server(tmp_path / "server.toml").populations) == ["pumps"]
    (tmp_path / "edge.toml").write_text("folder" + edge)
    assert [device.name for device in read_edge(tmp_path / "edge.toml").devices] == ["pump-1"]
