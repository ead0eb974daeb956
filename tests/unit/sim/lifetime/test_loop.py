"""The loop of a life: what people are told before a rollout starts."""

from __future__ import annotations

from tests.lifetime_cases import DAY, POLICY, policy, small, small_life

SOON = {"mode": "scheduled", "interval_s": 2 * DAY}


def test_a_step_with_too_few_devices_for_its_gate_is_said_as_the_rollout_begins():
    (rule,) = POLICY["rollout"]["metrics"]
    asks = {"metrics": [{**rule, "min_devices": 7}]}
    config = small(12, 4)
    told = [e for e in small_life(config, policy(retraining=SOON, rollout=asks)).events if e.kind == "warned"]
    (created,) = (e.at for e in small_life(config, policy(retraining=SOON)).events if e.kind == "created")
    assert "canary can never pass: 6 devices of 12, accuracy is judged from 7" in {e.text for e in told}
    assert {e.at for e in told} == {created}
    assert {e.version for e in told} == {2}
