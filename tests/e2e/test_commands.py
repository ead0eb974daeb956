"""The commands beside a plain run, what a user brings, and what must come out the same twice."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import yaml

from sim.outputs import load_run
from sim.results import Outcome, schema
from tests.run_cases import FEW, QUICK, command, only_run, outcome, quick_run
from tests.whole_run import assert_whole, epsilon_of_ledger


def test_the_same_seed_twice_gives_the_same_bits(tmp_path):
    words = ["personalization=fedrep", "drift=mixed", "availability=markov", "privacy=central"]
    first = quick_run(tmp_path / "a", *words)
    assert outcome(first) == outcome(quick_run(tmp_path / "b", *words))
    other = quick_run(tmp_path / "c", *words, "seed=1")
    assert other.summary.arms[0].weights_digests["1"] != first.summary.arms[0].weights_digests["0"]


def test_where_it_runs_and_how_often_it_is_evaluated_change_no_weight(tmp_path):
    words = ["personalization=apfl", "privacy=central"]
    first = quick_run(tmp_path / "a", *words)
    second = quick_run(tmp_path / "b", *words, "campaign.evaluate_every=1", "runner.cache_bytes=0")
    assert first.summary.arms[0].weights_digests == second.summary.arms[0].weights_digests
    assert first.devices == second.devices


def test_several_seeds_give_intervals_and_the_largest_epsilon(tmp_path):
    words = [
        "seed=2",
        "seeds=3",
        "privacy=central",
        "availability=diurnal",
        "availability.dropout_before=0.5",
    ]
    run = quick_run(tmp_path, *words, "campaign.quorum_fraction=0.4", "campaign.num_rounds=6")
    (arm,) = run.summary.arms
    mean = arm.headline.global_model.score.mean
    assert run.summary.seeds == (2, 3, 4)
    assert mean.low < mean.value < mean.high
    assert set(arm.weights_digests) == {"2", "3", "4"}
    assert len(set(arm.weights_digests.values())) == 3
    last = {}
    for record in run.rounds:
        last[record.seed] = record.epsilon
    assert any(record.outcome is Outcome.ABANDONED for record in run.rounds)
    assert len(set(last.values())) > 1, "abandoned rounds are not charged, so seeds differ"
    assert last[2] < last[4]
    assert arm.privacy.epsilon == max(last.values()), "not that of the first seed, nor of the last"
    folder = only_run(tmp_path, "scale")
    assert {seed: epsilon_of_ledger(folder, arm, str(seed)) for seed in last} == last


def test_compare_reproduce_and_schema(tmp_path, capsys):
    first = quick_run(tmp_path / "a", "personalization=fedper", "privacy=central", "seeds=2")
    quick_run(tmp_path / "b", "personalization=fedper", "seeds=2")
    a, b = (only_run(tmp_path / name, "scale") for name in "ab")
    capsys.readouterr()
    assert command(["compare", str(a), str(b)]) == 0
    table = capsys.readouterr().out
    assert "fedper" in table
    assert "[" in table, "intervals"
    assert command(["reproduce", str(a)]) == 0
    said = capsys.readouterr().out
    assert "DIFFERENT" not in said
    assert "reproduced" in said.splitlines()[-1]
    again = next(path for path in (tmp_path / "a" / "scale").iterdir() if path != a)
    assert outcome(load_run(again)) == outcome(first)
    assert command(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()


def test_a_run_that_comes_out_otherwise_is_not_reproduced(tmp_path, capsys, monkeypatch):
    quick_run(tmp_path)
    folder = only_run(tmp_path, "scale")
    from sim.local_runner import LocalRunner

    train = LocalRunner.run

    def other(self, spec, cohort):
        return train(self, spec, cohort[:-1])

    monkeypatch.setattr(LocalRunner, "run", other)
    assert command(["reproduce", str(folder)]) == 1
    said = capsys.readouterr().out
    assert re.search(r"DIFFERENT\s+weights fedavg, seed 0", said)
    assert re.search(r"same\s+configuration", said)
    assert "not reproduced" in said


def test_cfg_prints_everything_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(["--cfg", *QUICK, "training.optimizer.lr=0.125"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["training"]["optimizer"]["lr"] == 0.125
    assert not list(tmp_path.iterdir())


def test_help_names_every_command(capsys):
    assert command(["--help"]) == 0
    said = capsys.readouterr().out
    for word in (
        "resume=",
        "--multirun",
        "compare",
        "reproduce",
        "task new",
        "task check",
        "schema",
        "--cfg",
    ):
        assert word in said


def test_a_reader_that_has_enough_ends_the_command_without_a_traceback():
    said = subprocess.Popen(
        [sys.executable, "-m", "sim", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said.stdout.close()
    with said.stderr:
        assert said.stderr.read() == b""
    assert said.wait() == 141


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory"),
    ],
)
def test_a_model_that_does_not_fit_into_the_memory_is_one_line(tmp_path, capsys, monkeypatch, error):
    def no_memory(*_, **__):
        raise error

    monkeypatch.setattr("sim.experiment.run_overrides", no_memory)
    assert command([]) == 2
    assert "too little memory" in capsys.readouterr().err


def test_a_task_of_ones_own_is_scaffolded_checked_and_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert command(["task", "new", "pump_health_e2e"]) == 0
    assert command(["task", "check", "pump_health_e2e"]) == 0
    assert "is sound" in capsys.readouterr().out
    words = ["--config-dir", "pump_health_e2e/conf", "experiment=pump_health_e2e", *FEW]
    assert command(words) == 0
    run = assert_whole((tmp_path / "outputs" / "latest").resolve())
    assert run.summary.num_devices == 4


OWN = {
    "model": ["model.kind=custom", "model.custom.path=tests.own_parts:model", "model.custom.options.width=5"],
    "model_each": [
        "model.kind=custom",
        "model.custom.path=tests.own_parts:Recurrent",
        "runner.executor=each",
    ],
    "aggregator": [
        "aggregation.kind=custom",
        "aggregation.path=tests.own_parts:half_mean",
        "aggregation.options.cohort=6",
    ],
    "drift": ["drift.specs=[{kind: custom, path: 'tests.own_parts:Hum', magnitude: 3}]"],
    "availability": ["availability.models=[custom]", "availability.custom.path=tests.own_parts:OfficeHours"],
    "data": [
        "dataset.name=tests.own_parts:load",
        "dataset.options.rows=40",
        "fleet.kind=natural",
        "fleet.num_devices=0",
    ],
}


@pytest.mark.parametrize("part", OWN)
def test_parts_of_the_users_own(tmp_path, part):
    words = OWN[part]
    if part == "data":
        words = [*words, "campaign.cohort_size=4"]
    if part == "availability":
        words = [*words, "campaign.num_rounds=20"]
    run = quick_run(tmp_path, *words)
    assert_whole(only_run(tmp_path, "scale"))
    reached = {
        "model": lambda: True,
        "model_each": lambda: True,
        "aggregator": lambda: (
            run.rounds[0].update_norm < 0.6 * quick_run(tmp_path / "b").rounds[0].update_norm
        ),
        "drift": lambda: all(record.drift_fraction == 1 for record in run.rounds),
        "availability": lambda: [r.replied > 0 for r in run.rounds] == [8 <= hour < 18 for hour in range(20)],
        "data": lambda: run.summary.num_devices == 6 and run.summary.dataset == "small",
    }
    assert reached[part]()


@pytest.fixture
def own_ray():
    """A Ray of this test alone."""
    import ray

    ray.shutdown()
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("own_ray")
def test_a_sweep_runs_each_combination_on_one_ray(tmp_path, capsys):
    words = [*QUICK, f"output_dir={tmp_path}", "training.optimizer.lr=0.01,0.1", "campaign.cohort_size=5,99"]
    assert command(["--multirun", *words]) == 2, "two of the four ask for more devices than there are"
    said = capsys.readouterr()
    assert said.out.count("error: a cohort of 99") == 2
    assert said.out.count("summary.json") == 2
    runs = [load_run(path) for path in (tmp_path / "scale").iterdir()]
    assert len(runs) == 2, "what was refused left no folder"
    assert len({run.summary.arms[0].weights_digests["0"] for run in runs}) == 2
    (arm,) = quick_run(tmp_path / "alone", "training.optimizer.lr=0.1", "campaign.cohort_size=5").summary.arms
    assert arm.weights_digests in [run.summary.arms[0].weights_digests for run in runs]


def test_a_run_that_trained_nothing_says_so(tmp_path, capsys):
    run = quick_run(tmp_path, "labels=late", "labels.loss_fraction=1")
    assert run.summary.arms[0].rounds == 0
    said = "fedavg: no round was released, so nothing was trained (18 no_data)"
    assert said in run.summary.caveats
    assert said in capsys.readouterr().out
