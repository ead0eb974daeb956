"""Virtual devices: another's raw signal, re-mounted, with its own gain and noise.

Rules of this file:
    * Only raw signals are touched, after the time split, and always by the same transform for one device.
    * Three channels that the schema names alike but for a last letter x, y, z, in one unit, are a three-axis group.
      The groups of a device turn together, as in one case; other channels get an offset instead.
    * What comes out is a virtual device and must be called so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core import rng
from sim.noise import gaussian

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.features.schema import Schema
    from sim.fleet import MountConfig
    from sim.sensors.effects import SignalStats
    from sim.sensors.plan import RawRows

    Signal = NDArray[np.float32]


def three_axis_groups(schema: Schema) -> tuple[tuple[int, int, int], ...]:
    """Positions (x, y, z) of the three-axis groups among the channels."""
    place = {channel.name: i for i, channel in enumerate(schema.channels)}
    groups = []
    for channel in schema.channels:
        if channel.name[-1:] not in ("x", "X"):
            continue
        letters = "xyz" if channel.name[-1] == "x" else "XYZ"
        names = [channel.name[:-1] + letter for letter in letters]
        if all(name in place and schema.channels[place[name]].unit == channel.unit for name in names):
            groups.append((place[names[0]], place[names[1]], place[names[2]]))
    return tuple(groups)


def rotations(seeds: NDArray[np.uint64], max_deg: float) -> NDArray[np.float64]:
    """A turn about a uniformly random axis by an angle uniform in 0 to `max_deg`: ``[K, 3, 3]`` (Rodrigues)."""
    axis = rng.normals(seeds, 3)
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = np.deg2rad(max_deg) * rng.uniforms_at(seeds, 1_000)
    x, y, z = axis.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    turn: NDArray[np.float64] = (
        np.eye(3)
        + np.sin(angle)[:, None, None] * cross
        + (1.0 - np.cos(angle))[:, None, None] * (cross @ cross)
    )
    return turn


class Mounting:
    """How virtual devices' sensors differ from those of their sources.

    Args:
        config: Spreads.
        seed: The run's seed.
        stats: The channels' scales.
        groups: See `three_axis_groups`.
    """

    def __init__(
        self, config: MountConfig, seed: int, stats: SignalStats, groups: tuple[tuple[int, int, int], ...]
    ) -> None:
        self._config, self._seed, self._stats, self._groups = config, seed, stats, groups
        self._turned = np.zeros(len(stats.names), dtype=np.bool_)
        self._turned[[i for group in groups for i in group]] = True

    def apply(self, x: Signal, rows: RawRows, devices: NDArray[np.int64]) -> Signal:
        """Re-mounted signals.

        Args:
            x: ``[N, T, C]`` the sources' raw samples.
            rows: Whose rows they are.
            devices: ``[K]`` the virtual devices.

        Returns:
            ``[N, T, C]`` float32, a new array.
        """
        config, count = self._config, len(self._stats.names)
        out = self._rotated(x, rows.owner, devices)
        draws = rng.normals(rng.seeds_for(self._seed, -1, devices, "fleet.mount"), 2 * count)
        gain = np.exp(config.gain_sigma * draws[:, :count]).astype(np.float32)
        offset = np.where(self._turned, 0.0, config.offset_sigma * draws[:, count:] * self._stats.std)
        out *= gain[rows.owner][:, None, :]
        out += offset.astype(np.float32)[rows.owner][:, None, :]
        if config.noise_sigma:
            seeds = rng.seeds_for(self._seed, -1, devices, "fleet.mount_noise")[rows.owner]
            noise = gaussian(rng.words_at(seeds, rows.index), x.shape[1] * x.shape[2]).reshape(x.shape)
            out += noise * (config.noise_sigma * self._stats.std).astype(np.float32)
        return out

    def _rotated(self, x: Signal, owner: NDArray[np.int64], devices: NDArray[np.int64]) -> Signal:
        """A copy of the signal, three-axis groups turned."""
        out = x.copy()
        if not self._config.rotation_deg or not self._groups:
            return out
        seeds = rng.seeds_for(self._seed, -1, devices, "fleet.rotation")
        turn = rotations(seeds, self._config.rotation_deg).astype(np.float32)[owner]
        for group in self._groups:
            columns = list(group)
            out[:, :, columns] = np.matmul(x[:, :, columns], np.swapaxes(turn, 1, 2))
        return out
