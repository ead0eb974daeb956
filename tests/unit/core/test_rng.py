import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.core import rng


@given(
    st.integers(0, 2**63),
    st.integers(-1, 10**6),
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20),
)
def test_many_seeds_equal_single_seeds(run, round_, clients):
    many = rng.seeds_for(run, round_, np.array(clients), "batches")
    assert [rng.seed_for(run, round_, c, "batches") for c in clients] == many.tolist()


def test_each_coordinate_changes_the_seed():
    base = rng.seed_for(1, 2, 3, "noise")
    others = {rng.seed_for(9, 2, 3, "noise"), rng.seed_for(1, 9, 3, "noise"), rng.seed_for(1, 2, 9, "noise")}
    others.add(rng.seed_for(1, 2, 3, "batches"))
    assert base not in others
    assert len(others) == 4


def test_a_million_clients_have_a_million_seeds():
    assert len(np.unique(rng.seeds_for(0, 0, np.arange(1_000_000), "x"))) == 1_000_000


def test_uniforms_and_normals_have_their_moments():
    seeds = rng.seeds_for(5, 0, np.arange(20_000), "x")
    u, z = rng.uniforms(seeds, 4), rng.normals(seeds, 4)
    assert 0 < u.min() < u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=0.005)
    assert u.var() == pytest.approx(1 / 12, rel=0.02)
    assert z.mean() == pytest.approx(0, abs=0.02)
    assert z.var() == pytest.approx(1, rel=0.02)
    # Neighbouring clients and neighbouring draws are uncorrelated.
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.03


@given(st.lists(st.integers(0, 30), min_size=1, max_size=10), st.integers(0, 20))
def test_permutations_permute_and_do_not_depend_on_the_width(sizes, extra):
    seeds = rng.seeds_for(1, 0, np.arange(len(sizes)), "p")
    width = max(sizes) + extra
    drawn = rng.permutations(seeds, np.array(sizes), width)
    for row, size, seed in zip(drawn, sizes, seeds, strict=True):
        assert sorted(row[:size]) == list(range(size))
        assert (row[size:] == -1).all()
        alone = rng.permutations(seed[None], np.array([size]), size)
        assert alone[0].tolist() == row[:size].tolist()


def test_every_order_of_three_is_as_likely():
    seeds = rng.seeds_for(3, 0, np.arange(60_000), "p")
    orders = rng.permutations(seeds, np.full(60_000, 3), 3)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert counts == pytest.approx(np.full(6, 10_000), rel=0.04)
