"""The cases: what is done to a candidate, and what has to become of it.

Rules of this file:
    * A case says beforehand what is wanted. What the candidate really does to the fleet is measured by the oracle beside it, and decides nothing.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import ConfigError
from sim.sabotage import saboteurs
from sim.sabotage.saboteurs import Costly, DeadLabels, GarbledInstall, Honest, NotNumbers, Twin, WrongOutputs
from sim.sensors.config import DriftConfig, DriftKind, DriftShape, DriftSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fedretrain.coordinator.policy import Policy
    from sim.schema import Config


class Wanted(StrEnum):
    """What has to become of a candidate."""

    STOPPED = "stopped"
    PROMOTED = "promoted"
    HELD = "held"  # neither promoted nor blamed: nobody can tell
    UNBLAMED = "unblamed"  # promoted or given up, as it comes, and not blamed


def unchanged(config: Config, policy: Policy) -> Config:
    """The experiment as it is."""
    del policy
    return config


def early_champion(config: Config, policy: Policy) -> Config:
    """The first champion got a fifth of its rounds, so a retrain is better by more training."""
    del policy
    rounds = max(1, config.lifetime.initial_rounds // 5)
    return replace(config, lifetime=replace(config.lifetime, initial_rounds=rounds))


def drifting(config: Config, policy: Policy) -> Config:
    """Everybody's sensors creep off in the same way, over three days from the middle of the canary on."""
    onset = _amid_canary(config, policy)
    creeping = DriftSpec(
        kind=DriftKind.OFFSET,
        shape=DriftShape.LINEAR,
        magnitude=0.5,
        num_channels=3,
        onset_from_s=onset,
        onset_to_s=onset,
        time_s=3 * DAY_S,
    )
    return replace(config, drift=DriftConfig(specs=(creeping,)))


def drifting_far(config: Config, policy: Policy) -> Config:
    """Every device's sensors jump, each in a direction of its own, in the middle of the canary: no model here is good afterwards."""
    onset = _amid_canary(config, policy)
    jump = DriftSpec(
        kind=DriftKind.OFFSET,
        magnitude=1.0,
        random_sign=True,
        num_channels=3,
        onset_from_s=onset,
        onset_to_s=onset,
    )
    return replace(config, drift=DriftConfig(specs=(jump,)))


def _amid_canary(config: Config, policy: Policy) -> float:
    """When half of the canary's shortest time is over, if nothing holds the rollout up."""
    life = config.lifetime
    trained = policy.retraining.interval_s + life.retrain_rounds * life.round_interval_s
    canary = trained + policy.rollout.shadow.min_s + 2 * life.tick_s
    return canary + policy.rollout.steps[0].min_s / 2


@dataclass(frozen=True)
class Case:
    """One way to be bad, or good.

    Attributes:
        name: Its key.
        title: For people.
        wanted: What has to become of it.
        make: Who does it.
        configured: Changes the experiment where the harm is not the candidate's.
    """

    name: str
    title: str
    wanted: Wanted
    make: Callable[[], Honest]
    configured: Callable[[Config, Policy], Config] = unchanged


def _wrong(
    where: saboteurs.Rows, share: float, *, gain: float = 0.0, only_served: bool = False
) -> WrongOutputs:
    return WrongOutputs(where, share, gain=gain, only_served=only_served)


_SITE = saboteurs.rows_of_site(0)

CASES = (
    Case("equal", "the champion once more", Wanted.PROMOTED, Twin),
    Case("retrained", "an honest retrain", Wanted.PROMOTED, Honest),
    Case("better", "better by more training", Wanted.PROMOTED, Honest, early_champion),
    Case(
        "both_drift",
        "an honest retrain; both arms drift from its canary on",
        Wanted.PROMOTED,
        Honest,
        drifting,
    ),
    Case(
        "both_drift_far",
        "an honest retrain; both arms break down in its canary",
        Wanted.UNBLAMED,
        Honest,
        drifting_far,
    ),
    Case("dead_labels", "an honest retrain; labels end in its canary", Wanted.HELD, DeadLabels),
    Case(
        "label_flips",
        "40 % of all training labels flipped",
        Wanted.STOPPED,
        lambda: saboteurs.label_flips(0.4),
    ),
    Case(
        "poisoned_clients",
        "a fifth of the clients sends -8 times its update",
        Wanted.STOPPED,
        lambda: saboteurs.poisoned_clients(0.2, -8.0),
    ),
    Case("nan_weights", "one weight in ten of an array is NaN", Wanted.STOPPED, lambda: NotNumbers(0.1)),
    Case("larger", "twice the size", Wanted.STOPPED, lambda: Costly(growth=2.0)),
    Case("slower", "twice as slow", Wanted.STOPPED, lambda: Costly(slowdown=2.0)),
    Case("slightly_slower", "slower by a third", Wanted.STOPPED, lambda: Costly(slowdown=4 / 3)),
    Case(
        "miscalibrated", "a fifth of the logits: unsure of all", Wanted.STOPPED, lambda: saboteurs.Scaled(0.2)
    ),
    Case(
        "overconfident",
        "logits times five: sure of all, at equal accuracy",
        Wanted.STOPPED,
        lambda: saboteurs.Scaled(5.0),
    ),
    Case(
        "cluster_harmed",
        "one site errs on a fifth more, the mean improves",
        Wanted.STOPPED,
        lambda: _wrong(_SITE, 0.2, gain=0.5),
    ),
    Case(
        "late_labels",
        "half wrong where labels are late",
        Wanted.STOPPED,
        lambda: _wrong(saboteurs.late_rows, 0.5),
    ),
    Case(
        "served_only",
        "8 % wrong, only where it is served",
        Wanted.STOPPED,
        lambda: _wrong(saboteurs.all_rows, 0.08, only_served=True),
    ),
    Case(
        "late_served",
        "all wrong where labels are late, only where it is served",
        Wanted.STOPPED,
        lambda: _wrong(saboteurs.late_rows, 1.0, only_served=True),
    ),
    Case(
        "garbled_install",
        "the re-fit on installing devices is garbled",
        Wanted.STOPPED,
        lambda: GarbledInstall(2.0),
    ),
    Case(
        "cluster_served",
        "one site errs on a fifth more, only where it is served",
        Wanted.STOPPED,
        lambda: _wrong(_SITE, 0.2, gain=0.5, only_served=True),
    ),
)


def chosen(names: Sequence[str]) -> tuple[Case, ...]:
    """The cases of the given names, in the order of `CASES`; ``all``: every one.

    Raises:
        ConfigError: If there is no such case.
    """
    known = {case.name: case for case in CASES}
    for name in names:
        if name != "all" and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"there is no case {name!r}",
                where="sabotage.cases",
                fix=f"did you mean {close[0]!r}?" if close else f"known: all, {', '.join(known)}",
            )
    return CASES if "all" in names else tuple(case for case in CASES if case.name in names)
