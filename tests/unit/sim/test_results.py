"""Records: their JSON round trip, their schema, and how they are averaged."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from sim.plain import field_docs, from_plain, json_schema, to_plain
from sim.results import (
    SCHEMA_VERSION,
    ArmSummary,
    DeviceScore,
    Environment,
    Estimate,
    Metric,
    ModelScores,
    Over,
    Population,
    PopulationScores,
    PrivacySummary,
    RoundRecord,
    Spread,
    SpreadEstimate,
    Summary,
    schema,
)
from sim.summarise import population_of, spread, summarise_populations
from tests.unit.sim.record_factory import make_run

RECORDS = [
    ArmSummary,
    DeviceScore,
    Environment,
    Estimate,
    ModelScores,
    PopulationScores,
    PrivacySummary,
    RoundRecord,
    Spread,
    SpreadEstimate,
    Summary,
]


@pytest.mark.parametrize("metric", list(Metric))
def test_summary_survives_json(metric):
    summary = make_run(num_seeds=2, num_rounds=3, metric=metric).summary
    assert from_plain(Summary, json.loads(json.dumps(to_plain(summary), allow_nan=False))) == summary


@pytest.mark.parametrize("cls", RECORDS)
def test_every_field_is_documented(cls):
    assert set(field_docs(cls)) == {f.name for f in dataclasses.fields(cls)}


def test_schema_describes_the_summary_and_both_tables():
    found = schema()
    assert found["$ref"] == "#/$defs/Summary"
    assert found["$defs"]["PrivacySummary"]["properties"]["epsilon"]["description"].startswith(
        "Epsilon spent"
    )
    assert set(found["x-tables"]) == {"rounds.parquet", "devices.parquet"}
    json.dumps(found)


def test_schema_accepts_what_a_run_writes():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    plain = to_plain(make_run(num_seeds=1, num_rounds=3).summary)
    jsonschema.validate(plain, json_schema(Summary))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**plain, "metric": "speed"}, json_schema(Summary))


def test_numbers_that_are_not_finite_become_null_and_read_as_nan():
    plain = to_plain(Spread(math.nan, math.inf, 0.5))
    assert plain == {"mean": None, "p10": None, "worst": 0.5}
    assert math.isnan(from_plain(Spread, plain).mean)


def test_numpy_numbers_are_plain_in_json():
    plain = to_plain(DeviceScore("a", 0, np.int64(3), np.bool_(True), False, 1, np.int32(4), np.float32(0.5)))
    assert json.loads(json.dumps(plain))["global_score"] == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": "high"}, r"Spread.mean is not of type float"),
        ({"mean": True}, r"Spread.mean is not of type float"),
        ({"median": 0.5}, r"Spread is not free of \['median'\]"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_by_path(change, message):
    with pytest.raises(ValueError, match=message):
        from_plain(Spread, {"mean": 0.1, "p10": 0.1, "worst": 0.1} | change)


def test_a_missing_field_is_refused():
    with pytest.raises(ValueError, match=r"\['p10', 'worst'\] missing"):
        from_plain(Spread, {"mean": 0.1})


def test_an_unknown_value_of_an_enum_is_refused():
    plain = to_plain(make_run(num_seeds=1, num_rounds=2).summary)
    with pytest.raises(ValueError, match=r"Summary.metric is 'speed', not one of"):
        from_plain(Summary, {**plain, "metric": "speed"})


def test_populations_never_mix():
    scores = [
        DeviceScore("a", 0, 0, False, False, 3, 10, 0.9, 0.95),
        DeviceScore("a", 0, 1, True, False, 3, 10, 0.1, 0.2),
        DeviceScore("a", 0, 2, False, True, 0, 10, 0.5, 0.5),
        DeviceScore("a", 0, 3, True, True, 0, 10, 0.3, 0.3),
        DeviceScore("a", 0, 4, False, False, 3, 0, None),
    ]
    found = summarise_populations(scores, Metric.ACCURACY)
    assert [p.population for p in found] == list(Population)
    assert [p.global_model.score.mean.value for p in found] == [0.9, 0.1, 0.5, 0.3]
    assert [population_of(s) for s in scores[:4]] == list(Population)


def test_the_worst_device_of_a_regression_has_the_largest_error():
    scores = [DeviceScore("a", 0, i, False, False, 1, 9, float(i), i / 2) for i in range(11)]
    (found,) = summarise_populations(scores, Metric.RMSE)
    assert found.global_model.score.worst.value == 10.0
    assert found.global_model.score.p10.value == 9.0
    assert found.gain.value == pytest.approx(2.5)  # half the error: better, so positive


def test_one_seed_gives_intervals_over_devices_and_none_for_the_worst():
    arm = make_run(num_seeds=1, num_rounds=2).summary.arms[0]
    score = arm.headline.global_model.score
    assert score.mean.over is Over.DEVICES
    assert score.worst.low is None


def test_several_seeds_give_intervals_over_seeds():
    arm = make_run(num_seeds=3, num_rounds=4).summary.arms[1]
    assert arm.headline.personalized.score.worst.over is Over.SEEDS
    assert arm.headline.gain.num == 3
    assert arm.abandoned == pytest.approx(1 / 3)
    assert arm.rounds == pytest.approx(11 / 3)
    assert arm.dropouts["timeout"] == 12  # three a round, four rounds, mean over seeds


def test_arms_without_personal_models_have_no_gain():
    arm = make_run(num_seeds=2, num_rounds=2).summary.arms[0]
    assert arm.headline.personalized is None
    assert arm.headline.gain is None


def test_spread_of_diverged_scores_is_nan_and_warns_nobody():
    assert math.isnan(spread([1.0, math.inf], Metric.RMSE).mean)
    assert math.isnan(spread([], Metric.RMSE).mean)


def test_schema_version_is_written():
    assert to_plain(make_run(num_seeds=1, num_rounds=1).summary)["schema_version"] == SCHEMA_VERSION
