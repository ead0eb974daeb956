"""Fleets too small for differential privacy."""

from __future__ import annotations

import numpy as np
import pytest

from fedretrain.core.rng import generator
from fedretrain.privacy.advice import advise

SMALL = {
    "num_params": 36_000,
    "noise_multiplier": 2.0,
    "cohort": 20,
    "fleet": 40,
    "num_rounds": 50,
}


def test_a_small_fleet_is_told_the_size_that_would_do():
    advice = advise(**SMALL)
    assert not advice.enough
    assert "too small" in advice.text
    assert f"{advice.fleet_needed:,} devices" in advice.text
    scale = advice.fleet_needed / SMALL["fleet"]
    enlarged = advise(**{**SMALL, "fleet": advice.fleet_needed, "cohort": SMALL["cohort"] * scale})
    assert enlarged.enough
    one_less = {**SMALL, "fleet": advice.fleet_needed - 1}
    one_less["cohort"] = SMALL["cohort"] * one_less["fleet"] / SMALL["fleet"]
    assert not advise(**one_less).enough


def test_fewer_parameters_would_do_too():
    advice = advise(**SMALL)
    assert advise(**{**SMALL, "num_params": advice.params_needed}).enough
    assert not advise(**{**SMALL, "num_params": advice.params_needed + 1}).enough


def test_a_large_fleet_is_told_so():
    advice = advise(**{**SMALL, "cohort": 5_000, "fleet": 100_000})
    assert advice.enough
    assert "large enough" in advice.text
    assert advice.fleet_needed == 100_000


def test_the_measure_is_what_noise_does():
    """Both ratios by simulation of the mechanism, with updates of norm C that all agree: the kindest case."""
    advice = advise(**SMALL)
    rng = generator(0)
    c = 0.5  # both are ratios: the clip norm cancels
    z, n, p, t = (SMALL[k] for k in ("noise_multiplier", "cohort", "num_params", "num_rounds"))
    noise = rng.normal(0, z * c, (t, p)) / n
    signal = np.zeros(p)
    signal[0] = c
    assert np.linalg.norm(noise[0]) / np.linalg.norm(signal) == pytest.approx(advice.round_noise, rel=0.02)
    walked = np.linalg.norm(noise.sum(axis=0)) / np.linalg.norm(t * signal)
    assert walked == pytest.approx(advice.model_noise, rel=0.02)
