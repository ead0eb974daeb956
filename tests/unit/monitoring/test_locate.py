"""Where drift lives, by Monte-Carlo with known ground truth."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from fedretrain.core.errors import DataError
from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.config import PlaceRules
from fedretrain.monitoring.histogram import count_by
from fedretrain.monitoring.locate import DriftPlace, Scope, locate, make_record

DEVICES, GROUPS, FEATURES, ROWS, WINDOWS, BROKEN = 40, 5, 3, 150, 8, 7
NAMES = ("a", "b", "c")
GROUP_D = np.arange(DEVICES) % GROUPS
RUNS = 60


def sensors(rng: np.random.Generator, autocorrelation: float) -> np.ndarray:
    """``[T, D, F]``: every device has its own level and gain, and remembers its last value."""
    noise = rng.normal(size=(ROWS * (WINDOWS + 1), DEVICES, FEATURES))
    x = noise.copy()
    for t in range(1, len(x)):
        x[t] = autocorrelation * x[t - 1] + np.sqrt(1 - autocorrelation**2) * noise[t]
    return x * np.exp(rng.normal(0, 0.3, (DEVICES, FEATURES))) + rng.normal(0, 1.0, (DEVICES, FEATURES))


def place(kind: str, seed: int, autocorrelation: float = 0.0) -> DriftPlace:
    """The verdict on a fleet's last window."""
    x = sensors(np.random.default_rng(seed), autocorrelation)
    last = x[ROWS * WINDOWS :]
    if kind == "stuck device":
        last[:, BROKEN, 1] = last[0, BROKEN, 1]
    if kind == "silent device":
        last[:, BROKEN, 1] = np.nan
    if kind == "site":
        last[:, GROUP_D == 2, 0] *= 1.6
        last[:, GROUP_D == 2, 0] += 1.0
    if kind in {"everybody", "everybody and a stuck device"}:
        last[:, :, 0] = last[:, :, 0] * 1.6 + 1.0
    if kind == "everybody and a stuck device":
        last[:, BROKEN, 1] = last[0, BROKEN, 1]
    bins = fit_bins(x[: ROWS * WINDOWS].reshape(-1, FEATURES)[::5], NAMES)
    owner = np.tile(np.arange(DEVICES), ROWS)
    windows = [
        count_by(bins, x[ROWS * w : ROWS * (w + 1)].reshape(-1, FEATURES), owner, DEVICES)
        for w in range(WINDOWS + 1)
    ]
    record = make_record(windows[:-1], 24, 50)
    return locate(record, windows[-1], GROUP_D, NAMES, PlaceRules())


def confusion(kind: str, autocorrelation: float = 0.0) -> tuple[Counter, list[DriftPlace]]:
    found = [place(kind, seed, autocorrelation) for seed in range(RUNS)]
    return Counter(verdict.scope for verdict in found), found


@pytest.mark.parametrize("autocorrelation", [0.0, 0.7])
def test_without_drift_an_innocent_device_is_named_no_more_often_than_configured(
    autocorrelation: float,
) -> None:
    scopes, _ = confusion("nothing", autocorrelation)
    wrong = RUNS - scopes[Scope.NONE]
    # More would have a chance under 1 in 1,000 if the rate were the configured 5 %.
    assert wrong <= stats.binom.ppf(0.999, RUNS, PlaceRules().alpha)
    assert scopes[Scope.CLUSTER] + scopes[Scope.FLEET] == 0


def test_one_stuck_device_is_a_device_although_all_devices_differ() -> None:
    scopes, found = confusion("stuck device")
    assert scopes[Scope.DEVICE] >= 0.95 * RUNS
    named = [verdict for verdict in found if BROKEN in verdict.devices]
    assert len(named) >= 0.95 * RUNS
    assert all(verdict.features == ("b",) for verdict in named if verdict.devices == (BROKEN,))
    false = sum(len(set(verdict.devices) - {BROKEN}) for verdict in found)
    assert false <= stats.binom.ppf(0.999, RUNS, 2 * PlaceRules().alpha)  # a share alpha of two named


def test_a_sensor_that_falls_silent_is_a_device() -> None:
    scopes, found = confusion("silent device")
    assert scopes[Scope.DEVICE] >= 0.95 * RUNS
    assert sum(BROKEN in verdict.devices for verdict in found) >= 0.95 * RUNS


def test_one_site_is_a_cluster_and_no_device_of_it_is_blamed() -> None:
    scopes, found = confusion("site")
    assert scopes[Scope.CLUSTER] >= 0.95 * RUNS
    clusters = [verdict for verdict in found if verdict.scope is Scope.CLUSTER]
    assert all(verdict.groups == (2,) and verdict.features == ("a",) for verdict in clusters)
    assert not any(set(verdict.devices) & set(np.flatnonzero(GROUP_D == 2)) for verdict in clusters)


