"""``python -m benchmarks.simulation_gate``: how much aggregation sabotage the simulation gate stops by itself, and how many good candidates.

Rules of this file:
    * The true fleet writes an event log; the gate knows the fleet only as it was fitted to that log. The canary knows the true one.
    * What counts as sabotage is what the canary stops: the rollout's own gate, on devices of the true fleet that trained nothing. Sabotage that does no
      harm there, and "good" candidates that do, are counted apart and in neither share.
    * Good is what costs the true fleet no more than half a point in the mean over its seeds, however it was meant; what was meant well and costs more is
      counted apart too (`good_by_intention_*`).
    * A candidate is stopped where the gate says FAIL. INCONCLUSIVE is shown beside it and counts as not stopped for sabotage, and as stopped for good
      candidates: both against the gate.
    * One JSON line per kind, then the two shares with one-sided 95 % Clopper-Pearson bounds. Seeds of one kind are not new kinds: the bounds hold for this mix.
      The exit status is 1 if a share misses its limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import cores, versions
from benchmarks.results import append
from fedretrain.core import rng
from fedretrain.rollout.gate import judge
from fedretrain.rollout.looks import GatePolicy, Stage, plan_looks
from fedretrain.rollout.metrics import DeviceMeans, MetricEvidence, MetricRule
from fedretrain.rollout.verdict import Verdict
from fedretrain.wire.fleet_log import write_log
from sim.arm import Arms
from sim.campaign import Campaign
from sim.configure import configure
from sim.fit.files import read_fleet, write_fleet
from sim.fit.fitted import fit, share_interval
from sim.fleetlog.play import header_of, play
from sim.fleetlog.reader import read_log
from sim.gating.config import GateConfig
from sim.gating.gate import Contender, SimulationGate
from sim.local_runner import LocalRunner
from sim.personal_store import PersonalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from fedretrain.core.params import Params
    from sim.fit.files import FleetFile
    from sim.gating.gate import GateResult
    from sim.schema import Config

    Floats = NDArray[np.float64]

LEAST_STOPPED, MOST_GOOD_STOPPED = 0.70, 0.05
GOOD_LOSS = 0.005
CANARY_DEVICES = 600
BASE = (
    "experiment=scale",
    "runner=local",
    "tracking_uri=off",
    "model.mlp.hidden=[16]",
    "training.optimizer.lr=0.2",
    "campaign.num_rounds=20",
    "campaign.cohort_size=15",
    "fleet.num_devices=60",
    "fleet.num_sites=3",
    "fleet.num_types=2",
    "fleet.generator.num_samples=60",
    "fleet.generator.num_features=8",
    "fleet.generator.label_skew=0.3",
    "fleet.generator.concept_shift=0.3",
    # The true fleet: nights, a slower type, late labels, sensors that drift.
    "availability=diurnal",
    "labels=late",
    "drift=mixed",
    "network.type_speed=[1.0,0.5]",
)
LOG = (
    "campaign.num_rounds=240",
    "fleet.generator.num_samples=480",
    "dataset.live_fraction=0.5",
    "fleet.num_devices=150",
)
"""Ten days of a larger part of the fleet, for the log."""


def _broken(kind: str, strength: float) -> tuple[str, ...]:
    return (
        "aggregation.kind=custom",
        "aggregation.path=benchmarks.broken:Broken",
        f"++aggregation.options={{kind:{kind},strength:{strength}}}",
    )


SABOTAGE: dict[str, tuple[str, ...]] = {
    "sign flipped": _broken("scaled", -1.0),
    "sum instead of mean": _broken("scaled", 15.0),
    "update nearly lost": _broken("scaled", 0.02),
    "update mostly lost": _broken("scaled", 0.15),
    "update half lost": _broken("scaled", 0.5),
    "poisoned clients, 5 times": _broken("poisoned", 5.0),
    "poisoned clients, twice": _broken("poisoned", 2.0),
    "poisoned clients, once": _broken("poisoned", 1.0),
    "poisoned clients, half": _broken("poisoned", 0.5),
    "giant hostile client, of 14": _broken("giant", 14.0),
    "giant hostile client, of 5": _broken("giant", 5.0),
    "stale clients": _broken("stale", 1.0),
    "unasked noise, 8 times": _broken("noisy", 8.0),
    "unasked noise, 3 times": _broken("noisy", 3.0),
    "unasked noise, 1.5 times": _broken("noisy", 1.5),
    "head lost on the wire": _broken("partial", 0.5),
    "a tail lost on the wire": _broken("partial", 0.8),
    "parameters crossed": _broken("crossed", 7.0),
    "server lr 30 times": ("aggregation.server.lr=30",),
    "server lr 6 times": ("aggregation.server.lr=6",),
    "server lr 4 times": ("aggregation.server.lr=4",),
    "server lr a third": ("aggregation.server.lr=0.33",),
    "server lr a fiftieth": ("aggregation.server.lr=0.02",),
    "adam, lr 1": ("aggregation.server.kind=adam", "aggregation.server.lr=1.0"),
    "local lr 50 times": ("training.optimizer.lr=10",),
    "local lr 8 times": ("training.optimizer.lr=1.6",),
    "local lr a third": ("training.optimizer.lr=0.07",),
    "local lr a hundredth": ("training.optimizer.lr=0.002",),
    "clip norm next to nothing": ("privacy.clip_norm=0.005",),
    "clip norm too small": ("privacy.clip_norm=0.15",),
    "deadline too short": ("campaign.deadline_s=1.2", "campaign.quorum_fraction=0.05"),
    "quorum too high": ("campaign.quorum_fraction=1.0",),
    "noise for epsilon 0.5": ("privacy=central", "privacy.clip_norm=1", "privacy.target_epsilon=0.5"),
    "noise for epsilon 8": ("privacy=central", "privacy.clip_norm=1", "privacy.target_epsilon=8"),
}
WEIGHTS: dict[str, Callable[[Params], Params]] = {
    "weights: classes exchanged": lambda tree: {
        name: np.roll(leaf, 1, axis=0) if leaf.shape[0] == 6 else leaf for name, leaf in tree.items()
    },
    "weights: sign of a layer": lambda tree: {
        name: -leaf if index == len(tree) - 1 else leaf
        for index, (name, leaf) in enumerate(sorted(tree.items()))
    },
    "weights: noise": lambda tree: {
        name: (
            leaf + rng.normals(rng.seeds_for(0, -1, np.arange(1), name), leaf.size).reshape(leaf.shape)
        ).astype(np.float32)
        for name, leaf in tree.items()
    },
}
"""An innocent configuration whose weights were tampered with: what a poisoned campaign leaves."""
GOOD: dict[str, tuple[str, ...]] = {
    "the champion again": (),
    "local lr 0.25": ("training.optimizer.lr=0.25",),
    "local lr 0.16": ("training.optimizer.lr=0.16",),
    "24 hidden units": ("model.mlp.hidden=[24]",),
    "cohort of 20": ("campaign.cohort_size=20",),
    "cohort of 12": ("campaign.cohort_size=12",),
    "25 rounds": ("campaign.num_rounds=25",),
    "two epochs": ("training.epochs=2",),
    "over-selection": ("campaign.over_selection=1.3",),
    "example weighted": ("aggregation=example_weighted",),
    "trimmed mean": ("aggregation=trimmed_mean",),
    "server momentum": ("aggregation.server.momentum=0.3",),
}


@dataclass(frozen=True)
class Judged:
    """What became of one candidate.

    Attributes:
        kind: Which.
        is_good: Whether it was meant well.
        gate: The simulation gate's verdict.
        canary: The canary's.
        loss: Mean accuracy that it costs the true fleet.
    """

    kind: str
    is_good: bool
    gate: Verdict
    canary: Verdict
    loss: float


class Bench:
    """The true fleet, the fitted one and the champion.

    Args:
        fleet: As it was fitted to the log.
    """

    def __init__(self, fleet: FleetFile) -> None:
        self._gate = SimulationGate(GateConfig(candidate="candidate", fleet="fleet"), fleet)
        self._champion = configure(BASE)
        self._trained: dict[tuple[str, int], Params] = {}

    def judge(self, kind: str, words: Sequence[str], seed: int, *, is_good: bool) -> Judged:
        """Train a candidate on the true fleet, then ask both gates."""
        config = configure([*BASE, *words])
        weights = self.trained(config, seed)
        weights = WEIGHTS[kind](weights) if kind in WEIGHTS else weights
        mine = Contender(kind, config, classifies=True, seeds=(seed,), weights={seed: weights})
        champion = Contender("champion", self._champion, classifies=True, seeds=(seed,))
        found: GateResult = self._gate.judge(mine, champion)
        canary, loss = self._canary(config, weights, seed)
        return Judged(kind, is_good, found.verdict, canary, loss)

    def trained(self, config: Config, seed: int) -> Params:
        """The shared parameters that a campaign on the true fleet ends with."""
        key = repr(config), seed
        if key not in self._trained:
            arm = Arms().get(_no_evaluation(config), seed)
            campaign = Campaign("benchmark", arm)
            campaign.run(LocalRunner(arm, campaign.progress.store), lambda _: None)
            self._trained[key] = campaign.progress.state.tree
        return self._trained[key]

    def _canary(self, config: Config, weights: Params, seed: int) -> tuple[Verdict, float]:
        """The rollout's gate: candidate on half of the devices that did not train, champion on the other half."""
        candidate = self._served(config, weights, seed)
        champion = self._served(self._champion, self.trained(self._champion, seed), seed)
        devices = np.arange(self._champion.fleet.num_devices, CANARY_DEVICES)
        treated = rng.uniforms_at(rng.seeds_for(seed, -1, devices, "benchmark.canary"), 0) < 0.5
        evidence = MetricEvidence(
            "accuracy", _means(devices[treated], candidate), _means(devices[~treated], champion), paired=False
        )
        plan = plan_looks(GatePolicy(), [Stage("canary", 0.5, 86_400.0, 86_400.0, proves=True)])
        report = judge([MetricRule("accuracy")], [evidence], plan, len(plan.looks) - 1)
        return report.verdict, float((champion - candidate)[devices].mean())

    def _served(self, config: Config, weights: Params, seed: int) -> Floats:
        """``[D]`` accuracy of every device of the larger true fleet."""
        large = replace(config, fleet=replace(config.fleet, num_devices=CANARY_DEVICES))
        arm = Arms().get(_no_evaluation(large), seed)
        runner = LocalRunner(arm, PersonalStore(arm.task.personal.size))
        found = runner.evaluate(weights, np.arange(CANARY_DEVICES), round_=0, at=0.0)
        return np.asarray(found.global_model["accuracy"], dtype=np.float64)


