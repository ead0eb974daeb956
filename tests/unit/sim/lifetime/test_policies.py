"""Policy files by name and by path, modes side by side, and one line for whatever is wrong with them."""

from __future__ import annotations

import pytest

from fedretrain.core.errors import ConfigError
from fedretrain.retraining.config import Mode
from sim.configure import config_folder
from sim.lifetime.config import LifetimeConfig
from sim.lifetime.policies import load_policy, policies_of

SHIPPED = sorted(file.stem for file in (config_folder() / "policy").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_policy_is_one_and_says_its_name(name):
    assert load_policy(name).name == name


def test_a_file_of_ones_own_is_read_whatever_it_is_called(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: careful\nretraining: {mode: metric, interval_s: 5}\n")
    policy = load_policy(str(file))
    assert (policy.name, policy.retraining.mode, policy.retraining.interval_s) == ("careful", Mode.METRIC, 5)


def test_modes_differ_in_how_they_retrain_and_in_nothing_else():
    never, hybrid = policies_of(LifetimeConfig(policies=("never", "hybrid")))
    assert [never.name, hybrid.name] == ["never", "hybrid"]
    assert never.policy.with_mode(Mode.HYBRID) == hybrid.policy
    assert never.policy.retraining.mode is Mode.NEVER
    assert never.policy.digest != hybrid.policy.digest


def test_files_live_beside_modes(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text("name: mine\n")
    names = [one.name for one in policies_of(LifetimeConfig(policies=("scheduled", str(file), "watch")))]
    assert names == ["scheduled", "mine", "watch"]


def refusal(name):
    with pytest.raises(ConfigError) as caught:
        load_policy(str(name))
    return str(caught.value)


def test_an_unknown_name_is_answered_with_the_nearest_one(tmp_path):
    assert "did you mean 'default'?" in refusal("defualt")
    assert "default, gas" in refusal("qqq")
    assert "there is no policy" in refusal(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", b"", "it holds no keys"),
        ("a.yaml", b"- 1", "it holds no keys"),
        ("a.csv", b"\xff", "cannot be read"),
    ],
)
def test_a_file_without_a_policy_is_refused_as_a_server_does(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)


def test_a_misspelt_key_is_named_with_its_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("retraining: {intervall_s: 5}\n")
    message = refusal(file)
    assert "intervall_s" in message
    assert str(file) in message


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe\x00", b"just words"])
def test_a_file_that_is_no_policy_is_one_line(tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    message = refusal(file)
    assert str(file) in message
    assert "\n" not in message


def test_two_policies_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="named twice"):
        policies_of(LifetimeConfig(policies=("never", "never")))


def test_a_life_that_nobody_could_watch_is_refused(tmp_path):
    file = tmp_path / "blind.yaml"
    file.write_text("name: blind\ntelemetry: off\n")
    with pytest.raises(ConfigError, match="watched by its devices' telemetry"):
        load_policy(str(file))
