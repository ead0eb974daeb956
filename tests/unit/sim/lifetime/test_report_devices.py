"""Parts of a life with the device as the unit: what is one value, what is paired, and who is left out."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from sim.lifetime.records import DeviceScore
from sim.lifetime.report.devices import device_means, part_scores
from sim.lifetime.report.page import render_lifetime
from sim.report import words
from sim.statistics import over_devices
from tests.unit.sim.lifetime.life_factory import make_lifetime


def with_devices(run, accuracy):
    """The run with other scores: `accuracy(policy, seed, device, segment)`, or nothing where that is None."""

    def scores(life):
        who = life.summary.policy, life.summary.seed
        found = [(name, d, accuracy(*who, d, name)) for name in run.segments for d in range(10)]
        return tuple(DeviceScore(*who, d, name, 100, a) for name, d, a in found if a is not None)

    return replace(run, lives=tuple(replace(life, devices=scores(life)) for life in run.lives))


@pytest.fixture(scope="module")
def run():
    return make_lifetime(policies=("never", "hybrid"), num_seeds=2, num_segments=2)


def plain(html):
    return unescape(re.sub(r"<[^>]+>", " ", html)).replace(words.NBSP, " ")


def test_a_device_is_one_value_however_many_seeds_there_are(run):
    made = with_devices(run, lambda _p, seed, device, _s: 0.5 + 0.02 * device + 0.1 * seed)
    means = device_means([life for life in made.lives if life.summary.policy == "never"])
    np.testing.assert_allclose(list(means["batch 1"].values()), 0.55 + 0.02 * np.arange(10))
    score, wanted = part_scores(made)[0], over_devices(0.55 + 0.02 * np.arange(10))
    ends = score.accuracy.value, score.accuracy.low, score.accuracy.high
    assert ends == pytest.approx((wanted.value, wanted.low, wanted.high))
    assert score.accuracy.num == 10
    assert score.accuracy.low < 0.64 < score.accuracy.high


def test_a_change_is_paired_by_device(run):
    """Devices differ much and each falls by the same: the change has no spread, the parts have."""
    fall = {"batch 1": 0.0, "batch 2": 0.25}
    made = with_devices(run, lambda _p, _k, device, name: 0.5 + 0.04 * device - fall[name])
    first, second = part_scores(made)[:2]
    assert first.change is None
    assert second.change.value == pytest.approx(-0.25)
    assert second.change.high - second.change.low < 1e-9
    assert second.accuracy.high - second.accuracy.low > 0.1


@pytest.mark.parametrize("odd", [None, math.nan])
def test_a_device_that_some_seed_did_not_score_is_left_out_of_that_part(run, odd):
    made = with_devices(
        run, lambda _p, seed, device, name: odd if (seed, device, name) == (1, 3, "batch 2") else 0.8
    )
    first, second = part_scores(made)[:2]
    assert first.accuracy.num == 10
    assert second.accuracy.num == second.change.num == 9
    assert second.accuracy.value == pytest.approx(0.8)


def test_the_page_shows_every_part_its_interval_and_what_it_is_over(run):
    made = with_devices(
        run, lambda p, _k, d, name: 0.6 + 0.02 * d + 0.1 * (p == "hybrid") * (name == "batch 2")
    )
    text = plain(render_lifetime(made))
    shown = text[text.index("Parts of the life, over devices") : text.index("Decisions")]
    rows = re.findall(r"batch 2\s+([\d.]+) %\s+\[([\d.]+), ([\d.]+)\]\s+([\d.]+) %", shown)
    assert [float(v) for v in rows[0][::3]] == [69.0, 79.0]
    assert float(rows[0][1]) < 69.0 < float(rows[0][2])
    assert "since batch 1" in shown
    assert "The unit is the device: each device\u2019s mean over the seeds" in shown
    assert "10 devices" in shown


def test_a_fleet_too_small_for_an_interval_has_no_such_section(run):
    few = replace(run, lives=tuple(replace(life, devices=life.devices[:4]) for life in run.lives))
    none = replace(run, lives=tuple(replace(life, devices=()) for life in run.lives))
    for made in (few, none):
        assert "Parts of the life, over devices" not in render_lifetime(made)