def test_everybody_is_the_fleet_and_nobody_is_broken() -> None:
    scopes, found = confusion("everybody")
    assert scopes[Scope.FLEET] >= 0.95 * RUNS
    blamed = sum(bool(verdict.devices) for verdict in found)
    assert blamed <= stats.binom.ppf(0.999, RUNS, PlaceRules().alpha)


def test_without_groups_the_fleets_majority_decides() -> None:
    rng = np.random.default_rng(0)
    windows = [rng.multinomial(500, np.full(8, 1 / 8), (6, 2)) for _ in range(8)]
    live, pairs = windows.pop(), np.arange(6) // 2  # pairs are too small to be judged
    record = make_record(windows, 24, 50)
    for moved, scope in ((4, Scope.FLEET), (1, Scope.DEVICE), (0, Scope.NONE)):
        changed = live.copy()
        changed[:moved, 0] = [500, 0, 0, 0, 0, 0, 0, 0]
        found = locate(record, changed, pairs, ("a", "b"), PlaceRules())
        assert found.scope is scope
        assert found.groups == ()
        assert found.features == (("a",) if moved else ())


def test_a_broken_device_is_found_in_a_fleet_that_moves() -> None:
    scopes, found = confusion("everybody and a stuck device")
    assert scopes[Scope.FLEET] >= 0.95 * RUNS
    assert sum(BROKEN in verdict.devices for verdict in found) >= 0.5 * RUNS


def test_a_device_without_rows_is_not_judged_and_nobody_gives_no_verdict() -> None:
    rng = np.random.default_rng(0)
    windows = [rng.multinomial(200, np.full(8, 1 / 8), (4, 2)) for _ in range(6)]
    record = make_record(windows, 24, 50)
    live = windows[0].copy()
    live[3] = 0
    group = np.zeros(4, dtype=np.int64)
    assert locate(record, live, group, ("a", "b"), PlaceRules()).num_judged == 3
    assert locate(record, np.zeros_like(live), group, ("a", "b"), PlaceRules()).scope is Scope.UNKNOWN
    with pytest.raises(DataError, match="record"):
        make_record(windows[:2], 24, 50)


def test_many_outliers_of_no_common_group_are_the_fleets_problem() -> None:
    rng = np.random.default_rng(0)
    windows = [rng.multinomial(500, np.full(8, 1 / 8), (20, 2)) for _ in range(8)]
    live = windows.pop()
    scattered = [0, 5, 10, 15, 6, 11]  # two in three groups of four at most
    live[scattered, 0] = [500, 0, 0, 0, 0, 0, 0, 0]
    found = locate(make_record(windows, 24, 50), live, np.arange(20) % 5, ("a", "b"), PlaceRules())
    assert found.groups == (0,)  # 0, 5, 10 and 15 are one group
    live[[5, 10, 15]] = windows[0][[5, 10, 15]]
    live[[2, 3, 4], 0] = [500, 0, 0, 0, 0, 0, 0, 0]
    found = locate(make_record(windows, 24, 50), live, np.arange(20) % 5, ("a", "b"), PlaceRules())
    assert found.groups == ()
    assert found.scope is Scope.FLEET
    assert found.devices == ()  # six of twenty are no single broken sensors


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 12, 30])
def test_the_logarithm_of_a_chi_square_has_the_lighter_tail(degrees: int) -> None:
    """What the rule's p-values rest on: P(ln X > mean + z std) <= P(Z > z) where a rejection is possible."""
    grid = stats.chi2.ppf(np.linspace(5e-6, 1 - 5e-6, 200_001), degrees)
    mean, std = np.log(grid).mean(), np.log(grid).std()
    for z in (2.0, 2.5, 3.0, 4.0, 5.0):
        assert stats.chi2.sf(np.exp(mean + z * std), degrees) <= stats.norm.sf(z)


def test_what_is_broken_does_not_become_how_a_device_is() -> None:
    rng = np.random.default_rng(0)
    well = [rng.multinomial(500, np.full(8, 1 / 8), (20, 2)) for _ in range(8)]
    lately = [window.copy() for window in well]
    for window in lately:
        window[[4, 9], 0] = [500, 0, 0, 0, 0, 0, 0, 0]
    live, groups = lately.pop(), np.arange(20) % 5
    older, newer = make_record(well[:-1], 24, 50), make_record(lately, 24, 50)
    assert locate(older, live, groups, ("a", "b"), PlaceRules()).devices == (4, 9)
    assert locate(newer, live, groups, ("a", "b"), PlaceRules()).devices == ()
    kept = newer.keeping(older, {4})
    assert locate(kept, live, groups, ("a", "b"), PlaceRules()).devices == (4,)
    for name in ("features_DFC", "center_DF", "scale_DF"):
        mine, old, new = (getattr(record, name) for record in (kept, older, newer))
        assert np.array_equal(mine[4], old[4])
        assert np.array_equal(np.delete(mine, 4, axis=0), np.delete(new, 4, axis=0))
