"""An availability model of measured clusters: a daily curve for each, and a state that lasts.

Rules of this file:
    * In each slot a device's state is drawn anew with probability ``1 - keep``, by its cluster's probability at that hour, else it
      stays. ``keep = 0`` is a daily curve alone; equal hours are a Markov chain; both together are what fleets do.
    * A device of a cluster that was not measured follows the one of its site modulo the measured ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core import rng
from fedretrain.core.checks import fraction, positive, require
from fedretrain.core.clock import DAY_S, HOUR_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sim.devices import Traits

    Floats = NDArray[np.float64]

_MOST_KEPT = 0.999  # beyond it the look back over slots would be long and the curve without meaning


@dataclass(frozen=True)
class ClusterHours:
    """The model.

    Attributes:
        cluster: ``[Q, 2]`` site and device type of each cluster.
        hourly: ``[Q, 24]`` the probability that a drawn state is online, by hour of the campaign's day.
        keep: Probability that a slot keeps the state of the one before.
        slot_s: Seconds of a slot.
    """

    cluster: NDArray[np.int64]
    hourly: Floats
    keep: float
    slot_s: float

    def online(self, traits: Traits, seed: int, at: Floats) -> NDArray[np.bool_]:
        """The state drawn at each device's last renewal."""
        renewals = rng.seeds_for(seed, -1, traits.device, "availability.cluster.renewal")
        slot = np.floor(at / self.slot_s).astype(np.int64)
        waiting = np.arange(len(slot)) if self.keep else np.zeros(0, dtype=np.int64)
        while len(waiting):
            renewed = rng.uniforms_at(renewals[waiting], slot[waiting]) >= self.keep
            waiting = waiting[~renewed]
            slot[waiting] -= 1
        hour = np.floor(slot * self.slot_s % DAY_S / HOUR_S).astype(np.int64)
        states = rng.seeds_for(seed, -1, traits.device, "availability.cluster.state")
        answer: NDArray[np.bool_] = (
            rng.uniforms_at(states, slot) < self.hourly[self._cluster_of(traits), hour]
        )
        return answer

    def _cluster_of(self, traits: Traits) -> NDArray[np.int64]:
        """``[K]`` each device's cluster: its own, or one of its site, or of its number modulo the clusters."""
        same_site = self.cluster[:, 0] == traits.site[:, None]
        same_type = self.cluster[:, 1] == traits.device_type[:, None]
        score = 2 * same_site + same_type
        place = np.argmax(score, axis=1)
        unknown = score.max(axis=1) < 2
        return np.where(unknown, traits.site % len(self.cluster), place).astype(np.int64)


def cluster_hours(
    *, clusters: Sequence[dict[str, Any]], keep: float = 0.0, slot_s: float = HOUR_S
) -> ClusterHours:
    """The model from a configuration: `availability.custom.options`.

    Args:
        clusters: For each ``{site, device_type, hourly: 24 numbers}``.
        keep: See `ClusterHours`.
        slot_s: See `ClusterHours`.

    Raises:
        ConfigError: If there is no cluster or a number is impossible.
    """
    key = "availability.custom.options"
    require(len(clusters) > 0, "at least one cluster is needed", key=f"{key}.clusters")
    fraction(f"{key}.keep", keep)
    require(keep <= _MOST_KEPT, f"{keep} never renews a state", key=f"{key}.keep")
    positive(f"{key}.slot_s", slot_s)
    for one in clusters:
        wanted = {"site", "device_type", "hourly"}
        require(
            set(one) == wanted,
            f"a cluster has {sorted(one)}",
            key=f"{key}.clusters",
            fix=f"give {sorted(wanted)}",
        )
        require(len(one["hourly"]) == 24, "24 numbers are needed", key=f"{key}.clusters")
        for value in one["hourly"]:
            fraction(f"{key}.clusters", value)
    return ClusterHours(
        np.array([(one["site"], one["device_type"]) for one in clusters], dtype=np.int64),
        np.array([one["hourly"] for one in clusters], dtype=np.float64),
        float(keep),
        float(slot_s),
    )
