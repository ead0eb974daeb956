"""A device against a real gateway: it enrols, installs, predicts, reports once, is labelled, goes back, and survives."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.edge.control import ControlError
from tests.agent_cases import Clock, fleet_of, rows


@pytest.fixture
def fleet(tmp_path):
    (tmp_path / "server").mkdir()
    with fleet_of(tmp_path / "server") as running:
        yield running


def test_the_life_of_a_device(fleet, tmp_path):
    clock, (first, second) = Clock(), fleet.make(2)
    with fleet.device(tmp_path, clock) as device:
        assert device.predict(rows())[0][1:] == (-1, 0.0, "")  # nobody has told it anything
        fleet.assign("a", first)
        device.sync()
        heard = fleet.heard("a")
        assert (heard["serves"], heard["healthy"], heard["counter"]) == (first, False, 1)
        answers = device.predict(rows(3))
        assert [answer.package for answer in answers] == [first] * 3
        device.sync()
        assert fleet.heard("a")["healthy"]
        clock.go(120, fleet)
        device.label(answers[0].id, 2)
        device.sync()
        device.sync()
        (report,) = fleet.records("report")
        assert (report.package, report.shadow, sum(report.outputs)) == (first, False, 3)
        assert report.kpis["latency_s"].weight == 3
        (labels,) = fleet.records("labels")
        assert np.array(labels.confusion).reshape(3, 3)[2, answers[0].label] == 1
        fleet.assign("a", second)
        device.sync()
        assert device.predict(rows())[0].package == second
        fleet.assign("a", first, withdrawn=(second,))
        device.sync()
        assert device.predict(rows())[0].package == first
        assert fleet.heard("a")["serves"] == first
        fleet.assign("a", first, safe_mode=True, withdrawn=(second,))
        device.sync()
        assert device.predict(rows())[0][1:] == (2, 1.0, "")  # the label that it was told
        assert fleet.heard("a")["serves"] == ""


def test_a_device_serves_after_a_restart_without_a_server(fleet, tmp_path):
    (first,) = fleet.make()
    with fleet.device(tmp_path) as device:
        fleet.assign("a", first)
        device.sync()
    with fleet.device(tmp_path, token="") as device:
        assert device.predict(rows())[0].package == first
        device._syncing._client = Unreachable()
        with pytest.raises(ControlError):
            device.sync()
        assert device.predict(rows())[0].package == first


class Unreachable:
    def heartbeat(self, *_args, **_more):
        raise ControlError("nobody is there")

    def close(self):
        pass
