"""The contract of data sets, run on each of ours, on a table, and on a scaffolded task."""

import importlib.util

import numpy as np
import pytest

from sim.datasets import registry
from sim.datasets.columns import TableSpec
from sim.datasets.synthetic import SyntheticFleet
from sim.tasks import new_task
from tests.contract.dataset_contract import check_dataset


@pytest.mark.skipif(
    importlib.util.find_spec("seglearn") is None, reason="the package seglearn is not installed"
)
@pytest.mark.parametrize("options", [{}, {"pipeline": "signal"}, {"train_stride": 100, "past_fraction": 0.6}])
def test_watch(options):
    check_dataset(lambda **more: registry.load("watch", **options, **more))


@pytest.mark.dataset("wisdm")
def test_wisdm(data_dir):
    check_dataset(lambda **more: registry.load("wisdm", data_dir, **more))


@pytest.mark.dataset("gas_drift")
def test_gas_drift(data_dir):
    check_dataset(lambda **more: registry.load("gas_drift", data_dir, **more))


@pytest.mark.dataset("beijing_air")
@pytest.mark.parametrize("task", ["pm25", "exceeds", "forecast"])
def test_beijing_air(data_dir, task):
    check_dataset(lambda **more: registry.load("beijing_air", data_dir, task=task, every_hours=24, **more))


def test_scale():
    recipe = SyntheticFleet(num_devices=30, num_samples=20, num_features=8)
    check_dataset(lambda **more: registry.load("scale", recipe=recipe, **more))


def test_table(tmp_path):
    n = np.arange(200)
    gen = np.random.default_rng(0)
    np.savez(tmp_path / "t.npz", unit=n % 5, fault=n // 5 % 2, at=n * 60.0, v=gen.normal(3.0, 9.0, (200, 4)))
    spec = TableSpec(str(tmp_path / "t.npz"), "unit", "fault", "at")
    check_dataset(lambda **more: registry.load("table", spec=spec, **more))


def test_a_scaffolded_task(tmp_path, monkeypatch):
    new_task("contract_task", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    check_dataset(lambda **more: registry.load("contract_task.task:load", **more))
