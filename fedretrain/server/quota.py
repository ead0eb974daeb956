"""What one device may ask of the gateway: a defect or a thief with one device's key costs the others nothing.

Rules of this file:
    * Calls and telemetry are counted apart: a device that sends a long backlog is heard, and hears of a rollback, all the same.
    * A small batch costs a transaction like a large one, so it counts as `LEAST_BYTES` at least.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fedretrain.core.rate import RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedretrain.server.config import Quota
    from fedretrain.server.fleet import Device

LEAST_BYTES = 4096


class Quotas:
    """The quota of each device. For one thread.

    Args:
        quota: What each may.
        clock: Monotonic seconds.
    """

    def __init__(self, quota: Quota, clock: Callable[[], float] = time.monotonic) -> None:
        self._quota, self._clock = quota, clock
        self._limits: dict[tuple[str, str], tuple[RateLimit, RateLimit]] = {}

    def call(self, device: Device) -> str:
        """Count a heartbeat, or a file that is fetched; why it is refused, empty if it is not."""
        quota = self._quota
        if self._of(device)[0].allows():
            return ""
        return f"more than {quota.burst_calls} calls at once and {quota.calls_per_s:g} a second: call more rarely"

    def carry(self, device: Device, num_bytes: int) -> str:
        """Count a batch of telemetry; why it is refused, empty if it is not."""
        quota = self._quota
        if self._of(device)[1].allows(max(num_bytes, LEAST_BYTES)):
            return ""
        return (
            f"more than {quota.burst_bytes} bytes of telemetry at once and {quota.bytes_per_s:g} a second:"
            " send the rest later"
        )

    def _of(self, device: Device) -> tuple[RateLimit, RateLimit]:
        name = device.population, device.device
        found = self._limits.get(name)
        if found is None:
            quota, clock = self._quota, self._clock
            found = self._limits[name] = (
                RateLimit(quota.calls_per_s, quota.burst_calls, clock),
                RateLimit(quota.bytes_per_s, quota.burst_bytes, clock),
            )
        return found
