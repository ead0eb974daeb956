"""`flwr run .` trains on Flower's own simulation: the bundle is whole, and gives the weights that `python -m sim` gives."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sim.outputs import load_run
from tests.run_cases import QUICK, quick_run

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
WORDS = [word for word in QUICK if not word.startswith(("experiment=", "runner="))]
PLAIN = ["runner.executor=each", "personalization=fedper"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's sources alone, as in a fresh clone."""
    folder = tmp_path_factory.mktemp("clone") / "fedretrain"
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("fedretrain", "sim", "conf", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def bundle(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `flwr run` would send, unpacked."""
    from flwr.cli.build import build_fab_from_disk

    folder = tmp_path_factory.mktemp("bundle")
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(clone))) as packed:
        packed.extractall(folder)
    return folder


@pytest.mark.slow
def test_the_bundle_runs_by_itself(bundle: Path, tmp_path: Path) -> None:
    """It comes before installed packages, so what it lacks is lacking: everything it needs must be in it."""
    code = (
        "import sim.flower_app, fedretrain, sim.configure, sim.__main__ as m, sys;"
        "print(sim.flower_app.__file__, fedretrain.__file__, sim.configure.config_folder(), sep='\\n');"
        "sys.exit(m.main(sys.argv[1:]))"
    )
    words = ["runner=local", *WORDS, "experiment=scale", f"output_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(bundle)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    places = done.stdout.splitlines()[:3]
    assert all(Path(place).resolve().is_relative_to(bundle.resolve()) for place in places)
    assert (tmp_path / "latest" / "report.html").is_file()


def test_the_bundle_holds_code_and_configuration_alone(bundle: Path) -> None:
    tops = {path.name for path in bundle.iterdir()} - {".info"}
    assert tops <= {"fedretrain", "sim", "conf", "pyproject.toml", "README.md", "LICENSE"}


def test_the_declared_experiment_is_a_sound_one() -> None:
    from sim.plan import plan_run

    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    plan = plan_run([f"experiment={config['experiment']}", *shlex.split(config["overrides"])])
    assert len(plan.arms) == 1
    assert plan.config.campaign.num_rounds <= 10  # a first try, not an evening


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A SuperLink for simulations, as `flwr run` starts one, but on ports of its own; yields its environment."""
    import httpx

    port, home = free_port(), tmp_path / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    env = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    words = ["--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1"]
    ports = ["--port", str(port), "--control-api-address", f"127.0.0.1:{free_port()}"]
    with (tmp_path / "superlink.log").open("wb") as log:
        server = subprocess.Popen(
            [str(BIN / "flower-superlink"), *words, *ports], env=env, cwd=tmp_path, stdout=log, stderr=log
        )
        try:
            for _ in range(600):
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health", timeout=1).is_success:
                        break
                except httpx.HTTPError:
                    time.sleep(0.1)
            yield env
        finally:
            server.terminate()
            server.wait(timeout=30)


@pytest.mark.slow
def test_flwr_run_gives_the_weights_that_a_local_run_gives(
    superlink: dict[str, str], clone: Path, tmp_path: Path
) -> None:
    overrides = " ".join([*WORDS, *PLAIN, f"output_dir={tmp_path / 'flower'}"])
    done = subprocess.run(
        [
            str(BIN / "flwr"),
            "run",
            str(clone),
            "--stream",
            "--run-config",
            f'experiment="scale" overrides="{overrides}"',
        ],
        env=superlink,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    told = done.stdout + done.stderr + (tmp_path / "superlink.log").read_text(errors="replace")
    assert (tmp_path / "flower" / "latest" / "summary.json").is_file(), told
    assert "global accuracy" in done.stdout, told  # the result is printed, too
    flower = load_run((tmp_path / "flower" / "latest").resolve())
    local = quick_run(tmp_path / "local", *PLAIN)
    assert flower.summary.arms[0].weights_digests == local.summary.arms[0].weights_digests
    assert flower.devices == local.devices
