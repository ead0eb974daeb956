"""The released aggregate's noise, statistically: mean, variance, shape, and independence over coordinates and rounds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedretrain.aggregation.aggregator import FixedDenominatorMean
from fedretrain.aggregation.server_optimizer import SGD
from fedretrain.coordinator.charging import CentralDp, Noises, Purse, SeededNoises, SystemNoises
from fedretrain.coordinator.round import RoundRules, run_round
from fedretrain.coordinator.sampling import FixedSize
from fedretrain.coordinator.state import ServerState
from fedretrain.core.params import Layout
from fedretrain.privacy.ledger import MemoryLedger
from tests.fakes import FakeRunner

SIZE, ROUNDS, N = 12, 600, 5
Z, CLIP = 0.7, 3.0
BASE = {"w": np.zeros(SIZE, np.float32)}


def noise_of(noises: Noises) -> np.ndarray:
    """``[ROUNDS, SIZE]``: what each round released beyond the clipped mean, in units of z C / n."""
    layout = Layout.of(BASE)
    first = ServerState.first(layout, BASE, SGD(), N, CLIP)
    plain_rules = RoundRules(FixedDenominatorMean(N), SGD())
    rules = RoundRules(FixedDenominatorMean(N), SGD(), dp=CentralDp(Z, CLIP))
    cohort = FixedSize(N).cohort(1, 0, first.history)
    drawn = []
    for round_ in range(ROUNDS):
        plain, _ = run_round(first, plain_rules, cohort, FakeRunner(), round_=round_, seed=1)
        purse = Purse(MemoryLedger(), noises)
        noised, _ = run_round(first, rules, cohort, FakeRunner(), round_=round_, seed=1, purse=purse)
        drawn.append(noised.params.astype(np.float64) - plain.params)
    return np.array(drawn) / (Z * CLIP / N)


@pytest.mark.parametrize("noises", [SeededNoises(11), SystemNoises()], ids=["seeded", "system"])
def test_the_released_noise_is_gaussian_with_the_charged_deviation(noises: Noises) -> None:
    """Limits for a false alarm about once in a million runs: the system's noise cannot be seeded."""
    noise = noise_of(noises)
    assert np.abs(noise.mean(axis=0)).max() < 5.5 / np.sqrt(ROUNDS)
    assert np.abs(noise.var(axis=0) - 1).max() < 5.5 * np.sqrt(2 / ROUNDS)
    p_values = [stats.kstest(noise[:, column], "norm").pvalue for column in range(SIZE)]
    assert min(p_values) > 1e-7
    assert stats.kstest(noise.reshape(-1), "norm").pvalue > 1e-6
    correlation = np.corrcoef(noise, rowvar=False) - np.eye(SIZE)
    assert np.abs(correlation).max() < 6 / np.sqrt(ROUNDS)
    lagged = np.corrcoef(noise[:-1].reshape(-1), noise[1:].reshape(-1))[0, 1]
    assert abs(lagged) < 5.5 / np.sqrt(noise.size)
