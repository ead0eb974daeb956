"""A lifetime's page: whole, true to its records, honest about truth and estimates, safe whatever the names."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sim.lifetime.records import DetectionRecord, LifeEvent, TruthRecord
from sim.lifetime.report.axes import spread
from sim.lifetime.report.detection import Alarms, Restored, alarms, found, within
from sim.lifetime.report.headline import featured, headlines
from sim.lifetime.report.log import instant, kept
from sim.lifetime.report.page import render_lifetime
from sim.lifetime.report.reading import reading
from sim.lifetime.report.series import MAX_FEATURES, heat, largest, onsets, over_time, runs_of, trailing
from sim.lifetime.report.timeline import Stretch, timeline
from sim.report import words
from sim.report.words import NBSP
from tests.unit.sim.lifetime.life_factory import DAY, make_lifetime


class Page(HTMLParser):
    """Checks nesting; collects ids and addresses."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.addresses, self.open, self.tags = Counter(), [], [], Counter()
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self._see(tag, attrs)
        if tag not in {"meta", "br"}:
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
    return make_lifetime()


@pytest.fixture(scope="module")
def text(run):
    return render_lifetime(run)


def plain(html):
    return unescape(re.sub(r"<[^>]+>", "", html)).replace(words.NBSP, " ")


def figures_of(text):
    return re.findall(r'<figure id="(\w+)"', text)


def test_the_page_is_well_formed_and_fetches_nothing(text):
    page = Page(text)
    assert [i for i, count in page.ids.items() if count > 1] == []
    assert all(address.startswith("#") for address in page.addresses)
    assert {address[1:] for address in page.addresses} <= set(page.ids)
    assert page.tags["script"] == page.tags["img"] == page.tags["link"] == 0
    assert not re.search(r"url\((?!#)|@import", text)


def test_plots_are_xml_in_colours_that_follow_the_page(text):
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert all(ET.fromstring(plot).tag.endswith("svg") for plot in plots)
    assert set(re.findall(r"(?:fill|stroke): (#[0-9a-fA-F]{3,8})", "".join(plots))) <= {"#000000"}


def test_a_report_repeats_bit_for_bit(run, text):
    assert render_lifetime(run) == text


def test_everything_stands_in_its_order(text):
    assert figures_of(text) == ["accuracy", "worst", "badly", "decisions", "shift", "beliefs", "delays"]
    titles = [plain(title) for title in re.findall(r"<h2>(.*?)</h2>", text)]
    assert titles == [
        "Policies",
        "Accuracy over time",
        "Parts of the life, over devices",
        "Decisions",
        "What monitors saw",
        "Drifts, noticed and mended",
        "What happened, and why",
        "Before you quote a figure",
        "To repeat it",
    ]


def test_without_injected_truth_nothing_speaks_of_it():
    text = render_lifetime(make_lifetime(truth=False))
    assert "delays" not in figures_of(text)
    shown = plain(text)
    assert not re.search(r"injected|false alarm|\(truth\)|noticed", shown, flags=re.IGNORECASE)


def test_headline_figures_are_means_over_seeds_and_differences_are_paired(run):
    hybrid = headlines(run)[2]
    own = [life.summary for life in run.lives if life.summary.policy == "hybrid"]
    base = [life.summary.accuracy for life in run.lives if life.summary.policy == "never"]
    gains = [s.accuracy - b for s, b in zip(own, base, strict=True)]
    assert hybrid.accuracy.value == pytest.approx(np.mean([s.accuracy for s in own]))
    low, high = stats.t.interval(0.95, len(gains) - 1, np.mean(gains), stats.sem(gains))
    assert (hybrid.change.low, hybrid.change.high) == pytest.approx((low, high))
    assert hybrid.bad_share.value == pytest.approx(own[0].bad_device_hours / own[0].device_hours)


def test_the_table_shows_what_the_headlines_say(run, text):
    for head in headlines(run):
        assert f"<b>{100 * head.accuracy.value:.1f}{words.NBSP}%" in text
    shown = plain(text)
    assert "40 virtual" in shown
    assert "no DP" in shown
    assert all(digest in shown for digest in run.policy_digest.values())
    assert run.caveats[0] in shown


def test_the_reading_claims_a_difference_only_where_its_interval_excludes_zero(run):
    sure = plain(" ".join(reading(run, headlines(run))))
    assert re.search(r"hybrid was \d\.\d points better than never", sure)
    noisy = tuple(
        replace(life, summary=replace(life.summary, accuracy=0.8 + 0.02 * (-1) ** life.summary.seed))
        if life.summary.policy == "hybrid"
        else replace(life, summary=replace(life.summary, accuracy=0.8))
        for life in run.lives
    )
    unsure = replace(run, lives=noisy)
    assert "cannot tell hybrid from never" in plain(" ".join(reading(unsure, headlines(unsure))))


def test_single_policy_figures_are_of_the_most_accurate(run, text):
    assert featured(headlines(run)).policy == "hybrid"
    assert "What could be known of the accuracy under hybrid" in plain(text)


