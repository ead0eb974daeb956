"""The report: its verdict, its record against its own schema, and its text."""

from __future__ import annotations

import json
import math
import re

import pytest

from fedretrain.validation.config import CheckName, Unit
from fedretrain.validation.report import SCHEMA, Check, DataUsed, EvaluationReport, Gap, Verdict

DATA = DataUsed("a" * 64, 20, 3, 4_000, 120, 0.0, 86_400.0, Unit.DEVICE)
GOOD = Check(
    CheckName.OVERALL, "", Verdict.PASS, "a loss of the margin is excluded", required=True, estimate=0.01
)
OPEN = Check(CheckName.GROUP, "2", Verdict.INCONCLUSIVE, "no data")
HELD = Check(CheckName.SANITY, "", Verdict.INCONCLUSIVE, "no sanity vectors were run", required=True)
BAD = Check(CheckName.SLICE, "4", Verdict.FAIL, "worse than the champion, by more than the margin")
GAP = Gap("group", "1", -0.05, -0.08, -0.02, -0.01, 7)


def report(*checks, data=DATA):
    return EvaluationReport(5, 4, "b" * 64, data, checks, (GAP,))


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ((), Verdict.INCONCLUSIVE),
        ((GOOD,), Verdict.PASS),
        ((GOOD, OPEN), Verdict.PASS),
        ((GOOD, HELD), Verdict.INCONCLUSIVE),
        ((GOOD, HELD, BAD), Verdict.FAIL),
    ],
)
def test_one_fail_fails_one_required_inconclusive_holds(checks, verdict):
    assert report(*checks).verdict is verdict
    assert report(*checks).failed() == tuple(c for c in checks if c is BAD)


def conforms(value, schema):
    """A small validator for the keywords that the schema uses."""
    assert set(schema) <= {
        "$schema",
        "title",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "enum",
        "pattern",
        "minimum",
    }
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "boolean": bool,
        "null": type(None),
    }
    kinds["number"] = (int, float)
    if "enum" in schema:
        assert value in schema["enum"]
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(isinstance(value, kinds[name]) for name in names)
        assert not (isinstance(value, bool) and "boolean" not in names)
    if "pattern" in schema:
        assert re.search(schema["pattern"], value)
    if "minimum" in schema:
        assert value >= schema["minimum"]
    if "properties" in schema:
        assert set(value) == set(schema["properties"]) == set(schema["required"])
        for key, inner in schema["properties"].items():
            conforms(value[key], inner)
    if "items" in schema:
        for item in value:
            conforms(item, schema["items"])


def test_the_record_is_plain_json_and_follows_the_schema():
    empty = DataUsed("a" * 64, 0, 0, 0, 0, math.nan, math.nan, Unit.DEVICE)
    for made in (report(GOOD, OPEN, BAD), report(data=empty)):
        record = made.to_record()
        text = json.dumps(record, allow_nan=False)
        assert json.loads(text) == record
        conforms(record, SCHEMA)
    record = report(GOOD, OPEN).to_record()
    assert record["verdict"] == "PASS"
    assert record["checks"][0]["estimate"] == 0.01
    assert record["checks"][1]["low"] is None


def test_the_text_names_verdict_data_and_reasons_failures_first():
    lines = report(GOOD, OPEN, BAD).to_text().splitlines()
    assert lines[0] == "Candidate 5 against champion 4: FAIL"
    for said in (
        "4,000 labelled predictions",
        "20 devices in 3 groups",
        "120 with late labels",
        "a" * 12,
        "b" * 12,
    ):
        assert said in lines[1]
    assert [line.split()[0] for line in lines[2:5]] == ["FAIL", "INCONCLUSIVE", "PASS"]
    assert "slice 4: worse than the champion" in lines[2]
    assert "overall (required)" in lines[4]
    assert "gap of group 1 to the rest: -0.0500 [-0.0800, -0.0200], under the champion -0.0100" in lines[5]
