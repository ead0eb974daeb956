"""Orders and simulated devices: who has answered, and who may refuse."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fedretrain.rollout.events import Order
from sim.lifetime.release import Release

ALL = np.ones(4, dtype=bool)
DAY = 86_400.0


class Devices:
    """Four devices of which the last refuses whatever it has not run, unless it serves what may not be kept."""

    def __init__(self):
        self.version, self.target = np.full(4, 1), np.full(4, 1)

    def install(self, devices, version, *, at, left=None):
        refused = (devices == 3) & (self.version[devices] != left)
        self.version[devices[~refused]] = version
        return SimpleNamespace(devices=devices, refused=refused)


def order(counter, fraction, candidate=2):
    return Order(counter, candidate, fraction, 1, 0.0, 0, counter * DAY)


@pytest.fixture
def release():
    made = Release(Devices(), np.zeros(4, dtype=np.int64), 0)
    made.begin(1, ALL)
    return made


def test_who_refuses_has_failed_until_the_order_is_over_and_is_expired_then(release):
    release.order(order(1, 1.0))
    release.serve(1, exposing=True, everybody=False)
    release.step(0.0, ALL)
    seen = release.exposure(1.0)
    assert (seen.num_targets, seen.num_confirmed, seen.num_failed, seen.num_expired) == (4, 3, 1, 0)
    over = release.exposure(DAY)
    assert (over.num_confirmed, over.num_failed, over.num_expired, over.num_pending) == (3, 0, 1, 0)


def test_whoever_serves_what_is_taken_back_leaves_it_whatever_its_own_score_says(release):
    release._serving.version[:] = 2
    release.order(order(1, 1.0))
    release.order(order(2, 0.0))
    release.serve(1, exposing=False, everybody=False)
    release.step(0.0, ALL)
    assert release._serving.version.tolist() == [1, 1, 1, 1]
    assert release.exposure(1.0).num_confirmed == 4


def test_a_silent_device_is_pending_and_offline_until_the_order_is_over(release):
    release.order(order(1, 1.0))
    release.serve(1, exposing=True, everybody=False)
    release.step(0.0, ALL & (np.arange(4) != 0))
    seen = release.exposure(1.0)
    assert (seen.num_pending, seen.num_offline, seen.num_failed) == (1, 1, 1)
    assert release.exposure(DAY).num_expired == 2
