"""What the demo's processes are configured with: the same files that a real fleet has, with short times.

Rules of this file:
    * Every time is seconds instead of hours, and everything listens on the loopback interface; nothing else differs from
      production: devices enrol with tokens, and speak and train over TLS with keys of their own; the operator signs every order.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fedretrain.server.people_commands import make_key

if TYPE_CHECKING:
    from pathlib import Path

POPULATION = "demo"
OPERATOR = "the demo's operator"
OPERATOR_KEY = "operator.key"
SLOT_S = 5.0

SERVER = """\
folder = "state"

[listen]
control = "127.0.0.1:{control}"
enrol = "127.0.0.1:{enrol}"
hosts = ["127.0.0.1", "localhost"]
heartbeat_s = 2.0

[flower]
fleet = "127.0.0.1:{flower}"

[people."{operator}"]
key = "{key}"

[orders]
require_keys = true

[populations.demo]
policy = "policy.yaml"
training = "training.yaml"
features = "features.json"
pool = "pool"
assignment_valid_s = 3600.0

[populations.demo.watching]
slot_s = {slot}
tick_s = 2.0
settle_s = 120.0
record_s = 120.0
inputs_s = 120.0
"""

POLICY: dict[str, Any] = {
    "format": 1,
    "name": "demo",
    "monitoring": {
        "windows": [{"length_s": 30, "stride_s": 5}, {"length_s": 60, "stride_s": 30}],
        "drift": {"windows_s": [30]},
        "confidence_window_s": 30,
        "kpi_rules": {"window_s": 30},
        "accuracy": {"window_s": 30, "margin": 0.03, "min_completeness": 0.3},
        "place": {"window_s": 60},
        "label_wait_s": 60,
    },
    # Twelve laboratory devices do not tell a point; the sensors of the field have moved away from them anyway.
    "validation": {"accuracy": {"overall": 0.03}},
    # One retrain is the story: on a slow machine a second one would take the place of the last chapter's candidate.
    "retraining": {"mode": "metric", "interval_s": 86400, "cool_down_s": 3600},
    "rollout": {
        # A campaign under this much noise, on a day without drift, costs a model from the laboratory up to a few points.
        "simulation": {
            "required": True,
            "seeds": 5,
            "most_seeds": 5,
            "accuracy_margin": 0.05,
            "worst_margin": 0.15,
            "retry_s": 30,
            "max_s": 300,
            "limit_s": 600,
        },
        "shadow": {"min_s": 30, "max_s": 300, "every_hour": False},
        "steps": [
            {"exposure_fraction": 0.25, "min_s": 30, "max_s": 180},
            {"exposure_fraction": 0.5, "min_s": 30, "max_s": 180},
        ],
        "metrics": [
            {
                "metric": "accuracy",
                "role": "guardrail",
                "better": "higher",
                "margin": 0.05,
                "relative": True,
                "min_devices": 4,
                "min_events": 50,
            }
        ],
        "approvals": {"before": ["canary"]},
    },
}

TRAINING: dict[str, Any] = {
    "num_rounds": 4,
    "patience_s": 120.0,
    "plan": {
        "model": "mlp",
        "options": {"hidden": [16]},
        "method": {"kind": "fedavg"},
        "training": {"batch_size": 16, "epochs": 2, "max_steps": 40, "optimizer": {"lr": 0.1}},
    },
    "rules": {
        "quorum": 8,
        "deadline_s": 60.0,
        "privacy": {"noise_multiplier": 0.6, "clip_norm": 1.0, "epsilon": 60.0, "delta": 1e-5},
    },
}


def write_files(folder: Path, feed: dict[str, Any], ports: tuple[int, int, int]) -> None:
    """Write ``server.toml``, ``policy.yaml`` and ``training.yaml``, and the key with which the operator signs.

    Args:
        folder: Where.
        feed: What `python -m sim feed prepare` made.
        ports: Of the device API, the enrolment and Flower.
    """
    import yaml

    control, enrol, flower = ports
    key = make_key(folder / OPERATOR_KEY)
    text = SERVER.format(control=control, enrol=enrol, flower=flower, slot=SLOT_S, operator=OPERATOR, key=key)
    (folder / "server.toml").write_text(text)
    (folder / "policy.yaml").write_text(yaml.safe_dump(POLICY, sort_keys=False))
    plan = {
        **TRAINING["plan"],
        "input_shape": [feed["config"]["num_features"]],
        "num_outputs": feed["config"]["num_classes"],
    }
    cohort = {"kind": "fixed_size", "cohort_size": len(feed["devices"])}
    rules = {**TRAINING["rules"], "sampling": cohort}
    training = {**TRAINING, "plan": plan, "rules": rules}
    (folder / "training.yaml").write_text(yaml.safe_dump(training, sort_keys=False))


def write_agent(folder: Path, name: str, http: str, enrol: int, devices: list[dict[str, Any]]) -> Path:
    """Write the ``edge.toml`` of an agent.

    Args:
        folder: Of the demo.
        name: Of the agent.
        http: ``host:port`` of its local API.
        enrol: Port of the enrolment.
        devices: Those that it hosts: name, token, device_type, site.
    """
    lines = [
        f'folder = "{name}"',
        f'enrol = "127.0.0.1:{enrol}"',
        'authority = "state/authority/ca.pem"',
        "heartbeat_s = 2.0",
        "[api]",
        f'http = "{http}"',
        'socket = ""',
        "[outbox]",
        "flush_s = 1.0",
    ]
    for device in devices:
        lines += ["[[devices]]", "trains = true"]
        lines += [f"{key} = {json.dumps(device[key])}" for key in ("name", "token", "device_type", "site")]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path
