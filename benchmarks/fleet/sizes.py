"""How large a benchmark of the fleet is: as the issue says, or so small that a test runs it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Every count and time of the benchmark.

    Attributes:
        num_connected: Devices that heart-beat together.
        num_stormy: Devices that come back together.
        offline_s: For how long those were away.
        offline_slot_s: Between the reports, with labels, that they could not send.
        storm_s: Within which they come back.
        heartbeat_s: Between heartbeats.
        slot_s: Between reports.
        tick_s: Between the coordinator's decisions.
        connect_s: Within which devices connect.
        steady_s: How long heartbeats are measured.
        num_drivers: Processes of the load, beside the probe.
        num_nodes: SuperNodes, in turn.
        ramp_s: How long each number of SuperNodes is measured.
        num_rounds: Rounds beside Flower's own.
    """

    num_connected: int = 10_000
    num_stormy: int = 5_000
    offline_s: float = 48 * 3600.0
    offline_slot_s: float = 600.0
    storm_s: float = 120.0
    heartbeat_s: float = 10.0
    slot_s: float = 60.0
    tick_s: float = 60.0
    connect_s: float = 60.0
    steady_s: float = 120.0
    num_drivers: int = 2
    num_nodes: tuple[int, ...] = (50, 200, 1000)
    ramp_s: float = 30.0
    num_rounds: int = 5


FULL = Size()
QUICK = Size(
    num_connected=40,
    num_stormy=20,
    offline_s=600.0,
    offline_slot_s=10.0,
    storm_s=1.0,
    heartbeat_s=1.0,
    slot_s=2.0,
    tick_s=1.0,
    connect_s=1.0,
    steady_s=5.0,
    num_drivers=1,
    num_nodes=(2, 4),
    ramp_s=3.0,
    num_rounds=2,
)
