"""Every experiment at small size, from the command line to the run folder."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import yaml

from fedretrain.core import params
from fedretrain.privacy.accountant import epsilon
from fedretrain.privacy.event import PrivacyEvent
from sim.outputs import load_run
from sim.results import ArmSummary, Outcome, schema
from tests.run_cases import QUICK, command, only_run, outcome, quick_run

ROOT = Path(__file__).resolve().parents[2]
FEW = ("runner=local", "campaign.num_rounds=2", "campaign.evaluate_every=1", "tracking_uri=off")
FILES = ["config.yaml", "devices.parquet", "report.html", "rounds.parquet", "summary.json"]


class Loads(HTMLParser):
    """What a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            fetched = name in {"src", "srcset", "data", "poster"} or (
                name == "href" and tag in {"link", "use", "image"}
            )
            if fetched and value and not value.startswith(("data:", "#")):
                self.found.append((tag, name, value[:80]))


def assert_whole(folder: Path, *, private: bool = False):
    """Every file of a run is there, agrees with the others, and keeps what the schema promises."""
    run = load_run(folder)
    assert [name for name in FILES if not (folder / name).is_file()] == []
    assert not (folder / "checkpoint").exists()
    assert not list(folder.rglob(".*")), "no half-written file is left"
    summary = json.loads((folder / "summary.json").read_text())
    _fits(summary, schema(), schema()["$defs"], "summary")
    assert len(pd.read_parquet(folder / "rounds.parquet")) == len(run.rounds) > 0
    assert len(pd.read_parquet(folder / "devices.parquet")) == len(run.devices) > 0
    _assert_self_contained((folder / "report.html").read_text())
    assert yaml.safe_load((folder / "config.yaml").read_text())["resolved_arms"].keys() == {
        arm.arm for arm in run.summary.arms
    }
    for arm in run.summary.arms:
        for seed, digest in arm.weights_digests.items():
            stored = safetensors.numpy.load_file(folder / "weights" / f"{arm.arm}-{seed}.safetensors")
            assert params.digest(stored) == digest
            assert all(np.isfinite(leaf).all() for leaf in stored.values())
        best = arm.headline
        assert best is not None
        assert np.isfinite(best.global_model.score.mean.value)
        assert arm.rounds > 0
        assert arm.bytes_up > 0
        charged = {s: epsilon_of_ledger(folder, arm, s) for s in arm.weights_digests} if arm.privacy else {}
        assert max(charged.values(), default=None) == (arm.privacy.epsilon if arm.privacy else None)
    assert any(arm.privacy is not None for arm in run.summary.arms) == private
    assert {file.parent.name for file in folder.rglob("*.jsonl")} == ({"ledger"} if private else set())
    return run


def epsilon_of_ledger(folder: Path, arm: ArmSummary, seed: str) -> float:
    """Epsilon from the file alone: what an auditor would do."""
    lines = (folder / "ledger" / f"{arm.arm}-{seed}.jsonl").read_text().splitlines()
    return epsilon([PrivacyEvent.from_dict(json.loads(line)) for line in lines], arm.privacy.delta)


def _assert_self_contained(html: str) -> None:
    page = Loads()
    page.feed(html)
    assert page.found == []
    assert not re.findall(r"url\(\s*['\"]?(?!data:|#)[^)]{0,40}|@import", html)
    assert not re.findall(r"\bfetch\(|XMLHttpRequest|importScripts", html)
    assert "<svg" in html or "data:image" in html


