"""The wheel, built once, and environments that it is installed in: nothing of the checkout can be imported there.

Rules of this file:
    * Nothing is downloaded. An environment sees third-party libraries of this one and never its editable install:
      a plain path in a .pth file adds a folder without following the .pth files in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Environment:
    """A virtual environment without pip."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = folder / "lib" / version / "site-packages"

    def install(self, wheel: Path) -> None:
        """Install the wheel alone."""
        words = ["install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", str(wheel)]
        subprocess.run([sys.executable, "-m", "pip", "--python", str(self.python), *words], check=True)

    def run(self, *words: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Run Python in a folder, with nothing of this process's paths or settings."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        return subprocess.run(
            [str(self.python), *words],
            cwd=cwd,
            env={**kept, "OMP_NUM_THREADS": "1", **more},
            capture_output=True,
            text=True,
            check=False,
            timeout=250,
        )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    words = ["-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel among all third-party libraries."""
    made = Environment(tmp_path_factory.mktemp("full") / "venv")
    libraries = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (made.packages / "libraries.pth").write_text("\n".join(dict.fromkeys(libraries)) + "\n")
    made.install(wheel)
    return made


@pytest.fixture(scope="session")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel among what it declares as its dependencies, and nothing else: `pip install fedretrain`."""
    made = Environment(tmp_path_factory.mktemp("base") / "venv")
    for library in ("numpy", "safetensors"):
        files = metadata.files(library)
        assert files is not None
        for top in {file.parts[0] for file in files if file.parts[0] != ".."}:
            (made.packages / top).symlink_to(Path(str(metadata.distribution(library).locate_file(top))))
    made.install(wheel)
    return made
