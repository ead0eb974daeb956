"""Clusters: harm to one is found while the mean improves, good candidates pass, and error rates are those that were promised."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError
from fedretrain.rollout.clusters import Cluster, ClusterBy, ClusterRules, make_clusters
from fedretrain.rollout.gate import judge
from fedretrain.rollout.looks import GatePolicy, Stage, plan_looks
from fedretrain.rollout.metrics import DeviceMeans, MetricEvidence, MetricRule
from fedretrain.rollout.power import PrePeriod, detectable, detectable_in_clusters
from fedretrain.rollout.verdict import Reason, Role, Verdict

DAY = 86_400.0
STAGES = (
    Stage("shadow", 1.0, DAY, 2 * DAY),
    Stage("canary", 0.02, DAY, 2 * DAY),
    Stage("ramp", 0.24, DAY, 2 * DAY),
    Stage("half", 0.5, DAY, 4 * DAY, proves=True),
)
PLAN = plan_looks(GatePolicy(), STAGES)
ALONE = plan_looks(GatePolicy(clusters=ClusterRules(by=())), STAGES)
RULE = MetricRule()
NUM, SITES = 500, 10
SITE_D = np.arange(NUM) % SITES
EVERYBODY = np.ones(NUM, dtype=np.bool_)
TRAITS = {
    ClusterBy.SITE: [f"s{site}" for site in SITE_D],
    ClusterBy.DEVICE_TYPE: ["pump"] * NUM,
}
CLUSTERS = make_clusters(ClusterRules(), TRAITS, EVERYBODY)


def look(stage, days):
    found = PLAN.due(stage, days * DAY)
    assert found is not None
    return found


def row(num_treated, gap_D=0.0, *, seed=0, spread=0.03, metric="kpi"):
    """Devices by turns at the sites; `gap_D` is what each would lose under the candidate."""
    draws = np.random.default_rng(seed)
    value = 0.9 + spread * draws.standard_normal(NUM)
    treated = np.arange(NUM) < num_treated
    value = value - np.where(treated, gap_D, 0.0)
    means = DeviceMeans(np.arange(NUM), value, np.full(NUM, 24.0), np.full(NUM, np.nan))
    return MetricEvidence(metric, means.take(treated), means.take(~treated), paired=False)


HARM_D = np.where(SITE_D == 3, 0.18, -0.03)  # one site loses 18 points, the mean gains 0.9


def failed(report):
    return [check.name for check in report.checks if check.verdict is Verdict.FAIL]


def test_clusters_are_the_sites_and_the_types_that_there_are_several_of():
    assert [one.name for one in CLUSTERS] == [f"site s{site}" for site in range(SITES)]
    assert CLUSTERS[3].device_K.tolist() == np.flatnonzero(SITE_D == 3).tolist()
    kept_out = EVERYBODY.copy()
    kept_out[SITE_D == 3] = False
    assert "site s3" not in [one.name for one in make_clusters(ClusterRules(), TRAITS, kept_out)]
    assert make_clusters(ClusterRules(by=()), TRAITS, EVERYBODY) == ()


def test_harm_to_one_site_is_seen_in_the_ramp_by_name_though_the_mean_improves():
    evidence = [row(120, HARM_D)]
    assert judge([RULE], evidence, ALONE, look(2, 2.0), CLUSTERS[:0]).verdict is Verdict.PASS
    report = judge([RULE], evidence, PLAN, look(2, 1.0), CLUSTERS)
    assert report.verdict is Verdict.FAIL
    assert failed(report) == ["kpi at site s3"]
    (check,) = [one for one in report.checks if one.verdict is Verdict.FAIL]
    assert check.estimate == pytest.approx(0.18 / 0.9, abs=0.03)
    assert check.margin == pytest.approx(0.02 * 1.5 * math.sqrt(10))


def test_a_canary_has_too_few_devices_of_a_site_and_judges_the_fleet_alone():
    small = judge([RULE], [row(15, HARM_D)], PLAN, look(1, 1.0), CLUSTERS)
    assert [check.cluster for check in small.checks] == [""]
    # Nothing is spent on clusters that nobody judges.
    assert small == judge([RULE], [row(15, HARM_D)], PLAN, look(1, 1.0))


def test_in_shadow_clusters_are_paired():
    base = row(NUM).treated
    worse = replace(base, value_K=base.value_K - HARM_D)
    evidence = [MetricEvidence("kpi", worse, base, paired=True)]
    assert failed(judge([RULE], evidence, PLAN, look(0, 0.5), CLUSTERS)) == ["kpi at site s3"]


def test_equal_candidates_pass_and_the_last_step_proves_each_cluster():
    report = judge([RULE], [row(250)], PLAN, look(3, 4.0), CLUSTERS)
    assert report.verdict is Verdict.PASS
    assert len(report.checks) == 1 + SITES
    assert all(check.reason is Reason.NOT_INFERIOR for check in report.checks)
    # A site that is too uneven to be proven holds the step, and is no harm.
    noisy = row(250)
    swing = np.where(np.arange(250) // SITES % 2, 0.3, -0.3) * (np.arange(250) < 240)
    value = noisy.treated.value_K + np.where(SITE_D[:250] == 3, swing, 0.0)
    unsure = judge(
        [RULE],
        [replace(noisy, treated=replace(noisy.treated, value_K=value))],
        PLAN,
        look(3, 4.0),
        CLUSTERS,
    )
    held = [check for check in unsure.checks if check.verdict is not Verdict.PASS]
    assert unsure.verdict is Verdict.INCONCLUSIVE
    assert [(check.cluster, check.reason) for check in held] == [("site s3", Reason.NOT_PROVEN)]


def _silent(arm, site, share):
    """An arm in which a share of a site's devices measures nothing."""
    mine = np.flatnonzero(SITE_D[arm.device_K] == site)
    weight = arm.weight_K.copy()
    weight[mine[: round(share * len(mine))]] = 0.0
    return replace(arm, weight_K=weight)


