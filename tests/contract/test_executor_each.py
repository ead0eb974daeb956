"""The reference executor keeps the executors' contract, bit for bit."""

from __future__ import annotations

from tests.contract.executor_contract import ExecutorContract


class TestEach(ExecutorContract):
    name = "each"
