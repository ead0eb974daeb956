"""Replays a campaign's aggregation in a fleet, seed by seed, and scores what comes out.

Rules of this file:
    * The rounds are the simulator's own (`sim.campaign`): sampling, training, aggregation, noise, ledger.
    * A replay is a pure function of (configuration, seed): it is done once, whatever asks for it.
    * Scores are turned so that more is better: accuracy as it is, errors with their sign changed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sim.arm import Arms
from sim.campaign import Campaign, first_devices, metric_of
from sim.checkpoint import config_digest
from sim.local_runner import LocalRunner
from sim.personal_store import PersonalStore
from sim.schema import RunnerKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.core.params import Params
    from sim.arm import Arm
    from sim.evaluation import Evaluation
    from sim.schema import Config

    Floats = NDArray[np.float64]

WORST_FRACTION = 0.1


@dataclass(frozen=True)
class Replayed:
    """What a campaign came to in one world.

    Attributes:
        scores: ``[D]`` of the devices' models (personalized where the method keeps something personal); NaN: nothing to score.
        global_scores: ``[D]`` of the global model.
        epsilon: What it cost; None without DP.
        released_fraction: Share of the rounds that released a model.
        fleet_digest: Of the fleet that it ran on.
    """

    scores: Floats
    global_scores: Floats
    epsilon: float | None
    released_fraction: float
    fleet_digest: str


class Replayer:
    """Replays campaigns, and remembers what came out."""

    def __init__(self) -> None:
        self._arms = Arms()
        self._known: dict[tuple[str, int, str], Replayed] = {}

    def replay(self, config: Config, seed: int, start: Params | None = None) -> Replayed:
        """One campaign with one seed.

        Args:
            config: The campaign, in its world.
            seed: Of the repetition.
            start: Parameters to begin with; None: the model's own first ones.

        Raises:
            UserError: If the configuration cannot be run.
        """
        key = config_digest(config), seed, params_digest(start)
        if key not in self._known:
            self._known[key] = self._run(self._arm(config, seed, start))
        return self._known[key]

    def serve(self, config: Config, seed: int, weights: Params) -> Replayed:
        """A model that serves in a campaign's world, without the campaign: each device re-fits what is its own, and scores."""
        key = config_digest(config), seed, f"served {params_digest(weights)}"
        if key not in self._known:
            arm = self._arm(config, seed, weights)
            found = self._evaluate(
                arm, LocalRunner(arm, PersonalStore(arm.task.personal.size)), arm.first_shared()
            )
            self._known[key] = self._replayed(arm, found, None, 1.0)
        return self._known[key]

    def _arm(self, config: Config, seed: int, start: Params | None) -> Arm:
        arm = self._arms.get(_quiet(config), seed)
        return arm if start is None else replace(arm, start=start)

    def score(self, config: Config, seed: int, weights: Params) -> Floats:
        """``[D]`` scores of given shared parameters as a global model in the world of a configuration."""
        arm = self._arm(config, seed, None)
        found = self._evaluate(arm, LocalRunner(arm, PersonalStore(arm.task.personal.size)), weights)
        return _scores(found, metric_of(arm), personalized=False)

    def _run(self, arm: Arm) -> Replayed:
        campaign = Campaign("replay", arm)
        runner = LocalRunner(arm, campaign.progress.store)
        released = 0

        def told(record: object) -> None:
            nonlocal released
            released += getattr(record, "outcome", "") == "committed"

        campaign.run(runner, told)
        found = self._evaluate(arm, runner, campaign.progress.state.tree)
        return self._replayed(arm, found, campaign.epsilon(), released / arm.config.campaign.num_rounds)

    def _evaluate(self, arm: Arm, runner: LocalRunner, shared: Params) -> Evaluation:
        """Scores after the campaign's last round."""
        campaign = arm.config.campaign
        devices = first_devices(arm.world.fleet.num_devices, campaign.score_devices)
        at = campaign.num_rounds * campaign.round_interval_s
        return runner.evaluate(shared, devices, round_=campaign.num_rounds, at=at)

    def _replayed(
        self, arm: Arm, found: Evaluation, epsilon: float | None, released_fraction: float
    ) -> Replayed:
        metric = metric_of(arm)
        return Replayed(
            _scores(found, metric, personalized=True),
            _scores(found, metric, personalized=False),
            epsilon,
            released_fraction,
            arm.world.fleet.digest,
        )


def params_digest(params: Params | None) -> str:
    """Of parameters: a replay from other ones is another replay."""
    if params is None:
        return ""
    state = hashlib.sha256()
    for name in sorted(params):
        state.update(name.encode())
        state.update(np.ascontiguousarray(params[name]).tobytes())
    return state.hexdigest()


def _quiet(config: Config) -> Config:
    """Without what a replay does not need: other processes, evaluations along the way."""
    return replace(
        config,
        arms={},
        seeds=1,
        runner=replace(config.runner, kind=RunnerKind.LOCAL),
        campaign=replace(config.campaign, evaluate_every=config.campaign.num_rounds),
    )


def _scores(found: Evaluation, metric: str, *, personalized: bool) -> Floats:
    scores = found.personalized if personalized and found.personalized is not None else found.global_model
    sign = 1.0 if metric == "accuracy" else -1.0
    return np.where(found.num_scored > 0, sign * scores[metric], np.nan)


def mean_score(scores: Floats) -> float:
    """Over the devices that have something to score; models that are not finite score worst."""
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else float("nan")


def worst_score(scores: Floats) -> float:
    """The mean over the worst tenth of the devices, at least one."""
    known = np.sort(scores[~np.isnan(scores)])
    return float(known[: max(1, round(WORST_FRACTION * len(known)))].mean()) if len(known) else float("nan")
