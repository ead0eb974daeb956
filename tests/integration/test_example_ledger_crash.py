"""A training process that is killed at any point never answers what its ledger does not hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedretrain.edge.example_ledger import ExampleLedger
from fedretrain.privacy.example import ExampleBudget
from tests.example_child import DEADLY, LEDGER

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[2]


def life(folder, point="", answers=0):
    """One life: until it dies at its point, or is killed after so many answers. How many it made."""
    words = [sys.executable, "-m", "tests.example_child", str(folder), *([point] if point else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        made = 0
        for _ in process.stdout:
            made += 1
            if answers and made == answers:
                process.kill()
                break
        made += sum(1 for _ in process.stdout)  # what was said before the kill came
        assert process.wait() == -9
    return made


@pytest.mark.parametrize(
    ("point", "charged"), [("trained", 0), ("charging", 0), ("charged", 1), ("witnessed", 1)]
)
def test_a_kill_between_training_and_answer_never_underspends(tmp_path, point, charged):
    made = life(tmp_path, point)
    assert made == DEADLY  # nothing was answered in the round in which it died
    rows = ExampleLedger(tmp_path / LEDGER).rows()
    assert len(rows) == DEADLY + charged
    budget = ExampleBudget(0.0, 1e-5)
    assert rows[-1].epsilon == budget.spent([row.charge for row in rows])
    again = life(tmp_path, answers=2)  # the next start goes on from it
    assert len(ExampleLedger(tmp_path / LEDGER).rows()) >= DEADLY + charged + again


def test_kills_from_outside_leave_every_answer_in_the_ledger(tmp_path):
    total = 0
    for answers in (1, 4, 2):
        total += life(tmp_path, answers=answers)
        assert len(ExampleLedger(tmp_path / LEDGER).rows()) >= total
