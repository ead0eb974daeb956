"""Orders carried out by simulated devices.

Rules of this file:
    * An order reaches a device when it is online. The device installs after its own check, and says what became of it.
      Whoever is told to leave the candidate leaves it: a score of one's own is no reason to keep what is taken back.
    * Whom no rollout exposes, and whom no holdback keeps, serves what the coordinator says (`cycle.served`): the champion, or
      a fallback. In safe mode that is everybody.
    * A device that is kept out is exposed by no rollout that begins meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.rng import seed_for
from fedretrain.rollout.assignment import answered
from fedretrain.rollout.evidence import Exposure
from fedretrain.rollout.exposure import exposed, held_back, ranks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.rollout.events import Order
    from sim.lifetime.serving import Serving

    Ids = NDArray[np.int64]


@dataclass
class _Standing:
    """The present order, whom it is about, and who has answered it."""

    order: Order
    asked: NDArray[np.bool_]
    confirmed: NDArray[np.bool_]
    heard: NDArray[np.bool_]


class Release:
    """Orders on their way to devices.

    Args:
        serving: The devices' models.
        strata: ``[D]`` the stratum of each device.
        seed: Of the order in which devices are exposed; each rollout has its own.
    """

    def __init__(self, serving: Serving, strata: Ids, seed: int) -> None:
        self._serving, self._strata, self._seed = serving, strata, seed
        self._standing: _Standing | None = None
        self._rank = np.zeros(len(strata))
        self._ever = np.zeros(len(strata), dtype=np.bool_)
        self._failed = np.zeros(len(strata), dtype=np.bool_)
        self.treated = np.zeros(len(strata), dtype=np.bool_)
        self.shadowing = np.zeros(len(strata), dtype=np.bool_)

    def begin(self, rollout: int, counted: NDArray[np.bool_]) -> None:
        """A new rollout: the devices that count ``[D]`` queue in an order of its own, the others wait for the promotion."""
        salt = seed_for(self._seed, rollout, -1, "rollout")
        devices = np.flatnonzero(counted)
        self._rank = np.full(len(self._strata), np.nan)  # neither exposed nor held back at any share
        self._rank[devices] = ranks(devices, self._strata[devices], salt)
        self._ever[:] = False

    def order(self, order: Order) -> None:
        """A new order; `serve` says what follows for each device."""
        self.shadowing = self._rank < order.shadow_fraction
        self.treated = exposed(self._rank, order.fraction, order.holdback_fraction)
        self._ever |= self.treated
        asked = self.treated if order.fraction > 0 else self._ever.copy()
        none = np.zeros(len(asked), dtype=np.bool_)
        self._standing = _Standing(order, asked, none.copy(), none.copy())
        self._failed[:] = False

    def serve(self, version: int, *, exposing: bool, everybody: bool) -> None:
        """What each device shall serve from now on, once it is online.

        Args:
            version: For all whom no rollout exposes.
            exposing: Whether a rollout is open: its treated devices serve the candidate.
            everybody: Nobody is exposed or held back: safe mode.
        """
        target = np.full(len(self._strata), version, dtype=np.int64)
        standing = self._standing
        if standing is not None and not everybody:
            order = standing.order
            if exposing:
                target[self.treated] = order.candidate
            if order.holdback_fraction:
                target[held_back(self._rank, order.holdback_fraction)] = order.holdback_version
        self._failed &= target == self._serving.target
        self._serving.target = target

    def step(self, now: float, online: NDArray[np.bool_]) -> Ids:
        """Devices that are online do what they were told; which ones changed what they serve."""
        standing, serving = self._standing, self._serving
        behind = online & (serving.version != serving.target) & ~self._failed
        changed: list[Ids] = []
        for version in np.unique(serving.target[behind]).tolist():
            devices = np.flatnonzero(behind & (serving.target == version))
            left = None if standing is None else standing.order.candidate
            installed = serving.install(devices, version, at=now, left=left)
            self._failed[devices[installed.refused]] = True
            changed.append(devices[~installed.refused])
        if standing is not None:
            standing.heard |= online
            standing.confirmed |= online & (serving.version == serving.target)
        return np.concatenate(changed) if changed else np.zeros(0, dtype=np.int64)

    def exposure(self, now: float) -> Exposure:
        """What the devices say of the present order."""
        standing = self._standing
        if standing is None:
            return Exposure()
        return answered(standing.order, standing.asked, standing.confirmed, self._failed, now, standing.heard)
