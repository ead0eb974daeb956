"""Whom a campaign's server app may ask behind each SuperNode's key."""

from __future__ import annotations

import json

from fedretrain.server.fleet import Device, Standing, Traits
from fedretrain.server.nodes_file import write_nodes


def _device(number, key, standing=Standing.ACTIVE):
    return Device("p", f"d{number}", number, "", standing, Traits(node_key=key))


FLEET = (
    _device(0, "one"),
    _device(1, "one"),
    _device(2, "two"),
    _device(3, ""),
    _device(4, "three", Standing.REVOKED),
)


def test_devices_stand_behind_their_agents_key_and_who_may_not_speak_behind_none(tmp_path):
    path = tmp_path / "flower" / "nodes.json"
    assert write_nodes(path, FLEET, frozenset()) == {"one", "two"}
    assert json.loads(path.read_text()) == {"one": [0, 1], "two": [2]}


def test_who_is_kept_out_is_asked_no_more_and_its_agent_stays_let_in(tmp_path):
    path = tmp_path / "nodes.json"
    write_nodes(path, FLEET, frozenset())
    assert write_nodes(path, FLEET, frozenset({1, 2})) == {"one", "two"}
    assert json.loads(path.read_text()) == {"one": [0], "two": []}


def test_the_file_is_written_where_it_changes_alone(tmp_path):
    path = tmp_path / "nodes.json"
    write_nodes(path, FLEET, frozenset())
    before = path.stat().st_ino
    write_nodes(path, FLEET, frozenset())
    assert path.stat().st_ino == before
    write_nodes(path, FLEET, frozenset({0}))
    assert path.stat().st_ino != before
