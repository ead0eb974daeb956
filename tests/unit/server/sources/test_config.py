"""`[[mqtt]]` and `[[kafka]]` of server.toml: every mistake is one line with its key."""

from __future__ import annotations

import pytest

from fedretrain.core.errors import ConfigError
from fedretrain.server.config import read_server
from fedretrain.server.sources import config as module
from fedretrain.server.sources.config import Mechanism, check_source

BASE = 'folder = "state"\n[populations.pumps]\npolicy = "policy.yaml"\n'
MQTT = '[[mqtt]]\nname = "plant"\npopulation = "pumps"\naddress = "broker:8883"\nsamples = "plant/{device}/raw"\n'
KAFKA = '[[kafka]]\nname = "lake"\npopulation = "pumps"\nservers = ["a:9093", "b:9093"]\nsamples = "raw"\n'


def read(folder, text):
    (folder / "policy.yaml").write_text("format: 1\nname: x\n")
    (folder / "server.toml").write_text(BASE + text)
    return read_server(folder / "server.toml")


def test_both_kinds_are_read(tmp_path):
    more = 'authority = "ca.pem"\nusername = "u"\npassword_file = "secret"\n'
    found = read(
        tmp_path, MQTT + more + KAFKA + 'username = "u"\npassword_file = "/abs"\nmechanism = "PLAIN"\n'
    )
    mqtt, kafka = found.sources
    assert (mqtt.authority, mqtt.password_file) == (f"{tmp_path}/ca.pem", f"{tmp_path}/secret")
    assert (kafka.servers, kafka.mechanism) == (("a:9093", "b:9093"), Mechanism.PLAIN)
    assert not mqtt.plain


def test_a_password_is_the_first_line_of_its_file(tmp_path):
    (tmp_path / "secret").write_text("open sesame\n\n")
    (mqtt,) = read(tmp_path, MQTT + 'username = "u"\npassword_file = "secret"\n').sources
    assert mqtt.password == "open sesame"
    (tmp_path / "secret").unlink()
    with pytest.raises(ConfigError, match="secret"):
        _ = mqtt.password


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (MQTT.replace("plant/{device}/raw", "plant/raw"), "samples"),
        (MQTT.replace("plant/{device}/raw", "{device}/{device}"), "samples"),
        (MQTT.replace("plant/{device}/raw", "{device}/#"), "samples"),
        (MQTT.replace("plant/{device}/raw", ""), "samples"),
        (MQTT.replace('"pumps"', '"fans"'), "population"),
        (MQTT.replace("broker:8883", "broker"), "address"),
        (MQTT + "max_pending = 0\n", "max_pending"),
        (MQTT + "session_s = 0.0\n", "session_s"),
        (MQTT + 'key = "k"\n', "certificate"),
        (MQTT + 'username = "u"\n', "username"),
        (MQTT + 'plain = true\nauthority = "ca.pem"\n', "plain"),
        (MQTT + 'topic = "x"\n', "topic"),
        (MQTT + MQTT, "name"),
        (MQTT + KAFKA.replace("lake", "plant"), "name"),
        (KAFKA.replace("lake", "../x"), "name"),
        (KAFKA + 'records = "raw"\n', "records"),
        (KAFKA + 'mechanism = "none"\n', "mechanism"),
        (KAFKA.replace('["a:9093", "b:9093"]', "[]"), "servers"),
    ],
)
def test_a_mistake_is_named(tmp_path, text, named):
    with pytest.raises(ConfigError, match=named):
        read(tmp_path, text)


def test_what_only_this_machine_can_tell_is_checked(tmp_path, monkeypatch):
    (plain,) = read(tmp_path, MQTT).sources
    assert check_source(plain) == "broker:8883, TLS, for pumps"
    (source,) = read(tmp_path, KAFKA + 'authority = "ca.pem"\n').sources
    with pytest.raises(ConfigError, match=r"kafka\.lake\.authority"):
        check_source(source)
    (tmp_path / "ca.pem").write_text("")
    assert check_source(source) == "a:9093, b:9093, TLS, for pumps"
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"fedretrain\[kafka\]"):
        check_source(source)
