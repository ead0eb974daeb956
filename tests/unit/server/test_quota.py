"""What one device may ask: counted for each apart, and calls apart from telemetry."""

from __future__ import annotations

from types import SimpleNamespace

from fedretrain.server.config import Quota
from fedretrain.server.quota import LEAST_BYTES, Quotas
from fedretrain.wire.control import MAX_MESSAGE_BYTES

A, B = (SimpleNamespace(population="p", device=name) for name in "ab")


def test_each_device_has_a_quota_of_its_own():
    now = [0.0]
    quotas = Quotas(Quota(calls_per_s=1.0, burst_calls=2), lambda: now[0])
    assert [quotas.call(A) for _ in range(2)] == ["", ""]
    assert quotas.call(A) == "more than 2 calls at once and 1 a second: call more rarely"
    assert quotas.call(B) == ""
    now[0] = 1.0
    assert quotas.call(A) == ""


def test_a_device_that_sends_too_much_is_heard_all_the_same():
    quotas = Quotas(Quota(bytes_per_s=1000.0, burst_bytes=MAX_MESSAGE_BYTES), lambda: 0.0)
    assert quotas.carry(A, MAX_MESSAGE_BYTES) == ""
    assert "bytes of telemetry" in quotas.carry(A, 1)
    assert quotas.call(A) == ""


def test_a_small_batch_counts_as_a_transaction():
    quotas = Quotas(Quota(burst_bytes=MAX_MESSAGE_BYTES), lambda: 0.0)
    most = MAX_MESSAGE_BYTES // LEAST_BYTES
    assert [bool(quotas.carry(A, 1)) for _ in range(most + 1)] == [False] * most + [True]