def test_epsilon_is_drawn_and_named_where_there_is_dp():
    text = render_lifetime(make_lifetime(private=True))
    assert "epsilon" in figures_of(text)
    assert "released shared weights" in plain(text)
    assert (
        "scheduled, hybrid (most charged seed): epsilon 4.5 at delta 1e-05 for a device &lt;zero-out&gt;"
        in text
    )
    assert "at delta" not in render_lifetime(make_lifetime())


@pytest.mark.parametrize("num_days", [1, 2, 10])
def test_short_lives_make_a_page(num_days):
    text = render_lifetime(make_lifetime(num_days=num_days, num_seeds=1, num_features=1, num_segments=1))
    assert Page(text).tags["h1"] == 1
    assert "accuracy" in figures_of(text)


def test_lives_without_steps_events_or_scores_make_a_page_without_empty_figures(run):
    lives = tuple(
        replace(life, steps=(), features=(), events=(), detections=(), summary=replace(life.summary, accuracy=math.nan))
        for life in run.lives
    )  # fmt: skip
    text = render_lifetime(replace(run, lives=lives, truth=(), caveats=()))
    Page(text)
    assert figures_of(text) == []
    assert "No prediction of this run was scored" in plain(text)
    assert not re.search(r"\bnan\b", plain(text), flags=re.IGNORECASE)


def test_names_from_outside_are_text(run):
    odd = "<script>alert(1)</script>"
    lives = tuple(
        replace(
            life,
            summary=replace(life.summary, policy=odd, by_segment={odd: 0.5}),
            events=tuple(replace(e, text=odd, kind=odd, evidence={odd: odd}) for e in life.events),
            features=tuple(replace(f, feature=odd) for f in life.features),
            detections=tuple(replace(d, policy=odd, kind=odd) for d in life.detections),
        )
        for life in run.lives
        if life.summary.policy == "hybrid"
    )
    strange = replace(
        run,
        experiment=odd,
        policies=(odd,),
        lives=lives,
        truth=tuple(replace(t, kind=odd) for t in run.truth),
        segments={odd: (0.0, run.duration_s)},
        caveats=(odd,),
        policy_digest={odd: odd},
        versions={odd: odd},
        metric=odd,
    )
    text = render_lifetime(strange)
    assert Page(text).tags["script"] == 0
    assert odd in plain(text)


def test_a_long_life_of_many_features_stays_small():
    run = make_lifetime(num_days=365, num_seeds=2, num_features=60, num_segments=10)
    text = render_lifetime(run)
    assert len(text) < 1_500_000
    assert f"The {MAX_FEATURES} features with the largest PSI of 60." in plain(text)


@given(st.lists(st.one_of(st.floats(-5, 5), st.just(math.nan)), max_size=30), st.integers(1, 9))
def test_smoothing_looks_back_over_what_is_known(values, window):
    smooth = trailing(np.array(values, dtype=np.float64), window)
    for i, v in enumerate(values):
        known = [x for x in values[max(0, i - window + 1) : i + 1] if math.isfinite(x)]
        wanted = np.mean(known) if math.isfinite(v) else math.nan
        assert smooth[i] == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_a_difference_over_time_is_paired_by_seed(run):
    hybrid, never = ([x for x in run.lives if x.summary.policy == name] for name in ("hybrid", "never"))
    curve = over_time(hybrid, lambda s: s.accuracy, 1, never)
    gaps = [h.steps[40].accuracy - n.steps[40].accuracy for h, n in zip(hybrid, never, strict=True)]
    assert curve.mean[40] == pytest.approx(np.mean(gaps))
    assert curve.at[40] == 41 * DAY


def test_the_same_drift_of_several_seeds_is_one_and_repeated_kinds_are_several():
    truth = [TruthRecord(seed, "gain", at + seed, 10 + seed) for seed in (0, 1, 2) for at in (50.0, 5.0)]
    first, second = onsets(truth)
    assert (first.sign, first.first_at, first.at, first.last_at) == ("A", 5.0, 6.0, 7.0)
    assert (second.sign, second.at, second.num_devices) == ("B", 51.0, 11.0)


def test_heat_keeps_the_largest_psi_and_any_significance_of_a_cell(run):
    records = run.lives[0].features
    order = largest(records)
    most = {name: max(r.psi for r in records if r.feature == name) for name in order}
    assert list(most.values()) == sorted(most.values(), reverse=True)
    drawn = heat(records, order, run.duration_s)
    assert drawn.level_FT.shape == (8, 120)
    by_place = {(order.index(r.feature), round(r.at / DAY) - 1): r for r in records}
    for (f, t), record in by_place.items():
        assert drawn.level_FT[f, t] == sum(
            record.psi >= level for level in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
        )
        assert drawn.significant_FT[f, t] == record.significant


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=40))
def test_runs_are_the_row_again(row):
    parts = runs_of(np.array(row))
    assert [value for a, b, value in parts for _ in range(a, b)] == row
    assert all(one[2] != other[2] for one, other in pairwise(parts))


