"""The simulation gate: a candidate's aggregation replayed in the fitted fleet, as observed and under stress.

Rules of this file:
    * The reference is the champion, replayed under the same conditions with the same seeds; without one, what the candidate's own run says.
    * The candidate's weights are checked too: they may not be worse than what their own configuration comes to when it is run again as it
      was, in the world that they were made for. Poisoned weights of an innocent configuration are stopped by that.
    * Epsilon is recomputed from the replay's ledger and held against the promise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.rollout.verdict import Verdict
from sim.gating.conditions import Condition, under
from sim.gating.judge import GateCheck, combine, compare
from sim.gating.replay import Replayer, mean_score, worst_score
from sim.statistics import paired

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from fedretrain.core.params import Params
    from sim.fit.files import FleetFile
    from sim.gating.config import GateConfig
    from sim.gating.replay import Replayed
    from sim.schema import Config

    Floats = NDArray[np.float64]


_WEIGHTS, _AS_RUN = "weights beside an honest replay", "as it was run"


@dataclass(frozen=True)
class Contender:
    """A campaign to replay.

    Attributes:
        name: For people.
        config: What it computes.
        classifies: Whether its metric is accuracy; otherwise it is an error.
        seeds: Of its own run.
        weights: Its final shared parameters by seed.
        scores: Final scores of its run by seed, ``[D]`` each, more is better; empty where it has none.
        epsilon: What its run spent; None without DP.
        start: Parameters that its campaign began with; None: the model's own first ones.
        held: Whether it is no campaign but a model that serves: `start`, scored as it is, its personal state re-fitted.
    """

    name: str
    config: Config
    classifies: bool
    seeds: tuple[int, ...]
    weights: Mapping[int, Params] = field(default_factory=dict)
    scores: Mapping[int, Floats] = field(default_factory=dict)
    epsilon: float | None = None
    start: Params | None = None
    held: bool = False


@dataclass(frozen=True)
class GateResult:
    """What the gate found.

    Attributes:
        verdict: Of all checks together.
        checks: Each of them.
        seeds: Replayed.
        fleets: Digests of the fleets that were simulated, by condition and seed.
    """

    verdict: Verdict
    checks: tuple[GateCheck, ...]
    seeds: tuple[int, ...]
    fleets: Mapping[str, str]


@dataclass
class SimulationGate:
    """Judges candidates in one fitted fleet.

    Attributes:
        config: Margins and seeds.
        fleet: The fitted fleet.
        replayer: Remembers replays; share it between candidates that are compared with one champion.
    """

    config: GateConfig
    fleet: FleetFile
    replayer: Replayer = field(default_factory=Replayer)

    def judge(self, candidate: Contender, champion: Contender | None) -> GateResult:
        """Replay and judge.

        Args:
            candidate: What is to be released.
            champion: What it is compared with; None: its own run.

        Raises:
            UserError: If a configuration cannot be run in this fleet.
        """
        num, weights = self.config.seeds, self._weights(candidate)
        result = self._look(candidate, champion, weights, num)
        while result.verdict is Verdict.INCONCLUSIVE and num < self.config.most_seeds:
            num = min(num + self.config.seeds, self.config.most_seeds)
            result = self._look(candidate, champion, weights, num)
        return result

    def _look(
        self, candidate: Contender, champion: Contender | None, weights: list[GateCheck], num_seeds: int
    ) -> GateResult:
        """The verdict of so many seeds; those replayed before are not replayed again."""
        first = candidate.seeds[0]
        seeds = tuple(range(first, first + num_seeds))
        observed = Condition("observed")
        stressed = Condition(f"{self.config.stress:g} x drop-outs and delay", self.config.stress)
        checks: list[GateCheck] = []
        fleets: dict[str, str] = {}
        for condition in (observed, stressed):
            ours = self._replays(candidate, condition, seeds)
            theirs = None if champion is None else self._replays(champion, condition, seeds)
            fleets |= {
                f"{condition.name}, seed {s}": one.fleet_digest for s, one in zip(seeds, ours, strict=True)
            }
            checks += self._outcomes(candidate, condition, ours, theirs)
            checks += self._epsilon(candidate, champion, condition, ours)
        checks += weights
        return GateResult(combine(checks), tuple(checks), seeds, fleets)

    def judge_weights(self, weights: Params, champion: Contender) -> GateResult:
        """Judge shared parameters without a campaign: in the champion's worlds, against the champion's replay.

        Args:
            weights: The candidate's shared parameters.
            champion: Whose configuration says what they are the parameters of, and in which world they were made.
        """
        seed = champion.seeds[0]
        candidate = Contender(
            "weights", champion.config, champion.classifies, (seed,), weights={seed: weights}
        )
        checks = self._weights(candidate)
        fleets = {f"{_AS_RUN}, seed {seed}": self.replayer.replay(champion.config, seed).fleet_digest}
        return GateResult(combine(checks), tuple(checks), (seed,), fleets)

    def _replays(self, one: Contender, condition: Condition, seeds: tuple[int, ...]) -> list[Replayed]:
        config = under(one.config, self.fleet, condition)
        if one.held:
            return [self.replayer.serve(config, seed, one.start or {}) for seed in seeds]
        return [self.replayer.replay(config, seed, one.start) for seed in seeds]

    def _outcomes(
        self,
        candidate: Contender,
        condition: Condition,
        ours: list[Replayed],
        theirs: list[Replayed] | None,
    ) -> list[GateCheck]:
        """Accuracy, and the worst tenth of the devices."""
        released = float(np.mean([one.released_fraction for one in ours]))
        if released == 0.0:
            return [
                GateCheck(
                    "rounds", condition.name, Verdict.FAIL, "no round released a model", 0.0, 1.0, None, 0.0
                )
            ]
        checks = []
        for name, figure, margin in (
            ("accuracy" if candidate.classifies else "error", mean_score, self.config.accuracy_margin),
            ("worst decile of devices", worst_score, self.config.worst_margin),
        ):
            reference = (
                [figure(one.scores) for one in theirs]
                if theirs is not None
                else [float(np.mean([figure(scores) for scores in candidate.scores.values()]))] * len(ours)
            )
            found = [figure(one.scores) for one in ours]
            checks.append(
                compare(name, condition.name, found, reference, margin, relative=not candidate.classifies)
            )
        return checks

    def _epsilon(
        self,
        candidate: Contender,
        champion: Contender | None,
        condition: Condition,
        ours: list[Replayed],
    ) -> list[GateCheck]:
        """What the replay spent, beside what was promised: by the configuration, else by the run."""
        spent = [one.epsilon for one in ours if one.epsilon is not None]
        was_private = champion is not None and champion.epsilon is not None
        if not spent and not was_private:
            return []
        if not spent:
            reason = "the champion is differentially private, and the candidate is not"
            return [GateCheck("epsilon", condition.name, Verdict.FAIL, reason, float("inf"), 0.0, None, 0.0)]
        promise = candidate.config.privacy.target_epsilon or candidate.epsilon
        worst, margin = max(spent), self.config.epsilon_margin
        if promise is None:
            return [
                GateCheck(
                    "epsilon",
                    condition.name,
                    Verdict.INCONCLUSIVE,
                    "nothing was promised",
                    worst,
                    0.0,
                    None,
                    margin,
                )
            ]
        # A ledger's sum is a float: what is spent to the last digit is kept.
        within = worst <= promise + margin + 1e-9 * promise
        reason = "within the promise" if within else "more than was promised"
        verdict = Verdict.PASS if within else Verdict.FAIL
        return [GateCheck("epsilon", condition.name, verdict, reason, worst, promise, None, margin)]

    def _weights(self, candidate: Contender) -> list[GateCheck]:
        """The candidate's own weights beside what its configuration comes to."""
        if not candidate.weights:
            return []
        if not all(np.isfinite(leaf).all() for tree in candidate.weights.values() for leaf in tree.values()):
            reason = "they are not finite"
            return [GateCheck(_WEIGHTS, _AS_RUN, Verdict.FAIL, reason, float("nan"), 0.0, None, 0.0)]
        config = candidate.config
        given, honest = [], []
        for seed, weights in sorted(candidate.weights.items()):
            scores = self.replayer.score(config, seed, weights)
            known = ~np.isnan(scores)
            given.append(scores[known])
            honest.append(self.replayer.replay(config, seed).global_scores[known])
        return [self._weights_check(candidate, given, honest)]

    def _weights_check(self, candidate: Contender, given: list[Floats], honest: list[Floats]) -> GateCheck:
        """Over seeds where there are several, else over devices. The margin is that of the accuracy."""
        margin = self.config.accuracy_margin
        theirs = float(np.mean([one.mean() for one in honest]))
        scale = 1.0 if candidate.classifies else max(abs(theirs), 1e-12)
        found = paired([one / scale for one in honest], [one / scale for one in given])
        ours = float(np.mean([one.mean() for one in given]))
        if found.low is None or found.high is None:
            reason = "too few devices"
            return GateCheck(_WEIGHTS, _AS_RUN, Verdict.INCONCLUSIVE, reason, ours, theirs, found, margin)
        if found.value < -margin and found.high < 0.0:
            reason, verdict = "worse than their own configuration comes to", Verdict.FAIL
        else:
            reason, verdict = "as good as their configuration comes to", Verdict.PASS
        return GateCheck(_WEIGHTS, _AS_RUN, verdict, reason, ours, theirs, found, margin)
