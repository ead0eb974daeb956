"""Small lives for the simulator's tests: few devices, a month or less, one drift at a known time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.coordinator.policy import read_policy
from sim.arm import Arms
from sim.configure import configure
from sim.lifetime.loop import Living
from sim.lifetime.policies import NamedPolicy
from sim.lifetime.rows import LifeRows
from sim.lifetime.underway import live

if TYPE_CHECKING:
    from sim.arm import Arm
    from sim.lifetime.records import Life
    from sim.schema import Config

HOUR, DAY = 3_600.0, 86_400.0
SMALL = (
    "experiment=lifetime_synthetic",
    "runner=local",
    "drift=none",
    "availability=always",
    "labels=immediate",
    "fleet.num_sites=2",
    "fleet.num_types=1",
    "lifetime.initial_rounds=8",
    "lifetime.retrain_rounds=8",
    "policies=[hybrid]",
)
HISTORY_DAYS = 16  # of `lifetime_synthetic`
POLICY = {
    "name": "small",
    "monitoring": {
        "windows": [{"length_s": DAY, "stride_s": HOUR}, {"length_s": 2 * DAY, "stride_s": DAY}],
        "drift": {"windows_s": [DAY], "num_windows": 3, "clear_windows": 3, "min_rows": 50},
        "confidence_window_s": DAY,
        "confidence": {"max_share": 0.9},
        "kpi_rules": {"window_s": DAY},
        "accuracy": {"window_s": DAY, "margin": 0.05, "min_completeness": 0.2, "min_devices": 5},
        "place": {"window_s": DAY, "min_rows": 10},
    },
    "retraining": {"interval_s": 100 * DAY, "cool_down_s": 3 * DAY, "retry_s": DAY, "min_labels": 20},
    "validation": {
        "unit": "device_slice",
        "required": ["finite", "sanity"],
        "accuracy": {"overall": 0.1, "worst_decile": 0.5, "group": 0.5, "slice": 0.5, "late": 0.5, "gap": 0.5},
        "label_margin": 0.5,
        "macro_f1_margin": 0.3,
        "brier_margin": 0.3,
        "calibration_margin": 0.3,
    },
    "rollout": {
        "shadow": {"min_s": 6 * HOUR, "max_s": DAY, "every_hour": False, "every_type": False},
        "steps": [{"exposure_fraction": 0.5, "min_s": DAY, "max_s": 4 * DAY}],
        "installs": {"min_confirmed_fraction": 0.5, "min_failed": 10, "max_failed_fraction": 0.5},
        "metrics": [
            {
                "metric": "accuracy",
                "role": "guardrail",
                "better": "higher",
                "margin": 0.1,
                "relative": True,
                "min_devices": 5,
                "min_events": 50,
            }
        ],
    },
}  # fmt: skip


def small(num_devices: int, num_days: int, *words: str) -> Config:
    """A life of so many devices and days, a row an hour."""
    rows = 24 * (HISTORY_DAYS + num_days)
    return configure(
        [
            *SMALL,
            f"fleet.num_devices={num_devices}",
            f"campaign.cohort_size={min(num_devices, 10)}",
            f"lifetime.duration_s={num_days * DAY:.0f}",
            f"fleet.generator.num_samples={rows}",
            f"fleet.generator.scored_fraction={num_days / (HISTORY_DAYS + num_days)}",
            *words,
        ]
    )


def offset_at(day: float, magnitude: float = 4.0, *, until: float = 0.0) -> str:
    """Four channels of every device are shifted from a day on."""
    return (
        "drift.specs=[{kind: offset, shape: abrupt, magnitude: "
        f"{magnitude}, channels: [s0, s1, s2, s3], onset_from_s: {day * DAY:.0f}, onset_to_s: {day * DAY:.0f}, "
        f"duration_s: {until * DAY:.0f}" + "}]"
    )


def policy(**sections: dict[str, object]) -> NamedPolicy:
    """The small policy, with other values in some of its sections."""
    values = {**POLICY, **{name: {**POLICY.get(name, {}), **part} for name, part in sections.items()}}
    return NamedPolicy("small", read_policy(values))


def small_life(config: Config, named: NamedPolicy | None = None, seed: int = 0) -> Life:
    """Live it in this process."""
    return live(config, named or policy(), seed)


def born(config: Config, named: NamedPolicy | None = None, seed: int = 0) -> Living:
    """A life with its first champion, before its first tick."""
    living = Living(config, named or policy(), seed)
    living.begin()
    return living


def arm_and_rows(config: Config, seed: int = 0) -> tuple[Arm, LifeRows]:
    """An arm and all rows of its fleet."""
    arm = Arms().get(config, seed)
    return arm, LifeRows.of(arm.world.fleet)