def _fits(value, hint, definitions, where):
    """A small reader of the JSON Schema that the project publishes: it must accept what the project writes."""
    if "$ref" in hint:
        hint = definitions[hint["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in hint:
        options = [o for o in hint["anyOf"] if o != {"type": "null"}]
        if value is not None:
            _fits(value, options[0], definitions, where)
        return
    if "enum" in hint:
        assert value in hint["enum"], where
        return
    kinds = hint["type"] if isinstance(hint["type"], list) else [hint["type"]]
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "number": (int, float),
        "integer": int,
        "boolean": bool,
        "null": type(None),
    }
    assert any(isinstance(value, types[kind]) for kind in kinds), f"{where} is {value!r}, not {kinds}"
    if isinstance(value, list):
        for i, item in enumerate(value):
            _fits(item, hint["items"], definitions, f"{where}[{i}]")
    if isinstance(value, dict):
        known = hint.get("properties", {})
        assert set(hint.get("required", ())) <= set(value), where
        for key, item in value.items():
            inner = known[key] if key in known else hint["additionalProperties"]
            assert isinstance(inner, dict), f"{where}.{key} is not in the schema"
            _fits(item, inner, definitions, f"{where}.{key}")


def small(tmp_path, *words):
    assert command([*FEW, f"output_dir={tmp_path}", *words]) == 0
    return only_run(tmp_path, next(w.split("=")[1] for w in words if w.startswith("experiment=")))


def test_watch_compares_three_arms_on_real_and_virtual_devices(tmp_path, capsys):
    words = ["fleet.num_devices=36", "campaign.cohort_size=10", "campaign.evaluate_devices=36"]
    run = assert_whole(small(tmp_path, "experiment=watch", *words), private=True)
    assert [arm.title for arm in run.summary.arms] == ["Global FedAvg", "Personalized", "Personalized + DP"]
    assert (run.summary.num_devices, run.summary.num_virtual_devices) == (36, 16)
    assert any("virtual" in caveat for caveat in run.summary.caveats)
    plain, personal, private = run.summary.arms
    assert plain.headline.personalized is None
    assert personal.headline.personalized is not None
    assert 0 < private.privacy.epsilon <= 8
    assert private.privacy.unit == "device"
    assert private.privacy.advice, "36 devices are too few, and the run says so"
    assert {str(p.population) for p in personal.populations} <= {
        "real",
        "virtual",
        "cold_start_real",
        "cold_start_virtual",
    }
    said = capsys.readouterr().out
    assert private.privacy.scope in said
    assert private.privacy.advice in said


@pytest.mark.slow
@pytest.mark.dataset("gas_drift")
def test_gas_drift(tmp_path, data_dir):
    run = assert_whole(small(tmp_path, "experiment=gas_drift", f"data_dir={data_dir}"))
    assert run.summary.metric == "accuracy"


@pytest.mark.slow
@pytest.mark.dataset("wisdm")
def test_wisdm(tmp_path, data_dir):
    run = assert_whole(small(tmp_path, "experiment=wisdm", f"data_dir={data_dir}", "training.epochs=1"))
    assert run.summary.num_devices == 36


@pytest.mark.slow
@pytest.mark.dataset("beijing_air")
def test_beijing_air_is_a_regression_in_its_unit(tmp_path, data_dir):
    words = ["training.epochs=0", "training.max_steps=20", "personalization.personal_max_steps=10"]
    run = assert_whole(small(tmp_path, "experiment=beijing_air", f"data_dir={data_dir}", *words))
    assert run.summary.metric == "rmse"
    assert "g/m" in run.summary.metric_unit
    assert run.devices[0].global_mae is not None


def test_scale_makes_devices_on_demand(tmp_path):
    words = ["fleet.num_devices=1000000", "campaign.cohort_size=20", "campaign.score_devices=50"]
    run = assert_whole(small(tmp_path, "experiment=scale", *words))
    assert run.summary.num_devices == 1_000_000
    assert len(run.devices) == 50


def frame(regression=False):
    """Five machines, two sensors, a thermometer; in the order of time."""
    draws = np.random.default_rng(0)
    rows = 5 * 40
    label = np.tile(np.arange(40) % 2, 5)
    return pd.DataFrame(
        {
            "machine": np.repeat([f"m{i}" for i in range(5)], 40),
            "when": np.tile(np.arange(40) * 60.0, 5),
            "vibration": draws.normal(size=rows) + 2 * label,
            "current": draws.normal(size=rows) - label,
            "state": label + draws.normal(size=rows) if regression else np.where(label, "worn", "sound"),
        }
    )


TABLE = ("experiment=table", "table.device=machine", "table.label=state", "table.time=when")


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_anybodys_table(tmp_path, suffix):
    file, table = tmp_path / f"machines.{suffix}", frame()
    if suffix == "csv":
        table.to_csv(file, index=False)
    elif suffix == "parquet":
        table.to_parquet(file)
    else:
        group = table[["vibration", "current"]].to_numpy()
        columns = {name: table[name].to_numpy().astype("U8") for name in ("machine", "state")}
        np.savez(file, sensors=group, when=table["when"].to_numpy(), **columns)
    run = assert_whole(small(tmp_path / "out", *TABLE, f"table.path={file}", "campaign.num_rounds=8"))
    assert run.summary.num_devices == 5
    assert run.summary.arms[0].headline.personalized.score.mean.value > 0.75


def test_a_table_with_numbers_to_predict(tmp_path):
    frame(regression=True).to_csv(tmp_path / "t.csv", index=False)
    words = [*TABLE, f"table.path={tmp_path / 't.csv'}", "table.task=regression", "training.loss=mse"]
    run = assert_whole(small(tmp_path / "out", *words))
    assert run.summary.metric == "rmse"


@pytest.mark.slow
def test_the_default_is_one_command_and_is_logged_to_mlflow(tmp_path):
    """A real process, with Ray and MLflow, in an empty folder."""
    words = [
        "fleet.num_devices=30",
        "campaign.cohort_size=8",
        "campaign.num_rounds=2",
        "runner.num_workers=1",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "sim", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Personalized + DP" in done.stdout
    assert "Warning" not in done.stderr
    outputs = tmp_path / "outputs"
    run = assert_whole((outputs / "latest").resolve(), private=True)
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}, "nothing is written elsewhere"
    with sqlite3.connect(outputs / "mlflow.db") as store:
        ((status,),) = store.execute("select status from runs").fetchall()
        found = dict(store.execute("select key, value from tags").fetchall())
    assert status == "FINISHED"
    assert found["data_digest"] == run.summary.data_digest
    assert list((outputs / "mlartifacts").rglob("report.html"))


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
