"""A device is asked over a real gateway: it verifies, counts once, says why it cannot, and serves on as if nothing had been asked."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedretrain.artifacts.inference import Predictor
from fedretrain.artifacts.manifest import Personalization
from fedretrain.artifacts.package import read_package
from fedretrain.artifacts.question import Question, sign
from fedretrain.core.types import FailureKind, MethodKind
from fedretrain.edge.control import ControlError
from fedretrain.edge.evaluating import ANSWERED
from fedretrain.server import announcements
from fedretrain.server.announcements import Announcement
from fedretrain.validation.count import count_rows
from fedretrain.validation.rows import Labelled, Layout, Rows
from fedretrain.validation.statistics import SUMS
from fedretrain.wire.answers import decode_answer
from tests.agent_cases import POPULATION, Clock, fleet_of, rows

NUM = 40


@pytest.fixture
def fleet(tmp_path):
    (tmp_path / "server").mkdir()
    with fleet_of(tmp_path / "server") as running:
        yield running


def question_of(fleet, candidate, champion, *, at=None, **more):
    now = (time.time() if at is None else at) + fleet.here.offset_s
    until = now + 1.0
    plain = {
        "evaluation": f"{POPULATION}/2/1",
        "population": POPULATION,
        "layout": Layout(3, (until - 200.0, until - 100.0), 50.0),
        "from_at": until - 1000.0,
        "until_at": until,
        "types": ("",),
        "share": 1.0,
        "max_rows": 1000,
        "issued_at": now,
        "spread_s": 0.0,
        "ends_at": now + 600.0,
    }
    return Question(**{"candidate": candidate, "champion": champion, **plain, **more})


def ask(fleet, question, key=None):
    envelope = b"" if question is None else sign(question, key or fleet.key)
    announcements.tell(fleet.here.engine, None, POPULATION, Announcement(envelope))
    fleet.here.peers.poll()


def lived(fleet, device, clock, first, num=NUM):
    """A device that serves a version, and has predicted and been told what was right; the raw rows and labels."""
    fleet.assign("a", first)
    device.sync()
    x, y = rows(num, seed=3), np.random.default_rng(1).integers(0, 3, num)
    for index in range(num):
        answer = device.predict(x[index : index + 1])[0]
        clock.go(5.0, fleet)
        device.label(answer.id, int(y[index]))
    return x, y


def counted(fleet, question):
    """The one answer that came."""
    (answer,) = fleet.records("evaluation")
    return decode_answer(
        answer.SerializeToString(),
        question.layout,
        device=0,
        group=0,
        from_at=question.from_at,
        until_at=question.until_at,
        max_rows=question.max_rows,
    )


def test_a_device_counts_what_a_pool_of_its_rows_counts_and_once(fleet, tmp_path):
    clock, (first, second) = Clock(), fleet.make(2)
    with fleet.device(tmp_path, clock) as device:
        x, y = lived(fleet, device, clock, first)
        before = device.serves, device.remembered.value
        question = question_of(fleet, second, first)
        ask(fleet, question)
        device.sync()
        found = counted(fleet, question)
        assert found.num_rows == NUM
        candidate, champion = (read_package(fleet.store, one) for one in (second, first))
        inputs = champion.pipeline.apply(x)
        held = device.store.reads()[0].held(
            0.0,
            question.until_at,
            device.answering.preprocessing,
            known_at=2e10,
            learnt_at=0.0,
            min_confidence=0.0,
            without=(),
            most=1000,
        )
        moments = Labelled(np.zeros(NUM, int), np.zeros(NUM, int), held.at_N, held.label_at_N - held.at_N, y)
        said = [Predictor.of(one).judged(inputs) for one in (candidate, champion)]
        pooled = count_rows(question.layout, Rows(moments, *said))
        assert all(np.array_equal(getattr(found, name), getattr(pooled, name)) for name in SUMS)
        assert found.paired_DSTM4.sum(axis=(0, 2, 3, 4)).all()  # every slice has rows
        device.sync()
        device.sync()
        assert (device.serves, device.remembered.value) == before
        assert second in device.slots.state.held  # verified as what is installed, and not served
    with fleet.device(tmp_path, clock, token="") as device:
        device.sync()
        assert len(fleet.records("evaluation")) == 1
        ask(fleet, question_of(fleet, second, first, evaluation=f"{POPULATION}/2/2"))
        device.sync()
        assert [one.evaluation for one in fleet.records("evaluation")] == [
            f"{POPULATION}/2/1",
            f"{POPULATION}/2/2",
        ]


def test_a_cut_in_the_middle_is_answered_after_the_restart_and_once(fleet, tmp_path, monkeypatch):
    clock, (first, second) = Clock(), fleet.make(2)
    device = fleet.device(tmp_path, clock)
    lived(fleet, device, clock, first)
    ask(fleet, question_of(fleet, second, first))

    def cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(device.store.outbox, "add_with", cut)  # all is counted, and nothing is on the disk
    with pytest.raises(KeyboardInterrupt):
        device.sync()
    monkeypatch.undo()
    device.close()
    with fleet.device(tmp_path, clock, token="") as device:
        assert device.store.database.recall(ANSWERED) == 0.0
        device.sync()
        device.sync()
        assert len(fleet.records("evaluation")) == 1


def test_an_answer_that_the_network_lost_is_sent_again_and_counts_once(fleet, tmp_path, monkeypatch):
    clock, (first, second) = Clock(), fleet.make(2)
    with fleet.device(tmp_path, clock) as device:
        lived(fleet, device, clock, first)
        device.sync()
        ask(fleet, question_of(fleet, second, first))
        client = device._syncing._connection()

        def lost(*_):
            raise ControlError("the line is cut")

        with monkeypatch.context() as cut:
            cut.setattr(client, "send", lost)
            device.sync()
            assert "the line is cut" in device.visit.problem
        assert not fleet.records("evaluation")
        device.sync()
        device.sync()
        assert len(fleet.records("evaluation")) == 1


def test_what_may_not_be_installed_here_is_not_evaluated_here(fleet, tmp_path):
    clock, (first, second) = Clock(), fleet.make(2)
    (wrong,) = fleet.make(wrong=True)
    fleet.repository.quarantine(second, time.time())  # it leaves the signed list
    fleet.here.trust_version += 1
    with fleet.device(tmp_path, clock) as device:
        lived(fleet, device, clock, first)
        before = device.remembered.value
        for number, candidate in enumerate((second, wrong), 1):
            question = question_of(fleet, candidate, first, evaluation=f"{POPULATION}/9/{number}")
            ask(fleet, question)
            device.sync()
            answer = fleet.records("evaluation")[-1]
            assert (answer.evaluation, answer.failure) == (question.evaluation, FailureKind.REFUSED)
        assert len(fleet.records("evaluation")) == 2
        assert device.remembered.value == before  # nothing that it was told to serve was refused
        assert device.serves == first


def test_what_a_device_cannot_say_has_a_name(fleet, tmp_path):
    clock, (first, second, third) = Clock(), fleet.make(3)
    with fleet.device(tmp_path, clock) as device:
        fleet.assign("a", first)
        device.sync()
        reasons = []
        for number, more in enumerate(
            (
                {},  # it has no label
                {"champion": third},  # it serves something else
                {"layout": Layout(4)},
            )
        ):
            named = {"evaluation": f"{POPULATION}/2/{number}", "candidate": second, "champion": first, **more}
            ask(fleet, question_of(fleet, named.pop("candidate"), named.pop("champion"), **named))
            device.sync()
            reasons.append(fleet.records("evaluation")[-1].failure)
        assert reasons == [FailureKind.NO_DATA, FailureKind.UNAVAILABLE, FailureKind.REFUSED]


def test_a_question_that_is_forged_over_or_not_for_this_device_is_not_answered(fleet, tmp_path):
    clock, (first, second) = Clock(), fleet.make(2)
    with fleet.device(tmp_path, clock) as device:
        lived(fleet, device, clock, first)
        good = question_of(fleet, second, first)
        ask(fleet, good, Ed25519PrivateKey.generate())
        device.sync()
        assert "bad_signature" in device.visit.problem
        ask(fleet, question_of(fleet, second, first, at=time.time() - 700.0))
        device.sync()
        assert "expired" in device.visit.problem
        ask(fleet, replace(good, share=1e-9))  # the coin says no
        device.sync()
        ask(fleet, replace(good, spread_s=500.0))  # not yet: its own instant is later
        begins_at = replace(good, spread_s=500.0).begins_at("a")
        device.sync()
        assert not fleet.records("evaluation")
        clock.go(begins_at - good.issued_at + 1.0, fleet)
        device.sync()
        assert len(fleet.records("evaluation")) == 1


def test_rows_that_a_training_was_given_do_not_count(fleet, tmp_path):
    clock, (first, second) = Clock(), fleet.make(2)
    with fleet.device(tmp_path, clock) as device:
        lived(fleet, device, clock, first)
        device.flush()
        with device.store.database.mutex:
            now = device.store.clock.look().guess_at
            ids, _ = device.store.served.labelled(now, device.answering.preprocessing)
            device.store.lineage.used("plant-2", ids[:30], now)
        question = question_of(fleet, second, first)
        ask(fleet, question)
        device.sync()
        assert counted(fleet, question).num_rows == NUM - 30


def test_a_personal_head_is_refitted_for_both_versions(fleet, tmp_path):
    about = {"personalization": Personalization(MethodKind.FEDPER, ("head.*",))}
    clock, (first, second) = Clock(), fleet.make(2, hidden=16, **about)
    with fleet.device(tmp_path, clock) as device:
        lived(fleet, device, clock, first, num=80)
        question = question_of(fleet, second, first)
        layout = replace(question.layout, cuts_at=(question.until_at - 150.0,))
        question = replace(question, layout=layout)
        ask(fleet, question)
        device.sync()
        found = counted(fleet, question)
        by_slice = found.paired_DSTM4.sum(axis=(0, 2, 3, 4)).tolist()
        assert by_slice[0] == 0  # what it is re-fitted on
        assert by_slice[1] > 20


def test_where_the_policy_wants_no_telemetry_devices_report_nothing(tmp_path):
    (tmp_path / "server").mkdir()
    clock = Clock()
    with fleet_of(tmp_path / "server", slot_s=-1.0) as fleet:
        (first,) = fleet.make()
        with fleet.device(tmp_path, clock) as device:
            lived(fleet, device, clock, first)
            clock.go(300.0, fleet)
            device.tick()
            device.sync()
            device.sync()
            assert fleet.records("report") == fleet.records("labels") == []
            assert len(device.recent(100)) == NUM  # what it learnt stays on the device
