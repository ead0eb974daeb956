"""How long a device takes to answer: compute, bandwidth and latency.

Rules of this file:
    * A device's hardware is a pure function of (seed, device, type); a round's jitter of (seed, round, device).
    * Medians and lognormal spreads: field measurements of device speed and bandwidth have long right tails
      (FedScale, https://arxiv.org/abs/2105.11367).
    * A straggler is a device whose answer would come after the deadline; the loop compares, nothing is hidden
      here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from fedretrain.core.checks import as_tuples, not_negative, positive
from sim.devices import Traits, TraitsOf, plain_traits

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NetworkConfig:
    """Hardware and links of a fleet.

    Attributes:
        step_s: Seconds that one training step takes on a device of speed 1.
        start_s: Seconds that starting a training costs on a device of speed 1 (a process, a model in memory).
        speed_sigma: Lognormal spread of compute speed among devices of one type.
        type_speed: Median speed of each device type; types beyond the list start over at its beginning.
        down_bps: Median downlink, bits per second.
        up_bps: Median uplink, bits per second.
        bandwidth_sigma: Lognormal spread of both (one draw: a bad place is bad both ways).
        latency_s: Median round-trip latency.
        latency_sigma: Its lognormal spread.
        jitter_sigma: Lognormal spread of a device's whole time from round to round.
    """

    step_s: float = 0.02
    start_s: float = 1.0
    speed_sigma: float = 0.5
    type_speed: tuple[float, ...] = (1.0,)
    down_bps: float = 10e6
    up_bps: float = 2e6
    bandwidth_sigma: float = 0.8
    latency_s: float = 0.1
    latency_sigma: float = 0.5
    jitter_sigma: float = 0.1

    def __post_init__(self) -> None:
        as_tuples(self, ["type_speed"])
        for name in ("down_bps", "up_bps"):
            positive(f"network.{name}", getattr(self, name))
        for speed in self.type_speed or (0.0,):
            positive("network.type_speed", speed)
        for name in ("step_s", "start_s", "latency_s"):
            not_negative(f"network.{name}", getattr(self, name))
        for name in ("speed_sigma", "bandwidth_sigma", "latency_sigma", "jitter_sigma"):
            not_negative(f"network.{name}", getattr(self, name))


@dataclass(frozen=True)
class Links:
    """Hardware of K devices.

    Attributes:
        compute_speed: ``[K]``, 1 is the reference device.
        down_bps: ``[K]`` bits per second.
        up_bps: ``[K]`` bits per second.
        latency_s: ``[K]`` round trip.
    """

    compute_speed: Floats
    down_bps: Floats
    up_bps: Floats
    latency_s: Floats


class Network:
    """The fleet's hardware and links: what the loop asks.

    Args:
        config: Medians and spreads.
        seed: The run's seed.
        traits: Where types of devices come from (`Fleet.traits`).
    """

    def __init__(self, config: NetworkConfig, seed: int, traits: TraitsOf = plain_traits) -> None:
        self.config = config
        self._seed, self._traits = seed, traits

    def links(self, devices: ArrayLike) -> Links:
        """The hardware of devices ``[K]``."""
        return links(self.config, self._seed, self._traits(np.asarray(devices, dtype=np.int64)))

    def reply_after_s(
        self,
        devices: ArrayLike,
        *,
        round_: int,
        down_bytes: ArrayLike,
        up_bytes: ArrayLike,
        num_steps: ArrayLike,
    ) -> Floats:
        """Seconds from the request of a round to each device's complete reply.

        Args:
            devices: ``[K]``.
            round_: The round (its jitter).
            down_bytes: Bytes to the device, one number or ``[K]``.
            up_bytes: Bytes from the device, one number or ``[K]``.
            num_steps: Training steps, one number or ``[K]``.

        Returns:
            ``[K]`` float64.
        """
        has = self.links(devices)
        transfer = 8.0 * np.asarray(down_bytes) / has.down_bps + 8.0 * np.asarray(up_bytes) / has.up_bps
        compute = (self.config.start_s + self.config.step_s * np.asarray(num_steps)) / has.compute_speed
        seeds = rng.seeds_for(self._seed, round_, devices, "network.jitter")
        jitter = np.exp(self.config.jitter_sigma * rng.normals(seeds, 1)[:, 0])
        total: Floats = (has.latency_s + transfer + compute) * jitter
        return total


def links(config: NetworkConfig, seed: int, traits: Traits) -> Links:
    """The hardware of devices with the given traits."""
    draws = rng.normals(rng.seeds_for(seed, -1, traits.device, "network.links"), 3)
    median = np.asarray(config.type_speed)[traits.device_type % len(config.type_speed)]
    band = np.exp(config.bandwidth_sigma * draws[:, 1])
    return Links(
        compute_speed=median * np.exp(config.speed_sigma * draws[:, 0]),
        down_bps=config.down_bps * band,
        up_bps=config.up_bps * band,
        latency_s=config.latency_s * np.exp(config.latency_sigma * draws[:, 2]),
    )
