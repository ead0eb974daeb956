"""Plausible records for the tests of what comes out of a run; no figure here was measured."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from fedretrain.core import rng
from sim.outputs import RunFolder
from sim.results import (
    DeviceScore,
    Environment,
    Metric,
    Outcome,
    PrivacySummary,
    RoundRecord,
    Run,
    Summary,
)
from sim.summarise import ArmFacts, spread, summarise_arm

STARTED = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SCOPE = "Covers the released shared weights. Not covered: scores in this report, which are the simulator's oracle."

ARMS = {
    "fedavg": ("Global FedAvg", "fedavg", False, 0.86, 0.0),
    "personal": ("Personalized", "fedper", False, 0.86, 0.09),
    "personal_dp": ("Personalized + DP", "fedper", True, 0.78, 0.12),
}


def make_run(
    num_seeds: int = 3,
    num_rounds: int = 40,
    num_real: int = 20,
    num_virtual: int = 60,
    metric: Metric = Metric.ACCURACY,
    arms: tuple[str, ...] = tuple(ARMS),
    shift: float = 0.0,
) -> Run:
    """A whole run; `shift` is added to every score."""
    rounds, devices = [], []
    for arm in arms:
        for seed in range(num_seeds):
            made = _devices(arm, seed, num_real, num_virtual, metric, shift)
            devices += made
            rounds += _rounds(arm, seed, num_rounds, made, metric)
    summary = _summary(num_seeds, num_real, num_virtual, metric)
    facts = [_facts(arm, num_seeds) for arm in arms]
    made_arms = tuple(summarise_arm(f, rounds, devices, metric) for f in facts)
    config = "experiment: watch\nfleet:\n  num_devices: 80\nprivacy:\n  delta: 1.0e-05\n"
    return Run(replace(summary, arms=made_arms), tuple(rounds), tuple(devices), config)


def finished_folder(root, run: Run) -> RunFolder:
    """The run, written below `root`."""
    folder = RunFolder.create(root, run.summary.experiment, STARTED)
    folder.finish(run, {"fedavg": {"linear.weight": np.ones((2, 3), np.float32)}}, "<!doctype html>", {})
    return folder


def _facts(arm: str, num_seeds: int) -> ArmFacts:
    title, method, private, _, _ = ARMS[arm]
    privacy = PrivacySummary(
        epsilon=7.05,
        delta=1e-5,
        sampling="poisson",
        relation="add_remove",
        unit="device",
        accountant="pld",
        noise_multiplier=1.0,
        clip_norm=0.8,
        scope=SCOPE,
        target_epsilon=8.0,
        advice="80 devices are few for epsilon 8: about 1,000 would do.",
    )
    digests = {str(s): f"{s:064x}" for s in range(num_seeds)}
    return ArmFacts(arm, title, method, privacy if private else None, None, 900 * 2**20, digests)


def _summary(num_seeds: int, num_real: int, num_virtual: int, metric: Metric) -> Summary:
    return Summary(
        experiment="watch",
        started_at=STARTED.isoformat(),
        metric=metric,
        metric_unit="" if metric is Metric.ACCURACY else "µg/m³",
        dataset="watch",
        num_devices=num_real + num_virtual,
        num_virtual_devices=num_virtual,
        seeds=tuple(range(num_seeds)),
        seconds=93.2,
        environment=Environment("0.1.0", "3.11.9", {"numpy": "2.4.6", "torch": "2.13.0"}, 2, "Linux x86_64"),
        data_digest="d" * 64,
        config_digest="c" * 64,
        caveats=("1,149 disjoint windows only: figures are reported on the 20 real streams.",),
        arms=(),
    )


def _devices(
    arm: str, seed: int, num_real: int, num_virtual: int, metric: Metric, shift: float
) -> list[DeviceScore]:
    _, _, _, level, gain = ARMS[arm]
    num = num_real + num_virtual
    z = rng.normals(rng.seeds_for(7, -1, np.arange(num), "quality"), 3)
    luck = rng.normals(rng.seeds_for(seed, -1, np.arange(num), arm), 2)
    made = []
    for device in range(num):
        cold = device % 11 == 10
        base = np.clip(
            level + 0.07 * z[device, 0] - 0.03 * abs(z[device, 1]) + 0.01 * luck[device, 0] + shift, 0.2, 1
        )
        best = np.clip(base + gain * (1 - base) * 5 + 0.03 * z[device, 2] + 0.01 * luck[device, 1], 0.2, 1)
        own = None if gain == 0.0 else float(base if cold else best)
        made.append(_score(arm, seed, device, device >= num_real, cold, float(base), own, metric))
    return made


def _score(
    arm: str,
    seed: int,
    device: int,
    virtual: bool,
    cold: bool,
    base: float,
    own: float | None,
    metric: Metric,
) -> DeviceScore:
    rounds, rows = (0 if cold else 12 + device % 7), 40 + device % 9
    head = DeviceScore(arm, seed, device, virtual, cold, rounds, rows, None)
    if metric is Metric.ACCURACY:
        return replace(
            head,
            global_score=base,
            personalized_score=own,
            global_macro_f1=base - 0.01,
            personalized_macro_f1=None if own is None else own - 0.01,
        )
    return replace(
        head,
        global_score=60 * (1.2 - base),
        personalized_score=None if own is None else 60 * (1.2 - own),
        global_mae=40 * (1.2 - base),
        personalized_mae=None if own is None else 40 * (1.2 - own),
        global_r2=base,
        personalized_r2=own,
    )


def _rounds(arm: str, seed: int, num: int, devices: list[DeviceScore], metric: Metric) -> list[RoundRecord]:
    real = [d for d in devices if not d.is_virtual] or devices
    base = np.array([d.global_score for d in real])
    own = np.array([d.personalized_score for d in real]) if real[0].personalized_score is not None else None
    start = np.full_like(base, 1 / 7 if metric is Metric.ACCURACY else 70.0)
    noise = rng.normals(rng.seeds_for(seed, -1, np.arange(num), f"rounds {arm}"), 1)[:, 0]
    made = []
    for r in range(num):
        t = (r + 1) / num
        grown = (
            (1 - np.exp(-6 * t)) / (1 - np.exp(-6))
            - 0.1 * np.exp(-((t - 0.62) ** 2) / 0.004)
            + 0.008 * noise[r]
        )
        away = int(24 + 10 * np.sin(2 * np.pi * r / 12) + 3 * noise[r])
        evaluated = r % 2 == 1 or r == num - 1
        made.append(
            RoundRecord(
                arm=arm,
                seed=seed,
                round=r,
                at=r * 6 * 3600.0,
                outcome=Outcome.ABANDONED if r == num // 2 and seed == 0 else Outcome.COMMITTED,
                cohort=100,
                replied=100 - away - 5,
                failures={"unavailable": away, "timeout": 3, "dropped": 2},
                train_loss=2.0 * float(np.exp(-3 * t)) + 0.2,
                epsilon=7.05 * float(np.sqrt(t)) if ARMS[arm][2] else None,
                clip_norm=0.8 if ARMS[arm][2] else None,
                update_norm=0.6 * float(np.exp(-2 * t)),
                bytes_up=140_000 * (95 - away),
                bytes_down=140_000 * 100,
                seconds=0.4,
                global_score=spread(start + (base - start) * grown, metric) if evaluated else None,
                personalized_score=(
                    spread(start + (own - start) * min(1.0, 1.2 * grown), metric)
                    if evaluated and own is not None
                    else None
                ),
                drift_fraction=float(np.clip((t - 0.5) * 1.5, 0, 0.45)),
                labels_fraction=float(0.9 * (1 - np.exp(-5 * t))),
                available_fraction=float(0.75 + 0.15 * np.sin(2 * np.pi * r / 4)),
            )
        )
    return made
