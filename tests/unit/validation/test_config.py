"""The policy is built from a policy file, and impossible values are refused by name."""

from __future__ import annotations

import pytest

from fedretrain.core.build import build, plain
from fedretrain.core.errors import ConfigError
from fedretrain.validation.checks import policy_digest
from fedretrain.validation.config import CheckName, CriticalSegment, Margins, Unit, ValidationPolicy


def test_a_policy_is_built_from_plain_values_and_back():
    given = {
        "alpha": 0.01,
        "unit": "device_slice",
        "accuracy": {"overall": 0.02, "group": 0},
        "segments": [{"name": "leak", "from_at": 10, "labels": [1, 2], "groups": [3]}],
        "required": ["overall", "critical"],
        "late_after_s": None,
    }
    policy = build(ValidationPolicy, given)
    assert policy.unit is Unit.DEVICE_SLICE
    assert policy.accuracy == Margins(overall=0.02, group=0.0)
    assert policy.segments == (CriticalSegment("leak", from_at=10.0, labels=(1, 2), groups=(3,)),)
    assert policy.required == (CheckName.OVERALL, CheckName.CRITICAL)
    assert build(ValidationPolicy, plain(policy)) == policy
    assert policy_digest(policy) == policy_digest(build(ValidationPolicy, plain(policy)))
    assert policy_digest(policy) != policy_digest(ValidationPolicy())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"alpha": 0.7}, "validation.alpha"),
        ({"accuracy": {"overall": -0.1}}, "accuracy.margins.overall|margins.overall"),
        ({"required": ["overal"]}, "did you mean 'overall'"),
        ({"min_devices": 1}, "validation.min_devices"),
        ({"late_after_s": -1.0}, "validation.late_after_s"),
        ({"size_budget_bytes": 0}, "validation.size_budget_bytes"),
        ({"brier_margin": -1.0}, "validation.brier_margin"),
        ({"segments": [{"name": "a"}, {"name": "a"}]}, "two segments have one name"),
        ({"segments": [{"name": ""}]}, "needs a name"),
        ({"segments": [{"name": "a", "from_at": 5, "until_at": 5}]}, "before it begins"),
        ({"source": "phones"}, "not one of pool, devices, both"),
        ({"field": {"quorum": 0}}, "field.quorum"),
        ({"field": {"quorum": 30, "max_devices": 20}}, "a quorum of 30 of 20 devices"),
        ({"field": {"spread_s": 3600, "deadline_s": 3600}}, "after the deadline"),
        ({"field": {"max_rows": 10**6}}, "at most 500000"),
    ],
)
def test_impossible_policies_are_refused_by_name(given, says):
    with pytest.raises(ConfigError, match=says):
        build(ValidationPolicy, given, where="validation")
