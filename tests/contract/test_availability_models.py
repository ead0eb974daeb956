"""Every availability model of ours, and one of a user's, keeps the contract."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core import rng
from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.core.errors import ConfigError
from sim.availability import (
    Always,
    Availability,
    AvailabilityConfig,
    AvailabilityKind,
    CustomModel,
    Diurnal,
    Markov,
)
from sim.trace import Trace
from tests.contract.availability_contract import AvailabilityContract


class EvenDays:
    """A user's model: each device has its own days, odd or even."""

    slot_s = DAY_S

    def __init__(self, flip: bool = False) -> None:
        self.flip = flip

    def online(self, traits, seed, at):
        odd = rng.uniforms(rng.seeds_for(seed, -1, traits.device, "even_days"), 1)[:, 0] < 0.5
        return (np.floor(at / DAY_S) % 2 == odd) ^ self.flip


class TestAlways(AvailabilityContract):
    def make_model(self):
        return Always()


class TestDiurnal(AvailabilityContract):
    def make_model(self):
        return Diurnal(site_offset_h=(0.0, 8.0), spread_h=1.5)


class TestDiurnalByHour(AvailabilityContract):
    def make_model(self):
        return Diurnal(hourly=tuple(h / 23 for h in range(24)), spread_h=0.0)


class TestMarkov(AvailabilityContract):
    def make_model(self):
        return Markov(3 * HOUR_S, 5 * HOUR_S)


class TestTrace(AvailabilityContract):
    def make_model(self):
        model = Trace([0, 0, 1], [0.0, 6 * HOUR_S, HOUR_S], [HOUR_S, 8 * HOUR_S, DAY_S], period_s=DAY_S)
        model.slot_s = HOUR_S  # every interval of this trace begins and ends on the hour
        return model


class TestOfTheUser(AvailabilityContract):
    def make_model(self):
        return EvenDays()


def custom(path: str, **options) -> AvailabilityConfig:
    return AvailabilityConfig((AvailabilityKind.CUSTOM,), custom=CustomModel(path, options))


def test_a_users_model_is_found_by_its_import_path():
    here = f"{__name__}:EvenDays"
    ids = np.arange(100)
    plain = Availability(custom(here), 1).online(ids, 0.5 * DAY_S)
    flipped = Availability(custom(here, flip=True), 1).online(ids, 0.5 * DAY_S)
    assert 20 < plain.sum() < 80
    np.testing.assert_array_equal(plain, ~flipped)
    np.testing.assert_array_equal(Availability(custom(here), 1).next_online(ids, 0.0) > 0, ~plain)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("nowhere", {}, "not an import path"),
        ("no.such.module:x", {}, "cannot be imported"),
        (f"{__name__}:Missing", {}, "cannot be imported"),
        (f"{__name__}:EvenDays", {"speed": 3}, "refused its options"),
        ("builtins:object", {}, "without online, slot_s"),
    ],
)
def test_a_wrong_import_path_is_one_clear_line(path, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Availability(custom(path, **options), 0)
    assert caught.value.where == "availability.custom.path"
    assert "\n" not in str(caught.value)
