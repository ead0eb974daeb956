"""Server optimizers against the formulas of FedOpt (arXiv 2003.00295, algorithm 2), written out."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.aggregation.server_optimizer import SGD, Adam, ServerOptimizer, Yogi
from fedretrain.core.errors import ConfigError

UPDATES = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def steps_of(optimizer: ServerOptimizer) -> np.ndarray:
    state, steps = optimizer.init(5), []
    for update in UPDATES:
        state, step = optimizer.apply(state, update)
        steps.append(step)
    return np.array(steps)


def test_plain_sgd_takes_the_update_itself() -> None:
    np.testing.assert_array_equal(steps_of(SGD()), UPDATES.astype(np.float64))
    assert SGD().init(5) == {}


def test_momentum() -> None:
    velocity, wanted = np.zeros(5), []
    for update in UPDATES.astype(np.float64):
        velocity = 0.9 * velocity + update
        wanted.append(0.5 * velocity)
    np.testing.assert_allclose(steps_of(SGD(0.5, 0.9)), wanted)


@pytest.mark.parametrize("kind", [Adam, Yogi])
def test_adaptive(kind: type[Adam]) -> None:
    lr, beta1, beta2, tau = 0.1, 0.8, 0.95, 0.01
    m, v, wanted = np.zeros(5), np.full(5, tau**2), []
    for update in UPDATES.astype(np.float64):
        m = beta1 * m + (1 - beta1) * update
        square = update**2
        v = (
            beta2 * v + (1 - beta2) * square
            if kind is Adam
            else v - (1 - beta2) * square * np.sign(v - square)
        )
        wanted.append(lr * m / (np.sqrt(v) + tau))
    np.testing.assert_allclose(steps_of(kind(lr, beta1, beta2, tau)), wanted)


def test_yogis_second_moment_stays_positive() -> None:
    optimizer = Yogi(beta2=0.01)
    state = optimizer.init(1)
    for update in (5.0, 0.1, 3.0, 0.0, 2.0, 1.9, 1e-9):
        state, step = optimizer.apply(state, np.array([update]))
        assert state["second"][0] > 0
        assert np.isfinite(step).all()


@pytest.mark.parametrize("optimizer", [SGD(0.5, 0.9), Adam(), Yogi()])
def test_apply_changes_none_of_its_arguments(optimizer: ServerOptimizer) -> None:
    state = optimizer.init(5)
    before = {name: leaf.copy() for name, leaf in state.items()}
    update = UPDATES[0].copy()
    optimizer.apply(state, update)
    np.testing.assert_array_equal(update, UPDATES[0])
    for name, leaf in before.items():
        np.testing.assert_array_equal(state[name], leaf)


@pytest.mark.parametrize(
    "make",
    [lambda: SGD(0.0), lambda: SGD(momentum=1.0), lambda: Adam(tau=0.0), lambda: Yogi(beta2=-0.1)],
)
def test_impossible_settings_are_refused(make: object) -> None:
    with pytest.raises(ConfigError, match="give"):
        make()  # type: ignore[operator]
