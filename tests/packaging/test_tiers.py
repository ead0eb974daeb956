"""Which libraries each package needs: DESIGN's install tiers and import contracts, proved by importing.

import-linter reads the code; this runs it, in an environment that has nothing else.
"""

from __future__ import annotations

import ast
import json
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.packaging
NUMPY_ONLY = ("core", "features", "aggregation", "privacy", "coordinator")
HEAVY = ("torch", "flwr", "ray", "mlflow", "hydra", "omegaconf", "opacus", "pandas", "matplotlib", "scipy")
# Imports every module of the named packages, then says what came along.
IMPORT_ALL = """
import importlib, json, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for found in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(found.name)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
# Where a library's name on the index is not the name that is imported.
INSTALLED_AS = {
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "hydra": "hydra-core",
    "google": "protobuf",
    "grpc": "grpcio",
    "paho": "paho-mqtt",
}


@pytest.mark.parametrize("package", NUMPY_ONLY)
def test_numpy_packages_import_with_the_base_tier_alone(base, tmp_path, package):
    answer = base.run("-c", IMPORT_ALL, f"fedretrain.{package}", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr


def test_numpy_packages_bring_no_heavy_library_where_all_are_installed(full, tmp_path):
    answer = full.run("-c", IMPORT_ALL, *(f"fedretrain.{package}" for package in NUMPY_ONLY), cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    found = set(json.loads(answer.stdout))
    assert "numpy" in found
    assert found.isdisjoint(HEAVY)


def test_training_names_torch_where_it_is_absent(base, tmp_path):
    answer = base.run("-c", "import fedretrain.training.batched", cwd=tmp_path)
    assert answer.returncode == 1
    assert answer.stderr.strip().endswith("No module named 'torch'")


def test_the_simulators_help_needs_no_heavy_library(base, tmp_path):
    answer = base.run("-m", "sim", "--help", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "experiment=watch" in answer.stdout


DEVICE_FOLDERS = sorted(
    f"fedretrain/{folder.name}"
    for folder in (ROOT / "fedretrain").iterdir()
    if folder.is_dir() and folder.name not in ("server", "demo", "__pycache__")
)
"""All that a device may be asked to run."""


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (DEVICE_FOLDERS, ["train", "dp", "edge"]),
        ([*DEVICE_FOLDERS, "sim"], ["sim", "edge"]),
        (["fedretrain"], ["server", "mqtt", "kafka"]),
        (["fedretrain", "sim", "benchmarks", "tests"], ["dev"]),
    ],
    ids=["device", "sim", "server", "everything"],
)
def test_every_import_is_declared(folders, extras):
    wanted = {
        INSTALLED_AS.get(name, name).replace("_", "-")
        for folder in folders
        for file in (ROOT / folder).rglob("*.py")
        for name in _imported(file)
    }
    wanted -= {"fedretrain", "sim", "benchmarks", "tests"}
    wanted -= {"pfl", "evidently", "frouros"}  # peers have environments of their own
    assert sorted(wanted - _declared(*extras)) == []


def test_constraints_name_what_is_installed():
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert {"torch", "flwr", "ray", "numpy", "opacus"} <= pinned.keys()
    for name in _declared("dev") - {"fedretrain"}:
        assert name in {one.lower().replace("_", "-") for one in pinned}, f"{name} is not pinned"


def _imported(file: Path) -> set[str]:
    """Top-level names of the third-party modules that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


def _declared(*extras: str) -> set[str]:
    """Names of the libraries that some extras declare, and those that they include."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    waiting = [*project["dependencies"], *(one for extra in extras for one in _extra(project, extra))]
    while waiting:
        name, _, rest = waiting.pop().partition("[")
        if name == "fedretrain":
            waiting += [one for extra in rest.partition("]")[0].split(",") for one in _extra(project, extra)]
            continue
        for mark in "<>=!~; ":
            name = name.partition(mark)[0]
        found.add(name.lower().replace("_", "-"))
    return found


def _extra(project: dict[str, dict[str, list[str]]], name: str) -> list[str]:
    return project["optional-dependencies"][name]


def test_the_installed_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata.version("fedretrain") == project["version"]
