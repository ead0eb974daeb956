"""The loop of a life obeys its coordinator: what serves, who is kept out, what people are told before a rollout starts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from fedretrain.coordinator import cycle, looking
from fedretrain.coordinator.cycle import CycleEvent
from fedretrain.coordinator.policy import OnDecay
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.quarantine import QuarantineEvent, QuarantineEventKind, Subject
from fedretrain.rollout.safety import SafetyEvent, SafetyEventKind
from sim.lifetime import examine
from tests.lifetime_cases import DAY, HOUR, POLICY, born, offset_at, policy, small, small_life

SOON = {"mode": "scheduled", "interval_s": 2 * DAY}
NEVER = {"mode": "never"}
UNSURE = {"confidence": {"below": 0.9, "max_share": 0.01, "num_windows": 2, "min_devices": 2}}


def test_a_step_with_too_few_devices_for_its_gate_is_said_as_the_rollout_begins():
    (rule,) = POLICY["rollout"]["metrics"]
    asks = {"metrics": [{**rule, "min_devices": 7}]}
    config = small(12, 4)
    told = [e for e in small_life(config, policy(retraining=SOON, rollout=asks)).events if e.kind == "warned"]
    (created,) = (e.at for e in small_life(config, policy(retraining=SOON)).events if e.kind == "created")
    assert "canary can never pass: 6 devices of 12, accuracy is judged from 7" in {e.text for e in told}
    assert {e.at for e in told} == {created}
    assert {e.version for e in told} == {2}


def history_shares(living):
    """Shares of the classes among the labels that are there when the life begins."""
    rows = living.rows
    known = (rows.event_at < 0.0) & (rows.label_at <= 0.0)
    return np.bincount(rows.y[known].astype(int), minlength=living.fleet.num_outputs) / known.sum()


def assert_rules(living, which):
    """These rows were predicted by the rules: the commonest class of the history, with its share as confidence."""
    share, outputs = history_shares(living), living.serving.outputs
    assert len(which)
    assert (living.serving.row_version[which] == 0).all()
    assert (outputs.label[which] == share.argmax()).all()
    np.testing.assert_allclose(outputs.confidence[which], share.max(), rtol=1e-5)


def rows_between(living, start_at, end_at):
    found = living.rows.between(start_at, end_at)
    return np.arange(found.start, found.stop)


def with_decay(on_decay):
    named = policy(retraining=NEVER, monitoring=UNSURE)
    return replace(named, policy=replace(named.policy, on_decay=on_decay))


@pytest.mark.parametrize(("on_decay", "serves"), [(OnDecay.RULES, 0), (OnDecay.CHAMPION, 1)])
def test_while_confidence_has_decayed_devices_serve_what_the_policy_says(on_decay, serves):
    living = born(small(8, 6), with_decay(on_decay))
    decayed_at = None
    for tick in range(living.life.num_ticks):
        living.tick(tick)
        if decayed_at is None and living.state.in_fallback:
            decayed_at = (tick + 1) * HOUR
    assert decayed_at is not None
    assert cycle.served(living.policy, living.state) == serves
    before = rows_between(living, 0.0, decayed_at)
    after = rows_between(living, decayed_at + HOUR, 6 * DAY)
    assert (living.serving.row_version[before] == 1).all()
    assert (living.serving.row_version[after] == serves).all()
    told = [e for e in living.finish(0.0).events if e.kind == "fallback_serves"]
    if serves:
        assert told == []
        return
    assert_rules(living, after)
    assert [(e.at, e.text) for e in told] == [
        (decayed_at, "the rules serve: the champion's confidence has decayed")
    ]
    # Reports of the rules are not refused: the windows after the decay still have all rows.
    assert living.watch._watching._views[DAY].num_rows == 24 * 8


def happen(living, body, at):
    """Let something happen between two ticks."""
    living.state = cycle.apply(living.policy, living.state, CycleEvent(at, body))
    living._stand(at)


def ticks(living, start_at, end_at):
    for tick in range(round(start_at / HOUR), round(end_at / HOUR)):
        living.tick(tick)


def test_in_safe_mode_the_rules_serve_everybody_and_a_person_ends_it():
    living = born(small(8, 4), policy(retraining=NEVER))
    ticks(living, 0.0, DAY)
    personal = {device: row.copy() for device, row in living.serving.versions.personal[1].items()}
    happen(living, SafetyEvent(SafetyEventKind.ENTERED, DAY, "smoke"), DAY)
    ticks(living, DAY, 2 * DAY)
    assert_rules(living, rows_between(living, DAY + HOUR, 2 * DAY))
    assert living.released() == (0, 1)
    happen(living, SafetyEvent(SafetyEventKind.LEFT, 2 * DAY, by="ada"), 2 * DAY)
    ticks(living, 2 * DAY, 3 * DAY)
    assert (living.serving.row_version[rows_between(living, 2 * DAY + HOUR, 3 * DAY)] == 1).all()
    for device, row in personal.items():  # back in the slot as it was
        np.testing.assert_array_equal(living.serving.versions.personal[1][device], row)


def test_a_broken_safety_limit_puts_the_rules_on_every_device_and_the_page_says_so():
    named = policy(retraining=NEVER)
    limits = {"limits": [{"name": "unsure", "metric": "low_confidence_fraction", "above": 0.0001}]}
    named = replace(named, policy=policy(retraining=NEVER, safety=limits).policy)
    life = small_life(small(8, 3), named)
    (entered,) = (event.at for event in life.events if event.kind == "safe_mode")
    assert entered <= DAY
    assert [e.text for e in life.events if e.kind == "fallback_serves"] == ["the rules serve: safe mode"]
    assert life.steps[-1].safe_mode
    assert life.steps[-1].accuracy < life.steps[0].accuracy


def to_canary(living, start_at, until_at):
    """Tick until devices serve the candidate; the instant."""
    for tick in range(round(start_at / HOUR), round(until_at / HOUR)):
        living.tick(tick)
        if (living.serving.version == 2).any():
            return (tick + 1) * HOUR
    raise AssertionError("no canary")


def test_safe_mode_takes_a_candidate_from_those_that_served_it():
    living = born(small(12, 6, "blend.tolerance=1.0"), policy(retraining=SOON))
    at = to_canary(living, 0.0, 5 * DAY)
    happen(living, SafetyEvent(SafetyEventKind.ENTERED, at, "smoke"), at)
    ticks(living, at, at + 3 * HOUR)
    assert (living.serving.version == 0).all()
    assert living.state.rollout.phase is Phase.ROLLED_BACK  # each device that was exposed has confirmed
    assert_rules(living, rows_between(living, at + HOUR, at + 3 * HOUR))


def test_a_device_changes_once_it_is_online_and_returns_without_a_check():
    living = born(small(6, 2), policy(retraining=NEVER))
    release, serving = living.release, living.serving
    release.serve(0, exposing=False, everybody=True)
    online = np.array([True, False, True, True, False, True])
    assert release.step(HOUR, online).tolist() == [0, 2, 3, 5]
    assert serving.version.tolist() == [0, 1, 0, 0, 1, 0]
    assert release.step(2 * HOUR, np.ones(6, bool)).tolist() == [1, 4]
    assert serving.has_run(1).all()
    release.serve(1, exposing=False, everybody=False)
    assert release.step(3 * HOUR, online).tolist() == [0, 2, 3, 5]


def test_a_device_on_the_rules_keeps_the_personal_state_of_its_last_model():
    living = born(small(6, 2), policy(retraining=NEVER))
    serving = living.serving
    held = serving.personal_now()
    assert set(held) == set(range(6))
    serving.install(np.arange(6), 0, at=0.0)
    assert serving.personal_now() == held
    serving.versions.add(2, serving.versions.shared[1], {})
    assert serving.personal_before(np.array([3]), 2)[3] is held[3]


def quarantine(living, device, at, *, release=False):
    kind = QuarantineEventKind.RELEASED if release else QuarantineEventKind.ENTERED
    happen(living, QuarantineEvent(kind, Subject.DEVICE, device, at, "a toy", by="ada"), at)


def calls_of(monkeypatch, module, name):
    """The arguments of each call of a module's function, which goes on as it was."""
    real, seen = getattr(module, name), []

    def noted(*given, **named):
        seen.append(given)
        return real(*given, **named)

    monkeypatch.setattr(module, name, noted)
    return seen


