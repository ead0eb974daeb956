"""The monitoring benchmark measures what it says, at a size that takes moments."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import monitoring
from benchmarks.peers import drift
from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.histogram import count

TINY = monitoring.Fleet(num_devices=60, num_groups=3, num_features=8, num_days=40)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Few rows, no peers, results kept elsewhere."""
    monkeypatch.setattr(drift, "NUM_ROWS", 3_000)
    monkeypatch.setattr(drift, "NUM_BASELINE", 500)
    monkeypatch.setattr(drift, "NUM_FEATURES", 10)
    monkeypatch.setattr(monitoring, "drift_python", lambda: None)
    monkeypatch.setattr(monitoring, "Fleet", lambda: TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_plain_numpy_counts_the_same():
    x = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    bins = fit_bins(x[:100], "abc")
    x[::9, 1] = np.nan
    np.testing.assert_array_equal(monitoring.plain_counts(bins, x), count(bins, x))


def test_the_rows_are_pinned_and_shifted_where_it_says(small):
    del small
    baseline, live = drift.rows()
    again, _ = drift.rows()
    np.testing.assert_array_equal(baseline, again)
    shifted = np.abs(live.mean(axis=0) - 0.5) < 0.1
    assert np.flatnonzero(shifted).tolist() == [0]


def test_every_case_is_a_line_and_is_kept(small, capsys):
    monitoring.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    cases = {line["case"]: line for line in lines}
    assert {"psi", "fleet", "psi_evidently", "psi_frouros", "psi_nannyml"} <= cases.keys()
    assert all({"versions", "cores"} <= line.keys() for line in lines)
    assert cases["psi"]["num_rows"] == 3_000
    assert cases["psi"]["ratio_plain"] == pytest.approx(
        cases["psi"]["rows_per_s"] / cases["psi"]["plain_rows_per_s"], rel=0.02
    )
    assert cases["fleet"]["num_devices"] == 60
    assert cases["psi_evidently"]["skipped"] == "could not be installed"
    kept = (small / "outputs" / "benchmarks" / "monitoring.jsonl").read_text().splitlines()
    assert len(kept) == len(lines)


def test_a_missed_limit_is_the_exit_status(small, monkeypatch):
    del small
    monkeypatch.setattr(monitoring, "LEAST_ROWS_PER_S", 0)
    assert monitoring.main() == 0
    monkeypatch.setattr(monitoring, "MOST_S", 0.0)
    assert monitoring.main() == 1


def test_a_drift_that_is_missed_stops_the_benchmark(monkeypatch):
    monkeypatch.setattr(monitoring, "judge", lambda *_: (np.zeros(8, bool), np.zeros((3, 8), bool)))
    with pytest.raises(RuntimeError, match="not found"):
        monitoring.fleet_case(TINY, repeats=1)
