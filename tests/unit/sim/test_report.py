"""The report: one whole page, true to its numbers, safe whatever the names, and complete without a network."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from sim.report import words
from sim.report.figures import all_figures
from sim.report.page import render_report
from sim.report.plots import _apart
from sim.report.reading import difference, reading
from sim.report.series import curve, participation, sorted_scores
from sim.report.style import SERIES, arm_colours, variable
from sim.report.words import Words
from sim.results import Estimate, Metric, Over, Population
from tests.unit.sim.record_factory import make_run

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Counts ids, checks nesting, collects addresses."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.addresses, self.open, self.tags = Counter(), [], [], Counter()
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self._see(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._see(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def _see(self, tag, attrs):
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids[value] += 1
            if name in {"src", "href", "xlink:href"}:
                self.addresses.append(value)


@pytest.fixture(scope="module")
def run():
    return make_run(num_seeds=3, num_rounds=12)


@pytest.fixture(scope="module")
def text(run):
    return render_report(run)


def say(metric=Metric.ACCURACY, unit=""):
    return Words(metric, unit)


def plain(html):
    return re.sub(r"<[^>]+>", "", html).replace(words.NBSP, " ")


def test_the_page_is_well_formed_with_unique_ids(text):
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert [i for i, count in page.ids.items() if count > 1] == []


def test_nothing_is_fetched(text):
    page = Page(text)
    assert all(address.startswith("#") for address in page.addresses)
    assert page.tags["script"] == page.tags["img"] == page.tags["link"] == 0
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_references_inside_the_plots_resolve(text):
    page = Page(text)
    used = {a[1:] for a in page.addresses} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used
    assert used <= set(page.ids)


def test_every_plot_is_named_described_and_has_its_table(run, text):
    figures = all_figures(run, say())
    assert [f.name for f in figures] == [
        "learning",
        "devices",
        "gain",
        "drift",
        "epsilon",
        "participation",
        "arrivals",
        "traffic",
    ]
    for item in figures:
        assert f'id="{item.name}-t"' in text
        assert f'id="{item.name}-d"' in text
        assert item.rows
        assert {len(row) for row in item.rows} == {len(item.header)}
    assert text.count('role="img"') == len(figures)


def test_every_colour_follows_the_page(text):
    plots = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    found = set(re.findall(r"(?:fill|stroke): (#[0-9a-fA-F]{3,8})", plots))
    assert found <= {"#000000"}  # only what is never drawn (markers' defaults)
    assert {variable(c) for c in SERIES[:3]} <= set(re.findall(r"var\(--c\d\)", text))


def test_plots_are_xml(text):
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(plots) == text.count("<svg") > 5
    assert all(ET.fromstring(plot).tag.endswith("svg") for plot in plots)


def test_a_report_repeats_bit_for_bit(run, text):
    assert render_report(run) == text


def test_the_headline_is_that_of_the_real_devices(run, text):
    for arm in run.summary.arms:
        best = arm.headline.personalized or arm.headline.global_model
        assert f'<div class="big">{say().score(best.score.mean.value)}</div>' in text
    assert "19 real devices" in text
    assert "virtual devices" in text


def test_every_epsilon_names_its_unit_delta_sampling_and_scope(run, text):
    p = run.summary.arms[2].privacy
    shown = plain(text)
    assert "epsilon per device" in shown
    assert "Personalized + DP spends epsilon 7.05 at delta 1e-5 for each device" in shown
    assert "add/remove relation, Poisson sampling, PLD accountant" in shown
    assert escape(p.scope) in shown
    assert escape(p.advice) in shown
    assert "outside every epsilon above" in shown


def test_without_dp_the_page_says_that_nothing_is_protected():
    shown = plain(render_report(make_run(num_seeds=1, num_rounds=3, arms=("fedavg", "personal"))))
    assert "its weights carry no privacy guarantee" in shown


def test_the_reading_claims_a_gain_only_where_its_interval_excludes_zero(run):
    sure = plain(" ".join(reading(run, say())))
    assert re.search(r"\d\.\d points better than the global model of Global FedAvg \(95 % interval", sure)
    flat = tuple(
        replace(d, personalized_score=None if d.personalized_score is None else d.global_score)
        for d in run.devices
    )
    noisy = tuple(
        replace(d, global_score=d.global_score + (0.05 if d.seed == 0 else -0.03 * d.seed))
        if d.arm == "fedavg"
        else d
        for d in flat
    )
    unsure = plain(" ".join(reading(replace(run, devices=noisy), say())))
    assert "this run cannot tell the two apart" in unsure


def test_the_difference_in_the_text_is_paired(run):
    found = difference(run, "fedavg", "personal", Population.REAL)
    a = {(d.seed, d.device): d.global_score for d in run.devices if d.arm == "fedavg"}
    own = [
        np.mean(
            [
                d.personalized_score - a[d.seed, d.device]
                for d in run.devices
                if (d.arm, d.seed) == ("personal", s) and not d.is_virtual and not d.cold_start
            ]
        )
        for s in range(3)
    ]
    assert found.value == pytest.approx(np.mean(own))
    assert found.num == 3


def test_cold_start_devices_are_apart(run):
    assert any("Devices that never took part are left out" in t for t in reading(run, say()))
    scores = sorted_scores(run, "personal", Population.REAL, Metric.ACCURACY)
    assert len(scores) == 19  # twenty, one of which never took part


def test_errors_improve_downwards():
    run = make_run(num_seeds=3, num_rounds=6, metric=Metric.RMSE)
    shown = plain(render_report(run))
    assert re.search(r"µg/m³ better than the global model of Global FedAvg", shown)
    scores = sorted_scores(run, "fedavg", Population.REAL, Metric.RMSE)
    assert scores[0] == scores.max()  # from the worst on
    assert "Macro-F1" not in shown
    assert "MAE" in shown


@pytest.mark.parametrize("metric", list(Metric))
def test_names_from_outside_are_text(metric):
    run = make_run(num_seeds=1, num_rounds=3, num_virtual=3, metric=metric)
    odd = "<script>alert(1)</script>"
    titles = (odd, '$x_1$ & "quoted" \\1 \\g<0>', "µ ≥ 0 <b>")
    arms = tuple(replace(a, title=t, method=odd) for a, t in zip(run.summary.arms, titles, strict=True))
    summary = replace(run.summary, arms=arms, experiment=odd, dataset=odd, caveats=(odd,), metric_unit=odd)
    text = render_report(replace(run, summary=summary, config=odd))
    assert Page(text).tags["script"] == 0
    assert "$x_1$" in text  # text, not mathematics
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ET.fromstring(svg)


def test_one_seed_says_so():
    shown = plain(render_report(make_run(num_seeds=1, num_rounds=5, num_virtual=0, arms=("personal",))))
    assert "say nothing about another run" in shown
    assert "over 19 devices" in shown


def test_one_device_and_one_round_still_make_a_page():
    run = make_run(num_seeds=1, num_rounds=1, num_real=1, num_virtual=0, arms=("personal",))
    text = render_report(run)
    Page(text)
    assert "<b>1</b> real device" in text


def test_a_run_without_rounds_or_scores_still_makes_a_page(run):
    bare = replace(run.summary, arms=tuple(replace(a, populations=()) for a in run.summary.arms))
    shown = plain(render_report(replace(run, summary=bare, rounds=(), devices=())))
    assert "No device was scored" in shown


def test_a_diverged_run_makes_a_page_that_says_nothing_false(run):
    devices = tuple(replace(d, global_score=math.nan, personalized_score=None) for d in run.devices)
    rounds = tuple(
        replace(r, global_score=None, personalized_score=None, train_loss=math.inf) for r in run.rounds
    )
    text = render_report(replace(run, devices=devices, rounds=rounds))
    Page(text)
    shown = re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf|infinity)\b", plain(shown), flags=re.IGNORECASE)


def test_a_large_fleet_and_a_long_campaign_stay_small():
    run = make_run(num_seeds=1, num_rounds=800, num_real=0, num_virtual=3_000, arms=("personal",))
    text = render_report(run)
    assert len(text) < 1_500_000
    assert "2,728 virtual devices" in plain(text)


def test_curves_are_means_over_seeds_with_the_tables_interval(run):
    own = [r for r in run.rounds if r.arm == "personal_dp"]
    found = curve(own, lambda r: r.epsilon)
    assert found.rounds.tolist() == list(range(1, 13))
    assert found.mean[-1] == pytest.approx(7.05)
    scores = curve(own, lambda r: s.mean if (s := r.personalized_score) else None)
    assert scores.rounds.tolist() == [
        2.0,
        4.0,
        6.0,
        8.0,
        10.0,
        12.0,
    ]  # the factory evaluates every second round
    assert (scores.low < scores.mean).any()


def test_a_round_that_only_one_seed_reached_is_left_out(run):
    own = [r for r in run.rounds if r.arm == "personal_dp" and (r.seed == 0 or r.round < 5)]
    assert curve(own, lambda r: r.epsilon).rounds.max() == 5


def test_participation_adds_up(run):
    found = participation([r for r in run.rounds if r.arm == "fedavg"], max_bins=5)
    assert found.width == 3
    np.testing.assert_allclose(sum(found.shares.values()), 1.0)
    assert found.abandoned == pytest.approx(1 / 3)


def test_labels_at_line_ends_never_overlap():
    places = _apart([0.0, 0.01, 0.02, 0.9, 0.91], 0.1, 0.0, 1.0)
    assert all(b - a >= 0.1 - 1e-12 for a, b in pairwise(places))
    assert max(places) <= 1.0


def test_a_single_arm_is_not_drawn_as_a_baseline():
    assert arm_colours(1) == [SERIES[1]]
    assert arm_colours(3) == list(SERIES[:3])
    assert len(arm_colours(20)) == 20


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.01, 0.03, "1.0 points to 3.0 points better"),
        (-0.03, -0.01, "1.0 points to 3.0 points worse"),
        (-0.01, 0.03, "1.0 points worse to 3.0 points better"),
    ],
)
def test_intervals_of_differences_read_as_words(low, high, text):
    estimate = Estimate(0.0, low, high, 5, Over.SEEDS)
    assert say().change_interval(estimate).replace(words.NBSP, " ") == text


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (words.size(999), "999 B"),
        (words.size(1_234_567), "1.23 MB"),
        (words.memory(900 * 2**20), "900 MiB"),
        (words.memory(20 * 2**30), "20.0 GiB"),
        (words.seconds(93.2), "1 min 33 s"),
        (words.power(1e-5), "1e-5"),
        (words.significant(1234.5), "1234"),
        (words.significant(0.01234), "0.0123"),
        (words.significant(math.nan), "n/a"),
        (words.people(Population.VIRTUAL, 1), "1 virtual device"),
        (words.count(11.67), "11.7"),
        (words.listing(["a", "b", "c"]), "a, b and c"),
        (str(words.time_unit(10 * 86_400)), "(86400.0, 'days')"),
    ],
)
def test_numbers_in_words(shown, text):
    assert shown.replace(words.NBSP, " ") == text