def _no_evaluation(config: Config) -> Config:
    return replace(config, campaign=replace(config.campaign, evaluate_every=config.campaign.num_rounds))


def _means(devices: NDArray[np.int64], accuracy: Floats) -> DeviceMeans:
    size = len(devices)
    return DeviceMeans(devices, accuracy[devices], np.full(size, 12.0), np.full(size, np.nan))


def fitted_fleet(folder: Path) -> FleetFile:
    """The true fleet's log, and the fleet fitted to it."""
    arm = Arms().get(configure([*BASE, *LOG]), 7)
    path = folder / "fleet.jsonl"
    write_log(path, header_of(arm), play(arm))
    write_fleet(folder / "fleet.yaml", fit(read_log(path), intervals=False), path.name, [])
    return read_fleet(folder / "fleet.yaml")


def run(seeds: int, good_seeds: int, first_seed: int = 0) -> list[Judged]:
    """Every kind with every seed; seeds are far apart, so that no replay is shared between them."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(fitted_fleet(Path(folder)))
    cases = [(kind, words, seeds, False) for kind, words in SABOTAGE.items()]
    cases += [(kind, (), seeds, False) for kind in WEIGHTS]
    cases += [(kind, words, good_seeds, True) for kind, words in GOOD.items()]
    found = []
    for kind, words, count, is_good in cases:
        mine = [bench.judge(kind, words, first_seed + 100 * place, is_good=is_good) for place in range(count)]
        print(json.dumps(_line(kind, mine)), flush=True)
        found += mine
    return found


def _line(kind: str, mine: Sequence[Judged]) -> dict[str, Any]:
    def counted(name: str) -> dict[str, int]:
        verdicts = [str(getattr(one, name)) for one in mine]
        return {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}

    loss = round(float(np.mean([one.loss for one in mine])), 4)
    return {
        "case": kind,
        "good": mine[0].is_good,
        "loss": loss,
        "gate": counted("gate"),
        "canary": counted("canary"),
    }


def shares(found: Sequence[Judged]) -> dict[str, Any]:
    """Both shares with their bounds."""
    bad = [one for one in found if not one.is_good and one.canary is Verdict.FAIL]
    meant = [one for one in found if one.is_good and one.canary is not Verdict.FAIL]
    loss = {
        kind: np.mean([one.loss for one in found if one.kind == kind]) for kind in {o.kind for o in meant}
    }
    good = [one for one in meant if loss[one.kind] <= GOOD_LOSS]
    stopped = sum(one.gate is Verdict.FAIL for one in bad)
    held = sum(one.gate is not Verdict.PASS for one in good)
    failed = sum(one.gate is Verdict.FAIL for one in good)
    return {
        "case": "shares",
        "sabotage_stopped_by_canary": len(bad),
        "stopped_fraction": round(stopped / max(len(bad), 1), 4),
        "stopped_low_95": round(share_interval(stopped, len(bad), 0.9)[0], 4),
        "good": len(good),
        "good_stopped_fraction": round(held / max(len(good), 1), 4),
        "good_failed_fraction": round(failed / max(len(good), 1), 4),
        "good_stopped_high_95": round(share_interval(held, len(good), 0.9)[1], 4),
        "good_by_intention": len(meant),
        "good_by_intention_stopped_fraction": round(
            sum(one.gate is not Verdict.PASS for one in meant) / max(len(meant), 1), 4
        ),
        "sabotage_without_harm": sum(not one.is_good and one.canary is not Verdict.FAIL for one in found),
        "sabotage_held_or_stopped": sum(one.gate is not Verdict.PASS for one in bad),
        "good_stopped_by_canary": sum(one.is_good and one.canary is Verdict.FAIL for one in found),
    }


def main(arguments: Sequence[str]) -> int:
    """Measure; 0 if both shares keep their limits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation_gate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="of each kind of sabotage")
    parser.add_argument("--good-seeds", type=int, default=6, help="of each good candidate")
    parser.add_argument(
        "--first-seed", type=int, default=0, help="others than those that a rule was chosen on"
    )
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    line = shares(run(options.seeds, options.good_seeds, options.first_seed))
    met = line["stopped_fraction"] >= LEAST_STOPPED and line["good_stopped_fraction"] <= MOST_GOOD_STOPPED
    line |= {
        "met": met,
        "seconds": round(time.perf_counter() - begun),
        "cores": cores(),
        "versions": versions(),
    }
    print(json.dumps(line))
    append("simulation_gate", line)
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
