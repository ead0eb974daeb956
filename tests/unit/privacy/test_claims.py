"""Claims: when they are false they are refused, and when printed they say what they cover."""

from __future__ import annotations

import pytest

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.claims import check_claims, scope_text
from fedretrain.privacy.event import Sampling
from fedretrain.privacy.mechanism import Relation, Unit

AMPLIFIED = {"relation": "add_remove", "sampling": "poisson", "amplified": True}


@pytest.mark.parametrize(
    "sound",
    [
        {},
        {"stop_at_quorum": True, "cohorts_published": True, "abandon_uncharged": True},
        {"relation": Relation.REPLACE_ONE, "stop_at_quorum": True},
        {"unit": Unit.RECORDING},
        {"sampling": "poisson"},
        {"sampling": "poisson", "cohorts_published": True},
        AMPLIFIED,
        {**AMPLIFIED, "unit": "person"},
    ],
    ids=str,
)
def test_true_claims_pass(sound):
    check_claims(**sound)


@pytest.mark.parametrize(
    ("false", "message"),
    [
        ({"aggregator": "median"}, "aggregator median"),
        ({"aggregator": "trimmed_mean"}, "sensitivity is not the clip norm"),
        ({"weights": "examples"}, "almost all weight"),
        ({"denominator": "replied"}, "fewer answers raise the sensitivity"),
        ({"unit": "person", "devices_per_person_known": False}, "one person's"),
        ({**AMPLIFIED, "stop_at_quorum": True}, "quorum"),
        ({**AMPLIFIED, "cohorts_published": True}, "published"),
        ({**AMPLIFIED, "counts_published": True}, "published"),
        ({**AMPLIFIED, "abandon_uncharged": True}, "abandoned"),
        ({**AMPLIFIED, "relation": "zero_out"}, "relation zero_out"),
        ({**AMPLIFIED, "unit": "recording"}, "single recording"),
        ({"sampling": "fixed_size", "amplified": True}, "fixed_size"),
        ({"sampling": "min_separation", "amplified": True}, "min_separation"),
        ({"sampling": "fixed_size", "relation": "add_remove"}, "displaces"),
        ({"sampling": "poisson", "relation": "add_remove", "stop_at_quorum": True}, "quorum"),
    ],
    ids=str,
)
def test_false_claims_are_refused_with_a_way_out(false, message):
    with pytest.raises(PrivacyError, match=message) as caught:
        check_claims(**false)
    assert caught.value.fix
    assert "\n" not in str(caught.value)


def test_every_epsilon_names_its_scope(cohort_event, poisson_event):
    for event in (cohort_event([1]), poisson_event()):
        text = scope_text(3.14159, 1e-5, [event])
        assert text.startswith("epsilon 3.14 at delta 1e-05 for one device")
        assert "released shared weights only" in text
        assert "not telemetry" in text


@pytest.mark.parametrize("unit", [Unit.DEVICE, Unit.RECORDING])
def test_a_unit_finer_than_a_person_is_said(cohort_event, unit):
    assert "protected less" in scope_text(1.0, 1e-5, [cohort_event([1], unit=unit)])


def test_a_person_is_covered_with_all_devices(cohort_event):
    text = scope_text(1.0, 1e-5, [cohort_event([1], unit=Unit.PERSON)])
    assert "one person, with all devices" in text
    assert "protected less" not in text


def test_what_a_relation_takes_as_public_is_said(cohort_event):
    replaced = scope_text(1.0, 1e-5, [cohort_event([1], relation=Relation.REPLACE_ONE)])
    assert "reply times being public and taken not to depend on the data" in replaced
    assert "reply times being public" in scope_text(1.0, 1e-5, [cohort_event([1])])


def test_amplification_is_only_named_where_it_is_claimed(cohort_event, poisson_event):
    plain = scope_text(1.0, 1e-5, [cohort_event([1], sampling=Sampling.POISSON, sampling_fraction=0.5)])
    assert "poisson cohorts without amplification" in plain
    assert "with amplification (cohorts secret)" in scope_text(1.0, 1e-5, [poisson_event()])


def test_nothing_released():
    assert scope_text(0.0, 1e-5, []).startswith("epsilon 0")
