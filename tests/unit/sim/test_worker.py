"""What the devices of a shard do in a round, and why one does not answer."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.aggregation.aggregator import FixedDenominatorMean
from fedretrain.coordinator.ports import RoundSpec
from fedretrain.core.types import FailureKind
from sim.local_runner import LocalRunner, cut_deadline
from sim.personal_store import PersonalStore
from sim.worker import Worker
from tests.run_cases import quick_arm

EVERYBODY = np.arange(24)


def spec_of(arm, *, deadline_s=1e9, stop_after=None, at=0.0, round_=0):
    return RoundSpec(
        round=round_,
        base=arm.first_shared(),
        base_version=0,
        seed=arm.seed,
        at=at,
        aggregator=FixedDenominatorMean(24.0),
        clip_norm=None,
        deadline_s=deadline_s,
        stop_after=stop_after,
    )


def kinds(trained):
    return {failure.client: failure.kind for failure in trained.shard.failures}


def test_everybody_replies_in_an_easy_world():
    arm = quick_arm()
    trained = Worker(arm).train(spec_of(arm), EVERYBODY, {})
    assert kinds(trained) == {}
    np.testing.assert_array_equal(np.sort(trained.shard.clients), EVERYBODY)
    assert trained.shard.partial.num_clients == 24


def test_who_is_offline_is_unavailable():
    arm = quick_arm("availability=diurnal", "availability.dropout_before=0", "availability.dropout_mid=0")
    online = arm.world.availability.online(EVERYBODY, 0.0)
    assert 0 < online.sum() < 24
    trained = Worker(arm).train(spec_of(arm), EVERYBODY, {})
    absent = [d for d, kind in kinds(trained).items() if kind is FailureKind.UNAVAILABLE]
    assert sorted(absent) == np.flatnonzero(~online).tolist()


def test_who_does_not_answer_is_unavailable():
    arm = quick_arm("availability.dropout_before=0.5")
    away = arm.world.availability.dropped_before(EVERYBODY, 3)
    trained = Worker(arm).train(spec_of(arm, round_=3), EVERYBODY, {})
    assert kinds(trained) == {int(d): FailureKind.UNAVAILABLE for d in np.flatnonzero(away)}
    assert 0 < away.sum() < 24


def test_who_has_no_label_yet_has_no_data():
    arm = quick_arm("labels=late", "labels.loss_fraction=1")
    trained = Worker(arm).train(spec_of(arm), EVERYBODY, {})
    assert set(kinds(trained).values()) == {FailureKind.NO_DATA}
    assert len(kinds(trained)) == 24
    assert trained.shard.bytes_down == trained.shard.bytes_up == 0
    assert trained.devices.shape == (0,)


def test_who_goes_away_in_mid_round_is_dropped_and_keeps_what_it_had_finished():
    def after(*words):
        arm = quick_arm("availability.dropout_mid=0.5", "personalization=fedper", *words)
        trained = Worker(arm).train(spec_of(arm), EVERYBODY, {})
        dropped = {d for d, kind in kinds(trained).items() if kind is FailureKind.DROPPED}
        assert 0 < len(dropped) < 24
        assert not dropped & set(trained.shard.clients.tolist())
        assert trained.shard.bytes_up == 4 * arm.task.shared.size * (24 - len(dropped))
        return dropped, set(trained.devices.tolist())

    # Nearly all of the round is training: who goes away has finished none of it.
    dropped, kept = after("network.up_bps=1e15", "network.start_s=1000")
    assert not dropped & kept
    assert dropped | kept == set(EVERYBODY.tolist())
    # Nearly all of it is sending: who goes away had finished, and personal state commits when training ends.
    dropped, kept = after("network.up_bps=1e-3")
    assert dropped <= kept


def test_who_is_late_is_a_timeout_and_keeps_what_it_learnt():
    arm = quick_arm("personalization=fedper")
    times = Worker(arm).reply_times(spec_of(arm), EVERYBODY)
    deadline_s = float(np.median(times))
    trained = Worker(arm).train(spec_of(arm, deadline_s=deadline_s), EVERYBODY, {})
    late = sorted(d for d, kind in kinds(trained).items() if kind is FailureKind.TIMEOUT)
    assert late == np.flatnonzero(times > deadline_s).tolist()
    assert late
    assert len(trained.shard.clients) == 24 - len(late)
    assert sorted(trained.devices.tolist()) == EVERYBODY.tolist(), "late devices trained all the same"
    assert trained.personal_KQ.shape == (24, arm.task.personal.size)
    payload = 4 * arm.task.shared.size
    assert trained.shard.bytes_up == 24 * payload


@pytest.mark.parametrize(
    "words",
    [
        ["availability=markov", "labels=late", "drift=mixed"],
        ["availability=diurnal", "availability.dropout_before=0.2", "availability.dropout_mid=0.3"],
    ],
    ids=["markov", "diurnal"],
)
def test_everybody_asked_is_heard_of_once(words):
    arm = quick_arm(*words, "personalization=fedper")
    for round_ in range(3):
        spec = spec_of(arm, deadline_s=3.0, at=3600.0 * round_, round_=round_)
        trained = Worker(arm).train(spec, EVERYBODY, {})
        heard = [*kinds(trained), *trained.shard.clients.tolist()]
        assert sorted(heard) == EVERYBODY.tolist()


def test_a_device_does_the_same_in_any_shard():
    arm = quick_arm("personalization=fedper", "runner.executor=each")
    whole = Worker(arm).train(spec_of(arm), EVERYBODY, {})
    parts = [Worker(arm).train(spec_of(arm), part, {}) for part in (EVERYBODY[::2], EVERYBODY[1::2])]
    alone = {int(d): row for p in parts for d, row in zip(p.devices, p.personal_KQ, strict=True)}
    for device, row in zip(whole.devices.tolist(), whole.personal_KQ, strict=True):
        np.testing.assert_array_equal(alone[device], row)


def test_reply_times_say_who_will_never_reply():
    arm = quick_arm("availability.dropout_before=0.3", "availability.dropout_mid=0.3")
    worker = Worker(arm)
    times = worker.reply_times(spec_of(arm), EVERYBODY)
    trained = worker.train(spec_of(arm), EVERYBODY, {})
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(times)), np.sort(trained.shard.clients))


def test_over_selection_waits_for_the_wanted_number():
    arm = quick_arm("personalization=fedper")
    store = PersonalStore(arm.task.personal.size)
    (shard,) = LocalRunner(arm, store).run(spec_of(arm, stop_after=10), EVERYBODY)
    times = Worker(arm).reply_times(spec_of(arm), EVERYBODY)
    np.testing.assert_array_equal(np.sort(shard.clients), np.sort(np.argsort(times)[:10]))
    assert len(shard.failures) == 14
    store.commit()
    assert len(store) == 24, "who was cut off keeps what it learnt"


def test_the_cut_never_moves_the_deadline_back():
    arm = quick_arm()
    spec = spec_of(arm, deadline_s=5.0, stop_after=2)
    assert cut_deadline(spec, np.array([1.0, 2.0, 3.0, 9.0, np.inf])).deadline_s == 2.0
    assert cut_deadline(spec, np.array([1.0, 9.0, np.inf])) is spec
    assert cut_deadline(spec, np.array([4.0, 5.0])) is spec
    assert cut_deadline(spec_of(arm, deadline_s=5.0), np.array([1.0, 2.0])).deadline_s == 5.0


def test_labels_that_come_later_are_trained_on_later():
    arm = quick_arm("labels=late", "campaign.num_rounds=30", "campaign.round_interval_s=86400")
    early = Worker(arm).train(spec_of(arm), EVERYBODY, {})
    late = Worker(arm).train(spec_of(arm, at=29 * 86400.0), EVERYBODY, {})
    assert late.shard.oracle.num_examples.sum() > early.shard.oracle.num_examples.sum()
