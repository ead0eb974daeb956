"""Plausible lifetimes for the tests of what comes out of them; no figure here was measured."""

from __future__ import annotations

import math

import numpy as np

from sim.lifetime.records import (
    DetectionRecord,
    DeviceScore,
    FeatureRecord,
    Life,
    LifeEvent,
    LifetimeRun,
    PolicySummary,
    StepRecord,
    TruthRecord,
)

DAY = 86_400.0
GAINS = {"never": 0.0, "scheduled": 0.05, "hybrid": 0.09, "always": 0.1}
KINDS = ("gain linear", "offset abrupt", "missing")


def make_lifetime(
    policies: tuple[str, ...] = ("never", "scheduled", "hybrid"),
    num_seeds: int = 3,
    num_days: int = 120,
    num_features: int = 8,
    num_segments: int = 4,
    *,
    truth: bool = True,
    private: bool = False,
    num_virtual: int = 40,
) -> LifetimeRun:
    """A whole run of 60 devices; drifts begin in the first half of the life."""
    onset = {kind: (0.1 + 0.15 * i) * num_days * DAY for i, kind in enumerate(KINDS)} if truth else {}
    lives = [
        _life(policy, seed, num_days, num_features, num_segments, onset, private=private)
        for policy in policies
        for seed in range(num_seeds)
    ]
    return LifetimeRun(
        experiment="lifetime",
        policies=policies,
        seeds=tuple(range(num_seeds)),
        lives=tuple(lives),
        truth=tuple(
            TruthRecord(seed, kind, at + seed * DAY, 15)
            for seed in range(num_seeds)
            for kind, at in onset.items()
        ),
        segments={name: _part(k, num_segments, num_days) for k, name in enumerate(_names(num_segments))},
        caveats=("The stations of one city see the same weather.",),
        num_devices=60,
        num_virtual=num_virtual,
        duration_s=num_days * DAY,
        policy_digest={policy: policy[:1] * 64 for policy in policies},
        versions={"fedretrain": "1.2.3", "python": "3.11", "cores": "2"},
        seconds=93.0,
    )


def _names(num: int) -> list[str]:
    return [f"batch {k + 1}" for k in range(num)]


def _part(k: int, num: int, num_days: int) -> tuple[float, float]:
    return k * num_days * DAY / num, (k + 1) * num_days * DAY / num


def _life(policy, seed, num_days, num_features, num_segments, onset, *, private):
    rng = np.random.default_rng([seed, len(policy)])
    good = 0.9 - 0.01 * seed
    fall = [0.15 * sum(day * DAY > at for at in onset.values()) / 3 for day in range(num_days)]
    gain = GAINS[policy]
    score = np.array([good - max(0.0, f - gain) + rng.normal(0, 0.01) for f in fall])
    retrains = 0 if policy == "never" else num_days // 20
    steps = tuple(
        _step(policy, seed, day, score[day], retrains, num_days, onset, private=private)
        for day in range(num_days)
    )
    features = tuple(_features(policy, seed, num_days, num_features, rng, onset))
    summary = PolicySummary(
        policy=policy,
        seed=seed,
        accuracy=float(score.mean()),
        by_segment={n: float(part.mean()) for n, part in zip(_names(num_segments), np.array_split(score, num_segments), strict=True)},
        worst_decile=float(score.min()) - 0.2,
        retrains=retrains,
        personal_refreshes=retrains // 2,
        deferred=1,
        promoted=(retrains + 1) // 2,
        rolled_back=retrains // 2,
        bytes_up=80_000_000 + 1_000_000 * retrains,
        bytes_down=2_000_000 + 1_000_000 * retrains,
        epsilon=1.5 + 0.5 * retrains if private else None,
        labels_used=182_309 + seed,
        bad_device_hours=800.0 - 4_000 * gain,
        device_hours=60.0 * 24 * num_days,
        false_alarms=seed % 2 if onset else 0,
        feature_years=0.3 if onset else 0.0,
        wall_s=12.0,
        digest=f"{seed}" * 64,
        privacy_scope=f"epsilon {1.5 + 0.5 * retrains:.3g} at delta 1e-05 for a device <zero-out>" if private else "",
    )  # fmt: skip
    detections = tuple(
        DetectionRecord(
            policy,
            seed,
            kind,
            at + seed * DAY,
            math.nan if kind == "missing" and seed == 1 else (2.0 + seed) * DAY,
            math.nan if gain == 0 else 0.0 if kind == "missing" else (9.0 + seed) * DAY,
            (18.0 + seed) * DAY,
            0.12 + 0.01 * seed,
        )
        for kind, at in onset.items()
    )
    events, devices = tuple(_events(policy, seed, retrains, onset)), tuple(_devices(summary))
    return Life(summary, steps, features, events, detections, devices)