def test_a_cluster_that_nobody_measures_says_nothing_and_one_that_the_candidate_silences_holds():
    evidence = row(120)
    dark = replace(
        evidence, treated=_silent(evidence.treated, 3, 1.0), control=_silent(evidence.control, 3, 1.0)
    )
    report = judge([RULE], [dark], PLAN, look(2, 2.0), CLUSTERS)
    (check,) = [one for one in report.checks if one.cluster == "site s3"]
    assert (check.role, report.verdict, report.dead_sources) == (Role.INFO, Verdict.PASS, ())
    silenced = replace(evidence, treated=_silent(evidence.treated, 3, 0.7))
    report = judge([RULE], [silenced], PLAN, look(2, 2.0), CLUSTERS)
    (check,) = [one for one in report.checks if one.cluster == "site s3"]
    assert (check.role, check.reason) == (Role.GUARDRAIL, Reason.TOO_FEW_DEVICES)
    assert report.verdict is Verdict.INCONCLUSIVE
    # As many of the control are silent: half the site is offline, whatever it serves.
    offline = replace(silenced, control=_silent(evidence.control, 3, 0.7))
    assert judge([RULE], [offline], PLAN, look(2, 2.0), CLUSTERS).verdict is Verdict.PASS


def test_signals_and_information_are_not_asked_of_clusters():
    rules = [RULE, replace(RULE, metric="b", role=Role.SIGNAL), replace(RULE, metric="c", role=Role.INFO)]
    rows = [row(120), row(120, HARM_D, metric="b"), row(120, HARM_D, metric="c")]
    report = judge(rules, rows, PLAN, look(2, 1.0), CLUSTERS)
    assert {check.metric for check in report.checks if check.cluster} == {"kpi"}


def test_a_smaller_cluster_has_the_wider_margin():
    rules = ClusterRules(margin_factor=2.0)
    assert rules.margin(0.02, 1000, 1000) == pytest.approx(0.04)
    assert rules.margin(0.02, 1000, 40) == pytest.approx(0.04 * 5)


def test_false_alarms_of_all_clusters_together_stay_below_their_share():
    """Few events per device, shares near 1: skewed; 24 devices a site against 76, ten sites."""
    at = look(2, 1.0)
    # A share that can be measured: all of a look's level on the clusters.
    policy = GatePolicy(alpha=0.2, clusters=ClusterRules(alpha_fraction=0.95))
    plan = plan_looks(policy, STAGES)
    level = 0.95 * plan.looks[at].harm_level
    sites = [Cluster(f"site {site}", np.flatnonzero(np.arange(1000) % 10 == site)) for site in range(10)]
    draws = np.random.default_rng(3)
    runs, alarms = 150, 0
    for _ in range(runs):
        share = draws.binomial(8, draws.beta(8.1, 0.9, 1000)) / 8
        means = DeviceMeans(np.arange(1000), share, np.full(1000, 8.0), np.full(1000, np.nan))
        evidence = MetricEvidence(
            "kpi", means.take(np.arange(240)), means.take(np.arange(240, 1000)), paired=False
        )
        report = judge([RULE], [evidence], plan, at, sites)
        alarms += any(check.reason is Reason.HARM for check in report.checks if check.cluster)
    assert alarms / runs <= level + 3 * math.sqrt(level / runs)


