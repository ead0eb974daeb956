"""What every availability model must do. Subclass it, say how to make yours, and let pytest run it:

class TestMine(AvailabilityContract):
    def make_model(self):
        return MyModel()
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.clock import DAY_S
from sim.devices import Traits

if TYPE_CHECKING:
    from sim.availability import AvailabilityModel


def traits_of(devices: np.ndarray) -> Traits:
    return Traits(devices, devices % 3, devices % 2)


class AvailabilityContract(abc.ABC):
    @abc.abstractmethod
    def make_model(self) -> AvailabilityModel:
        """A fresh model."""

    def asked(self) -> tuple[Traits, np.ndarray]:
        """Devices (some twice) and instants, before the campaign's start too."""
        draws = np.random.default_rng(7)
        return traits_of(draws.integers(0, 50, 400)), draws.uniform(-3 * DAY_S, 9 * DAY_S, 400)

    def test_one_bool_for_each_device(self):
        traits, at = self.asked()
        answer = self.make_model().online(traits, 3, at)
        assert answer.shape == at.shape
        assert answer.dtype == np.bool_

    def test_nobody_asked(self):
        assert self.make_model().online(traits_of(np.zeros(0, np.int64)), 3, np.zeros(0)).shape == (0,)

    def test_same_answer_from_a_fresh_model(self):
        traits, at = self.asked()
        np.testing.assert_array_equal(
            self.make_model().online(traits, 3, at), self.make_model().online(traits, 3, at)
        )

    def test_group_and_order_do_not_matter(self):
        traits, at = self.asked()
        model = self.make_model()
        together = model.online(traits, 3, at)
        order = np.random.default_rng(1).permutation(len(at))
        np.testing.assert_array_equal(model.online(traits.take(order), 3, at[order]), together[order])
        for k in range(0, len(at), 37):
            alone = np.array([k])
            assert model.online(traits.take(alone), 3, at[alone])[0] == together[k]

    def test_constant_through_a_slot(self):
        traits, at = self.asked()
        model = self.make_model()
        start = np.floor(at / model.slot_s) * model.slot_s
        early, late = start + 0.01 * model.slot_s, start + 0.99 * model.slot_s
        np.testing.assert_array_equal(model.online(traits, 3, early), model.online(traits, 3, late))

    def test_arguments_and_global_randomness_are_left_alone(self):
        traits, at = self.asked()
        before, state = at.copy(), np.random.get_state()[1].copy()  # noqa: NPY002 - that it is untouched is the test
        self.make_model().online(traits, 3, at)
        np.testing.assert_array_equal(at, before)
        np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002 - that it is untouched is the test
