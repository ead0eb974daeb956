"""Looks at a gate: each taken once, when it is due, on the evidence of the present step alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedretrain.coordinator.looking import Looking
from fedretrain.coordinator.policy import Policy
from fedretrain.core.clock import HOUR_S
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.looks import GatePolicy
from fedretrain.rollout.metrics import DeviceMeans, MetricEvidence
from tests import rollout_cases

POLICY = Policy(
    rollout=rollout_cases.POLICY, gate=GatePolicy(look_every_s=6 * HOUR_S, proof_every_s=6 * HOUR_S)
)
PLAN = POLICY.look_plan(seed=3)
DRIVE = rollout_cases.Drive()
DRIVE.to(Phase.SHADOW)


def _state(step=1, attempt=0, phase=Phase.CANARY, entered_at=0.0, installed_at=HOUR_S):
    return replace(
        DRIVE.state, step=step, attempt=attempt, phase=phase, entered_at=entered_at, installed_at=installed_at
    )


class Measured:
    """Counts how often it is asked, and from when."""

    def __init__(self, gap=0.0):
        self.asked, self.gap = [], gap

    def __call__(self, start_at):
        self.asked.append(start_at)
        rng = np.random.default_rng(1)
        arms = []
        for at, mean in enumerate((0.9 - self.gap, 0.9)):
            value = mean + 0.01 * rng.normal(size=300)
            arms.append(
                DeviceMeans(np.arange(300) + 300 * at, value, np.full(300, 50.0), np.full(300, np.nan))
            )
        return [MetricEvidence("hits", *arms, paired=False)]


def _looks_of(step):
    return [index for index, look in enumerate(PLAN.looks) if look.stage == step]


def test_a_look_is_taken_when_it_is_due_and_once():
    looking, measured = Looking(POLICY), Measured()
    looking.begin(seed=3)
    first, second = _looks_of(1)[:2]
    at = [HOUR_S + PLAN.looks[index].at_s for index in (first, second)]
    looking.take(_state(), at[0] - 1.0, measured)
    assert (looking.taken, looking.gate, measured.asked) == (None, None, [])
    looking.take(_state(), at[0], measured)
    looking.take(_state(), at[1] - 1.0, measured)
    assert (looking.taken, measured.asked) == (first, [HOUR_S])
    looking.take(_state(), at[1], measured)
    assert (looking.taken, measured.asked) == (second, [HOUR_S, HOUR_S])


def test_looks_that_were_missed_are_lost():
    looking, measured = Looking(POLICY), Measured()
    looking.begin(seed=3)
    last = _looks_of(1)[-1]
    looking.take(_state(), HOUR_S + PLAN.looks[last].at_s + 1.0, measured)
    assert (looking.taken, len(measured.asked)) == (last, 1)


def test_shadow_counts_from_its_beginning_and_a_step_from_its_installation():
    looking, measured = Looking(POLICY), Measured()
    looking.begin(seed=3)
    late = 100.0 * HOUR_S
    looking.take(_state(step=0, phase=Phase.SHADOW, entered_at=5.0, installed_at=None), late, measured)
    looking.take(_state(step=1, entered_at=6.0, installed_at=None), late, measured)
    looking.take(_state(step=1, entered_at=6.0, installed_at=7.0), late, measured)
    looking.take(_state(step=2, phase=Phase.RAMP, entered_at=8.0, installed_at=9.0), late, measured)
    assert measured.asked == [5.0, 7.0, 9.0]


def test_nothing_is_looked_at_outside_of_a_trial_or_before_a_rollout():
    looking, measured = Looking(POLICY), Measured()
    late = 100.0 * HOUR_S
    looking.take(_state(), late, measured)
    looking.begin(seed=3)
    for phase in (Phase.PENDING, Phase.APPROVAL, Phase.FROZEN, Phase.ROLLING_BACK, Phase.CHAMPION):
        looking.take(_state(phase=phase), late, measured)
    assert (measured.asked, looking.taken, looking.gate) == ([], None, None)


def test_another_step_or_attempt_forgets_the_last_verdict():
    looking, measured = Looking(POLICY), Measured()
    looking.begin(seed=3)
    late = 100.0 * HOUR_S
    looking.take(_state(), late, measured)
    assert looking.gate is not None
    assert looking.gate_for == (1, 0)
    looking.take(_state(attempt=1, installed_at=late), late, measured)
    assert (looking.taken, looking.gate, looking.gate_for) == (None, None, (1, 1))
    looking.take(_state(attempt=1, installed_at=late), 2 * late, measured)
    looking.take(_state(step=2, phase=Phase.RAMP, installed_at=2 * late), 2 * late, measured)
    assert (looking.taken, looking.gate, looking.gate_for) == (None, None, (2, 0))


def test_the_verdict_is_the_gates():
    last = _looks_of(3)[-1]
    state = _state(step=3, phase=Phase.RAMP)
    found = []
    for gap in (0.0, 0.2):
        looking = Looking(POLICY)
        looking.begin(seed=3)
        looking.take(state, HOUR_S + PLAN.looks[last].at_s, Measured(gap))
        found.append(str(looking.gate.verdict))
    assert found == ["pass", "fail"]


def test_another_process_does_not_look_again():
    first, second = _looks_of(1)[:2]
    at = [HOUR_S + PLAN.looks[index].at_s for index in (first, second)]
    looking, measured = Looking(POLICY), Measured()
    looking.restore(3, first, (1, 0))
    looking.take(_state(), at[0] + 1.0, measured)
    assert (looking.taken, measured.asked, looking.gate) == (first, [], None)
    looking.take(_state(), at[1], measured)
    assert (looking.taken, len(measured.asked)) == (second, 1)
