"""Alerts of devices in the log: once, by name, whatever is read again."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

from fedretrain.server import alerts
from fedretrain.server.event_log import EventLog
from fedretrain.wire.control import Alert

DEVICES = [SimpleNamespace(number=0, device="pump-1")]


def _arrived(*numbers):
    said = [(number, Alert(0, "local_rollback", "ab", f"reason {number}")) for number in numbers]
    return SimpleNamespace(alerts=deque(said))


def test_an_alert_is_written_down_once(engine):
    log = EventLog(engine)
    fence = log.acquire("coordinator", "me", now=0.0, ttl_s=1e9)
    first = _arrived(3, 5)
    assert len(alerts.keep(log, "p", first, DEVICES, fence, 1.0)) == 2
    assert not first.alerts
    again = alerts.keep(log, "p", _arrived(3, 5, 8), DEVICES, fence, 2.0)  # read again after a restart
    assert [one["detail"] for one in again] == ["reason 8"]
    assert alerts.keep(log, "p", _arrived(), DEVICES, fence, 3.0) == []
    assert [(one["at"], one["device"], one["record"]) for one in alerts.newest(log, "p", 2)] == [
        (1.0, "pump-1", 5),
        (2.0, "pump-1", 8),
    ]


def test_there_may_be_none(engine):
    assert alerts.newest(EventLog(engine), "p", 5) == []
