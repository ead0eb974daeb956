"""Every drift detector keeps the detectors' contract; so does a user's own, written from the protocol alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedretrain.monitoring.adwin import Adwin
from fedretrain.monitoring.detectors import Cusum, Level, PageHinkley, refuse_missing
from fedretrain.monitoring.ks_window import KsWindow
from tests.contract.detector_contract import DetectorContract, FleetDetectorContract


class TestPageHinkley(FleetDetectorContract):
    def make(self):
        return PageHinkley(tolerance=0.2, threshold=30.0)


class TestCusum(FleetDetectorContract):
    def make(self):
        return Cusum(slack=0.5, threshold=9.0)


class TestKsWindow(FleetDetectorContract):
    def make(self):
        return KsWindow(alpha=1e-5, warning_alpha=1e-4)


class TestAdwin(DetectorContract):
    def make(self):
        return Adwin(warning_delta=0.002)


@dataclass(frozen=True)
class FarFromFirst:
    """A user's detector: the mean of the last ten values is far from that of the first ten."""

    far: float = 3.0

    def init(self):
        return ()

    def update(self, state, value):
        refuse_missing(np.asarray(value))
        state = (*state, value) if len(state) < 20 else (*state[:10], *state[11:], value)
        if len(state) == 20 and abs(np.mean(state[10:]) - np.mean(state[:10])) > self.far:
            return (), Level.DRIFT
        return state, Level.STABLE


class TestUsersOwn(DetectorContract):
    def make(self):
        return FarFromFirst()
