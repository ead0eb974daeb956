"""From command-line words to a configuration: each mistake is one line with what would do."""

from __future__ import annotations

import pytest

from fedretrain.core.errors import ConfigError
from fedretrain.training.config import MethodKind
from sim.configure import compose, config_folder, configure, sweep
from sim.schema import PrivacyKind, RunnerKind
from sim.sections import ModelKind
from tests.run_cases import QUICK

EXPERIMENTS = sorted(path.stem for path in (config_folder() / "experiment").glob("*.yaml"))


def test_the_default_is_the_watch():
    config = configure([])
    assert config.name == "watch"
    assert config.runner.kind is RunnerKind.RAY
    assert config.privacy.kind is PrivacyKind.CENTRAL
    assert set(config.arms) == {"global", "personalized", "private"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_shipped_experiment_is_sound(name):
    config = configure([f"experiment={name}"])
    assert config.name == name
    for arm in config.arms.values():
        configure([f"experiment={name}", *arm.overrides])


@pytest.mark.parametrize(
    "group", ["aggregation", "availability", "drift", "labels", "model", "personalization"]
)
def test_every_option_of_every_group_is_sound(group):
    options = sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
    assert options
    for option in options:
        compose(["experiment=scale", f"{group}={option}"])


def test_words_override_groups_and_keys():
    config = configure(
        ["experiment=scale", "personalization=apfl", "model=gru", "training.optimizer.lr=1e-3"]
    )
    assert config.personalization.kind is MethodKind.APFL
    assert config.model.kind is ModelKind.GRU
    assert config.training.optimizer.lr == 0.001


def test_options_of_a_factory_are_free():
    config = configure([*QUICK, "model.custom.options.new=3", "dataset.options.past_fraction=0.4"])
    assert config.model.custom.options == {"new": 3}
    assert config.dataset.options == {"past_fraction": 0.4}


def test_a_folder_of_the_users_comes_first(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nname: mine\nfleet: {kind: generated, num_devices: 7}\n"
    )
    config = configure(["experiment=mine"], folder=str(tmp_path))
    assert (config.name, config.fleet.num_devices) == ("mine", 7)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["campaign.num_round=3"], r"no key 'campaign.num_round' .* did you mean 'campaign.num_rounds'\?"),
        (["personalisation=apfl"], r"no key 'personalisation' .* did you mean 'personalization'\?"),
        (
            ["personalization=apfel"],
            r"no personalization 'apfel' .* did you mean 'apfl'\? known: apfl, ditto",
        ),
        (["experiment=wach"], r"no experiment 'wach' .* did you mean 'watch'\?"),
        (["runner=rai"], r"no runner 'rai' .* did you mean 'ray'\?"),
        (["training.optimizer.learning=3"], r"no key 'training.optimizer.learning'"),
        (["hello"], r"cannot be read \[hello\]"),
        (["campaign.num_rounds=[1"], r"cannot be read \[campaign.num_rounds=\[1\]"),
        (["campaign.num_rounds=many"], r"type int was expected, not 'many' \[campaign.num_rounds\]"),
        (["campaign.num_rounds=2.5"], r"type int was expected, not 2.5 \[campaign.num_rounds\]"),
        (["campaign.num_rounds=0"], r"at least 1 \[campaign.num_rounds\]"),
        (
            ["campaign.sampling=poison"],
            r"'poison' is not one of .* \[campaign.sampling\] - did you mean 'poisson'",
        ),
        (["campaign.quorum_fraction=2"], r"\[campaign.quorum_fraction\]"),
        (["campaign.deadline_s=0"], r"\[campaign.deadline_s\]"),
        (["campaign.over_selection=0.5"], r"\[campaign.over_selection\]"),
        (["campaign.score_devices=-1"], r"\[campaign.score_devices\]"),
        (["campaign=3"], r"campaign"),
        (["runner.num_workers=-1"], r"\[runner.num_workers\]"),
        (["runner.checkpoint_s=-1"], r"\[runner.checkpoint_s\]"),
        (["privacy=central", "privacy.clip_norm=0"], r"\[privacy.clip_norm\]"),
        (["privacy=central", "privacy.target_epsilon=0"], r"DP needs noise"),
        (["privacy.delta=-1"], r"\[privacy.delta\]"),
        (["model.custom.path=a:b"], r"kind=custom"),
        (["model.mlp.hidden=[0]"], r"\[model"),
        (["model.mlp.hiden=[3]"], r"did you mean 'model.mlp.hidden'"),
        (["model.kind=custom"], r"kind=custom"),
        (["training.optimizer.lr=0"], r"\[training.optimizer.lr\]"),
        (["training.epochs=0"], r"\[training.epochs\]"),
        (["drift.specs=[{kind: gain, magnitud: 1}]"], r"'magnitud' .* did you mean 'magnitude'"),
        (["availability.models=[diurnl]"], r"did you mean 'diurnal'"),
        (["availability.dropout_mid=7"], r"\[availability.dropout_mid\]"),
        (["labels.loss_fraction=7"], r"\[labels.loss_fraction\]"),
        (["network.up_bps=0"], r"\[network.up_bps\]"),
        (["seeds=0"], r"\[seeds\]"),
        (["name=a/b"], r"\[name\]"),
        (["name=.."], r"\[name\]"),
        (["name=latest"], r"\[name\]"),
        (["aggregation.server.kind=adam", "aggregation.server.momentum=0.9"], r"adam takes no momentum"),
        (["aggregation.server.lr=-1"], r"\[aggregation.server.lr\]"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_each_mistake_is_one_line(words, match):
    with pytest.raises(ConfigError, match=match) as refused:
        configure(["experiment=scale", *words])
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"no such folder .*nowhere"):
        configure([], folder="nowhere")


def test_a_sweep_is_every_combination():
    found = list(sweep(["a=1,2", "b=x", "c.d=[1],[2,3]"]))
    assert found == [
        ["a=1", "b=x", "c.d=[1]"],
        ["a=1", "b=x", "c.d=[2,3]"],
        ["a=2", "b=x", "c.d=[1]"],
        ["a=2", "b=x", "c.d=[2,3]"],
    ]
    assert list(sweep(["a=range(1,4)"])) == [["a=1"], ["a=2"], ["a=3"]]


def test_a_comma_in_quotes_is_no_sweep():
    assert list(sweep(["name='a,b'"])) == [["name='a,b'"]]


def test_a_sweep_that_cannot_be_read_is_one_line():
    with pytest.raises(ConfigError, match=r"cannot be read \[a=\[1\]"):
        list(sweep(["a=[1"]))


@pytest.mark.parametrize("limit", ["campaign.separation=2", "campaign.max_participations=3"])
def test_limits_that_a_sampling_would_not_keep_are_refused(limit):
    with pytest.raises(ConfigError, match="keep no separation"):
        configure(["experiment=scale", "campaign.sampling=poisson", limit])
    assert configure(["experiment=scale", "campaign.sampling=min_separation", limit])
