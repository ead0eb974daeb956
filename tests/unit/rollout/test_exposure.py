"""Exposure: nested, even within half a device, stratified within one, indifferent to the order of its arguments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedretrain.rollout.exposure import control, exposed, held_back, num_exposed, ranks

FLEETS = st.lists(st.integers(0, 4), min_size=1, max_size=80)
SHARES = st.floats(0.0, 1.0)


@given(FLEETS, SHARES, SHARES, st.floats(0.0, 0.5), st.integers(0, 2**63))
@settings(max_examples=150, deadline=None)
def test_a_larger_share_contains_a_smaller_one(
    strata: list[int], a: float, b: float, kept: float, salt: int
) -> None:
    rank_D = ranks(np.arange(len(strata)), strata, salt)
    few_D, many_D = (exposed(rank_D, f, kept) for f in sorted((a, b)))
    assert not (few_D & ~many_D).any()
    assert not (exposed(rank_D, 1.0, kept) & held_back(rank_D, kept)).any()
    assert (exposed(rank_D, a, kept) <= ~control(rank_D, a)).all()
    assert exposed(rank_D, 1.0).all()
    assert not exposed(rank_D, 0.0).any()


@given(FLEETS, SHARES, st.integers(0, 2**63))
@settings(max_examples=150, deadline=None)
def test_each_stratum_is_exposed_within_one_device_of_its_share(
    strata: list[int], share: float, salt: int
) -> None:
    stratum_D = np.array(strata)
    on_D = exposed(ranks(np.arange(len(strata)), stratum_D, salt), share)
    for stratum in np.unique(stratum_D):
        here_D = stratum_D == stratum
        assert abs(on_D[here_D].sum() - share * here_D.sum()) < 1.0 + 1e-9


@given(FLEETS, st.integers(0, 2**63), st.randoms())
@settings(max_examples=60, deadline=None)
def test_ranks_belong_to_devices_not_to_places(strata: list[int], salt: int, random: object) -> None:
    device_D, stratum_D = np.arange(len(strata)) * 7 + 3, np.array(strata)
    order = list(range(len(strata)))
    random.shuffle(order)  # type: ignore[attr-defined]
    mixed = ranks(device_D[order], stratum_D[order], salt)
    np.testing.assert_array_equal(mixed, ranks(device_D, stratum_D, salt)[order])


@given(FLEETS, SHARES, st.integers(1, 1000), st.integers(0, 2**63))
@settings(max_examples=150, deadline=None)
def test_the_fleet_is_exposed_within_half_a_device_of_its_share(
    strata: list[int], share: float, apart: int, salt: int
) -> None:
    """Whatever the strata are called: ids of a site and a type are far apart."""
    rank_D = ranks(np.arange(len(strata)), np.array(strata) * apart, salt)
    assert abs(exposed(rank_D, share).sum() - share * len(strata)) <= 0.5 + 1e-9
    assert exposed(rank_D, share).sum() == num_exposed(len(strata), share)


@pytest.mark.parametrize("salt", range(8))
def test_two_percent_of_five_hundred_devices_on_many_sites_are_ten(salt: int) -> None:
    device_D = np.arange(500)
    site_D, type_D = np.random.default_rng(salt).integers(0, (10, 3), (500, 2)).T
    assert exposed(ranks(device_D, site_D * 1000 + type_D, salt), 0.02).sum() == 10


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_many_strata_of_one_device_are_exposed_in_proportion(share: float) -> None:
    assert exposed(ranks(np.arange(1000), np.arange(1000), 11), share).sum() == 1000 * share


def test_small_strata_are_neither_first_nor_last() -> None:
    """Over 2,000 salts a share of 0.1 of fifty devices, five of them alone on their site: binomial, five standard deviations wide."""
    stratum_D = np.minimum(np.arange(50), 5)
    hits_D = sum(exposed(ranks(np.arange(50), stratum_D, salt), 0.1).astype(int) for salt in range(2000))
    assert np.abs(hits_D - 200).max() < 5 * np.sqrt(2000 * 0.1 * 0.9)


def test_each_device_is_as_likely_as_any_other() -> None:
    """Over 2,000 salts a share of 0.1 of 20 devices: binomial, five standard deviations wide."""
    hits_D = sum(
        exposed(ranks(np.arange(20), np.arange(20) % 3, salt), 0.1).astype(int) for salt in range(2000)
    )
    assert np.abs(hits_D - 200).max() < 5 * np.sqrt(2000 * 0.1 * 0.9)


def test_another_rollout_is_another_order() -> None:
    a, b = (ranks(np.arange(500), np.zeros(500, int), salt) for salt in (1, 2))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.2


def test_devices_listed_twice_or_without_stratum_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        ranks([1, 1], [0, 0], 0)
    with pytest.raises(ValueError, match="one row each"):
        ranks([1, 2], [0], 0)
