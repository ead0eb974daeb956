"""What a run will do: its arms, and how a run is found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.training.config import MethodKind
from sim.plan import PLAN, Plan, plan_run, resumed_plan
from sim.schema import PrivacyKind
from tests.run_cases import HARD, QUICK

ARMS = ('++arms.plain.overrides=["personalization=fedavg"]', "++arms.own.title=Own layers")


def test_an_arm_is_the_run_with_its_own_words():
    plan = plan_run([*QUICK, "personalization=fedper", *ARMS])
    assert [(arm.name, arm.title) for arm in plan.arms] == [("plain", "plain"), ("own", "Own layers")]
    kinds = [arm.config.personalization.kind for arm in plan.arms]
    assert kinds == [MethodKind.FEDAVG, MethodKind.FEDPER]
    assert all(arm.config.fleet == plan.config.fleet for arm in plan.arms)


def test_without_arms_the_run_is_one_arm_named_by_its_method():
    (arm,) = plan_run([*QUICK, "personalization=ditto"]).arms
    assert (arm.name, arm.title) == ("ditto", "ditto")


@pytest.mark.parametrize(
    "word", ["privacy.target_epsilon=4", "privacy.noise_multiplier=1", "privacy.amplified=true"]
)
def test_settings_of_a_privacy_that_no_arm_has_are_refused(word):
    with pytest.raises(ConfigError, match="nothing in this run is differentially private"):
        plan_run([*QUICK, word])
    plan_run([*QUICK, word, "privacy=central", "privacy.clip_norm=1"])
    plan_run([word])  # the default run: one of its arms is private


def test_the_shipped_default_has_three_arms_one_of_them_private():
    plan = plan_run([])
    kinds = {arm.name: arm.config.privacy.kind for arm in plan.arms}
    assert kinds == {
        "global": PrivacyKind.NONE,
        "personalized": PrivacyKind.NONE,
        "private": PrivacyKind.CENTRAL,
    }


def test_seeds_count_from_the_first():
    assert plan_run([*QUICK, "seed=5", "seeds=3"]).seeds == (5, 6, 7)


def test_a_plan_reads_back_equal():
    plan = plan_run([*QUICK, *HARD, *ARMS, "model.custom.options.extra={a: [1, 2], b: x}"])
    assert Plan.from_yaml(plan.to_yaml(), Path("plan.yaml")) == plan


@pytest.mark.parametrize("text", ["", "[1, 2", "a: 1", "experiment: {}\nresolved_arms: 3", "42"])
def test_another_text_is_no_plan(text):
    with pytest.raises(DataError, match=r"not a configuration of this version.*plan.yaml"):
        Plan.from_yaml(text, Path("plan.yaml"))


def test_a_plan_with_an_unknown_key_is_refused():
    text = plan_run(QUICK).to_yaml().replace("num_rounds:", "rounds:")
    with pytest.raises(DataError, match="no key 'rounds'"):
        Plan.from_yaml(text, Path("plan.yaml"))


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("++arms.a-b.title=x", "an arm is called 'a-b'"),
        ('++arms.a.overrides=["personalisation=apfl"]', "no key 'personalisation'"),
        ("++arms.a.overrides=apfl", "a list was expected"),
        ("++arms.a.titel=x", "did you mean 'title'"),
        ('++arms.a.overrides=["seed=3"]', r"an arm cannot change seed \[arms.a.overrides\]"),
        ('++arms.a.overrides=["runner=ray"]', "an arm cannot change runner.kind"),
        ('++arms.a.overrides=["output_dir=elsewhere"]', "an arm cannot change output_dir"),
    ],
)
def test_an_arm_that_cannot_be_is_one_line(word, match):
    with pytest.raises(ConfigError, match=match):
        plan_run([*QUICK, word])


def test_a_resumed_plan_is_the_one_that_was_written(tmp_path):
    plan = plan_run([*QUICK, *ARMS])
    (tmp_path / PLAN).parent.mkdir()
    (tmp_path / PLAN).write_text(plan.to_yaml())
    assert resumed_plan(str(tmp_path), [f"resume={tmp_path}"]) == (plan, tmp_path)


def test_a_resumed_run_keeps_its_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"keeps its configuration \[seed=3\]"):
        resumed_plan(str(tmp_path), ["seed=3", f"resume={tmp_path}"])


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(DataError, match=r"no checkpoint: No such file.* interrupted run"):
        resumed_plan(str(tmp_path), [])
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(DataError, match="this run is finished"):
        resumed_plan(str(tmp_path), [])
