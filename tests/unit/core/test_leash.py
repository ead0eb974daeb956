"""A module on a leash: it runs with its words, and ends when its parent is another."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_module_runs_with_its_own_words_and_exit_status():
    words = ["-m", "fedretrain.core.leash", str(os.getpid()), "-m", "json.tool", "--help"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "json" in done.stdout


def test_without_the_parent_that_it_was_given_a_module_ends():
    words = ["-m", "fedretrain.core.leash", "1", "-m", "timeit", "-n", "1", "import time; time.sleep(60)"]
    done = subprocess.run([sys.executable, *words], capture_output=True, check=False, timeout=30)
    assert done.returncode == -15