def test_a_device_that_is_kept_out_trains_and_counts_nowhere_until_it_is_let_in_again(monkeypatch):
    judged, validated = calls_of(monkeypatch, looking, "judge"), calls_of(monkeypatch, examine, "count_rows")
    config = small(12, 9, "blend.tolerance=1.0", "campaign.cohort_size=12")
    living = born(config, policy(retraining=SOON))
    others = set(range(12)) - {3}
    ticks(living, 0.0, DAY)
    quarantine(living, 3, DAY)
    at = to_canary(living, DAY, 5 * DAY)
    assert rounds_of(living, {3}) == 8  # of the first champion
    assert rounds_of(living, others) == 8 + 8
    assert not (living.release.treated | living.release.shadowing)[3]
    at = to_champion(living, at, 9 * DAY)
    assert in_arms(judged) == others
    assert {d for _, rows in validated for d in rows.labelled.device_N.tolist()} == others
    living.tick(round(at / HOUR))
    assert living.serving.version[3] == 2  # kept out of the trial, not of what everybody gets
    quarantine(living, 3, at + HOUR, release=True)
    living.campaigns.begin(3, living.serving.versions.shared[2], {}, rounds=1, at=at + HOUR)
    living.campaigns.run_all(at + HOUR, 0.0)
    assert rounds_of(living, {3}) == 8 + 1


def test_what_a_device_did_in_a_step_is_no_evidence_once_it_is_kept_out(monkeypatch):
    judged = calls_of(monkeypatch, looking, "judge")
    living = born(small(12, 6, "blend.tolerance=1.0"), policy(retraining=SOON))
    at = to_canary(living, 0.0, 4 * DAY)
    judged.clear()
    late = int(np.flatnonzero(living.release.treated)[0])
    quarantine(living, late, at)
    ticks(living, at, at + DAY)
    assert in_arms(judged) == set(range(12)) - {late}


