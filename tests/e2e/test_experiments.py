"""Every experiment at small size, from the command line to the run folder."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.run_cases import FEW, command, only_run
from tests.whole_run import assert_whole

ROOT = Path(__file__).resolve().parents[2]


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
