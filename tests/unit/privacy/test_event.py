"""Privacy events."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.event import EVERYBODY, PrivacyEvent, Sampling, decode_units, encode_units
from fedretrain.privacy.mechanism import Relation, Unit


@given(st.lists(st.integers(0, 2**63 - 1), max_size=50))
def test_participation_records_keep_every_unit(ids):
    assert decode_units(encode_units(ids)).tolist() == sorted(ids)


def test_a_record_of_ten_thousand_devices_is_small():
    ids = np.random.default_rng(0).choice(1_000_000, 10_000, replace=False)
    assert len(encode_units(ids)) < 40_000


def test_a_damaged_record_is_noticed():
    with pytest.raises(ValueError, match="cannot be read"):
        decode_units(encode_units([1, 2])[:-8] + "AAAAAAA=")


def test_json_round_trip(cohort_event, poisson_event):
    for event in (
        cohort_event([3, 1, 3], 0.7, max_devices_per_unit=2, bit_noise_stddev=5.0, unit=Unit.PERSON),
        poisson_event(attempt=2, clip_norm=0.1),
    ):
        assert PrivacyEvent.from_dict(json.loads(json.dumps(event.to_dict()))) == event


def test_sigma_and_sensitivity_stand_in_the_record(cohort_event):
    record = cohort_event([1], 2.0, clip_norm=0.5, relation=Relation.REPLACE_ONE).to_dict()
    assert (record["noise_stddev"], record["sensitivity"]) == (1.0, 1.0)


@pytest.mark.parametrize("change", [{"noise_stddev": 9.0}, {"sensitivity": 9.0}, {"clip_norm": 2.0}])
def test_a_record_that_contradicts_itself_is_refused(cohort_event, change):
    with pytest.raises(PrivacyError, match="does not follow"):
        PrivacyEvent.from_dict({**cohort_event([1]).to_dict(), **change})


@pytest.mark.parametrize("change", [{"relation": "neighbourly"}, {"novel": 1}])
def test_an_unknown_field_or_value_is_refused(cohort_event, change):
    with pytest.raises(PrivacyError, match="no privacy event"):
        PrivacyEvent.from_dict({**cohort_event([1]).to_dict(), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_multiplier": 0.0}, "positive"),
        ({"clip_norm": np.nan}, "positive"),
        ({"bit_noise_stddev": -1.0}, "bit"),
        ({"bit_quantile": 1.0}, "quantile"),
        ({"sampling_fraction": 0.0}, "needs its q"),
        ({"sampling_fraction": 1.5}, "needs its q"),
        ({"sampling": Sampling.FIXED_SIZE}, "amplification claimed for fixed_size"),
        ({"relation": Relation.ZERO_OUT}, "under the relation zero_out"),
        ({"unit": Unit.RECORDING}, "single recording"),
        ({"units": encode_units([1])}, "must stay secret"),
        ({"units": ""}, "nobody is charged|must stay secret"),
    ],
)
def test_an_event_with_a_false_claim_cannot_be_built(poisson_event, change, message):
    with pytest.raises(PrivacyError, match=message):
        poisson_event(**change)


def test_cohorts_that_displace_one_another_are_refused_under_add_remove(cohort_event):
    with pytest.raises(PrivacyError, match="displaces"):
        cohort_event([1], relation=Relation.ADD_REMOVE)


def test_a_person_with_two_devices_in_a_round_must_be_declared(cohort_event):
    with pytest.raises(PrivacyError, match="2 devices of one person"):
        cohort_event([4, 4], unit=Unit.PERSON)
    assert cohort_event([4, 4], unit=Unit.PERSON, max_devices_per_unit=2).most_devices == 2


def test_everybody_names_nobody(cohort_event):
    ids, counts = cohort_event(EVERYBODY, sampling=Sampling.EVERYBODY).unit_counts
    assert len(ids) == len(counts) == 0
