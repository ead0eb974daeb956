import numpy as np
import pytest

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.rollout.verdict import Verdict
from sim.fit.files import FleetFile, read_fleet
from sim.gating.conditions import Condition, under
from sim.gating.config import GateConfig, read_words
from sim.gating.judge import combine, compare
from sim.gating.replay import mean_score, worst_score
from tests.run_cases import quick

REFERENCE = [0.90, 0.88, 0.91, 0.89, 0.92]


def check(difference, spread=0.001, margin=0.02, relative=False):
    noise = spread * np.array([-1.0, 1.0, 0.0, 1.0, -1.0])
    return compare(
        "accuracy", "observed", np.array(REFERENCE) + difference + noise, REFERENCE, margin, relative=relative
    )


@pytest.mark.parametrize(
    ("difference", "spread", "verdict"),
    [
        (0.0, 0.0, Verdict.PASS),
        (0.01, 0.001, Verdict.PASS),
        (-0.01, 0.001, Verdict.PASS),
        (-0.05, 0.001, Verdict.FAIL),
        (-0.019, 0.005, Verdict.INCONCLUSIVE),
        (0.0, 0.1, Verdict.INCONCLUSIVE),
        (-0.05, 0.2, Verdict.INCONCLUSIVE),
    ],
)
def test_the_interval_decides_beside_the_margin(difference, spread, verdict):
    assert check(difference, spread).verdict is verdict


def test_the_interval_is_student_ts():
    from scipy.stats import ttest_rel

    found = check(-0.013, 0.004)
    noise = 0.004 * np.array([-1.0, 1.0, 0.0, 1.0, -1.0])
    expected = ttest_rel(np.array(REFERENCE) - 0.013 + noise, REFERENCE).confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((expected.low, expected.high))


def test_an_error_is_judged_as_a_share_of_the_reference():
    # Errors come with their sign changed: 10 % larger.
    ours = [-1.1 * value for value in REFERENCE]
    found = compare("error", "observed", ours, [-value for value in REFERENCE], 0.05, relative=True)
    assert found.difference.value == pytest.approx(-0.1)
    assert found.verdict is Verdict.FAIL


def test_scores_that_are_no_numbers_fail_and_references_that_are_none_decide_nothing():
    broken = [float("nan")] * 5
    assert compare("accuracy", "", broken, REFERENCE, 0.02, relative=False).verdict is Verdict.FAIL
    assert compare("accuracy", "", REFERENCE, broken, 0.02, relative=False).verdict is Verdict.INCONCLUSIVE


def test_one_failure_fails_and_nothing_checked_is_no_pass():
    assert combine([check(0.0, 0.0), check(-0.05)]) is Verdict.FAIL
    assert combine([check(0.0, 0.0), check(0.0, 0.1)]) is Verdict.INCONCLUSIVE
    assert combine([check(0.0, 0.0)]) is Verdict.PASS
    assert combine([]) is Verdict.INCONCLUSIVE


def test_the_worst_decile_is_the_mean_of_the_worst_tenth():
    scores = np.append(np.arange(20.0), np.nan)
    assert worst_score(scores) == 0.5
    assert mean_score(scores) == 9.5
    assert worst_score(np.array([3.0, 1.0])) == 1.0
    assert np.isnan(mean_score(np.array([np.nan])))


@pytest.mark.parametrize(
    "words",
    [
        ["candidate=a"],
        ["fleet=b"],
        ["candidate=a", "fleet=b", "seeds=4"],
        ["candidate=a", "fleet=b", "most_seeds=4"],
        ["candidate=a", "fleet=b", "stress=0.5"],
        ["candidate=a", "fleet=b", "accuracy_margin=2"],
        ["candidate=a", "fleet=b", "marign=0.1"],
        ["candidate=a", "fleet=b", "nonsense"],
        ["candidate=a.safetensors", "fleet=b"],
    ],
)
def test_wrong_words_are_refused(words):
    with pytest.raises(ConfigError):
        read_words(words)


def test_words_are_read():
    found = read_words(["candidate=runs/1", "fleet=f.yaml", "seeds=7", "worst_margin=0.1", "champion=007"])
    assert found == GateConfig("runs/1", "f.yaml", champion="007", seeds=7, worst_margin=0.1)


def fleet(**values):
    return FleetFile("fleet.yaml", "", values, "", 0.5)


def test_stress_multiplies_drop_outs_and_delay_and_nothing_else():
    config = quick("labels=late", "availability=diurnal", "availability.dropout_mid=0.6")
    observed = under(config, fleet(), Condition("observed"))
    stressed = under(config, fleet(), Condition("twice", 2.0))
    assert observed == config
    assert stressed.availability.dropout_before == 0.04
    assert stressed.availability.dropout_mid == 1.0
    assert stressed.labels.delay_s == 2 * config.labels.delay_s
    assert stressed.availability.diurnal == config.availability.diurnal
    assert stressed.network == config.network


def test_a_nightly_batch_is_delayed_by_nights():
    config = quick("labels=nightly")
    assert under(config, fleet(), Condition("twice", 2.0)).labels.cutoff_s == 86_400.0


def test_the_fleets_sections_replace_the_campaigns_and_the_rest_stays():
    values = {
        "network": {"latency_s": 2.0},
        "drift": {"specs": [{"kind": "offset", "magnitude": 2.0}]},
        "fleet": {"generator": {"label_skew": 0.9}},
    }
    config = quick("labels=late")
    found = under(config, fleet(**values), Condition("observed"))
    assert found.network.latency_s == 2.0
    assert len(found.drift.specs) == 1
    assert found.labels == config.labels
    assert found.fleet.generator.label_skew == 0.9
    assert found.fleet.label_alpha == 0.0, "a generated fleet takes no concentration"


@pytest.mark.parametrize("text", ["a: [", "model: {}", "[]", ""])
def test_what_is_no_fleet_is_refused(tmp_path, text):
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(DataError):
        read_fleet(path)
    with pytest.raises(DataError):
        read_fleet(tmp_path / "none.yaml")
