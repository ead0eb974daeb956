"""What the central comparison may know when it scores, and that both views see the same exposures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.gas_central import CHOSEN_ON, Rows, Side, best_price, line_of, main, of_sklearn, views, walk
from fedretrain.core.errors import DataError
from sim.lifetime.rows import LifeRows


def exposures(num: int, nodes: int = 2, late_s: float = 0.0) -> LifeRows:
    """Every node sees an exposure at each second; an input is the exposure's class, and ten times the node."""
    device = np.tile(np.arange(nodes), num)
    at = np.repeat(np.arange(num, dtype=np.float64), nodes)
    y = (at.astype(np.int64) // 2) % 2
    label_at = at + late_s * device
    x = np.stack([y, 10 * device], axis=1).astype(np.float32)
    order = np.argsort(device, kind="stable")
    return LifeRows(
        x, y, device, at, label_at, order, np.arange(nodes + 1) * num, np.argsort(label_at), np.sort(label_at)
    )


def test_joined_rows_hold_every_nodes_inputs_of_one_exposure():
    found = views(exposures(6), 2)
    assert found["pooled"].x.shape == (12, 2)
    assert found["joined"].x.shape == (6, 4)
    np.testing.assert_array_equal(found["joined"].x[:, 0], found["joined"].x[:, 2])
    assert found["joined"].x[:, 1::2].tolist() == [[0.0, 10.0]] * 6
    np.testing.assert_array_equal(found["joined"].y, found["pooled"].y[::2])


def test_nodes_whose_labels_come_apart_cannot_be_joined():
    with pytest.raises(DataError, match="label_at"):
        views(exposures(6, late_s=1.0), 2)


def test_a_fit_knows_only_what_was_labelled_by_then_and_scores_what_comes_before_the_next():
    rows = Rows(
        x=np.arange(8, dtype=np.float32)[:, None],
        y=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        event_at=np.arange(8.0),
        label_at=np.array([0.0, 1.0, 6.0, 4.0, 9.0, 9.0, np.inf, 9.0]),
    )
    asked = []

    def remember(x, y, _seed):
        def predict(new):
            asked.append((x[:, 0].tolist(), y.tolist(), new[:, 0].tolist()))
            return np.ones(len(new), dtype=np.int64)

        return predict

    assert walk(rows, remember, (4.0, 8.0), 2, 0) == 0.5
    assert asked == [
        ([0.0, 1.0, 3.0], [0, 0, 1], [4.0, 5.0]),
        ([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1], [6.0, 7.0]),
    ]


def test_the_price_is_chosen_on_the_first_batches_alone():
    """The last batch's classes are turned round: whatever is chosen, it was not asked."""
    at = np.arange(400.0)
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=400)
    x = (y[:, None] + 0.1 * rng.normal(size=(400, 1))).astype(np.float32)
    segments = {name: (100.0 + 50 * i, 150.0 + 50 * i) for i, name in enumerate((*CHOSEN_ON, "batch 5"))}
    honest = Side(Rows(x, y, at, at), of_sklearn("svc", 1.0), segments, 1, 0)
    turned = y.copy()
    turned[250:] = 1 - turned[250:]
    other = Side(Rows(x, turned, at, at), of_sklearn("svc", 1.0), segments, 1, 0)
    assert best_price("svc", [honest]) == best_price("svc", [other])
    early = honest.walk(honest.own, early=True)
    assert len(early) == 3
    assert min(early) > 0.95
    assert other.walk(other.own)[3] < 0.05


def test_a_line_takes_batches_alike_and_those_that_chose_nothing_apart():
    names = (*CHOSEN_ON, "batch 5", "batch 6")
    line = line_of("b", names, np.array([[1.0, 1.0, 1.0, 0.5, 0.7], [0.8, 0.8, 0.8, 0.5, 0.7]]))
    assert line["mean"][0] == 78.0
    assert line["mean_after"] == [60.0, 60.0, 60.0]
    assert line["by_batch"]["batch 5"] == [50.0, 50.0, 50.0]


def test_without_the_data_there_is_one_line_of_help(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("FEDRETRAIN_DATA", raising=False)
    assert main(["b", f"data_dir={tmp_path}"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not captured.out


@pytest.mark.slow
def test_both_views_and_every_model_on_a_small_array(monkeypatch, tmp_path, capsys):
    """A made-up array of four nodes through the real loader: separable classes that do not drift."""
    rng = np.random.default_rng(0)
    batch = np.repeat([1, 2, 3, 4, 5, 6, 8, 9], 60)
    gas = rng.integers(1, 7, size=len(batch))
    x = np.exp(gas[:, None] + 0.1 * rng.normal(size=(len(batch), 128))).astype(np.float32)
    (tmp_path / "gas_drift").mkdir()
    np.savez(tmp_path / "gas_drift" / "gas_drift.npz", X=x, gas=gas, batch=batch)
    monkeypatch.chdir(tmp_path)
    small = ["lifetime.initial_rounds=10", "training.epochs=4"]
    assert main(["a", f"data_dir={tmp_path}", "seeds=2", *small]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    cases = [line["case"] for line in lines]
    assert cases == [
        f"a_{view}_{kind}" for view in ("pooled", "joined") for kind in ("mlp", "logistic", "svc")
    ]
    for line in lines:
        assert line["mean"][0] > 95.0, line["case"]
        assert len(line["by_batch"]) == 7
