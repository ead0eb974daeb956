"""Every kind and shape of drift of ours, and one of a user's, keeps the contract."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError, DataError
from sim.noise import gaussian
from sim.sensors.config import DriftConfig, DriftKind, DriftShape, DriftSpec, MagnitudeUnit
from sim.sensors.plan import DriftPlan
from tests.contract.drift_contract import DriftContract
from tests.world_cases import STATS


class Hum:
    """A user's drift: mains hum that grows with age, with a phase of each row's own."""

    def __init__(self, size: float = 1.0) -> None:
        self.size = size

    def apply(self, x, rows):
        phase = gaussian(rows.row_seeds, 1)[:, :, None]
        wave = np.sin(np.arange(x.shape[1], dtype=np.float32)[None, :, None] + phase)
        return x + np.float32(self.size) * wave * rows.scale.astype(np.float32)


class Shrinks:
    def apply(self, x, rows):
        return x[:, :1]


class TestGain(DriftContract):
    def make_spec(self, **where):
        return DriftSpec(kind=DriftKind.GAIN, magnitude=0.3, random_sign=True, spread=0.5, **where)


class TestGainLinear(DriftContract):
    def make_spec(self, **where):
        return DriftSpec(kind=DriftKind.GAIN, shape=DriftShape.LINEAR, time_s=20.0, **where)


class TestOffsetSeasonal(DriftContract):
    def make_spec(self, **where):
        return DriftSpec(
            kind=DriftKind.OFFSET, shape=DriftShape.SEASONAL, time_s=17.0, unit=MagnitudeUnit.RANGE, **where
        )


class TestOffsetRandomWalk(DriftContract):
    def make_spec(self, **where):
        return DriftSpec(kind=DriftKind.OFFSET, shape=DriftShape.RANDOM_WALK, time_s=25.0, **where)


class TestNoise(DriftContract):
    def make_spec(self, **where):
        return DriftSpec(kind=DriftKind.NOISE, shape=DriftShape.LINEAR, time_s=10.0, **where)


class TestStuck(DriftContract):
    def make_spec(self, **where):
        return DriftSpec(kind=DriftKind.STUCK, magnitude=0.5, spread=0.2, **where)


class TestDead(DriftContract):
    def make_spec(self, **where):
        return DriftSpec(kind=DriftKind.DEAD, **where)


class TestMissing(DriftContract):
    def make_spec(self, **where):
        return DriftSpec(kind=DriftKind.MISSING, magnitude=0.6, time_s=5.0, **where)


class TestClip(DriftContract):
    def make_spec(self, **where):
        return DriftSpec(
            kind=DriftKind.CLIP,
            magnitude=0.02,
            **{**where, "num_channels": 0, "channels": ("ax", "ay", "az")},
        )


class TestOfTheUser(DriftContract):
    def make_spec(self, **where):
        return DriftSpec(kind=DriftKind.CUSTOM, path=f"{__name__}:Hum", options={"size": 2.0}, **where)


def test_a_users_drift_that_changes_the_shape_is_refused():
    class Broken(DriftContract):
        def make_spec(self, **where):
            return DriftSpec(kind=DriftKind.CUSTOM, path=f"{__name__}:Shrinks", **where)

    plan, x, rows, traits = Broken().world()
    with pytest.raises(DataError, match="changed the shape"):
        plan.apply(x, rows, traits)


def test_an_object_without_apply_is_refused():
    spec = DriftSpec(kind=DriftKind.CUSTOM, path="builtins:object")
    with pytest.raises(ConfigError, match="without apply") as caught:
        DriftPlan(DriftConfig((spec,)), 0, STATS)
    assert caught.value.where == "drift.specs[0].path"