def _devices(summary):
    """Sixty devices, each always as much better or worse than the mean."""
    for name, accuracy in summary.by_segment.items():
        for device in range(60):
            own = accuracy + 0.001 * (device - 29.5)
            yield DeviceScore(summary.policy, summary.seed, device, name, 720, own)


def _step(policy, seed, day, score, retrains, num_days, onset, *, private):
    at = (day + 1) * DAY
    return StepRecord(
        policy=policy,
        seed=seed,
        at=at,
        rows=1_440,
        accuracy=float(score),
        worst_decile=float(score) - 0.2,
        observed_accuracy=math.nan if day < 7 else float(score) + 0.004,
        completeness=min(1.0, day / 7) * 0.9,
        estimated_accuracy=float(score) - 0.01,
        bad_devices=int(60 * max(0.0, 0.9 - score)),
        drifted_devices=15 * sum(at > begun for begun in onset.values()),
        psi_max=0.1,
        low_confidence=0.1,
        champion=1 + day * retrains // num_days,
        phase="",
        exposure=0.0,
        training=False,
        epsilon=1.5 + 0.5 * (day * retrains // num_days) if private else math.nan,
        safe_mode=False,
    )


def _features(policy, seed, num_days, num_features, rng, onset):
    for day in range(num_days):
        moved = sum(day * DAY > at for at in onset.values())
        for f in range(num_features):
            psi = float(
                0.02 * np.exp(rng.normal(0, 0.4)) * (1 + (moved * 8 if f % 3 == 0 else 0)) * (1 + f / 10)
            )
            yield FeatureRecord(policy, seed, (day + 1) * DAY, f"sensor_{f:02d}", psi, psi > 0.25)


def _events(policy, seed, retrains, onset):
    def event(days, kind, text, version=-1, **evidence):
        return LifeEvent(policy, seed, days * DAY, kind, text, version, evidence)

    for at in onset.values():
        yield event(at / DAY + 3, "drifted", "features sensor_00, psi 0.41", 1, psi=0.41)
    for k in range(retrains):
        at, v = 20.0 * (k + 1) - 8, k + 2
        yield event(
            at,
            "retrain",
            "PSI 0.41 is beyond 0.2 in three windows.",
            -1,
            psi=0.41,
            rule="hybrid",
            num_new_labels=900.0,
        )
        yield event(at + 0.4, "candidate", "15 rounds", v)
        yield event(at + 0.4, "created", f"version {v} against champion 1", v)
        yield event(at + 0.5, "shadow_started", "the validation passes", v, step=0.0)
        yield event(at + 1.5, "canary_started", "exposure 2.0%", v, step=1.0)
        if k % 2:
            yield event(
                at + 3.5, "rollback_started", "accuracy: 3.1 points worse than the control", v, step=1.0
            )
            yield event(at + 3.6, "rolled_back", "12 devices confirmed, 0 expired", v)
        else:
            yield event(at + 3.5, "ramp_started", "exposure 25.0%", v, step=2.0)
            yield event(at + 6.5, "champion", "every step passed its gate", v)
            yield event(at + 7.0, "personal_refresh", "labels have come back", -1)
    yield event(1.0, "deferred", "the rollout under way must end first", -1)
