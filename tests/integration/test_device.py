"""A device against a real gateway: it enrols, installs, predicts, reports once, is labelled, goes back, and survives."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedretrain.artifacts.identity import create_key, read_identity
from fedretrain.artifacts.manifest import Personalization
from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.types import MethodKind
from fedretrain.edge import personal
from fedretrain.edge.control import ControlError
from fedretrain.edge.joining import Joined, read_joined, renewal_at
from fedretrain.edge.renewing import AGAIN_S
from fedretrain.edge.serving import Served
from fedretrain.edge.vitals import SAMPLE_S
from fedretrain.server import annotation_store
from fedretrain.server.annotation_store import Annotation
from tests.agent_cases import Clock, fleet_of, rows


@pytest.fixture
def fleet(tmp_path):
    (tmp_path / "server").mkdir()
    with fleet_of(tmp_path / "server") as running:
        yield running


def test_the_life_of_a_device(fleet, tmp_path):
    clock, (first, second) = Clock(), fleet.make(2)
    with fleet.device(tmp_path, clock) as device:
        assert device.predict(rows())[0][1:] == (-1, 0.0, "")  # nobody has told it anything
        fleet.assign("a", first)
        device.sync()
        heard = fleet.heard("a")
        assert (heard["serves"], heard["healthy"], heard["counter"]) == (first, False, 1)
        answers = device.predict(rows(3))
        assert [answer.package for answer in answers] == [first] * 3
        device.sync()
        assert fleet.heard("a")["healthy"]
        clock.go(120, fleet)
        device.label(answers[0].id, 2)
        device.sync()
        device.sync()
        (report,) = fleet.records("report")
        assert (report.package, report.shadow, sum(report.outputs)) == (first, False, 3)
        assert report.kpis["latency_s"].weight == 3
        (labels,) = fleet.records("labels")
        assert np.array(labels.confusion).reshape(3, 3)[2, answers[0].label] == 1
        fleet.assign("a", second)
        device.sync()
        assert device.predict(rows())[0].package == second
        fleet.assign("a", first, withdrawn=(second,))
        device.sync()
        assert device.predict(rows())[0].package == first
        assert fleet.heard("a")["serves"] == first
        fleet.assign("a", first, safe_mode=True, withdrawn=(second,))
        device.sync()
        assert device.predict(rows())[0][1:] == (2, 1.0, "")  # the label that it was told
        assert fleet.heard("a")["serves"] == ""


def test_models_lie_encrypted_on_a_device_and_a_lost_key_is_one_line(fleet, tmp_path):
    (first,) = fleet.make()
    with fleet.device(tmp_path) as device:
        fleet.assign("a", first)
        device.sync()
        content = device.folder / "models" / "content"
        plain = fleet.store.get(first)
        assert (content / first).read_bytes() != plain
        assert all(plain[:40] not in path.read_bytes() for path in content.iterdir())
    (tmp_path / "edge" / "store.key").unlink()
    with pytest.raises(ConfigError, match="the key of the stored files is lost"):
        fleet.device(tmp_path, token="")


def test_a_certificate_is_renewed_before_it_expires_and_the_device_stays_who_it_is(fleet, tmp_path):
    clock, (first,) = Clock(), fleet.make()
    with fleet.device(tmp_path, clock) as device:
        fleet.assign("a", first)
        device.sync()
        before = device.joined
        clock.go(200 * DAY_S, fleet)
        device.sync()
        assert device.joined == before  # more than a third of its life is left
        clock.go(110 * DAY_S, fleet)
        device.sync()
        renewed = device.joined
        assert renewed.certificate != before.certificate
        assert replace(renewed, certificate=before.certificate) == before
        assert read_joined(device.folder) == renewed
        expires_at = read_identity(renewed.certificate.encode()).expires_at
        assert device.status().certificate_expires_at == expires_at
        device.sync()
        assert device.joined == renewed  # not again within the hour
        assert device.predict(rows())[0].package == first
    with fleet.device(tmp_path, clock, token="") as device:
        assert device.joined == renewed
        device.sync()


def test_a_renewal_that_fails_is_told_and_the_certificate_serves_on(fleet, tmp_path):
    clock = Clock()
    with fleet.device(tmp_path, clock) as device:
        before = device.joined
        device.sync()
        (device.folder / "device.key").rename(device.folder / "kept.key")
        create_key(device.folder / "device.key")  # another key: the server refuses it
        clock.go(310 * DAY_S, fleet)
        device.sync()
        assert "cannot be renewed" in device.visit.problem
        assert device.joined == before


def test_when_a_certificate_is_renewed_is_spread_over_the_fleet(fleet, tmp_path):
    due = set()
    for name in ("a", "b", "c", "d"):
        shown = fleet.here.join(name, "plant")
        joined = Joined("plant", name, 0, shown.certificate.decode(), "", "", "")
        own = read_identity(shown.certificate)
        share = (own.expires_at - renewal_at(joined)) / (own.expires_at - own.begins_at)
        assert 1 / 6 <= share <= 1 / 3
        due.add(renewal_at(joined))
    assert len(due) == 4


def test_annotations_reach_their_predictions_once_and_judge_the_heuristics(fleet, tmp_path):
    (first,) = fleet.make()
    with fleet.device(tmp_path) as device:
        fleet.assign("a", first)
        device.sync()
        one, two, three = device.predict(rows(3), ["s1", "s2", "s3"])
        device.label(one.id, 0, "heuristic:rule")
        device.label(one.id, 1, "heuristic:rule")  # the last word of each counts
        device.label(one.id, 2, "heuristic:other")
        device.label("s2", 2, "heuristic:rule")
        given = [Annotation("a", one.id, 1), Annotation("a", "s2", 1), Annotation("a", "gone", 0)]
        for _ in range(2):  # the same file again
            with fleet.here.engine.begin() as connection:
                annotation_store.keep(connection, "plant", given, 1.0)
            fleet.here.annotations.poll()
            device.sync()
            device.sync()
        with fleet.here.engine.connect() as connection:
            said = annotation_store.summary(connection, "plant")
        assert (said["found"], said["not_found"], said["waiting"]) == (2, 1, 0)
        wrong = {name: (one["wrong"], one["num"]) for name, one in said["heuristics"].items()}
        assert wrong == {"rule": (1, 2), "other": (1, 1)}
        with device.store.database.mutex:
            assert [label.label for label in device.store.served.history(two.id)] == [2, 1]
            assert device.store.served.history(three.id) == ()


def test_an_annotation_whose_answer_was_lost_is_answered_again(fleet, tmp_path, monkeypatch):
    (first,) = fleet.make()
    with fleet.device(tmp_path) as device:
        fleet.assign("a", first)
        device.sync()
        (one,) = device.predict(rows())
        with fleet.here.engine.begin() as connection:
            annotation_store.keep(connection, "plant", [Annotation("a", one.id, 1)], 1.0)
        fleet.here.annotations.poll()
        client, calls = device._syncing._connection(), []

        def annotate(request, **more):
            calls.append(request)
            if request.outcomes:
                raise ControlError("cut")
            return type(client).annotate(client, request, **more)

        monkeypatch.setattr(client, "annotate", annotate)
        with pytest.raises(ControlError, match="cut"):
            device.sync()
        monkeypatch.undo()
        device.sync()
        with fleet.here.engine.connect() as connection:
            assert annotation_store.summary(connection, "plant")["found"] == 1
        assert len(calls) == 2


def test_a_device_serves_after_a_restart_without_a_server(fleet, tmp_path):
    (first,) = fleet.make()
    with fleet.device(tmp_path) as device:
        fleet.assign("a", first)
        device.sync()
    with fleet.device(tmp_path, token="") as device:
        assert device.predict(rows())[0].package == first
        device._syncing._client = Unreachable()
        with pytest.raises(ControlError):
            device.sync()
        assert device.predict(rows())[0].package == first


def test_what_was_predicted_without_a_server_is_counted_once_in_its_own_slots(fleet, tmp_path):
    clock, (first,) = Clock(), fleet.make()
    with fleet.device(tmp_path, clock) as device:
        fleet.assign("a", first)
        device.sync()
        reachable = device._syncing._client
        device._syncing._client = Unreachable()
        begun_at = device.store.clock.look().guess_at
        for _ in range(10):
            device.predict(rows(2))
            clock.go(61, fleet)
            device.tick()
            with pytest.raises(ControlError):
                device.sync()
        device._syncing._client = reachable
        device.sync()
        device.sync()
    reports = fleet.records("report")
    assert sum(sum(report.outputs) for report in reports) == 20
    assert len({report.slot for report in reports}) == len(reports) == 10
    assert min(report.slot for report in reports) == begun_at // 60


def test_what_is_predicted_while_a_slot_is_being_told_is_counted_in_it(fleet, tmp_path, monkeypatch):
    """Between the write of what was predicted and the report of what is over there is time for another prediction."""
    clock, (first,) = Clock(), fleet.make()
    with fleet.device(tmp_path, clock) as device:
        fleet.assign("a", first)
        device.sync()
        clock.go(60.0 - clock.at % 60.0 + 1.0, fleet)
        device.predict(rows())
        flush = device.answering.flush

        def slowly():
            flush()
            device.predict(rows())
            clock.go(60.0, fleet)  # and the slot is over

        with monkeypatch.context() as patch:
            patch.setattr(device.answering, "flush", slowly)
            device.flush()
        clock.go(60.0, fleet)
        device.sync()
        counted = [sum(report.outputs) for report in fleet.records("report") if report.package == first]
        assert sum(counted) == 2


def test_a_candidate_is_scored_and_never_answers(fleet, tmp_path):
    clock, (first, second) = Clock(), fleet.make(2)
    with fleet.device(tmp_path, clock) as device:
        fleet.assign("a", first, shadow=second)
        device.sync()
        assert fleet.heard("a")["shadows"] == second
        answers = device.predict(rows(4))
        assert {answer.package for answer in answers} == {first}
        device.flush()
        device.label(answers[0].id, 1)
        clock.go(61, fleet)
        device.sync()
    rows_of = {report.shadow: report for report in fleet.records("report")}
    assert {shadow: report.package for shadow, report in rows_of.items()} == {False: first, True: second}
    assert sum(rows_of[True].outputs) == sum(rows_of[False].outputs) == 4
    assert sorted(labels.shadow for labels in fleet.records("labels")) == [False, True]


def test_a_version_that_was_withdrawn_while_the_device_was_away_never_answers_again(fleet, tmp_path):
    first, second = fleet.make(2)
    with fleet.device(tmp_path) as device:
        for version in (first, second):
            fleet.assign("a", version)
            device.sync()
        assert device.predict(rows())[0].package == second
    fleet.assign("a", first, withdrawn=(second,))
    with fleet.device(tmp_path, token="") as device:
        device.sync()
        assert device.predict(rows())[0].package == first
        assert fleet.heard("a")["serves"] == first
        fleet.assign("a", second)  # it was given back
        device.sync()
        assert device.predict(rows())[0].package == second


def test_a_device_whose_only_version_is_withdrawn_answers_by_rules(fleet, tmp_path):
    (first,) = fleet.make()
    with fleet.device(tmp_path) as device:
        fleet.assign("a", first)
        device.sync()
        fleet.assign("a", "", withdrawn=(first,))
        device.sync()
        assert device.predict(rows())[0].package == ""


def test_what_is_not_in_the_signed_list_is_refused(fleet, tmp_path):
    first, second = fleet.make(2)
    fleet.repository.quarantine(second, time.time())
    with fleet.device(tmp_path) as device:
        fleet.assign("a", first)
        device.sync()
        fleet.assign("a", second)
        device.sync()
        assert device.predict(rows())[0].package == first
        heard = fleet.heard("a")
        assert (heard["serves"], heard["refused"], heard["counter"]) == (first, second, 2)
        assert "signed list" in heard["reason"]


def test_a_version_that_is_wrong_here_is_refused_with_its_reason(fleet, tmp_path):
    first, wrong = *fleet.make(), *fleet.make(wrong=True)
    with fleet.device(tmp_path) as device:
        fleet.assign("a", first)
        device.sync()
        fleet.assign("a", wrong)
        device.sync()
        assert device.predict(rows())[0].package == first
        heard = fleet.heard("a")
        assert (heard["refused"], heard["serves"]) == (wrong, first)
        assert "sanity vectors" in heard["reason"]


def test_a_forged_or_old_assignment_changes_nothing(fleet, tmp_path):
    first, second = fleet.make(2)
    with fleet.device(tmp_path) as device:
        fleet.assign("a", first)
        device.sync()
        told = device.remembered.value
        fleet.assign("b", second)  # for another device
        fleet.key = Ed25519PrivateKey.generate()
        fleet.assign("a", second)
        device.sync()
        assert device.remembered.value == told
        assert "bad_signature" in device.visit.problem
        assert device.predict(rows())[0].package == first


def test_a_model_that_fails_is_left_for_the_one_before_and_a_person_is_told(fleet, tmp_path):
    clock, (first, second) = Clock(), fleet.make(2)
    with fleet.device(tmp_path, clock) as device:
        for version in (first, second):
            fleet.assign("a", version)
            device.sync()
        object.__setattr__(device.answering.serving.model.predictor, "model", Broken())
        for _ in range(int(300 / SAMPLE_S)):
            for _ in range(30):
                assert device.predict(rows())[0].package in {"", first}
            clock.go(SAMPLE_S, fleet)
            device.tick()
        assert device.serves == first
        assert device.predict(rows())[0].package == first
        device.sync()
        heard = fleet.heard("a")
        assert (heard["serves"], heard["refused"]) == (first, second)
        alert = next(alert for alert in fleet.records("alert") if alert.kind == "local_rollback")
        assert alert.package == second
        assert "fail" in alert.detail


def test_a_device_without_a_clock_mends_the_time_of_what_it_predicted(fleet, tmp_path):
    clock, (first,) = Clock(), fleet.make()
    with fleet.device(tmp_path, clock) as device:
        fleet.assign("a", first)
        device.sync()
    stopped = Clock(at=0.0)
    with fleet.device(tmp_path, stopped, token="") as device:
        device.predict(rows(5))
        device.flush()
        device.predict(rows(2))
        device.sync()
        stopped.go(61, fleet)
        device.sync()
    reports = fleet.records("report")
    assert sum(sum(report.outputs) for report in reports) == 7
    assert all(abs(report.slot - time.time() / 60) < 10 for report in reports)


def test_a_damaged_database_is_set_aside_and_the_device_goes_on(fleet, tmp_path):
    clock, (first,) = Clock(), fleet.make()
    with fleet.device(tmp_path, clock) as device:
        fleet.assign("a", first)
        device.sync()
    path = tmp_path / "edge" / "a" / "agent.db"
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)
    with fleet.device(tmp_path, clock, token="") as device:
        assert device.predict(rows())[0].package == first
        device.sync()
        assert [alert.kind for alert in fleet.records("alert")] == ["database_set_aside"]
        assert device.remembered.value.counter == 1  # what it was told lies elsewhere


def test_personal_layers_are_refitted_beside_a_new_version_and_only_kept_if_they_pay(fleet, tmp_path):
    how = Personalization(MethodKind.FEDPER, ("head.*",))
    first, second = fleet.make(2, hidden=50, personalization=how)
    with fleet.device(tmp_path) as device:
        fleet.assign("a", first)
        device.sync()
        mine = np.random.default_rng(3).normal(size=(3, 60))
        samples = rows(200, 4)
        for answer, row in zip(device.predict(samples), samples, strict=True):
            device.label(answer.id, int((mine @ row).argmax()))
        fleet.assign("a", second)
        device.sync()
        (alert,) = (alert for alert in fleet.records("alert") if alert.kind == "personal_refit")
        assert "kept" in alert.detail
        fresh = rows(200, 5)
        truth = (fresh @ mine.T).argmax(axis=1)
        with_own = np.mean([answer.label for answer in device.predict(fresh)] == truth)
        without = np.mean(Served.of(device.answering.serving.model.package).predictor(fresh).label == truth)
        assert with_own > without + 0.1


def test_a_pipeline_with_local_numbers_is_made_ready_with_the_devices_own_samples(fleet, tmp_path):
    (first,) = fleet.make(how="local")
    clock = Clock()
    with fleet.device(tmp_path, clock) as device:
        fleet.assign("a", first)
        device.sync()
        samples = 0.1 * rows(100) + 0.5
        device.predict(samples)
        blank = device.answering.preprocessing
        clock.go(2)
        device.tick()
        ready = device.answering.preprocessing
        assert ready != blank
        inputs = device.answering.serving.model.predictor.pipeline.apply(samples)
        assert np.abs(inputs.mean(axis=0)).max() < 1e-3
    with fleet.device(tmp_path, clock, token="") as device:
        assert device.answering.preprocessing == ready


def test_labels_that_come_after_an_install_are_fitted_within_a_day(fleet, tmp_path):
    how = Personalization(MethodKind.FEDPER, ("head.*",))
    (first,) = fleet.make(hidden=50, personalization=how)
    clock = Clock()
    with fleet.device(tmp_path, clock) as device:
        fleet.assign("a", first)
        device.sync()
        mine = np.random.default_rng(3).normal(size=(3, 60))
        samples = rows(200, 4)
        for answer, row in zip(device.predict(samples), samples, strict=True):
            device.label(answer.id, int((mine @ row).argmax()))
        before = device.answering.serving.model
        clock.go(86_401)
        device.tick()
        assert device.answering.serving.model is not before
        assert device.serves == first
        again = device.answering.serving.model
        clock.go(86_401)
        device.tick()
        assert device.answering.serving.model is again  # it has what it needs


def labelled_device(device, fleet, head, seed=4, serve=""):
    """Predict, and say what a linear rule makes of it."""
    if serve:
        fleet.assign("a", serve)
        device.sync()
    samples = rows(200, seed)
    for answer, row in zip(device.predict(samples), samples, strict=True):
        device.label(answer.id, int((head @ row).argmax()))


def refreshed(fleet):
    return [(one.refresh, one.package, one.verdict) for one in fleet.records("refreshed")]


def test_a_refresh_is_done_once_and_its_outcome_reported(fleet, tmp_path):
    how = Personalization(MethodKind.FEDPER, ("head.*",))
    (first,), clock = fleet.make(hidden=50, personalization=how), Clock()
    mine = np.random.default_rng(3).normal(size=(3, 60))
    with fleet.device(tmp_path, clock) as device:
        labelled_device(device, fleet, mine, serve=first)
        before = device.answering.serving.model
        fleet.assign("a", first, refresh=2)
        device.sync()
        assert device.answering.serving.model is before  # a heartbeat waits for no re-fit
        device.tick()
        renewed = device.answering.serving.model
        assert renewed is not before
        fresh = rows(200, 5)
        truth = (fresh @ mine.T).argmax(axis=1)
        without = np.mean(before.predictor(fresh).label == truth)
        assert np.mean([one.label for one in device.predict(fresh)] == truth) > without + 0.05
        device.sync()
        assert refreshed(fleet) == [(2, first, "kept")]
        fleet.assign("a", first, refresh=2)  # renewed: the same order
        device.sync()
        device.tick()
        assert device.answering.serving.model is renewed
    with fleet.device(tmp_path, clock, token="") as device:
        device.tick()
        fleet.assign("a", first, refresh=3)
        device.sync()
        device.tick()
        device.sync()
    assert [number for number, _, _ in refreshed(fleet)] == [2, 3]


def test_a_refresh_survives_a_restart_without_a_network_and_waits_for_a_model(fleet, tmp_path):
    how = Personalization(MethodKind.FEDPER, ("head.*",))
    (first,), clock = fleet.make(hidden=50, personalization=how), Clock()
    with fleet.device(tmp_path, clock) as device:
        labelled_device(device, fleet, np.random.default_rng(3).normal(size=(3, 60)), serve=first)
        fleet.assign("a", first, safe_mode=True, refresh=1)
        device.sync()
        device.tick()
        assert device.remembered.value.refreshed == 0  # the rules answer
        fleet.assign("a", first, refresh=1)
        device.sync()
    with fleet.device(tmp_path, clock, token="") as device:
        reachable, device._syncing._client = device._syncing._client, Unreachable()
        device.tick()
        assert device.remembered.value.refreshed == 1
    with fleet.device(tmp_path, clock, token="") as device:
        device._syncing._client = reachable
        device.sync()
        assert refreshed(fleet) == [(1, first, "kept")]


def test_a_device_without_labels_or_means_says_so(fleet, tmp_path):
    few, (never,) = (
        fleet.make(hidden=50, personalization=Personalization(MethodKind.FEDPER, ("head.*",))),
        (fleet.make(hidden=50, personalization=Personalization(MethodKind.APFL, ("head.*",)))),
    )
    with fleet.device(tmp_path) as device:
        for number, version in enumerate((*few, never), 1):
            fleet.assign("a", version, refresh=number)
            device.sync()
            device.tick()
        device.sync()
    assert refreshed(fleet) == [(1, few[0], "too_few"), (2, never, "not_possible")]


def test_a_disk_that_is_full_puts_a_refresh_off(fleet, tmp_path, monkeypatch):
    how = Personalization(MethodKind.FEDPER, ("head.*",))
    (first,), clock = fleet.make(hidden=50, personalization=how), Clock()
    with fleet.device(tmp_path, clock) as device:
        labelled_device(device, fleet, np.random.default_rng(3).normal(size=(3, 60)), serve=first)
        fleet.assign("a", first, refresh=1)
        device.sync()
        before = device.answering.serving.model

        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(personal, "save", full)
            device.tick()
        assert (device.answering.serving.model, device.remembered.value.refreshed) == (before, 0)
        clock.go(AGAIN_S + 1, fleet)
        device.tick()
        assert device.remembered.value.refreshed == 1


class Unreachable:
    def heartbeat(self, *_args, **_more):
        raise ControlError("nobody is there")

    def close(self):
        pass


class Broken:
    def predict(self, x):
        raise DataError("the model cannot be run")
