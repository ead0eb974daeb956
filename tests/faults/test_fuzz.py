"""Every decoder under a coverage-guided fuzzer, for a while; `python -m tests.fuzz` goes on for longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.decoders import decoders

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[2]
RUNS = 20_000


@pytest.mark.parametrize("name", sorted(decoders()))
def test_nothing_that_is_read_raises_anything_else(name, tmp_path):
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")
    words = [sys.executable, "-m", "tests.fuzz", name, "--runs", str(RUNS)]
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {RUNS} runs" in done.stderr
