"""Online learning on a leash: the step, the band, and the error rates of the test on losses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fedretrain.core.build import build, plain
from fedretrain.core.clock import HOUR_S
from fedretrain.core.errors import DataError
from fedretrain.retraining.config import OnlineGuard
from fedretrain.retraining.online import (
    BETS,
    OnlineEvidence,
    OnlineState,
    OnlineStatus,
    Resumed,
    Reverted,
    RevertReason,
    Watched,
    anchored_step,
    apply,
    decide,
    log_wealth,
    step_factor,
)

GUARD = OnlineGuard(max_distance=2.0, rest_s=HOUR_S, max_reverts=2)


def evidence(loss, champion=None, distance=0.0):
    loss_N = np.atleast_1d(np.asarray(loss, dtype=np.float64))
    champion_N = np.zeros_like(loss_N) if champion is None else np.asarray(champion, dtype=np.float64)
    return OnlineEvidence(loss_N, champion_N, distance)


def advance(guard, state, given, now=0.0):
    events = decide(guard, state, given, now)
    for event in events:
        state = apply(state, event)
    return events, state


def test_losses_within_the_margin_are_watched_and_counted():
    events, state = advance(GUARD, OnlineState(), evidence([0.3, 0.5], [0.4, 0.5], distance=0.7))
    assert isinstance(events[0], Watched)
    assert (state.num_samples, state.distance) == (2, 0.7)
    assert state.excess == pytest.approx(-0.1)


def test_a_look_without_samples_notes_the_distance_alone():
    _, state = advance(GUARD, OnlineState(), evidence([], [], distance=1.0))
    assert state == OnlineState(distance=1.0)


def test_much_worse_losses_revert_it_with_a_reason():
    events, state = advance(GUARD, OnlineState(), evidence(np.ones(100)))
    assert [type(event) for event in events] == [Watched, Reverted]
    assert events[1].why is RevertReason.LOSS
    assert "by +1 over all 100 samples" in events[1].reason
    assert (state.status, state.num_reverts) == (OnlineStatus.RESTING, 1)
    assert (state.num_samples, state.distance) == (0, 0.0)


@pytest.mark.parametrize("loss", [1e9, -1e9])
def test_a_single_sample_weighs_no_more_than_the_range(loss):
    _, extreme = advance(GUARD, OnlineState(), evidence(loss))
    _, at_range = advance(GUARD, OnlineState(), evidence(math.copysign(GUARD.loss_range, loss)))
    assert extreme == at_range
    assert extreme.status is OnlineStatus.LEARNING


def test_samples_that_are_harder_for_both_are_no_reason():
    hard_N = np.linspace(0, 50, 500)
    events, _ = advance(GUARD, OnlineState(), evidence(hard_N, hard_N))
    assert [type(event) for event in events] == [Watched]


def test_the_distance_has_a_band_of_its_own():
    assert isinstance(decide(GUARD, OnlineState(), evidence(0.0, distance=2.0), 0.0)[0], Watched)
    (event,) = decide(GUARD, OnlineState(), evidence(0.0, distance=2.01), 7.0)
    assert (event.why, event.at) == (RevertReason.DISTANCE, 7.0)


@pytest.mark.parametrize(
    "broken",
    [
        evidence([0.1, math.nan]),
        evidence(math.inf, [math.inf]),
        evidence(0.0, distance=math.nan),
        evidence(0.0, distance=math.inf),
    ],
)
def test_what_is_no_number_is_taken_back_at_once(broken):
    (event,) = decide(GUARD, OnlineState(), broken, 0.0)
    assert event.why is RevertReason.NOT_FINITE


def test_after_a_revert_it_rests_then_learns_anew_and_finally_stops():
    bad = evidence(0.0, distance=9.0)
    _, state = advance(GUARD, OnlineState(), bad, 0.0)
    assert decide(GUARD, state, bad, HOUR_S - 1) == ()
    events, state = advance(GUARD, state, bad, HOUR_S)
    assert events == (Resumed(),)
    assert (state.status, state.num_samples) == (OnlineStatus.LEARNING, 0)
    assert state.log_wealth == OnlineState().log_wealth
    (event,), state = advance(GUARD, state, bad, 2 * HOUR_S)
    assert event.is_last
    assert state.status is OnlineStatus.STOPPED
    assert decide(GUARD, state, bad, 1e9) == ()


@pytest.mark.parametrize(
    ("status", "event"),
    [
        (OnlineStatus.LEARNING, Resumed()),
        (OnlineStatus.RESTING, Watched((0.0,) * len(BETS), 1, 0.0, 0.0)),
        (OnlineStatus.STOPPED, Resumed()),
        (OnlineStatus.STOPPED, Reverted(0.0, RevertReason.LOSS, "", False)),
    ],
)
def test_events_that_cannot_follow_are_refused(status, event):
    with pytest.raises(DataError, match=status.value):
        apply(OnlineState(status), event)


def test_events_and_state_survive_a_log():
    events, state = advance(GUARD, OnlineState(), evidence(np.ones(100), distance=1.0), now=3.0)
    for value in (*events, state, Resumed()):
        assert build(type(value), json.loads(json.dumps(plain(value)))) == value


@pytest.mark.parametrize("champion", [np.zeros(3), np.zeros((2, 1))])
def test_losses_must_be_of_the_same_samples(champion):
    with pytest.raises(DataError, match="both models"):
        OnlineEvidence(np.zeros(2), champion, 0.0)


def test_the_scan_is_the_recursion():
    rng = np.random.default_rng(3)
    cut_N = rng.uniform(-1, 1, 400)
    before_G = rng.normal(size=len(BETS))
    slow, expected = before_G.copy(), [before_G]
    for cut in cut_N:
        stake = np.array(BETS) / (GUARD.loss_range + GUARD.loss_margin)
        slow = np.log(np.maximum(np.exp(slow), 1.0) * (1.0 + stake * (cut - GUARD.loss_margin)))
        expected.append(slow)
    np.testing.assert_allclose(log_wealth(GUARD, before_G, cut_N), expected, atol=1e-10)


def test_one_sample_at_a_time_or_all_at_once_is_the_same():
    rng = np.random.default_rng(4)
    loss_N, champion_N = rng.random((2, 200))
    _, whole = advance(GUARD, OnlineState(), evidence(loss_N, champion_N))
    parts = OnlineState()
    for index in range(200):
        _, parts = advance(GUARD, parts, evidence(loss_N[index : index + 1], champion_N[index : index + 1]))
    np.testing.assert_allclose(parts.log_wealth, whole.log_wealth, atol=1e-9)
    assert (parts.num_samples, parts.status) == (whole.num_samples, whole.status)


def samples_to_revert(guard, difference_N):
    """How many samples until the revert; infinite without one."""
    wealth_NG = log_wealth(guard, np.zeros(len(BETS)), difference_N)[1:]
    over_N = np.logaddexp.reduce(wealth_NG, axis=1) >= math.log(
        len(BETS) * guard.mean_samples_to_false_revert
    )
    return float(np.argmax(over_N)) + 1 if over_N.any() else math.inf


def quiet_and_wild(rng, count, margin):
    """Differences with conditional mean `margin` whose spread depends on what came before."""
    wild = rng.random(count) < 0.05
    state_N = np.logical_xor.accumulate(wild)
    spread_N = np.where(state_N, 0.9, 0.1)
    return margin + spread_N * rng.choice([-1.0, 1.0], count)


@pytest.mark.parametrize("kind", ["coins", "dependent"])
def test_false_reverts_are_as_rare_as_promised(kind):
    """At the very margin: mean samples to a revert at least A, and at most n / A reverts within n samples.

    The first is the e-detector's promise, the second its proof's: M_t is at most a Shiryaev-Roberts sum whose mean
    after n samples is at most n (Markov's inequality at a stopping time). Bounds with four standard errors of room.
    """
    guard = OnlineGuard(mean_samples_to_false_revert=500.0, loss_margin=0.05)
    rng = np.random.default_rng(11)
    times = []
    for _ in range(400):
        if kind == "coins":
            # Differences of 0/1 losses: -1, 0, 1 with mean 0.05.
            difference_N = rng.choice([-1.0, 0.0, 1.0], 3000, p=[0.1, 0.75, 0.15])
        else:
            difference_N = quiet_and_wild(rng, 3000, 0.05)
        times.append(samples_to_revert(guard, difference_N))
    stopped = np.minimum(times, 3000.0)
    assert np.mean(stopped) - 4 * np.std(stopped) / math.sqrt(len(stopped)) >= 500.0
    for count in (50, 100, 250):
        share = np.mean(np.array(times) <= count)
        bound = count / 500.0
        assert share <= bound + 4 * math.sqrt(bound * (1 - bound) / len(times))


@pytest.mark.parametrize("good", [0, 5000])
def test_harm_is_found_as_fast_as_its_best_bet_grows_also_after_a_long_good_time(good):
    """Ten points of accuracy lost. A bet that grows by g a sample needs (log A + log 6) / g in the mean (Wald), less
    than an overshoot of one factor later; a quarter is allowed on top."""
    guard = OnlineGuard()
    chances = np.array([0.05, 0.80, 0.15])
    growth = max(
        float(
            chances
            @ np.log1p(
                bet / (guard.loss_range + guard.loss_margin) * (np.array([-1, 0, 1]) - guard.loss_margin)
            )
        )
        for bet in BETS
    )
    bound = (math.log(guard.mean_samples_to_false_revert) + math.log(len(BETS))) / growth
    rng = np.random.default_rng(12)
    delays = []
    for _ in range(100):
        before_N = rng.choice([-1.0, 0.0, 1.0], good, p=[0.10, 0.85, 0.05])
        after_N = rng.choice([-1.0, 0.0, 1.0], 5000, p=chances)
        delays.append(samples_to_revert(guard, np.concatenate([before_N, after_N])) - good)
    assert min(delays) > 0
    assert np.mean(delays) <= 1.25 * bound


def test_a_step_is_cut_at_its_cap_and_one_that_is_no_number_is_not_taken():
    assert step_factor(GUARD, GUARD.max_step) == 1.0
    assert step_factor(GUARD, 4 * GUARD.max_step) == 0.25
    assert step_factor(GUARD, math.nan) == 0.0
    guard = OnlineGuard(max_step=0.5, proximal=0.0)
    moved_P = anchored_step(guard, np.zeros(2), np.zeros(2), np.array([3.0, 4.0]), lr=1.0)
    np.testing.assert_allclose(moved_P, [-0.3, -0.4])
    stayed_P = anchored_step(guard, np.ones(2), np.zeros(2), np.array([math.nan, 1.0]), lr=1.0)
    np.testing.assert_array_equal(stayed_P, np.ones(2))


def test_the_proximal_step_is_implicit():
    rng = np.random.default_rng(5)
    params_P, champion_P, gradient_P = rng.normal(size=(3, 7))
    guard = OnlineGuard(proximal=0.7, max_step=100.0)
    after_P = anchored_step(guard, params_P, champion_P, gradient_P, lr=0.3)
    np.testing.assert_allclose(after_P, params_P - 0.3 * (gradient_P + 0.7 * (after_P - champion_P)))


@pytest.mark.parametrize("lr", [0.01, 1.0, 1000.0])
def test_bounded_gradients_cannot_lead_far_from_the_champion(lr):
    guard = OnlineGuard(proximal=0.5, max_step=0.3)
    champion_P = np.array([1.0, -2.0, 3.0])
    params_P = champion_P.copy()
    gradient_P = np.array([2.0, 0.0, 0.0])
    for _ in range(3000):
        before_P = params_P
        params_P = anchored_step(guard, params_P, champion_P, gradient_P, lr)
        assert np.linalg.norm(params_P - before_P) <= 0.3 * (1 + 1e-12)
        assert np.linalg.norm(params_P - champion_P) <= 2.0 / 0.5 * (1 + 1e-12)
    assert np.linalg.norm(params_P - champion_P) == pytest.approx(4.0)
