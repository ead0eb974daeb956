"""Updates that simulated devices quantise: a device's own code, whoever plays them, and a quarter of the bytes."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.ids import ClientId
from fedretrain.core.params import Layout
from fedretrain.core.rng import seed_for
from fedretrain.training.executor import ClientWork
from fedretrain.training.upload import CLIP_MARGIN, pack, packed_bytes, unpack
from sim.worker import Worker
from tests.run_cases import outcome, quick_arm, quick_run

INT8 = "training.upload=int8"


class Taken:
    """Keeps the updates of a round."""

    def __init__(self):
        self.blocks = []

    def add(self, block):
        self.blocks.append(block)

    def fail(self, failures):
        assert not list(failures)


class Round:
    """What a device is asked."""

    def __init__(self, arm, number, clip_norm):
        self.round, self.base, self.seed, self.at = number, arm.first_shared(), 5, 0.0
        self.deadline_s, self.clip_norm = float("inf"), clip_norm


@pytest.mark.parametrize("method", ["fedavg", "apfl"])
@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_a_simulated_device_sends_and_keeps_what_a_device_would(method, clip_norm):
    arm = quick_arm(INT8, f"personalization={method}", "runner.executor=each")
    worker, device, layout = Worker(arm), 3, arm.task.shared
    size = arm.task.personal.size
    (held,) = arm.world.fleet.trainable(np.array([device]), 0.0)
    personal, left, row = None, np.zeros((1, layout.size), np.float32), None
    for number in range(3):
        asked, taken = Round(arm, number, clip_norm), Taken()
        played = worker.play(asked, np.array([device]), {} if row is None else {device: row}, taken)
        work = ClientWork(ClientId(device), held, personal, seed_for(5, number, device, "training"))
        (block,) = arm.executor.train(asked.base, [work])
        bound = None if clip_norm is None else clip_norm * CLIP_MARGIN
        packed, left = pack(block.delta_KP, left, Layout.of(asked.base), bound)
        personal = block.personal_KQ[0] if size else None
        (sent,) = taken.blocks
        np.testing.assert_array_equal(sent.delta_KP, unpack(packed, layout))
        row = played.personal_KQ[0]
        np.testing.assert_array_equal(row[:size], block.personal_KQ[0])
        np.testing.assert_array_equal(row[size:], left[0])
        assert played.bytes_up == packed_bytes(layout)
        assert np.abs(left).max() > 0


def test_a_run_that_quantises_reports_its_bytes_and_is_repeatable(tmp_path):
    whole = quick_run(tmp_path / "whole", "runner.executor=each")
    here = quick_run(tmp_path / "here", INT8, "runner.executor=each")
    assert whole.summary.arms[0].bytes_down == here.summary.arms[0].bytes_down
    assert here.summary.arms[0].bytes_up < whole.summary.arms[0].bytes_up
    assert here.summary.arms[0].weights_digests != whole.summary.arms[0].weights_digests
    again = quick_run(tmp_path / "again", INT8, "runner.executor=each")
    assert outcome(again) == outcome(here)
