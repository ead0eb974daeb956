"""What a device installs: `fedretrain[edge]` on 64-bit ARM and x86, from wheels alone, and how large it is.

The index is asked which wheels there are; none is downloaded but for its metadata.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging
MAX_BYTES = 300 * 10**6
HEAVY = {"torch", "flwr", "ray", "mlflow", "mlflow-skinny", "hydra-core", "omegaconf", "opacus", "pandas"}
_CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
_UNREACHED = re.compile(r"NewConnectionError|ConnectTimeout|Temporary failure|ProxyError|No route to host")


def resolve(wheel: Path, folder: Path, machine: str, python: str) -> dict[str, str]:
    """Names and versions that pip would install for a machine, from wheels alone.

    Raises:
        AssertionError: If it finds no wheel for something, in pip's words.
    """
    report = folder / "report.json"
    words = [
        *("install", "--dry-run", "--quiet", "--disable-pip-version-check", "--report", str(report)),
        *("--only-binary=:all:", "--target", str(folder / "target"), "-c", str(_CONSTRAINTS)),
        *("--platform", f"manylinux2014_{machine}", "--platform", f"manylinux_2_28_{machine}"),
        *("--python-version", python, "--implementation", "cp", f"{wheel}[edge]"),
    ]
    asked = subprocess.run(
        [sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False, timeout=250
    )
    if asked.returncode and _UNREACHED.search(asked.stderr):
        pytest.skip("the package index cannot be reached from here")
    assert asked.returncode == 0, asked.stderr
    found = [one["metadata"] for one in json.loads(report.read_text())["install"]]
    return {one["name"].lower().replace("_", "-"): one["version"] for one in found}


@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_the_agent_installs_from_wheels_alone(wheel, tmp_path, machine, python):
    found = resolve(wheel, tmp_path, machine, python)
    assert {"onnxruntime", "grpcio", "tuf", "cryptography"} <= set(found)
    assert HEAVY.isdisjoint(found)
    assert int(found["protobuf"].split(".")[0]) < 7


def test_the_agents_libraries_take_less_than_300_megabytes(wheel, tmp_path):
    """As they are installed here, compiled files left out: those depend on who ran what."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = resolve(wheel, tmp_path, "x86_64", python)
    sizes = {}
    for name in set(found) - {"fedretrain"}:
        files = metadata.files(name)
        assert files is not None, name
        there = [Path(str(file.locate())) for file in files if file.suffix != ".pyc"]
        sizes[name] = sum(path.stat().st_size for path in there if path.is_file())
    assert all(sizes.values()), sizes
    assert sum(sizes.values()) < MAX_BYTES, sizes
