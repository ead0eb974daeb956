"""river as an oracle: its detectors and ours see the same streams."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedretrain.monitoring.detectors import Level

if TYPE_CHECKING:
    from collections.abc import Callable

needs_river = pytest.mark.skipif(
    find_spec("river") is None, reason="river, the oracle of this test, is not installed (pip install river)"
)


def _normal_steps() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(m, s, 800) for m, s in ((0, 1), (1.5, 1), (-2, 2), (-2, 0.5), (0, 1))])


def _bernoulli_steps() -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.concatenate([rng.random(1500) < p for p in (0.2, 0.5, 0.9, 0.1)]).astype(float)


def _ramp() -> np.ndarray:
    return np.random.default_rng(2).normal(size=4000) + np.linspace(0.0, 8.0, 4000)


def _heavy_tails() -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.concatenate([rng.standard_t(3, 2000), 4.0 + rng.standard_t(3, 2000)])


STREAMS: dict[str, Callable[[], np.ndarray]] = {
    "normal": _normal_steps,
    "bernoulli": _bernoulli_steps,
    "ramp": _ramp,
    "heavy": _heavy_tails,
}


def drifts_as_river(
    ours: Any, theirs: Any, values: np.ndarray, same: Callable[[Any, Any], None] | None = None
) -> int:
    """Assert that both drift at the same values; the number of drifts.

    river forgets everything after a drift, where ours keep what is new: ours are begun anew for the comparison.
    """
    state, num_drifts = ours.init(), 0
    for t, value in enumerate(values.tolist()):
        state, level = ours.update(state, value)
        theirs.update(value)
        assert (level is Level.DRIFT) == theirs.drift_detected, t
        if same is not None:
            same(state, theirs)
        if level is Level.DRIFT:
            state, num_drifts = ours.init(), num_drifts + 1
    return num_drifts