@given(st.lists(st.floats(0, 100), max_size=20).map(sorted))
def test_crowded_letters_keep_their_order_and_distance(wanted):
    places = spread(wanted, 2.0, 0.0, 100.0)
    assert all(b - a >= 2.0 - 1e-9 for a, b in pairwise(places))
    assert all(-1e-9 <= x <= 100.0 + 1e-9 for x in places)
    if all(b - a >= 2.0 for a, b in pairwise(wanted)):
        assert places == pytest.approx(wanted)


def test_the_timeline_is_what_the_events_say(run):
    life = next(x for x in run.lives if x.summary.policy == "hybrid")
    rows = timeline(life, run.duration_s)
    assert rows.stretches["training"][0] == Stretch(12 * DAY, 12.4 * DAY)
    assert rows.stretches["canary"][0] == Stretch(13.5 * DAY, 15.5 * DAY)
    assert rows.stretches["ramp"][0] == Stretch(15.5 * DAY, 18.5 * DAY)
    assert rows.stretches["champion"][:2] == [
        Stretch(0.0, 18.5 * DAY, "v1"),
        Stretch(18.5 * DAY, 58.5 * DAY, "v2"),
    ]
    assert rows.marks["rolled back"] == pytest.approx([35.6 * DAY, 75.6 * DAY, 115.6 * DAY])
    assert rows.rows[:2] == ["champion", "alerts"]


def test_a_stretch_under_way_at_the_end_ends_with_the_life(run):
    life = replace(run.lives[0], events=(LifeEvent("never", 0, 5.0, "retrain", ""),))
    assert timeline(life, 9.0).stretches["training"] == [Stretch(5.0, 9.0)]


def test_never_noticed_counts_as_infinitely_late():
    assert within([1.0, 2.0, math.nan], 0.5) == 2.0
    assert within([1.0, math.nan, math.nan], 0.5) == math.inf
    assert math.isnan(within([], 0.5))


def test_detection_counts_harm_and_restoration_apart(run):
    missing = next(x for x in found(run) if x.kind == "missing" and x.policy == "hybrid")
    assert (missing.num, missing.harmed) == (3, 0)
    assert missing.noticed == pytest.approx(2 / 3)
    assert (missing.restored, missing.censored) == (0, 0)
    never = next(x for x in found(run) if x.kind == "gain linear" and x.policy == "never")
    assert (never.harmed, never.restored, never.censored) == (3, 0, 3)
    assert (never.half, never.late) == (Restored(math.inf, 19 * DAY), Restored(math.inf, 20 * DAY))
    hybrid = next(x for x in found(run) if x.kind == "gain linear" and x.policy == "hybrid")
    assert (hybrid.half, hybrid.late) == (Restored(10 * DAY, 10 * DAY), Restored(11 * DAY, 11 * DAY))


def test_what_was_not_restored_is_counted_as_later_than_all_that_was(run):
    """Four harmful drifts: after 4 and 6 days, not within 10, not within 30; and one that did no harm."""
    times = [(4.0, 20.0), (math.nan, 10.0), (6.0, 20.0), (math.nan, 30.0), (0.0, 20.0)]
    drifts = tuple(
        DetectionRecord("hybrid", 0, "gain linear", 0.0, DAY, after * DAY, watched * DAY, watched / 100)
        for after, watched in times
    )
    lives = (replace(run.lives[-1], detections=drifts),)
    (item,) = found(replace(run, lives=lives))
    assert (item.num, item.harmed, item.restored, item.censored) == (5, 4, 2, 2)
    assert item.cost == pytest.approx(0.2)
    assert (item.half.value_s, item.half.shown) == (6 * DAY, f"6{NBSP}days")
    assert (item.late.value_s, item.late.shown) == (math.inf, f"over{NBSP}30{NBSP}days")
    one = replace(run, lives=(replace(lives[0], detections=drifts[:2]),))
    assert found(one)[0].late.least_s == 10 * DAY, "as long as it was watched"


def test_false_alarms_are_a_rate_with_a_poisson_interval(run):
    item = alarms(run)[0]
    assert (item.num, item.feature_years) == (1, pytest.approx(0.9))
    assert item.least == pytest.approx(stats.chi2.ppf(0.025, 2) / 2 / 0.9)
    assert item.most == pytest.approx(stats.chi2.ppf(0.975, 4) / 2 / 0.9)
    assert Alarms("a", 0, 2.0).least == 0.0
    assert math.isnan(Alarms("a", 0, 0.0).rate)


def test_the_log_keeps_the_most_important_events_as_they_happened():
    events = [LifeEvent("p", 0, float(i), "deferred", "") for i in range(100)]
    events += [LifeEvent("p", 0, 3.5, "champion", ""), LifeEvent("p", 0, 0.5, "retrain", "")]
    shown = kept(events, 5)
    assert [(e.at, e.kind) for e in shown] == [
        (0.5, "retrain"),
        (3.5, "champion"),
        *((float(i), "deferred") for i in (97, 98, 99)),
    ]


def test_instants_are_days_and_minutes():
    assert instant(30.25 * DAY).replace(words.NBSP, " ") == "30 d 06:00"
    assert instant(DAY - 1.0).replace(words.NBSP, " ") == "1 d 00:00"
