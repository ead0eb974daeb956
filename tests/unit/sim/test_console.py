"""What a finished run says on the terminal, and what a sweep and a repetition come to."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from fedretrain.core.errors import ConfigError
from sim.console import announce
from sim.multirun import multirun
from sim.outputs import RunFolder
from sim.report.words import NBSP, Words
from sim.reproduce import _compared
from sim.results import Metric
from tests.unit.sim.record_factory import SCOPE, STARTED, make_run


def said(run, tmp_path):
    out = io.StringIO()
    announce(run, RunFolder.create(tmp_path, "watch", STARTED), out)
    return out.getvalue()


def test_the_table_names_arms_populations_and_epsilon(tmp_path):
    text = said(make_run(), tmp_path)
    lines = text.strip().splitlines()
    assert lines[0].split("  ")[0] == "arm"
    assert "global accuracy" in lines[0]
    assert any(line.startswith("Personalized + DP") and line.endswith("7.05") for line in lines)
    assert any("virtual" in line for line in lines)
    assert any("cold start" in line for line in lines)
    assert f"Personalized + DP: {SCOPE}" in lines, "every printed epsilon names its scope"
    assert any("80 devices are few" in line for line in lines)
    assert lines[-1].startswith("summary")
    assert lines[-2].startswith("report")


def test_one_seed_has_an_interval_over_devices_and_regression_its_unit(tmp_path):
    assert "[" in said(make_run(num_seeds=1), tmp_path)
    text = said(make_run(metric=Metric.RMSE, num_seeds=2), tmp_path)
    assert "RMSE" in text
    assert "%" not in text.splitlines()[2]


def test_an_example_level_epsilon_says_whom_it_protects_too(tmp_path):
    run = make_run()
    arms = tuple(replace(arm, example_epsilon=3.2) for arm in run.summary.arms)
    text = said(replace(run, summary=replace(run.summary, arms=arms)), tmp_path)
    assert "epsilon 3.2 at delta 1e-05 for one training example of a device" in text


def test_no_difference_is_neither_better_nor_worse():
    say = Words(Metric.ACCURACY, "")
    assert say.change(0.0) == f"0.0{NBSP}points"
    assert say.change(0.031) == f"3.1{NBSP}points better"
    assert say.change(-0.031) == f"3.1{NBSP}points worse"


def test_a_mean_number_of_devices_is_rounded(tmp_path):
    run = make_run()
    (arm, *rest) = run.summary.arms
    found = tuple(replace(population, num_devices=17 + 1 / 3) for population in arm.populations)
    arms = (replace(arm, populations=found), *rest)
    assert "17.3 real" in said(replace(run, summary=replace(run.summary, arms=arms)), tmp_path)


def test_without_privacy_no_epsilon_is_printed(tmp_path):
    text = said(make_run(arms=("fedavg",)), tmp_path)
    assert "epsilon" in text.splitlines()[1], "the column is there"
    assert "7.05" not in text


def test_a_repetition_compares_data_configuration_weights_epsilon_and_scores():
    run = make_run(num_seeds=2)
    assert all(was == now for _, was, now in _compared(run, run))
    names = [name for name, _, _ in _compared(run, run)]
    assert names[:2] == ["data", "configuration"]
    assert "weights fedavg, seed 1" in names
    assert "epsilon personal_dp" in names
    assert names[-1] == "device scores"


def test_any_difference_is_seen():
    run = make_run(num_seeds=1)

    def different(other):
        return [name for name, was, now in _compared(run, other) if was != now]

    assert different(replace(run, summary=replace(run.summary, data_digest="0" * 64))) == ["data"]
    assert different(replace(run, devices=run.devices[1:])) == ["device scores"]
    (arm, *rest) = run.summary.arms
    arms = (replace(arm, weights_digests={"0": "f" * 64}), *rest)
    assert different(replace(run, summary=replace(run.summary, arms=arms))) == ["weights fedavg, seed 0"]
    cheaper = tuple(
        replace(a, privacy=a.privacy and replace(a.privacy, epsilon=7.0)) for a in run.summary.arms
    )
    assert different(replace(run, summary=replace(run.summary, arms=cheaper))) == ["epsilon personal_dp"]


def test_a_sweep_over_nothing_is_refused_before_ray_starts():
    with pytest.raises(ConfigError, match="nothing to sweep over"):
        multirun(["experiment=scale", "seed=1"])
    with pytest.raises(ConfigError, match="a sweep cannot be resumed"):
        multirun(["resume=here", "seed=1,2"])
    with pytest.raises(ConfigError, match=r"no key 'training\.optimizer\.la'"):
        multirun(["experiment=scale", "training.optimizer.la=1,2"])
