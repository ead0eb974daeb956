"""What a promotion leaves of the monitors: inputs are judged all the while, the champion's own part once it has served."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedretrain.monitoring import recipes
from fedretrain.monitoring.alerts import DeviceQuarantined, Drifted, WindowJudged
from fedretrain.monitoring.state import MonitorState, WindowStreaks
from tests.lifetime_cases import DAY, HOUR, born, small

if TYPE_CHECKING:
    from fedretrain.monitoring.alerts import MonitorEvent
    from fedretrain.monitoring.fleet_view import FleetView
    from sim.lifetime.loop import Living

NUM, PROMOTED_DAY = 12, 4
BROKEN = 7


@pytest.fixture(scope="module")
def newborn() -> Living:
    return born(small(NUM, 16, "lifetime.initial_rounds=1"))


class Watched:
    """A life of which only the monitors run; version 2, the same model, becomes champion on a day."""

    def __init__(self, living: Living) -> None:
        # The module's life is one for all tests: its rows are put back, its monitors are made anew.
        self.living, self.x = living, living.rows.x.copy()
        living.watch = type(living.watch)(living, living.policy, living.watch.trial.served.group_D)
        living.serving.serve(1)
        living.watch.begin(champion=1)
        living.serving.versions.add(2, living.serving.versions.shared[1], living.serving.versions.personal[1])
        self.monitor, self.log, self.views = MonitorState(1), [], []  # type: ignore[var-annotated]

    def change(self, day: float, devices: list[int], shift: float, until: float = 99.0) -> None:
        """Shift the first two inputs of some devices from a day on."""
        rows = self.living.rows
        hit = (rows.event_at >= day * DAY) & (rows.event_at < until * DAY) & np.isin(rows.device, devices)
        rows.x[np.flatnonzero(hit)[:, None], [0, 1]] += np.float32(shift)

    def run(self, num_days: int) -> list[MonitorEvent]:
        """So many days; what was told in them."""
        living, online = self.living, np.ones(NUM, dtype=np.bool_)
        for tick in range(num_days * 24):
            now = (tick + 1) * HOUR
            which = living.rows.between(now - HOUR, now)
            living.serving.predict_served(np.arange(which.start, which.stop))
            living.watch.observe(which, now - HOUR, now, online, (1, 2))
            assert living.state is not None
            state = replace(living.state, champion=self.monitor.version, monitor=self.monitor)
            for view in living.watch.views(state, now):
                assert living.watch.baseline is not None
                policy = living.policy.monitoring
                events = recipes.decide(policy, self.monitor, view, living.watch.baseline)
                self.monitor = recipes.fold(policy, self.monitor, events)
                self.log += [event for event in events if not isinstance(event, WindowJudged)]
                self.views.append(view)
            if now == PROMOTED_DAY * DAY:
                living.watch.promoted(2, now, self.monitor)
                living.serving.serve(2)
                self.monitor = MonitorState(2)
        living.rows.x[:] = self.x
        return self.log

    def days(self, kind: type, version: int = 2) -> list[float]:
        """When something was told of a champion, in days."""
        return [
            event.at / DAY - 14 for event in self.log if isinstance(event, kind) and event.version == version
        ]

    def after(self, day: float, until: float = 99.0) -> list[FleetView]:
        """The daily windows that ended in a time."""
        return [v for v in self.views if day < v.at / DAY - 14 <= until and v.window_s == DAY]


def test_a_device_that_breaks_while_a_champion_settles_is_told_within_the_normal_time(
    newborn: Living,
) -> None:
    before = Watched(newborn)
    before.change(1.0, [BROKEN], 6.0)
    before.run(4)
    normal = before.days(DeviceQuarantined, 1)[0] - 1.0
    settling = Watched(newborn)
    settling.change(5.0, [BROKEN], 6.0)
    settling.run(10)
    assert settling.days(DeviceQuarantined) == [5.0 + normal]
    assert normal <= 2.0
    assert [e.device for e in settling.log if isinstance(e, DeviceQuarantined)] == [BROKEN]


def test_a_drift_that_begins_while_a_champion_settles_is_no_baseline(newborn: Living) -> None:
    watched = Watched(newborn)
    watched.change(5.0, list(range(NUM)), 4.0)
    watched.run(11)
    found = watched.days(Drifted)
    assert len(found) == 1
    assert 5.0 < found[0] <= 5.0 + 3.0
    assert watched.monitor.drifted


def test_a_champion_made_for_what_the_inputs_are_now_is_held_against_that(newborn: Living) -> None:
    watched = Watched(newborn)
    watched.change(0.0, list(range(NUM)), 4.0)
    watched.change(1.0, [BROKEN], 8.0)
    watched.run(10)
    assert watched.days(Drifted, 1)
    assert not watched.days(Drifted)
    assert not watched.after(PROMOTED_DAY, PROMOTED_DAY + 0.99)  # their windows are part of the new record
    assert watched.after(PROMOTED_DAY + 0.99)


def test_a_device_that_was_in_quarantine_at_a_promotion_is_soon_there_again(newborn: Living) -> None:
    watched = Watched(newborn)
    watched.change(1.0, [BROKEN], 6.0)
    watched.run(8)
    assert watched.days(DeviceQuarantined, 1)
    assert watched.days(DeviceQuarantined)[0] <= PROMOTED_DAY + 2.0
    assert watched.monitor.quarantined == {BROKEN}


@pytest.mark.parametrize(
    ("drifted", "pace_changed"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_what_has_changed_is_recorded_anew_and_nothing_else(
    newborn: Living, *, drifted: bool, pace_changed: bool
) -> None:
    watch = Watched(newborn).living.watch
    before = watch.baseline
    inputs = {DAY: WindowStreaks(drifted=drifted)}
    watch.promoted(2, 0.0, MonitorState(1, inputs=inputs, pace_changed=pace_changed))
    after = watch.baseline
    assert before is not None
    assert after is not None
    assert after.version == 2
    assert (after.arrivals_D is before.arrivals_D) != pace_changed
    for name in ("features_GFC", "nulls", "record"):
        assert (getattr(after, name) is getattr(before, name)) != drifted, name
    assert after.features_FC.sum() == before.features_FC.sum() * (3 / 14 if drifted else 1)
    assert after.outputs_M is before.outputs_M  # its own part, until it has settled


def test_what_a_champion_does_is_judged_once_it_has_settled(newborn: Living) -> None:
    watched = Watched(newborn)
    watched.run(9)
    settled = PROMOTED_DAY + newborn.life.settle_s / DAY
    settling = watched.after(PROMOTED_DAY, settled - 0.01)
    assert settling
    assert all(view.serving is None and view.version == 2 for view in settling)
    assert all(np.isfinite(view.psi_F).all() for view in settling)
    assert all(view.serving is not None for view in watched.after(settled))
    assert not watched.log
