"""What the wheel holds, and that it runs experiments where there is no checkout."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.packaging
TINY = ("runner=local", "tracking_uri=off", "campaign.num_rounds=2", "campaign.evaluate_every=2")
WHERE = (
    "import fedretrain, sim, sim.configure as c; print(fedretrain.__file__, sim.__file__, c.config_folder())"
)


def test_the_wheel_holds_the_code_and_its_configuration(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fedretrain", "sim"}
    assert {"fedretrain/py.typed", "sim/py.typed", "sim/conf/config.yaml"} <= set(names)
    wanted = {f"sim/conf/{file.relative_to(ROOT / 'conf')}" for file in (ROOT / "conf").rglob("*.yaml")}
    assert wanted <= set(names)
    code = {
        str(file.relative_to(ROOT)) for top in ("fedretrain", "sim") for file in (ROOT / top).rglob("*.py")
    }
    assert code == {name for name in names if name.endswith(".py")}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert [name for name in names if {"tests", "benchmarks", "__pycache__"} & set(Path(name).parts)] == []


def test_templates_of_new_tasks_are_in_the_wheel(wheel):
    templates = [file for file in (ROOT / "sim" / "tasks" / "templates").rglob("*") if file.is_file()]
    names = set(zipfile.ZipFile(wheel).namelist())
    assert templates
    assert {str(file.relative_to(ROOT)) for file in templates if "__pycache__" not in file.parts} <= names


def test_an_installed_package_is_not_the_checkout(full, tmp_path):
    answer = full.run("-c", WHERE, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert all(Path(place).is_relative_to(full.packages) for place in answer.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("experiment=scale", "fleet.num_devices=500", "campaign.cohort_size=50"),
        ("experiment=watch", "fleet.num_devices=24", "campaign.cohort_size=6", "privacy.target_epsilon=100"),
    ],
    ids=["scale", "watch"],
)
def test_an_installed_package_runs_an_experiment_from_an_empty_folder(full, tmp_path, words):
    answer = full.run("-m", "sim", *words, *TINY, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    latest = tmp_path / "outputs" / "latest"
    summary = json.loads((latest / "summary.json").read_text())
    assert summary["arms"]
    for name in ("rounds.parquet", "config.yaml", "report.html"):
        assert (latest / name).stat().st_size > 0
    assert list((latest / "weights").glob("*.safetensors"))
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


def test_the_base_tier_says_what_the_simulator_needs(base, tmp_path):
    answer = base.run("-m", "sim", "experiment=scale", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: the library ")
    assert answer.stderr.endswith("pip install 'fedretrain[sim]'\n")
    assert answer.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_absent_module_of_ours_is_a_defect_and_not_a_missing_library(monkeypatch):
    import sim.__main__ as cli

    def broken(words):
        raise ModuleNotFoundError("no", name="sim.nowhere")

    monkeypatch.setattr(cli, "_command", broken)
    with pytest.raises(ModuleNotFoundError):
        cli.main([])
