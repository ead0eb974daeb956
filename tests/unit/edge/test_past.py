"""A device's raw samples for pipelines with local numbers; and what it tells of its circumstances."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.edge.conditions import conditions
from fedretrain.edge.past import ENOUGH_ROWS, FILE, MAX_ROWS, Past


def samples(num, size=2, seed=0):
    return np.random.default_rng(seed).normal(size=(num, size)).astype(np.float32)


def test_too_few_samples_are_not_used(tmp_path):
    past = Past(tmp_path)
    past.add(samples(ENOUGH_ROWS - 1))
    assert not past.is_worth_using
    assert past.use((2,)) is None
    past.add(samples(1))
    assert past.is_worth_using


def test_what_was_used_is_used_again_after_a_start(tmp_path):
    past = Past(tmp_path)
    past.add(samples(100))
    used = past.use((2,))
    past.add(samples(50, seed=1))
    again = Past(tmp_path)
    assert np.array_equal(again.used, used)
    assert not again.is_worth_using


def test_the_newest_are_kept_and_another_schema_begins_anew(tmp_path):
    past = Past(tmp_path)
    past.add(samples(MAX_ROWS + 10))
    assert np.array_equal(past.use((2,)), samples(MAX_ROWS + 10)[10:])
    past.add(samples(ENOUGH_ROWS, 3))
    assert past.use((2,)) is None
    assert past.use((3,)).shape == (ENOUGH_ROWS, 3)


def test_nothing_is_left_of_what_is_forgotten(tmp_path):
    past = Past(tmp_path)
    past.add(samples(100))
    past.use((2,))
    past.forget()
    assert past.used is None
    assert not (tmp_path / FILE).exists()
    assert Past(tmp_path).used is None


def test_a_damaged_file_is_no_past(tmp_path):
    (tmp_path / FILE).write_bytes(b"nothing")
    assert Past(tmp_path).used is None


def hardware(folder, **supplies):
    for name, (kind, online) in supplies.items():
        place = folder / "power_supply" / name
        place.mkdir(parents=True)
        (place / "type").write_text(f"{kind}\n")
        (place / "online").write_text(f"{online}\n")
    return folder


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ({}, True),
        ({"BAT0": ("Battery", 1)}, False),
        ({"BAT0": ("Battery", 1), "AC": ("Mains", 0)}, False),
        ({"BAT0": ("Battery", 1), "AC": ("Mains", 1)}, True),
        ({"AC": ("Mains", 0)}, True),
    ],
)
def test_a_battery_is_noticed(tmp_path, supplies, expected):
    told = conditions(tmp_path, 0, metered=False, system=hardware(tmp_path, **supplies))
    assert told.on_power is expected


def test_the_hottest_zone_and_a_rounded_number_of_labels_are_told(tmp_path):
    for number, text in enumerate(("41000", "65500", "broken")):
        zone = tmp_path / "thermal" / f"thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(text)
    told = conditions(tmp_path, 100, metered=True, system=tmp_path)
    assert (told.temperature_c, told.num_labelled, told.metered) == (65.5, 64, True)
    assert told.free_bytes > 0
    assert conditions(tmp_path, 0, metered=False, system=tmp_path / "none").temperature_c == 0.0
