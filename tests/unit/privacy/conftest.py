"""Builders of privacy events."""

from __future__ import annotations

import pytest

from fedretrain.privacy.event import EVERYBODY, PrivacyEvent, Sampling, encode_units
from fedretrain.privacy.mechanism import Relation


@pytest.fixture
def poisson_event():
    def build(z=1.0, q=0.1, **other):
        facts = {
            "population": "p",
            "campaign": "c",
            "round": 0,
            "noise_multiplier": z,
            "clip_norm": 1.0,
            "relation": Relation.ADD_REMOVE,
            "sampling": Sampling.POISSON,
            "units": EVERYBODY,
            "sampling_fraction": q,
            "amplified": True,
        }
        return PrivacyEvent(**{**facts, **other})

    return build


@pytest.fixture
def cohort_event():
    def build(units, z=1.0, **other):
        facts = {
            "population": "p",
            "campaign": "c",
            "round": 0,
            "noise_multiplier": z,
            "clip_norm": 1.0,
            "relation": Relation.ZERO_OUT,
            "sampling": Sampling.MIN_SEPARATION,
            "units": units if isinstance(units, str) else encode_units(units),
        }
        return PrivacyEvent(**{**facts, **other})

    return build
