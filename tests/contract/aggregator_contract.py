"""What every aggregator must do, ours or a user's; subclass `AggregatorContract` and return one from `make`."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from fedretrain.aggregation.aggregator import Aggregator, Updates

_CLIP = 2.0


class AggregatorContract:
    """Run with pytest: `class TestMine(AggregatorContract): ...`."""

    def make(self) -> Aggregator[Any]:
        """The aggregator under test, taking at least 12 clients."""
        raise AssertionError("return an aggregator")

    def blocks(self, sizes: tuple[int, ...] = (3, 1, 4, 4), num_parameters: int = 9) -> list[Updates]:
        """Blocks of clipped updates, the same in every call."""
        rng = np.random.default_rng(5)
        blocks = []
        for size in sizes:
            delta = rng.normal(size=(size, num_parameters)).astype(np.float32)
            norm = np.linalg.norm(delta.astype(np.float64), axis=1)
            blocks.append(Updates(delta, np.minimum(1.0, _CLIP / norm), norm, rng.integers(1, 50, size)))
        return blocks

    def state_of(self, blocks: list[Updates]) -> Any:
        aggregator = self.make()
        state = aggregator.init(9, _CLIP)
        for block in blocks:
            state = aggregator.accumulate(state, block)
        return state

    def released(self, state: Any) -> bytes:
        return self.make().release(state).tobytes()

    def test_it_releases_one_finite_float64_vector(self) -> None:
        update = self.make().release(self.state_of(self.blocks()))
        assert (update.shape, update.dtype) == ((9,), np.float64)
        assert np.isfinite(update).all()

    def test_the_order_of_blocks_changes_no_bit(self) -> None:
        blocks = self.blocks()
        assert self.released(self.state_of(blocks)) == self.released(self.state_of(blocks[::-1]))

    def test_blocks_may_be_cut_anywhere(self) -> None:
        (whole,) = self.blocks((12,))
        rows = [slice(0, 5), slice(5, 6), slice(6, 12)]
        parts = [
            Updates(whole.delta_KP[r], whole.factor_K[r], whole.norm_K[r], whole.num_examples[r])
            for r in rows
        ]
        assert self.released(self.state_of([whole])) == self.released(self.state_of(parts))

    def test_merge_is_associative_commutative_and_has_a_zero(self) -> None:
        aggregator = self.make()
        a, b, c = (self.state_of([block]) for block in self.blocks((3, 2, 4)))
        merge = aggregator.merge
        wanted = self.released(self.state_of(self.blocks((3, 2, 4))))
        assert self.released(merge(merge(a, b), c)) == wanted
        assert self.released(merge(a, merge(b, c))) == wanted
        assert self.released(merge(c, merge(b, a))) == wanted
        assert self.released(merge(aggregator.init(9, _CLIP), merge(merge(a, b), c))) == wanted

    def test_merge_leaves_its_arguments_alone(self) -> None:
        a, b = (self.state_of([block]) for block in self.blocks((3, 2)))
        before = self.released(a), self.released(b)
        self.make().merge(a, b)
        assert (self.released(a), self.released(b)) == before

    def test_updates_are_left_alone_and_not_kept_by_reference(self) -> None:
        (block,) = self.blocks((4,))
        delta = block.delta_KP.copy()
        state = self.state_of([block])
        np.testing.assert_array_equal(block.delta_KP, delta)
        wanted = self.released(state)
        block.delta_KP[:] = 77.0
        assert self.released(state) == wanted

    def test_a_state_travels_between_processes(self) -> None:
        state = self.state_of(self.blocks())
        assert self.released(pickle.loads(pickle.dumps(state))) == self.released(state)

    def test_equal_updates_aggregate_along_their_own_direction(self) -> None:
        """Whatever it does with outliers: a cohort of one mind is followed, up to a positive constant."""
        (block,) = self.blocks((1,))
        rows = np.zeros(6, dtype=int)
        same = Updates(
            block.delta_KP[rows], block.factor_K[rows], block.norm_K[rows], block.num_examples[rows]
        )
        update = self.make().release(self.state_of([same]))
        direction = block.scaled()[0]
        cosine = update @ direction / np.linalg.norm(update) / np.linalg.norm(direction)
        assert cosine > 1 - 1e-6

    def test_the_factor_is_applied(self) -> None:
        (block,) = self.blocks((6,))
        shrunk = Updates(
            block.scaled().astype(np.float32), np.ones(6), block.norm_K * block.factor_K, block.num_examples
        )
        one, two = (self.make().release(self.state_of([part])) for part in (block, shrunk))
        np.testing.assert_allclose(one, two, atol=1e-6)

    def test_its_bound_on_the_cohort_is_none_or_positive(self) -> None:
        most = self.make().max_cohort
        assert most is None or most >= 1
