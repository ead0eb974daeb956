from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.core.errors import ConfigError
from fedretrain.training.partition import ParamPartition

NAMES = ("body.weight", "body.bias", "norm.running_mean", "head.weight", "head.bias")


def test_patterns_name_the_personal_parameters():
    parts = ParamPartition.by_patterns(NAMES, ("head.*", "norm.running_*"))
    assert parts.personal == ("head.bias", "head.weight", "norm.running_mean")
    assert parts.shared == ("body.bias", "body.weight")


@given(st.sets(st.sampled_from(NAMES), max_size=4))
def test_always_disjoint_and_complete(personal):
    parts = ParamPartition.by_patterns(NAMES, sorted(personal))
    assert not set(parts.shared) & set(parts.personal)
    assert sorted(parts.shared + parts.personal) == sorted(NAMES)
    assert set(parts.personal) == personal


def test_a_pattern_that_matches_nothing_is_refused_with_the_names():
    with pytest.raises(ConfigError, match=r"'haed\.\*' matches no parameter") as caught:
        ParamPartition.by_patterns(NAMES, ("head.*", "haed.*"))
    assert all(name in caught.value.fix for name in NAMES)


def test_nothing_shared_is_refused():
    with pytest.raises(ConfigError, match="nothing to train together"):
        ParamPartition.by_patterns(NAMES, ("*",))