def test_a_cluster_at_its_margin_is_promoted_at_most_as_often_as_the_look_allows():
    """Unequal means, few events, 50 devices against 50: proven by Student's t alone."""
    at = look(3, 4.0)
    plan = plan_looks(GatePolicy(exact_below=20), STAGES)  # harm, which is seen too, need not be exact here
    level = plan.looks[at].proof_level
    site = [Cluster("site a", np.arange(0, 1000, 10)), Cluster("site b", np.arange(1, 1000, 10))]
    margin = 0.02 * 1.5 * math.sqrt(10)
    draws = np.random.default_rng(11)
    runs, promoted = 600, 0
    for _ in range(runs):
        chance = draws.beta(8.1, 0.9, 1000)
        chance[:500][np.arange(500) % 10 == 0] *= 1.0 - margin
        share = draws.binomial(20, chance) / 20
        means = DeviceMeans(np.arange(1000), share, np.full(1000, 20.0), np.full(1000, np.nan))
        evidence = MetricEvidence(
            "kpi", means.take(np.arange(500)), means.take(np.arange(500, 1000)), paired=False
        )
        report = judge([RULE], [evidence], plan, at, site)
        (check,) = [one for one in report.checks if one.cluster == "site a"]
        promoted += check.verdict is Verdict.PASS
    assert promoted / runs <= level + 3 * math.sqrt(level / runs)


def test_what_is_stated_of_a_cluster_is_what_its_gate_finds():
    before = [PrePeriod(0.9, 0.03**2, 0.05**2, DAY, NUM)]
    stated = {one.cluster: one for one in detectable_in_clusters(RULE, before, PLAN, NUM, CLUSTERS)}
    mine = stated["site s3"]
    assert (mine.num_devices, mine.limit) == (50, pytest.approx(0.02 * 1.5 * math.sqrt(10)))
    canary, ramp, half = mine.detectable
    assert canary == math.inf  # one device of fifty
    assert half < ramp < math.inf
    assert mine.sees_limit
    assert "of -, " in mine.text
    runs, found = 200, 0
    quick = plan_looks(GatePolicy(exact_below=0), STAGES)
    for seed in range(runs):
        gap_D = np.where(SITE_D == 3, half * 0.9, 0.0)
        report = judge([RULE], [row(250, gap_D, seed=seed)], quick, look(3, 4.0), CLUSTERS)
        found += "kpi at site s3" in [c.name for c in report.checks if c.low > 0.0]
    # Stated for the best of the looks; at the last one a little more or less is found.
    assert found / runs > 0.5


def test_the_fleets_own_power_is_what_clusters_leave_it():
    before = [PrePeriod(0.9, 0.03**2, 0.05**2, DAY, NUM)]
    alone, beside = (detectable(RULE, before, PLAN, NUM, clusters=some) for some in ((), CLUSTERS))
    assert alone[0] == beside[0]  # the canary judges no cluster
    assert alone[1].detectable < beside[1].detectable < 1.05 * alone[1].detectable


def test_clusters_too_small_or_too_many_for_their_level_are_said_to_be_seen_by_nobody():
    before = [PrePeriod(0.9, 0.03**2, 0.05**2, DAY, NUM)]
    tiny = [Cluster("site t", np.arange(12)), Cluster("site u", np.arange(12, 500))]
    (one, other) = detectable_in_clusters(RULE, before, PLAN, NUM, tiny)
    assert (one.is_judged, other.is_judged) == (False, True)
    assert "NEVER JUDGED" in one.text
    # Eight against eight have 12,870 relabellings: no p-value is below 1 / 12,870.
    sixteen = [Cluster("site v", np.arange(16)), Cluster("site w", np.arange(16, 500))]
    small = plan_looks(GatePolicy(clusters=ClusterRules(alpha_fraction=0.01)), STAGES)
    for plan, seen in ((PLAN, True), (small, False)):
        half = detectable_in_clusters(RULE, before, plan, NUM, sixteen)[0].detectable[2]
        assert math.isfinite(half) == seen


def test_rules_that_cannot_be_are_refused():
    for bad in (
        {"alpha_fraction": 0.0},
        {"alpha_fraction": 1.0},
        {"min_devices": 1},
        {"min_events": 0},
        {"margin_factor": 0.0},
        {"by": (ClusterBy.SITE, ClusterBy.SITE)},
    ):
        with pytest.raises(ConfigError):
            ClusterRules(**bad)
