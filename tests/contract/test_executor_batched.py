"""The batched executor keeps the executors' contract, to rounding."""

from __future__ import annotations

from tests.contract.executor_contract import ExecutorContract


class TestBatched(ExecutorContract):
    name = "batched"
    atol = 2e-6
