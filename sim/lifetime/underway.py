"""A life under way: lived on for a while, put aside as bytes, and taken up again as if nothing had been.

Rules of this file:
    * It is put aside between two ticks, and everything that it holds is: what was built from configuration and seed is built
      again, all else is written (`sim.snapshot`). So a life that was stopped goes on bit for bit.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from fedretrain.coordinator.policy import Policy
from sim.arm import Arm
from sim.lifetime.config import LifetimeConfig
from sim.lifetime.loop import Living
from sim.lifetime.oracle import Truth
from sim.lifetime.rows import LifeFleet, LifeRows
from sim.lifetime.saboteur import Saboteur
from sim.rules import CampaignRules
from sim.snapshot import dump, load

if TYPE_CHECKING:
    from sim.lifetime.policies import NamedPolicy
    from sim.lifetime.records import Life
    from sim.schema import Config

_BUILT = (Arm, CampaignRules, LifeFleet, LifeRows, LifetimeConfig, Policy, Saboteur, Truth)
_COMPUTES = "fedretrain.training."  # tasks, models and executors


class LifeUnderWay:
    """One life.

    Args:
        config: The experiment's configuration.
        policy: What it lives under.
        seed: Of everything random.
        saved: What `save` made of it; None: it begins.
        where: Where that comes from, for messages.

    Raises:
        DataError: If what was saved is damaged or of another version.
    """

    def __init__(
        self, config: Config, policy: NamedPolicy, seed: int, saved: bytes | None = None, where: str = ""
    ) -> None:
        begun = time.perf_counter()
        self._living = Living(config, policy, seed)
        self._num_ticked = 0
        self._spent_s = 0.0
        if saved is None:
            self._living.begin()
        else:
            load(saved, where, into=self)
        self._spent_s += time.perf_counter() - begun

    def go(self, seconds: float) -> Life | None:
        """Live on for about so many seconds of wall time, at least a tick; the life once it is over."""
        begun, living = time.perf_counter(), self._living
        while True:
            living.tick(self._num_ticked)
            self._num_ticked += 1
            is_over, spent_s = self._num_ticked == living.life.num_ticks, time.perf_counter() - begun
            if is_over or spent_s >= seconds:
                break
        self._spent_s += spent_s
        return living.finish(self._spent_s) if is_over else None

    def save(self) -> bytes:
        """Everything that another process needs to go on."""
        return dump(self, kept=_is_built)


def _is_built(value: Any) -> bool:
    return isinstance(value, _BUILT) or type(value).__module__.startswith(_COMPUTES)


def live(config: Config, policy: NamedPolicy, seed: int) -> Life:
    """Live one life to its end."""
    life = LifeUnderWay(config, policy, seed).go(math.inf)
    assert life is not None
    return life
