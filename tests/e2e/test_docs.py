"""What the documentation shows is what works: the files of a first fleet, checked, and a first model made of them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedretrain.artifacts.identity import FleetAuthority

ROOT = Path(__file__).parents[2]


def _blocks(file, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)


def _run(folder, *words):
    return subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def folder(tmp_path):
    """The README's server.toml with the files that docs/operating.md shows, beside each other."""
    server = next(text for text in _blocks("README.md", "toml") if "[populations" in text)
    (tmp_path / "server.toml").write_text(server.replace("/var/lib/fedretrain", "state"))
    policy, training = _blocks("docs/operating.md", "yaml")
    (tmp_path / "policy.yaml").write_text(policy)
    (tmp_path / "training.yaml").write_text(training)
    (laboratory,) = _blocks("docs/operating.md", "python")
    (tmp_path / "laboratory.py").write_text(laboratory)
    return tmp_path


def test_the_files_of_a_first_fleet_make_a_first_model(folder):
    made = _run(folder, "laboratory.py")
    assert made.returncode == 0, made.stderr
    checked = _run(folder, "-m", "fedretrain", "config", "check", "server.toml")
    assert checked.returncode == 0, checked.stderr
    assert "populations.pumps.pool: 3000 rows" in checked.stdout
    imported = _run(folder, "-m", "fedretrain", "models", "import")
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.startswith("version 1 is ")


def test_a_person_makes_a_key_and_signs_as_the_documentation_shows(folder):
    assert _run(folder, "laboratory.py").returncode == 0
    shown = "".join(
        text for text in _blocks("docs/operating.md", "toml") if "[roles" in text or "[people" in text
    )
    (made,) = [
        line
        for text in _blocks("docs/operating.md", "console")
        for line in text.splitlines()
        if "people key" in line
    ]
    key = _run(folder, "-m", *made.partition("#")[0].split())
    assert key.returncode == 0, key.stderr
    (example,) = re.findall(r'^key = ".*"', shown, re.MULTILINE)
    config = folder / "server.toml"
    config.write_text(config.read_text() + shown.replace(example, key.stdout.splitlines()[1]))
    checked = _run(folder, "-m", "fedretrain", "config", "check", "server.toml")
    assert "orders: signed by anna; any other name is believed" in checked.stdout, checked.stderr
    FleetAuthority(
        folder / "state" / "authority", now=time.time()
    )  # as the coordinator's first start makes it
    words = ("-m", "fedretrain", "safe-mode", "on", "--by", "anna")
    assert "must be signed" in _run(folder, *words).stderr
    assert _run(folder, *words, "--key", "anna.key").returncode == 0


@pytest.mark.parametrize("file", ["README.md", "docs/operating.md", "docs/device.md"])
def test_links_lead_somewhere(file):
    found = re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", (ROOT / file).read_text())
    assert found
    for path, part in found:
        target = (ROOT / file).parent / path if path else ROOT / file
        assert target.exists(), path
        heads = [
            re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
            for line in target.read_text(errors="ignore").splitlines()
            if line.startswith("#")
        ]
        assert not part or part in heads, part
