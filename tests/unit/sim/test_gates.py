"""The Monte-Carlo of gates: its fleets are what they claim to be, and small runs end as they must."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from fedretrain.core.errors import ConfigError
from sim.gates.__main__ import main, read
from sim.gates.cases import (
    CANDIDATES,
    HORIZON_S,
    Case,
    GatesConfig,
    cases,
    clopper_pearson,
    default_policy,
    run_case,
    summarise,
)
from sim.gates.controllers import End, Outcome
from sim.gates.fleets import CANDIDATE_EQUAL, DAY_S, Candidate, Fleet, FleetModel
from sim.gates.report import line, reach

BY_NAME = {candidate.name: candidate for candidate in CANDIDATES}
MODEL = FleetModel(num_devices=1000, correlation=0.1)


def big(candidate=CANDIDATE_EQUAL, **changes):
    return Fleet(FleetModel(num_devices=200_000, **{"correlation": 0.1, **changes}), candidate, 1)


@pytest.mark.parametrize("correlation", [0.05, 0.1])
def test_devices_differ_as_much_as_stated(correlation):
    chance = big(correlation=correlation).chance_D
    assert chance.mean() == pytest.approx(0.9, abs=1e-3)
    # The correlation of two events of one device is the variance of its chance over p (1 - p).
    assert chance.var() / (0.9 * 0.1) == pytest.approx(correlation, rel=0.03)


@pytest.mark.parametrize(
    ("name", "change"),
    [("one point better", 0.01), ("2 % worse", -0.018), ("5 points worse", -0.05), ("equal", 0.0)],
)
def test_candidates_change_the_mean_by_exactly_what_they_say(name, change):
    fleet = big(BY_NAME[name])
    assert fleet.served_D.mean() - fleet.chance_D.mean() == pytest.approx(change, abs=2e-4)
    assert ((fleet.served_D >= 0) & (fleet.served_D <= 1)).all()


def test_persistence_is_what_the_record_from_before_can_know():
    known, half = (
        np.corrcoef(fleet.before_D, fleet.chance_D)[0, 1]
        for fleet in (big(persistence=1.0, before_days=200.0), big(persistence=0.0, before_days=200.0))
    )
    assert known > 0.99
    assert abs(half) < 0.02


@pytest.mark.parametrize("name", ["equal", "2 % worse", "2 % worse, only when served"])
def test_shadow_scores_both_models_on_the_same_events(name):
    fleet = big(BY_NAME[name], drift=0.0)
    fleet.begin(0.0)
    fleet.shadow(0.0, DAY_S)
    row = fleet.shadow_evidence()
    assert row.paired
    assert np.array_equal(row.treated.weight_K, row.control.weight_K)
    gap = row.treated.value_K - row.control.value_K
    expected = -0.018 if name == "2 % worse" else 0.0
    assert np.nanmean(gap) == pytest.approx(expected, abs=1e-3)
    apart = np.nanvar(row.treated.value_K) + np.nanvar(row.control.value_K)
    assert np.nanvar(gap) < 0.3 * apart


def test_both_arms_drift_alike():
    fleet = big(drift=0.1)
    for start in (0.0, 13 * DAY_S):
        fleet.begin(start)
        fleet.serve(0.5, start, start + DAY_S)
        row = fleet.evidence(0.5)
        level = 0.9 * (1 - 0.1 * (start / DAY_S + 0.5) / 14)
        assert np.nanmean(row.treated.value_K) == pytest.approx(level, abs=2e-3)
        assert np.nanmean(row.control.value_K) == pytest.approx(level, abs=2e-3)


def test_hourly_totals_add_up_to_what_single_devices_give():
    fleet = Fleet(FleetModel(num_devices=1000, correlation=0.1, drift=0.0), BY_NAME["5 points worse"], 3)
    totals = fleet.totals(0.2, 0.0, 200).sum(0)
    for arm, (num, level) in enumerate([(200, fleet.served_D[:200]), (800, fleet.chance_D[200:])]):
        events = totals[arm].sum()
        assert abs(events - num * 200) < 5 * math.sqrt(num * 200)
        assert totals[arm][0] / events == pytest.approx(level.mean(), abs=0.01)


@pytest.mark.parametrize("count", [0, 3, 1000])
def test_clopper_pearson_covers_by_definition(count):
    low, high = clopper_pearson(count, 1000)
    if count:
        assert stats.binom.sf(count - 1, 1000, low) == pytest.approx(0.05)
    if count < 1000:
        assert stats.binom.cdf(count, 1000, high) == pytest.approx(0.05)
    assert (low == 0.0) == (count == 0)
    assert (high == 1.0) == (count == 1000)


def test_exposure_counts_what_a_promoted_candidate_goes_on_to_serve():
    case = Case("ours", MODEL, BY_NAME["2 % worse"])
    at = 4 * DAY_S
    back = summarise(case, [Outcome(End.ROLLED_BACK, "canary", at, 0.1 * DAY_S)])
    assert back.exposure_median == pytest.approx(0.1 / 14)
    assert back.own_exposure_median == pytest.approx(0.1 / 4)
    champion = summarise(case, [Outcome(End.CHAMPION, "half", at, 0.1 * DAY_S)])
    assert champion.exposure_median == pytest.approx((0.1 + 10) / 14)
    assert champion.days_median == 4.0
    assert champion.rate(End.CHAMPION)[0] == 1.0


def test_the_default_policy_decides_within_the_horizon():
    stages = default_policy().look_plan().stages
    assert sum(stage.max_s for stage in stages) <= HORIZON_S


def test_harm_to_one_site_improves_the_mean_and_is_rolled_back_before_half_of_it_serves():
    case = BY_NAME["one site 20 % worse, when served"]
    fleet = big(case)
    gain_D = fleet.served_D - fleet.chance_D
    assert gain_D[fleet.site_D == 0].mean() == pytest.approx(-0.18, abs=2e-3)
    assert gain_D.mean() == pytest.approx(0.9 * 0.03 - 0.1 * 0.18, abs=1e-3)
    summary = run_case(Case("ours", MODEL, case), default_policy(), 20, seed=1)
    assert summary.rate(End.ROLLED_BACK)[0] == 1.0
    assert summary.exposure_median < 0.05


@pytest.mark.parametrize("name", ["5 points worse", "5 points worse, only when served"])
def test_large_harm_is_never_promoted(name):
    summary = run_case(Case("ours", MODEL, BY_NAME[name]), default_policy(), 25, seed=1)
    assert summary.rate(End.ROLLED_BACK)[0] == 1.0
    assert summary.exposure_median <= 0.01
    shown = {at.split(" at ")[1] for at in summary.stages}
    assert ("shadow" in shown) == ("served" not in name)


def test_good_candidates_are_promoted_where_peers_roll_them_back():
    found = {
        name: run_case(Case(name, MODEL, CANDIDATE_EQUAL), default_policy(), 20, seed=2)
        for name in ("ours", "static_threshold", "peeked_z")
    }
    assert found["ours"].rate(End.CHAMPION)[0] >= 0.85
    assert found["static_threshold"].rate(End.ROLLED_BACK)[0] >= 0.7
    assert found["peeked_z"].rate(End.ROLLED_BACK)[0] >= 0.3


def test_the_same_seed_gives_the_same_summary():
    case = Case("ours", MODEL, BY_NAME["2 % worse, only when served"])
    first, again, other = (run_case(case, default_policy(), 4, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_the_cases_of_a_configuration():
    found = list(cases(GatesConfig(num_devices=(50,), correlations=(0.1,), events_per_day=(24.0,))))
    assert len(found) == len(CANDIDATES) + 2 * sum(candidate.in_shadow for candidate in CANDIDATES)
    assert len(list(cases(GatesConfig(controllers=("ours",))))) == 8 * len(CANDIDATES)


def test_the_command_prints_a_table_and_writes_json_lines(tmp_path, capsys):
    file = tmp_path / "gates.jsonl"
    words = ["num_rollouts=2", "num_devices=100", "correlations=0.1", "events_per_day=24", "controllers=ours"]
    assert main([*words, f"json={file}"]) == 0
    said = capsys.readouterr().out
    assert "ABOVE THE LIMIT" in said
    assert "5 points worse and promoted: at most 1 %" in said
    records = [json.loads(text) for text in file.read_text().splitlines()]
    assert [record["candidate"] for record in records] == [candidate.name for candidate in CANDIDATES]
    for record in records:
        assert sum(record[str(end)]["rate"] for end in End) == pytest.approx(1.0)


def test_a_demand_is_met_by_its_bound_and_not_by_its_rate():
    case = Case("ours", MODEL, CANDIDATE_EQUAL)
    good = [Outcome(End.CHAMPION, "half", DAY_S, 0.0)]
    bad = [Outcome(End.ROLLED_BACK, "half", DAY_S, 0.0)]
    within, beyond = summarise(case, good * 970 + bad * 30), summarise(case, good * 955 + bad * 45)
    said = "\n".join(reach([within, beyond]))
    assert "equal and rolled back: at most 5 %" in said
    assert "1 of 2 cases" in said
    assert line(within).startswith("ours")
    assert reach([]) == []


def test_bad_input_is_one_line(capsys):
    assert main(["num_rollouts"]) == 2
    assert main(["controllers=oracle"]) == 2
    assert main(["nonsense=1"]) == 2
    assert capsys.readouterr().err.count("error: ") == 3
    with pytest.raises(ConfigError):
        FleetModel(num_devices=3)
    with pytest.raises(ConfigError):
        FleetModel(correlation=0.0)
    config, file = read(["num_devices=10,20", "seed=3"])
    assert (config.num_devices, config.seed, file) == ((10, 20), 3, None)
    assert Candidate("x").served(np.array([0.5]), np.zeros(1, np.int64))[0] == 0.5


def test_help_names_every_key(capsys):
    assert main(["--help"]) == 0
    assert "num_rollouts, num_devices" in capsys.readouterr().out
