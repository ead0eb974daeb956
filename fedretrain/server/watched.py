"""How a population is watched by its files, and how much memory that takes: known before anything is made.

Rules of this file:
    * Memory grows with devices times slots, and neither is small: a fleet that outgrows `watching.memory_gib` is not watched, and the reason
      is told, where otherwise the machine would run out of memory some day and serve nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.coordinator.watching import Clockwork
from fedretrain.core.errors import DataError
from fedretrain.monitoring.footprint import Footprint
from fedretrain.monitoring.reports import LATENCY_KPI
from fedretrain.monitoring.rings import kept_horizon

if TYPE_CHECKING:
    from fedretrain.coordinator.policy import Policy
    from fedretrain.monitoring.config import MonitoringPolicy
    from fedretrain.server.config import Watching

BUILT_IN_KPIS = (LATENCY_KPI,)
"""What every agent reports beside the policy's KPIs."""

GRACE_SLOTS = 0.5
"""A slot is looked at half a slot after its end: that long its reports may take."""

_SERVED, _SHADOWED = 2, 1
"""Versions whose counts are kept in each slot, at most: the champion and a candidate, and one that is scored beside."""


def clockwork_of(watching: Watching, policy: Policy) -> Clockwork:
    """How time is cut by a configuration and a policy."""
    return Clockwork(
        watching.slot_s,
        watching.settle_s,
        watching.record_s,
        watching.inputs_s,
        grace_s=GRACE_SLOTS * watching.slot_s,
        trial_s=policy.rollout.longest_stage_s,
    )


def kpis_of(policy: MonitoringPolicy) -> tuple[str, ...]:
    """The KPIs that reports carry."""
    return (*BUILT_IN_KPIS, *(kpi.name for kpi in policy.kpis if kpi.name not in BUILT_IN_KPIS))


def room_for(num_devices: int) -> int:
    """More than a number of devices, by a quarter at most, and 16 at least: arrays are made anew a few times in a fleet's life."""
    step = max(16, 1 << max(0, num_devices.bit_length() - 3))
    return (num_devices // step + 1) * step


def counts_bytes(
    policy: MonitoringPolicy,
    clockwork: Clockwork,
    num_devices: int,
    num_cells: int,
    *,
    classification: bool = True,
) -> int:
    """What counts of a fleet take in memory, at most where they fit 16 bits.

    Args:
        policy: What is watched.
        clockwork: How time is cut.
        num_devices: In the fleet.
        num_cells: Bins of all features together.
        classification: Labels come as confusion counts.
    """
    horizon = kept_horizon(clockwork.keep_slots(policy))
    one = Footprint(
        horizon.num_slots, horizon.chunk_slots, num_cells, len(kpis_of(policy)), classification=classification
    )
    room = room_for(num_devices)
    return one.num_bytes(room, _SERVED) + one.num_bytes(room, _SHADOWED)


def check_memory(need: int, most: float, num_devices: int, keep_slots: int) -> None:
    """Refuse what would take the machine's memory.

    Raises:
        DataError: If counts need more than they may take.
    """
    if need > most:
        raise DataError(
            f"counts of {num_devices} devices in {keep_slots} slots may take {need / 2**30:.2f} GiB of memory,"
            f" beyond {most / 2**30:.2f}",
            where="watching.memory_gib",
            fix="raise it if the machine has more, or lengthen watching.slot_s, or shorten the policy's windows and rollout stages",
        )
