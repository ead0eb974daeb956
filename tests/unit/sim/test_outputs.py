"""The run folder: whole or unfinished, never half taken for whole."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from fedretrain.core.errors import DataError, UserError
from fedretrain.privacy.event import PrivacyEvent, Sampling, encode_units
from fedretrain.privacy.mechanism import Relation
from sim import outputs
from sim.outputs import RunFolder, load_run
from sim.results import RoundRecord
from sim.tables import read_table, table_bytes
from tests.unit.sim.record_factory import make_run

STARTED = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
EVENT = PrivacyEvent(
    "p", "c", 0, 1.0, 1.0, Relation.ZERO_OUT, Sampling.FIXED_SIZE, units=encode_units([1, 5])
)
WEIGHTS = {"fedavg": {"linear.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}}


@pytest.fixture(scope="module")
def run():
    return make_run(num_seeds=2, num_rounds=4, num_virtual=10)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "outputs", "watch", STARTED)


def test_a_run_reads_back_equal(folder, run):
    written = folder.finish(run, WEIGHTS, "<!doctype html>", {})
    assert load_run(folder.path) == written
    assert load_run(folder.root / "latest") == written
    stored = safetensors.numpy.load_file(folder.path / "weights" / "fedavg.safetensors")
    np.testing.assert_array_equal(stored["linear.weight"], WEIGHTS["fedavg"]["linear.weight"])


def test_the_folder_holds_what_the_readme_promises_and_no_leftovers(folder, run):
    folder.finish(run, WEIGHTS, "<!doctype html>", {"dp-0": [EVENT], "dp-1": []})
    found = sorted(str(p.relative_to(folder.path)) for p in folder.path.rglob("*") if p.is_file())
    assert found == [
        "config.yaml",
        "devices.parquet",
        "ledger/dp-0.jsonl",
        "ledger/dp-1.jsonl",
        "report.html",
        "rounds.parquet",
        "summary.json",
        "weights/fedavg.safetensors",
    ]
    assert set(json.loads((folder.path / "summary.json").read_text())["files"]) == set(found) - {
        "summary.json"
    }
    assert sorted(p.name for p in folder.root.iterdir()) == ["latest", "watch"]


def test_a_ledger_is_one_line_for_each_charged_round_and_reads_back(folder, run):
    second = replace(EVENT, round=1, clip_norm=0.1)
    written = folder.finish(run, {}, "", {"dp-0": [EVENT, second]})
    lines = (folder.path / "ledger" / "dp-0.jsonl").read_text().splitlines()
    assert [PrivacyEvent.from_dict(json.loads(line)) for line in lines] == [EVENT, second]
    assert "ledger/dp-0.jsonl" in written.summary.files


def test_a_damaged_ledger_is_refused_by_name(folder, run):
    folder.finish(run, {}, "", {"dp-0": [EVENT, EVENT]})
    file = folder.path / "ledger" / "dp-0.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match=r"not the one that the run wrote.*dp-0\.jsonl"):
        load_run(folder.path)


def test_latest_is_relative_so_that_outputs_can_be_moved(folder, run, tmp_path):
    folder.finish(run, {}, "", {})
    folder.root.rename(tmp_path / "moved")
    assert load_run(tmp_path / "moved" / "latest").summary.experiment == "watch"


def test_latest_moves_to_the_newer_run(folder, run):
    folder.finish(run, {}, "", {})
    newer = RunFolder.create(folder.root, "watch", STARTED)
    assert newer.path.name == f"{folder.path.name}_2"
    assert (folder.root / "latest").resolve() == folder.path.resolve()
    newer.finish(run, {}, "", {})
    assert (folder.root / "latest").resolve() == newer.path.resolve()


def test_an_unfinished_run_is_refused(folder):
    folder.write("config.yaml", b"a: 1\n")
    with pytest.raises(DataError, match="unfinished"):
        load_run(folder.path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such run"):
        load_run(tmp_path / "absent")


@pytest.mark.parametrize("name", ["rounds.parquet", "devices.parquet", "config.yaml", "report.html"])
def test_a_damaged_file_is_refused_by_name(folder, run, name):
    folder.finish(run, {}, "<html>", {})
    with (folder.path / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=f"not the one that the run wrote.*{name}"):
        load_run(folder.path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}', '"a"'])
def test_a_damaged_summary_is_one_line(folder, run, text):
    folder.finish(run, {}, "", {})
    (folder.path / "summary.json").write_text(text)
    with pytest.raises(DataError) as caught:
        load_run(folder.path)
    assert "\n" not in str(caught.value)
    assert "summary.json" in str(caught.value)


def test_another_schema_version_is_refused_with_the_way_out(folder, run):
    folder.finish(run, {}, "", {})
    file = folder.path / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 99}))
    with pytest.raises(DataError, match=r"schema version 99.*version of fedretrain that wrote it"):
        load_run(folder.path)


def test_missing_weights_are_one_line(folder, run):
    folder.finish(run, WEIGHTS, "", {})
    (folder.path / "weights" / "fedavg.safetensors").unlink()
    with pytest.raises(DataError, match=r"damaged run: .*fedavg\.safetensors"):
        load_run(folder.path)


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "outputs").write_text("")
    with pytest.raises(UserError, match=r"cannot write the results: .*output_dir=PATH"):
        RunFolder.create(tmp_path / "outputs", "watch", STARTED)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_folder_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        RunFolder.create(tmp_path / "outputs", "watch", STARTED)


@pytest.mark.parametrize("full_at", ["rounds.parquet", "report.html", "summary.json"])
def test_a_full_disk_leaves_an_unfinished_run_and_the_old_latest(folder, run, full_at, monkeypatch):
    folder.finish(run, {}, "", {})
    later = RunFolder.create(folder.root, "watch", STARTED)
    real = outputs._write_file

    def fill(target: Path, data: bytes) -> None:
        if target.name == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        real(target, data)

    monkeypatch.setattr(outputs, "_write_file", fill)
    with pytest.raises(UserError, match=f"No space left on device.*{full_at}.*free some space"):
        later.finish(run, {}, "", {})
    assert (folder.root / "latest").resolve() == folder.path.resolve()
    with pytest.raises(DataError, match="unfinished"):
        load_run(later.path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_truly_full_device_is_one_line_and_leaves_the_old_file(folder):
    folder.write("config.yaml", b"old")
    (folder.path / ".config.yaml.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        folder.write("config.yaml", b"new" * 10_000)
    assert (folder.path / "config.yaml").read_bytes() == b"old"


def test_an_empty_table_keeps_its_columns(tmp_path):
    file = tmp_path / "rounds.parquet"
    file.write_bytes(table_bytes(RoundRecord, []))
    assert read_table(RoundRecord, file) == ()


def test_tables_are_flat_for_whoever_reads_them_elsewhere(folder, run):
    import pandas as pd

    folder.finish(run, {}, "", {})
    table = pd.read_parquet(folder.path / "rounds.parquet")
    assert len(table) == len(run.rounds)
    assert table["global_score_p10"].notna().sum() == sum(r.global_score is not None for r in run.rounds)
    assert json.loads(table["failures"][0])["timeout"] == 3


def test_an_experiment_name_with_slashes_stays_one_folder(tmp_path):
    made = RunFolder.create(tmp_path, "../my task", STARTED)
    assert made.path.parent == tmp_path / "..-my-task"