def in_arms(judged):
    """Devices in any arm of any look."""
    return {
        device
        for _, (row,), *_ in judged
        for arm in (row.treated, row.control)
        for device in arm.device_K.tolist()
    }


def rounds_of(living, devices):
    """In how many rounds of all campaigns each of some devices took part, alike for all."""
    (found,) = {int(living.campaigns._history.history.count[device]) for device in devices}
    return found


def to_champion(living, start_at, until_at):
    """Tick until the candidate is champion; the instant."""
    for tick in range(round(start_at / HOUR), round(until_at / HOUR)):
        living.tick(tick)
        if living.state.champion == 2:
            return (tick + 1) * HOUR
    raise AssertionError("never champion")


def test_no_coin_is_tossed_for_a_device_that_is_kept_out():
    living = born(
        small(6, 2, "campaign.sampling=poisson", "campaign.cohort_size=6"), policy(retraining=NEVER)
    )
    assert rounds_of(living, range(6)) == 8  # six of six: the coin always shows heads
    living.campaigns.keep_out(np.arange(6) == 2)
    living.campaigns.begin(2, living.serving.versions.shared[1], {}, rounds=4, at=DAY)
    living.campaigns.run_all(DAY, HOUR)
    assert rounds_of(living, {2}) == 8
    assert rounds_of(living, {0, 1, 3, 4, 5}) == 12


def test_the_pool_does_not_train_on_rows_of_a_device_that_is_kept_out():
    living = born(small(6, 2, "lifetime.pool_devices=2"), policy(retraining=NEVER))
    pool, base = living.campaigns.pool, living.serving.versions.shared[1]
    num_rows, executor = [], pool._executor

    class Counting:
        def train(self, shared, work):
            num_rows.append(len(work[0].data))
            return executor.train(shared, work)

    pool._executor = Counting()
    everybody = np.ones(6, bool)
    for kept_out in (~everybody, np.arange(6) == 0, np.arange(6) == 5):
        assert pool.round(base, 1, DAY, kept_out) is not None
    both, one, same = num_rows
    assert both == same == pool.num_rows(DAY)
    assert one == len(living.fleet.trainable(np.array([1]), DAY)[0]) < both
    assert pool.round(base, 1, DAY, everybody) is None


def test_what_each_step_can_detect_is_computed_from_the_fleet_before_the_rollout():
    named = policy(retraining=SOON)
    living = born(small(30, 4), named)
    at = 2 * DAY
    ticks(living, 0.0, at)
    everybody = np.ones(30, bool)
    (few,) = living.judge.foresee(at, everybody).detectable
    rows, outputs, trial = living.rows, living.serving.outputs, living.watch.trial
    kept_since = trial.served.oldest_slot * HOUR - trial.clockwork.offset_s

    def device_means(start_at, end_at):
        which = rows_between(living, start_at, end_at)
        which = which[(rows.label_at[which] <= at) & (rows.event_at[which] >= kept_since)]
        right = outputs.label[which] == rows.y[which]
        device = rows.device[which]
        return np.array([right[device == d].mean() for d in range(30)])

    def spread(span):
        now, before = device_means(at - span, at), device_means(at - span - 14 * DAY, at - span)
        slope = np.cov(before, now)[0, 1] / before.var(ddof=1)
        return (now - slope * (before - before.mean())).var(ddof=1), device_means(at - DAY, at).mean()

    # Half of the fleet against the other, at the last look: 4 days, whose spread is that of all that was measured.
    variance, level = spread(4 * DAY)
    look = living.judge._policy.look_plan().looks[-1]
    t = scipy.stats.t(14)
    level_of_the_fleet = 0.9 * look.harm_level  # site 0, 19 devices, is judged apart
    reach = (t.isf(level_of_the_fleet) + t.isf(0.2)) * np.sqrt(variance * 2 / 15) / level
    assert few == pytest.approx(reach, rel=0.02)
    assert living.judge.foresee(at, np.arange(30) < 9).detectable == (
        np.inf,
    )  # four devices of nine: never judged
    living_on = small_life(small(30, 4), named)
    few, fleet = [e.text for e in living_on.events if e.kind == "warned"]
    assert few == "too few devices to be judged by themselves: site 1"
    assert fleet.startswith("canary cannot detect a regression below ")


@pytest.mark.parametrize(("until", "watched"), [(5.0, 5.0), (0.0, 12.0)])
def test_a_drift_that_ends_by_itself_was_not_mended(until, watched):
    life = small_life(small(8, 20, offset_at(8.0, until=until)), policy(retraining=NEVER))
    (found,) = life.detections
    assert np.isnan(found.restored_after_s)
    assert found.watched_s == watched * DAY
    by_day = {round(step.at / DAY): step.accuracy for step in life.steps}
    assert (by_day[20] > by_day[11] + 0.1) == bool(until), "its end is seen, and is nobody's doing"
    week, hit = ([by_day[d] for d in days] for days in (range(2, 9), range(9, 9 + int(watched))))
    assert found.cost == pytest.approx(np.mean(week) - np.mean(hit), abs=0.02)
