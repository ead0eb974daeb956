"""The benchmark of large fleets, so small that it takes a minute: it runs, and what it counts adds up. No time is judged."""

from __future__ import annotations

import json

import pytest

from benchmarks.fleet import connections, floor, storm, superlink
from benchmarks.fleet.__main__ import main
from benchmarks.fleet.driving import percentiles
from benchmarks.fleet.sizes import QUICK


def test_percentiles_are_of_the_calls_between_two_instants():
    times = [(0.0, 9.0), *((float(at), 0.001 * at) for at in range(1, 101)), (101.0, 9.0)]
    found = percentiles(times, 1.0, 101.0)
    assert found == {"p99_ms": 99.0, "p50_ms": 50.5, "max_ms": 100.0, "calls": 100}
    assert percentiles(times, 500.0, 600.0) == {"calls": 0}


def test_a_case_that_is_none_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["--cases", "nothing"])
    assert "'nothing' is not one of" in capsys.readouterr().err


@pytest.mark.slow
def test_every_report_is_in_the_store_once_and_a_rollback_reaches_every_device():
    lines = {line["case"]: line for line in connections.measure(QUICK)}
    json.dumps(lines)
    steady, back = lines["connections"], lines["rollback"]
    assert (steady["lost"], steady["twice"], steady["failed_calls"]) == (0, 0, {})
    assert steady["reports_stored"] > QUICK.num_connected
    assert steady["heartbeat"]["calls"] > QUICK.num_connected
    assert steady["probe"]["calls"] > 0
    assert back["exposed"] == round(0.9 * QUICK.num_connected)
    assert back["heartbeats_until_all_are_back"] > 0


@pytest.mark.slow
def test_a_storm_is_drained_whole_and_who_must_go_back_does_so_first():
    (line,) = storm.measure(QUICK)
    json.dumps(line)
    assert line["records"] == 2 * QUICK.num_stormy * QUICK.offline_s / QUICK.offline_slot_s
    assert (line["lost"], line["twice"], line["failed_calls"]) == (0, 0, {})
    assert line["back_before_their_backlog"] == 1.0


@pytest.mark.slow
def test_light_nodes_are_let_in_and_answered():
    *levels, end = superlink.measure(QUICK)
    json.dumps([levels, end])
    assert (
        [line["num_active"] for line in levels]
        == [line["num_nodes"] for line in levels]
        == list(QUICK.num_nodes)
    )
    assert all(line["pulls_per_s"] > 0 for line in levels)
    assert end["superlink_cpu_ms_per_pull"] > 0


def test_the_first_number_of_nodes_that_is_too_many_is_named():
    def line(count, *, saturated):
        return {"num_nodes": count, "saturated": saturated, "superlink_cores": 0.5, "pulls_per_s": 50.0}

    found = superlink._saturation(
        [line(50, saturated=False), line(200, saturated=True), line(1000, saturated=True)]
    )
    assert (found["saturated_at_nodes"], found["most_nodes_sustained"]) == (200, 50)
    assert found["nodes_for_one_core_estimated"] == 300
    assert superlink._saturation([line(50, saturated=False)])["saturated_at_nodes"] is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_round_is_told_beside_flowers_own():
    (line,) = floor.measure(QUICK)
    json.dumps(line)
    assert line["num_rounds"] == QUICK.num_rounds
    assert min(line["round_s"], line["flower_no_op_s"], line["over_flowers_no_op"]) > 0
