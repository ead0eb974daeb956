"""What every kind of drift must do. Subclass it, say which specification is yours, and let pytest run it:

class TestMine(DriftContract):
    def make_spec(self, **where):
        return DriftSpec(kind=DriftKind.CUSTOM, path="my.module:MyDrift", options={"size": 2.0}, **where)
"""

from __future__ import annotations

import abc
from typing import Any

import numpy as np

from sim.devices import Traits
from sim.sensors.config import DriftConfig, DriftSpec
from sim.sensors.plan import DriftPlan, RawRows
from tests.world_cases import NAMES, STATS, raw_rows, raw_signal

WHERE = {
    "onset_from_s": 10.0,
    "onset_to_s": 60.0,
    "duration_s": 30.0,
    "device_fraction": 0.7,
    "num_channels": 2,
}


class DriftContract(abc.ABC):
    @abc.abstractmethod
    def make_spec(self, **where: Any) -> DriftSpec:
        """The drift, on the devices and at the time that `where` says."""

    def world(self) -> tuple[DriftPlan, np.ndarray, RawRows, Traits]:
        ids = np.arange(12)
        plan = DriftPlan(DriftConfig((self.make_spec(**WHERE),)), 5, STATS)
        return plan, raw_signal(12 * 25), raw_rows(12, 25, 0.0, 100.0), Traits(ids, ids % 3, ids % 2)

    def touched(self) -> np.ndarray:
        """``[N, C]`` what the truth says was touched."""
        plan, _, rows, traits = self.world()
        answer = np.zeros((len(rows.owner), len(NAMES)), dtype=bool)
        for event in plan.truth(traits):
            mine = (rows.owner == event.device) & (rows.event_at >= event.onset_at)
            answer[mine & (rows.event_at < event.end_at), NAMES.index(event.channel)] = True
        return answer

    def test_shape_and_type_stay(self):
        plan, x, rows, traits = self.world()
        out = plan.apply(x, rows, traits)
        assert out.shape == x.shape
        assert out.dtype == np.float32
        assert not np.isinf(out).any()

    def test_identity_wherever_the_truth_lists_nothing(self):
        plan, x, rows, traits = self.world()
        out, touched = plan.apply(x, rows, traits), self.touched()
        assert touched.any()
        assert not touched.all()
        quiet = np.broadcast_to(~touched[:, None, :], x.shape)
        np.testing.assert_array_equal(out[quiet], x[quiet])

    def test_it_does_something(self):
        plan, x, rows, traits = self.world()
        loud = np.broadcast_to(self.touched()[:, None, :], x.shape)
        assert (plan.apply(x, rows, traits)[loud] != x[loud]).mean() > 0.1

    def test_group_and_order_do_not_matter(self):
        plan, x, rows, traits = self.world()
        together = plan.apply(x, rows, traits)
        for device in (0, 5, 11):
            mine = np.flatnonzero(rows.owner == device)[::-1]
            alone = RawRows(np.zeros(len(mine), np.int64), rows.index[mine], rows.event_at[mine])
            out = plan.apply(x[mine], alone, traits.take(np.array([device])))
            np.testing.assert_array_equal(out, together[mine])

    def test_same_answer_from_a_fresh_plan(self):
        plan, x, rows, traits = self.world()
        np.testing.assert_array_equal(plan.apply(x, rows, traits), self.world()[0].apply(x, rows, traits))

    def test_arguments_and_global_randomness_are_left_alone(self):
        plan, x, rows, traits = self.world()
        before, state = x.copy(), np.random.get_state()[1].copy()  # noqa: NPY002 - that it is untouched is the test
        plan.apply(x, rows, traits)
        np.testing.assert_array_equal(x, before)
        np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002 - that it is untouched is the test
