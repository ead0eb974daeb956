"""The policy file: what is refused by name, what its parts must agree on, and a digest of its meaning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fedretrain.coordinator.policy import FORMAT, OnDecay, Policy, read_policy
from fedretrain.core.build import plain
from fedretrain.core.errors import ConfigError
from fedretrain.retraining.config import Mode
from fedretrain.rollout.quarantine import QuarantineRules
from fedretrain.rollout.safety import SafetyLimit

HITS = {"name": "hits", "better": "higher"}
RULE = {"metric": "hits", "margin": 0.02}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"formatt": 1}, "did you mean 'format'"),
    ({"monitoring": {"drift": {"psy": 0.2}}}, "monitoring.drift.*did you mean 'psi'"),
    ({"safety": {"limit": []}}, "did you mean 'limits'"),
    ({"quarantine": {"device_windows": 3}}, "no key 'device_windows'.*quarantine"),
    ({"format": FORMAT + 1}, f"reads policy files of format {FORMAT}, not {FORMAT + 1}"),
    ({"format": "1"}, "of type int"),
    ({"name": ""}, "without a name"),
    ({"gate": {"alpha": 0.01}}, "gate.alpha=0.01 and rollout.alpha=0.05"),
    ({"rollout": {"alpha": 0.01}}, "a rollout has one alpha"),
    ({"monitoring": {"accuracy": {"window_s": 1234.0}}}, "no window is 1234 s long.*accuracy.window_s"),
    ({"on_decay": "panic"}, "on_decay"),
    ({"quarantine": {"device_clean_windows": -1}}, "negative number of windows"),
    (
        {
            "monitoring": {"kpis": [HITS]},
            "rollout": {"metrics": [{**RULE, "metric": "misses"}], "kpis": ["misses"]},
        },
        "'misses' is not monitored",
    ),
    (
        {"monitoring": {"kpis": [HITS]}, "rollout": {"metrics": [{**RULE, "better": "lower"}]}},
        "'hits' is better lower",
    ),
    (
        {"safety": {"limits": [{"name": "hot", "metric": "heat", "above": 90.0}]}},
        "nobody reads 'heat'",
    ),
    ({"safety": {"limits": [{"name": "hot", "metric": "accuracy"}]}}, "limits nothing"),
    (
        {"safety": {"limits": [{"name": "a", "metric": "accuracy", "below": 0.1}] * 2}},
        "two limits of one name",
    ),
    ({"rollout": {"on_retrain": "finish"}}, "its candidate would be refused"),
    ({"telemetry": "noised"}, "noised telemetry is not charged to the privacy ledger yet.*say operational"),
    ({"telemetry": "on"}, "telemetry"),
    ({"telemetry": "off", "validation": {"source": "devices"}}, "telemetry is off"),
    ({"telemetry": "off", "validation": {"source": "both"}}, "telemetry is off"),
    (
        {
            "validation": {"source": "devices", "field": {"deadline_s": 7200}},
            "rollout": {"pending_limit_s": 3600},
        },
        "before the devices' deadline",
    ),
]


@pytest.mark.parametrize(("values", "said"), REFUSED)
def test_what_cannot_be_meant_is_refused_by_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_policy(values)


def test_the_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"my\.yaml"):
        read_policy({"typo": 1}, where="my.yaml")


def test_the_smallest_file_is_the_default() -> None:
    assert read_policy({}) == Policy()
    assert Policy().on_decay is OnDecay.LAST_GOOD
    assert Policy().quarantine == QuarantineRules()


def test_parts_that_agree_are_taken() -> None:
    policy = read_policy(
        {
            "monitoring": {"kpis": [HITS]},
            "rollout": {
                "metrics": [RULE, {"metric": "accuracy"}],
                "kpis": ["hits", "accuracy"],
                "on_retrain": "finish",
                "on_second": "queue",
            },
            "safety": {
                "limits": [
                    {"name": "too few hits", "metric": "hits", "below": 0.2, "min_devices": 5},
                    {"name": "blind", "metric": "missing_fraction", "above": 0.9},
                ]
            },
            "quarantine": {"version_clean_windows": 2},
            "on_decay": "rules",
        }
    )
    assert policy.safety.limits[0] == SafetyLimit("too few hits", "hits", below=0.2, min_devices=5)
    assert read_policy(plain(policy)) == policy


def test_a_rollout_that_finishes_may_refuse_where_no_retrain_stops_it() -> None:
    rules = [{"name": "all", "strategy": "federated"}]
    values = {"rollout": {"on_retrain": "finish"}, "retraining": {"rules": rules}}
    assert read_policy(values).rollout.on_retrain == "finish"


def test_the_digest_is_of_the_meaning() -> None:
    policy = Policy()
    assert read_policy({"format": 1, "gate": {"alpha": 0.05}}).digest == policy.digest
    others = [
        replace(policy, name="other"),
        replace(policy, on_decay=OnDecay.RULES),
        replace(policy, quarantine=QuarantineRules(device_clean_windows=4)),
        policy.with_mode(Mode.NEVER),
    ]
    assert len({policy.digest, *(other.digest for other in others)}) == 5


def test_looks_follow_the_steps_and_a_tiny_fleet_proves_in_shadow() -> None:
    stages = Policy().look_plan().stages
    assert [stage.proves for stage in stages] == [False, False, False, True]
    tiny = read_policy({"rollout": {"steps": [], "tiny_fleet": True}}).look_plan(seed=3)
    assert [stage.name for stage in tiny.stages if stage.proves] == ["shadow"]
    assert tiny.seed == 3
