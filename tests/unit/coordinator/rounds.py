"""A small campaign for the tests of rounds: two tensors, eight of forty devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.aggregation.aggregator import FixedDenominatorMean
from fedretrain.aggregation.server_optimizer import SGD
from fedretrain.coordinator.charging import CentralDp, Purse, SeededNoises
from fedretrain.coordinator.round import RoundRules, run_round
from fedretrain.coordinator.sampling import Cohort, FixedSize
from fedretrain.coordinator.state import RoundResult, ServerState
from fedretrain.core.params import Layout
from fedretrain.privacy.ledger import Ledger, MemoryLedger
from tests.fakes import FakeRunner

if TYPE_CHECKING:
    from fedretrain.coordinator.ports import CohortRunner

BASE = {"bias": np.array(0.5, np.float32), "w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
LAYOUT = Layout.of(BASE)
N, POPULATION = 8, 40


def dp_of(**changes: Any) -> CentralDp:
    return CentralDp(**{"noise_multiplier": 1.0, "clip_norm": 1.0, **changes})


def rules_of(dp: CentralDp | None = None, **changes: Any) -> RoundRules:
    return RoundRules(
        **{"aggregator": FixedDenominatorMean(N), "server_optimizer": SGD(), "dp": dp, **changes}
    )


def first_state(rules: RoundRules) -> ServerState:
    clip_norm = rules.dp.clip_norm if rules.dp else None
    return ServerState.first(LAYOUT, BASE, rules.server_optimizer, POPULATION, clip_norm)


def cohort_of(state: ServerState, round_: int = 0, n: int = N) -> Cohort:
    return FixedSize(n).cohort(1, round_, state.history)


def purse_of(ledger: Ledger | None = None, promise: Any = None, seed: int = 1) -> Purse:
    return Purse(MemoryLedger() if ledger is None else ledger, SeededNoises(seed), promise)


def play(
    rules: RoundRules,
    runner: CohortRunner | None = None,
    *,
    state: ServerState | None = None,
    purse: Purse | None = None,
    cohort: Cohort | None = None,
    round_: int = 0,
) -> tuple[ServerState, RoundResult]:
    """One round with what is not named made afresh."""
    state = first_state(rules) if state is None else state
    if rules.dp is not None and purse is None:
        purse = purse_of()
    cohort = cohort_of(state, round_) if cohort is None else cohort
    return run_round(state, rules, cohort, runner or FakeRunner(), round_=round_, seed=1, purse=purse)
