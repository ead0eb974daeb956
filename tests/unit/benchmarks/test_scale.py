"""The scale benchmark measures what it says, at a size that takes seconds."""

from __future__ import annotations

import json

import pytest

from benchmarks import __main__ as every
from benchmarks import scale
from benchmarks.compare import changes

TINY = scale.Options((60, 600), 40, 2, "local", ("runner.executor=each",))


def fleet(devices, walls, *, peak_mib=100.0):
    made = scale.Fleet.__new__(scale.Fleet)
    made.devices = devices
    made.rounds = [
        {"wall_s": wall, "cpu_s": wall / 2, "peak_mib": peak_mib, "replied": 40, "setup_s": 0.1}
        for wall in walls
    ]
    return made


def test_the_ratio_is_of_turns_and_leaves_the_first_out():
    small, large = fleet(60, [9.0, 1.0, 2.0, 1.0]), fleet(600, [99.0, 1.1, 2.2, 5.0])
    line = scale.ratio_of(TINY, [small, large])
    assert line["ratio_wall"] == pytest.approx(1.1)
    assert line["met"]
    assert scale.line_of(TINY, large)["wall_s_per_round"] == pytest.approx(2.2)


@pytest.mark.parametrize(("walls", "peak_mib"), [([1.0, 1.4, 1.4], 100.0), ([1.0, 1.0, 1.0], 5000.0)])
def test_a_limit_that_is_exceeded_is_not_met(walls, peak_mib):
    line = scale.ratio_of(TINY, [fleet(60, [1.0, 1.0, 1.0]), fleet(600, walls, peak_mib=peak_mib)])
    assert not line["met"]


@pytest.mark.slow
def test_two_fleets_take_turns(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("benchmarks.results.FOLDER", tmp_path)
    words = ["--devices", "60", "600", "--cohort", "40", "--rounds", "2", "--runner", "local"]
    scale.main([*words, "fleet.generator.num_samples=12"])
    small, large, ratio = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (small["case"], large["case"]) == ("40_of_60_local", "40_of_600_local")
    assert small["replied"] == large["replied"] == 40
    assert small["rounds"] == 2
    assert ratio["ratio_wall"] > 0
    assert 50 < ratio["peak_mib"] < 2000
    kept = [json.loads(line) for line in (tmp_path / "scale.jsonl").read_text().splitlines()]
    assert [line["case"] for line in kept] == [small["case"], large["case"], ratio["case"]]
    assert [line["verdict"] for line in changes(small, small)] == ["no change"]
    assert changes(ratio, ratio) == []


def test_a_benchmark_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    ran: list[str] = []
    monkeypatch.setattr(every, "FOLDER", tmp_path)
    monkeypatch.setattr(every, "run", lambda name, kept: ran.append(name) or int(name == "reduce"))
    assert every.main(["scale", "reduce"]) == 1
    assert ran == ["reduce", "scale"]
    assert "beyond a limit: reduce" in capsys.readouterr().err
    assert every.main(["scale"]) == 0
    assert every.main(["nothing"]) == 2
