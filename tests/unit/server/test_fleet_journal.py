"""The fleet's event log: what the coordinator saw, in the simulator's format, and nothing that it did not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.core.errors import DataError
from fedretrain.core.types import FailureKind
from fedretrain.monitoring.reports import DELAY_EDGES_S, delay_bin
from fedretrain.server import fleet, presence
from fedretrain.server.campaign import campaign_stream, define_campaign, read_campaign
from fedretrain.server.fleet import Standing
from fedretrain.server.fleet_journal import _DELAY_S, Fleet, journal
from fedretrain.wire.control import ReportShape
from fedretrain.wire.fleet_log import (
    AskedInRound,
    Failed,
    Labelled,
    Offline,
    Online,
    Predicted,
    Replied,
    Telemetered,
    write_log,
)
from sim.fit.fitted import NEVER_TOLD, NOT_APART, fit
from sim.fleetlog.reader import read_log
from tests.simulation_cases import DEVICES, REPLY_S, SLOT_S, SLOTS, Waiting
from tests.virtual_fleet import CLASSES


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return Waiting(tmp_path_factory.mktemp("journal"))


def _fleet(world, devices=None):
    with world.engine.connect() as connection:
        everybody = fleet.everybody(connection, "p")
    models = world.models()
    bins = models.bins(1)
    shape = ReportShape(bins.num_features, bins.num_cells, CLASSES, True)
    return Fleet("p", devices or everybody, ("a", "b", "c"), shape, models.versions.digests, 60.0)


def _of(events, kind):
    return [one for one in events if isinstance(one, kind)]


def test_devices_come_and_go_with_their_heartbeats(world):
    header, events = journal(world.log, _fleet(world))
    assert (header.num_devices, header.heartbeat_s, header.begin_at) == (DEVICES, SLOT_S, 0.0)
    assert header.end_at == SLOTS * SLOT_S
    last = [(type(one), one.at) for one in events if isinstance(one, (Online, Offline)) and one.device == 11]
    assert last[:4] == [(Offline, 0.0), (Online, 10.0), (Offline, 30.0), (Online, 40.0)]
    assert len([one for one in _of(events, Online) if one.device < 11]) == 11
    assert not [one for one in _of(events, Offline) if one.device < 11]


def test_predictions_and_labels_are_as_many_as_were_reported(world):
    _, events = journal(world.log, _fleet(world))
    device = world.devices[0]
    assert sum(one.count for one in _of(events, Predicted) if one.device == 0) == SLOTS * device.per_slot
    labels = [one for one in _of(events, Labelled) if one.device == 0]
    assert len({(one.at, one.predicted_at, one.label) for one in labels}) == len(labels)
    # A label arrives in the middle of its delay's bin: those of the last slots are not in the log yet.
    assert np.allclose([one.at - one.predicted_at for one in labels], 30.0)
    assert 0.7 * SLOTS * device.per_slot < len(labels) <= (SLOTS - 1) * device.per_slot
    assert {one.label for one in labels} == {0, 1, 2}
    assert all(sum(one.by_class) == one.count for one in _of(events, Predicted))
    told = np.sum([one.by_class for one in _of(events, Predicted) if one.device == 0], axis=0)
    came = np.bincount([one.predicted for one in labels], minlength=3)
    assert (came <= told).all()
    assert sum(one.predicted == one.label for one in labels) > len(labels) / 2, (
        "the model is better than chance"
    )


def test_the_middle_of_each_delay_lies_in_its_bin():
    assert delay_bin(_DELAY_S).tolist() == list(range(len(DELAY_EDGES_S) + 1))


def test_rounds_say_who_was_asked_and_who_failed(world):
    _, events = journal(world.log, _fleet(world))
    asked = _of(events, AskedInRound)
    assert {one.round for one in asked} == {1, 2, 3}
    assert sorted(one.device for one in asked if one.round == 1) == list(range(8))
    failed = _of(events, Failed)
    assert [(one.device, one.round, one.reason) for one in failed] == [
        (0, n, FailureKind.DROPPED) for n in (1, 2, 3)
    ]


def test_the_simulator_reads_every_line_and_fits_what_happened(world, tmp_path):
    path = tmp_path / "fleet.jsonl"
    digest = write_log(path, *journal(world.log, _fleet(world)))
    log = read_log(path)
    assert (log.digest, dict(log.refused)) == (digest, {})
    fitted = fit(log, intervals=False)
    assert fitted.dropouts.mid == pytest.approx(1 / 8)
    assert fitted.presence.share == pytest.approx(1 - (1 / 12) * (1 / 3), abs=0.03)
    assert set(fitted.unknown) - set(NEVER_TOLD) == {NOT_APART, "drift"}


def test_replies_have_their_whole_time_and_no_part_that_nobody_measured(world):
    header, events = journal(world.log, _fleet(world))
    replied = _of(events, Replied)
    asked = {(one.device, one.round): one.at for one in _of(events, AskedInRound)}
    assert [(one.device, one.round) for one in replied] == [(d, n) for n in (1, 2, 3) for d in range(1, 8)]
    assert all(one.latency_s == REPLY_S[one.device] for one in replied)
    assert all(one.at == asked[one.device, one.round] + one.latency_s for one in replied)
    parts = ("download_s", "train_s", "upload_s", "bytes_down", "bytes_up", "num_steps")
    assert not any(getattr(one, part) for one in replied for part in parts)
    assert (header.channels, _of(events, Telemetered)) == ((), [])


def test_a_fit_tells_the_times_of_replies(world, tmp_path):
    path = tmp_path / "fleet.jsonl"
    write_log(path, *journal(world.log, _fleet(world)))
    timing = fit(read_log(path), intervals=False).timing
    fans, pumps = (np.log(REPLY_S[first::2]) for first in (1, 2))  # types in the order of their names
    assert (timing.num_replies, timing.step_s, timing.latency_s) == (21, 0.0, 0.0)
    assert timing.start_s == pytest.approx(np.exp(fans.mean()))
    assert timing.type_speed == pytest.approx((1.0, np.exp(fans.mean() - pumps.mean())))
    spread = ((fans - fans.mean()) ** 2).sum() + ((pumps - pumps.mean()) ** 2).sum()
    assert timing.speed_sigma == pytest.approx(np.sqrt(spread / 5))  # seven devices of two types
    assert timing.jitter_sigma == pytest.approx(0.0, abs=1e-5)


def test_rounds_of_a_release_that_measured_no_times_are_read_and_those_before_the_log_left_out(tmp_path):
    world = Waiting(tmp_path)
    definition = read_campaign(world.log, "p-2").definition
    define_campaign(world.log, replace(definition, campaign="p-1"), at=1.0, fence=None)
    old = {"at": 50.0, "asked": [1, 2], "failed": {"timeout": [2]}}
    for round_, summary in enumerate(({}, {**old, "at": -5.0, "reply_s": {"1": 9.0}}, old)):
        done = {"round": round_, "outcome": "released", "state": definition.base, "version": 1}
        world.log.append(campaign_stream("p-1"), [{"type": "round", **done, "summary": summary}], at=60.0)
    _, events = journal(world.log, _fleet(world))
    told = [one for one in events if isinstance(one, (AskedInRound, Replied, Failed)) and one.round <= 3]
    assert told == [
        AskedInRound(1, 50.0, 3),
        AskedInRound(2, 50.0, 3),
        Failed(2, 60.0, 3, FailureKind.TIMEOUT),
    ]


def test_devices_that_are_gone_are_in_no_log(world):
    everybody = _fleet(world).devices
    gone = [
        one if one.number else type(one)(**{**vars(one), "standing": Standing.RETIRED}) for one in everybody
    ]
    header, events = journal(world.log, _fleet(world, gone))
    assert header.num_devices == DEVICES - 1
    assert max(one.device for one in events) == DEVICES - 2
    assert not _of(events, Failed), "the device that failed is gone"


def test_a_fleet_that_was_not_watched_is_no_log(engine):
    from fedretrain.server.event_log import EventLog

    nobody = Fleet("q", (), (), ReportShape(1, 4, 3, True), {}, 60.0)
    with pytest.raises(DataError, match="slots"):
        journal(EventLog(engine), nobody)


def test_a_slot_is_noted_once_after_it_ended_and_old_ones_are_forgotten(engine):
    with engine.begin() as connection:
        row = fleet.enrol(connection, "q", "d0", "0" * 64, fleet.Traits(), 0.0)
        fleet.heard(connection, [("q", "d0", 95.0, {})])
    with engine.connect() as connection:
        devices = fleet.everybody(connection, "q")
    assert row.number == 0
    assert presence.note(engine, None, "q", devices, 10.0, 101.0)
    assert not presence.note(engine, None, "q", devices, 10.0, 104.0)
    assert presence.note(engine, None, "q", devices, 10.0, 131.0)
    slots = presence.read(engine, "q")
    assert [(one.at, one.online_D.tolist()) for one in slots] == [(90.0, [True]), (120.0, [False])]
    assert presence.note(engine, None, "q", devices, 10.0, presence.KEPT_S + 115.0)
    kept = [one.at for one in presence.read(engine, "q")]
    assert kept == [slots[-1].at, presence.KEPT_S + 100.0]
