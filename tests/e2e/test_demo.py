"""`fedretrain demo`, as a new user would start it: real processes, and every step of the story."""

from __future__ import annotations

import subprocess
import sys

import pytest

STORY = (
    "24 devices serve version 1",
    "half of the sensors drift",
    "a federated retrain under differential privacy has begun",
    "its candidate is scored in shadow",
    "a person is asked",
    "approved: a quarter of the devices serve it",
    "version 2 is champion",
    "spent epsilon",
    "is proposed again",
    "was caught, taken back and quarantined",
    "verified:",
)


@pytest.mark.story
@pytest.mark.timeout(1800)
def test_the_demo_tells_its_whole_story(tmp_path):
    words = [sys.executable, "-m", "fedretrain", "demo", "--folder", str(tmp_path / "demo")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=1700)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    place = 0
    for step in STORY:
        found = done.stdout.find(step, place)
        assert found >= 0, f"{step!r} is missing after {done.stdout[:place][-300:]!r}"
        place = found


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("x")
    words = [sys.executable, "-m", "fedretrain", "demo", "--folder", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
