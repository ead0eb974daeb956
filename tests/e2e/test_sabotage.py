"""Sabotage from the command: a harmful candidate is stopped, a good one becomes champion, a known gap is told as one."""

from __future__ import annotations

import json

from tests.run_cases import command


def test_candidates_end_as_wanted_and_the_folder_says_why(tmp_path, capsys):
    words = ["experiment=sabotage", "sabotage.cases=[better,nan_weights,overconfident]", "seeds=1"]
    code = command([*words, f"output_dir={tmp_path}", "tracking_uri=off"])
    said = capsys.readouterr().out
    assert code == 0
    assert "2 of 3 ended as they should; known gaps: overconfident" in said
    (summary,) = tmp_path.glob("sabotage/*/summary.json")
    cases = {one["case"]: one for one in json.loads(summary.read_text())["cases"]}
    assert cases["better"]["ended"] == "promoted"
    assert cases["better"]["effect"] > 0
    assert cases["nan_weights"]["ended"] == "stopped"
    assert cases["nan_weights"]["stopped_by"] == "validation: finite"
    assert cases["nan_weights"]["exposure"] == 0.0
    assert "How far each candidate came" in (summary.parent / "report.html").read_text()
