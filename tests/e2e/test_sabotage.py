"""Sabotage from the command: a harmful candidate is stopped, a good one becomes champion, and a harmed cluster is named."""

from __future__ import annotations

import json

from tests.run_cases import command


def test_candidates_end_as_wanted_and_the_folder_says_why(tmp_path, capsys):
    cases = "better,nan_weights,overconfident,cluster_served"
    words = ["experiment=sabotage", f"sabotage.cases=[{cases}]", "seeds=1"]
    code = command([*words, f"output_dir={tmp_path}", "tracking_uri=off"])
    said = capsys.readouterr().out
    assert code == 0
    assert "4 of 4 ended as they should" in said
    (summary,) = tmp_path.glob("sabotage/*/summary.json")
    cases = {one["case"]: one for one in json.loads(summary.read_text())["cases"]}
    assert cases["better"]["ended"] == "promoted"
    assert cases["better"]["effect"] > 0
    assert cases["nan_weights"]["ended"] == "stopped"
    assert cases["nan_weights"]["stopped_by"] == "validation: finite"
    assert cases["nan_weights"]["exposure"] == 0.0
    assert cases["overconfident"]["stopped_by"] == "shadow gate: log_loss"
    assert cases["overconfident"]["effect"] > -0.01  # by labels alone it is no worse
    assert cases["cluster_served"]["effect"] > 0
    assert cases["cluster_served"]["stopped_by"].endswith(" at site 0")
    assert cases["cluster_served"]["exposure"] < 0.1
    assert "How far each candidate came" in (summary.parent / "report.html").read_text()
