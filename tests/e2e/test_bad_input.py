"""What a person gets wrong is one line: what, where, how to mend it; exit 2; and nothing that passes for a run."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedretrain.core.errors import DataError
from sim import outputs
from sim.outputs import load_run
from tests.run_cases import QUICK, command, only_run, outcome, quick_run

if TYPE_CHECKING:
    from pathlib import Path

TABLE = (
    "experiment=table",
    "runner=local",
    "tracking_uri=off",
    "campaign.num_rounds=2",
    "campaign.cohort_size=2",
    "table.device=device",
    "table.label=label",
    "table.time=time",
)
DRAWS = np.random.default_rng(0)
HEADER = "device,time,a,b,label\n"
ROWS = "".join(
    f"{device},{i},{DRAWS.normal():.3f},{DRAWS.normal():.3f},{i % 2}\n"
    for device in range(3)
    for i in range(12)
)


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Run a command line that must be refused; its one line is returned."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        capsys.readouterr()
        assert command(words) == 2
        found = capsys.readouterr()
        assert found.err.startswith("error: ")
        assert found.err.count("\n") == 1, found.err
        assert "Traceback" not in found.err
        assert found.out == ""
        assert not list(tmp_path.rglob("summary.json"))
        assert not (tmp_path / "outputs" / "latest").exists()
        assert not list(tmp_path.glob("outputs/*/*")), "a run that never began leaves no folder"
        return found.err.strip()

    return run


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["campaign.num_round=3"], r"no key 'campaign.num_round' \[campaign.num_round=3\] - did you mean"),
        (["experiment=wach"], r"no experiment 'wach' .* did you mean 'watch'"),
        (["campaign.num_rounds=many"], r"int was expected, not 'many' \[campaign.num_rounds\]"),
        (["seed=99999999999999999999"], r"no number of 64 bits \[seed\] - "),
        (["fleet.num_devices=99999999999999999999"], r"below 2\^31 \[fleet.num_devices\] - "),
        (["hello"], r"cannot be read \[hello\]"),
        (["--foo"], r"no option '--foo' - python -m sim --help"),
        (["--config-dir"], r"--config-dir needs a value"),
        (["--config-dir=nowhere"], r"no such folder"),
        (["campaign.cohort_size=25"], r"25 .* out of 24 devices \[campaign.cohort_size\] - "),
        (["privacy=central", "aggregation=example_weighted"], r"example_weighted with differential privacy"),
        (
            ["privacy=central", "privacy.delta=0.1"],
            r"delta is 0.1, not in \(0, 1/24\) \[privacy.delta\] - take",
        ),
        (["privacy=central", "privacy.target_epsilon=1e-6"], r"\[privacy.target_epsilon\] - "),
        (["privacy=central", "privacy.noise_multiplier=0.1"], r"one round with this noise costs epsilon"),
        (
            ["training.loss=mse"],
            r"loss mse does not fit a classification \[training.loss\] - use cross_entropy",
        ),
        (
            ["training.class_weights=[1,2]"],
            r"2 class weights were given for 6 classes \[training.class_weights\]",
        ),
        (["model=cnn1d"], r"cnn1d needs signals"),
        (
            ["personalization=fedper", "personalization.personal_patterns=[no.*]"],
            r"'no.\*' matches no parameter",
        ),
        (
            ["model.kind=custom", "model.custom.path=nothing:here"],
            r"No module named 'nothing' \[nothing:here\]",
        ),
        (["model.kind=custom", "model.custom.path=tests.own_parts:nobody"], r"nobody"),
        (
            ["model.kind=custom", "model.custom.path=tests.own_parts:no_model"],
            r"gave a str, not an nn.Module",
        ),
        (
            ["model.kind=custom", "model.custom.path=tests.own_parts:model", "model.custom.options.with=3"],
            r"'with'",
        ),
        (["availability.models=[custom]"], r"\[availability.custom.path\]"),
        (["availability.models=[trace]", "availability.trace.path=no.csv"], r"no.csv"),
        (
            ["dataset.name=nothing", "fleet.kind=natural", "fleet.num_devices=0"],
            r"no data set 'nothing' - choose",
        ),
        (
            ["dataset.name=tests.own_parts:no_dataset", "fleet.kind=natural", "fleet.num_devices=0"],
            r"gave back a dict - return a sim.datasets.base.SensorDataset",
        ),
        (
            [
                "dataset.name=tests.own_parts:load",
                "fleet.kind=natural",
                "fleet.num_devices=0",
                "dataset.options.x=1",
            ],
            r"has no option 'x'",
        ),
        (['++arms.a.overrides=["seed=7"]'], r"an arm cannot change seed"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_wrong_configuration(refused, words, match):
    assert re.search(match, refused(*QUICK, *words))


def test_a_cluster_that_is_not_there(refused):
    import ray

    ray.shutdown()  # another test of this process may have joined one
    line = refused(*QUICK, "runner=ray", "runner.address=nowhere")
    assert re.search(r"cannot join Ray: .* \[runner.address\] - start it with `ray start --head`", line)


def test_a_wrong_arm_is_refused_before_the_first_one_trains(refused, monkeypatch):
    from sim.local_runner import LocalRunner

    def never(self, spec, cohort):
        raise AssertionError("trained")

    monkeypatch.setattr(LocalRunner, "run", never)
    arms = ["++arms.a.title=Good", '++arms.b.overrides=["privacy=central","aggregation=median"]']
    assert "median" in refused(*QUICK, *arms)


@pytest.mark.parametrize(
    ("model", "layer"), [("normed_model", "BatchNorm1d"), ("dropped_model", "Dropout"), ("Recurrent", "GRU")]
)
def test_a_model_that_cannot_be_batched_names_the_layer_and_who_can(refused, model, layer):
    line = refused(*QUICK, "model.kind=custom", f"model.custom.path=tests.own_parts:{model}")
    assert layer in line
    assert "each" in line.split(" - ")[1]


@pytest.mark.parametrize("model", ["dropped_model", "Recurrent"])
def test_the_executor_that_was_named_runs_it(tmp_path, model):
    words = ["model.kind=custom", f"model.custom.path=tests.own_parts:{model}", "runner.executor=each"]
    assert quick_run(tmp_path, *words).summary.arms[0].rounds == 3


@pytest.mark.parametrize(
    ("name", "text", "words", "match"),
    [
        ("t.csv", None, ["table.path=tt.csv"], r"does not exist \[.*tt.csv\] - "),
        ("t.csv", HEADER + ROWS, ["table.label=lable"], r"no column 'lable' .* did you mean label\?"),
        ("t.csv", HEADER + ROWS, ["table.device=pump"], r"no column 'pump' .* the columns are device, time"),
        ("t.csv", HEADER + ROWS, ["table.features=[c]"], r"no column 'c'"),
        ("t.csv", HEADER + ROWS, ["table.task=regresion"], r"'regresion' is not known .*- choose from"),
        ("t.csv", HEADER + ROWS, ["table.task=regression"], r"does not fit a regression \[training.loss\]"),
        ("t.csv", HEADER, [], r"no rows"),
        ("t.csv", "", [], r"cannot be read"),
        ("t.parquet", "nonsense", [], r"cannot be read: .* - check the file"),
        ("t.npz", "nonsense", [], r"t.npz"),
        ("t.xlsx", "nonsense", [], r"type .xlsx cannot be read .* - give CSV, Parquet or npz"),
        (
            "t.csv",
            HEADER + ROWS + "2,99,,1,0\n",
            [],
            r"'a' has NaN in row 36; 1 such .* table.missing=impute",
        ),
        ("t.csv", HEADER + ROWS + "2,99,inf,1,0\n", [], r"'a' has infinity in row 36"),
        ("t.csv", HEADER + ROWS + "2,99,x,1,0\n", ["table.features=[a,b]"], r"'a' holds text"),
        ("t.csv", HEADER + ROWS + "9,1,1,1,0\n", [], r"device 9 has 1 row.* - leave such devices out"),
        (
            "t.csv",
            HEADER + ROWS + "".join(f"9,{i},1,1,0\n" for i in range(9)),
            [],
            r"device 9 has one class only .* table.one_class=true",
        ),
        ("t.csv", HEADER + ROWS + "1,99,1,1,\n", [], r"row 36 has no label \(column 'label'"),
        ("t.csv", HEADER + ROWS + ",99,1,1,1\n", [], r"row 36 has no device"),
        (
            "t.csv",
            HEADER + ROWS + "1,99,1,1,0.5\n",
            [],
            r"holds fractions such as 0.5 .* table.task=regression",
        ),
        ("t.csv", HEADER + re.sub(r",[01]\n", ",1\n", ROWS), [], r"every row has the same label"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) and "device" not in value else "",
)
def test_a_table_that_will_not_do(refused, tmp_path, name, text, words, match):
    if text is not None:
        (tmp_path / name).write_text(text)
    assert re.search(match, refused(*TABLE, f"table.path={name}", *words))


@pytest.mark.parametrize("name", ["wisdm", "gas_drift", "beijing_air"])
def test_data_that_are_not_there(refused, tmp_path, monkeypatch, name):
    monkeypatch.delenv("FEDRETRAIN_DATA", raising=False)
    words = [f"experiment={name}", "runner=local"]
    assert "data_dir" in refused(*words)
    assert re.search(r"does not exist \[.*nowhere\] - ", refused(*words, "data_dir=nowhere"))
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(*words, "data_dir=empty")


@pytest.mark.parametrize("name", ["wisdm", "gas_drift", "beijing_air"])
def test_data_that_are_damaged(refused, tmp_path, name):
    folder = {"wisdm": "wisdm_v1/wisdm_v1.npz"}.get(name, f"{name}/{name}.npz")
    (tmp_path / folder).parent.mkdir(parents=True)
    (tmp_path / folder).write_bytes(b"PK\x03\x04 not an archive")
    line = refused(f"experiment={name}", "runner=local", f"data_dir={tmp_path}")
    assert ".npz" in line


def test_labels_outside_the_range_in_a_data_set_of_ones_own(refused, monkeypatch):
    from tests import own_parts

    good = own_parts.load

    def bad(data_dir=None, **options):
        dataset = good(data_dir, **options)
        object.__setattr__(dataset, "y", dataset.y + 1)
        dataset.__post_init__()
        return dataset

    monkeypatch.setattr(own_parts, "load", bad)
    words = ["dataset.name=tests.own_parts:load", "fleet.kind=natural", "fleet.num_devices=0"]
    assert re.search(r"label", refused(*QUICK, *words, "campaign.cohort_size=4"))


def test_a_device_without_labels_takes_no_part_and_stops_nobody(tmp_path):
    run = quick_run(tmp_path, "labels=late", "labels.loss_fraction=0.97", "campaign.quorum_fraction=0.01")
    failures = sum(record.failures.get("no_data", 0) for record in run.rounds)
    assert failures > 0
    assert run.summary.arms[0].rounds > 0


def test_an_output_folder_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below", "/dev/full", "/proc/nothing"):
        line = refused(*QUICK, f"output_dir={place}")
        assert re.search(r"cannot write the results: .* - choose a folder .* output_dir=PATH", line)
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("name", ["rounds.parquet", "fedavg-0.safetensors", "report.html", "summary.json"])
def test_a_disk_that_fills_up_costs_nothing_but_time(tmp_path, capsys, monkeypatch, name):
    first = quick_run(tmp_path / "whole")
    write = outputs._write_file

    def full(target: Path, data: bytes) -> None:
        if target.name == name and target.parent.name != "checkpoint":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(target, data)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "_write_file", full)
        assert command([*QUICK, f"output_dir={tmp_path / 'full'}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    folder = only_run(tmp_path / "full", "scale")
    assert re.search(r"cannot write the results: No space left on device .*free some space", line)
    assert line.endswith(f"then continue with: python -m sim resume={folder}")
    with pytest.raises(DataError, match="unfinished"):
        load_run(folder)
    assert not (tmp_path / "full" / "latest").exists()
    assert command([f"resume={folder}"]) == 0
    assert outcome(load_run(folder)) == outcome(first)


def test_a_disk_that_is_full_from_the_start(refused, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(outputs.os, "fsync", full)
    assert "No space left on device" in refused(*QUICK)


def test_a_tracking_server_that_does_not_answer_loses_no_run(tmp_path, capsys):
    words = [word for word in QUICK if not word.startswith("tracking_uri")]
    assert command([*words, f"output_dir={tmp_path}", "tracking_uri=http://127.0.0.1:9"]) == 2
    said = capsys.readouterr()
    assert re.search(
        r"error: the run is finished and kept, but MLflow did not take it.* - check tracking_uri", said.err
    )
    assert "global accuracy" in said.out, "the table is printed all the same"
    assert load_run((tmp_path / "latest").resolve()).summary.arms[0].rounds == 3


def test_nothing_to_resume_to_compare_or_to_reproduce(refused, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.yaml").write_text("experiment: {}")
    assert re.search(r"no checkpoint: .* \[nowhere\]", refused("resume=nowhere"))
    assert "no checkpoint" in refused("resume=half")
    assert "keeps its configuration" in refused("resume=half", "seed=3")
    for words in (["compare", "half", "half"], ["reproduce", "half"]):
        assert re.search(r"unfinished or not a run \[half\] - name a folder", refused(*words))
    assert re.search(r"no such run \[nowhere\]", refused("compare", "nowhere", "half"))
    assert "2 arguments were expected" in refused("compare", "half")
    assert "1 arguments were expected" in refused("reproduce")
    assert "unknown task command" in refused("task", "make", "x")
    assert "task check" in refused("task")


def test_a_run_that_was_tampered_with(tmp_path, capsys):
    quick_run(tmp_path)
    folder = only_run(tmp_path, "scale")
    weights = folder / "weights" / "fedavg-0.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    capsys.readouterr()
    assert command(["reproduce", str(folder)]) == 2
    assert re.search(
        r"error: this file is not the one that the run wrote \[.*fedavg-0", capsys.readouterr().err
    )


def test_a_sweep_with_a_mistake_starts_no_job(refused):
    assert "no key 'training.optimizer.la'" in refused("--multirun", *QUICK, "training.optimizer.la=1,2")
    assert "nothing to sweep over" in refused("--multirun", *QUICK)
    assert "cannot be resumed" in refused("--multirun", "resume=here", "seed=1,2")
