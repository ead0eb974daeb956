"""Cohorts with at most one device of a person: for the privacy unit `person`.

Rules of this file:
    * A sampler draws *persons*; one eligible device of each is then asked, any as likely as another. So separation, the
      limit on participations and the coin of Poisson sampling hold for the person, whatever the number of devices.
    * Vectorised, pure, and drawn from (seed, round) as in `sampling`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.coordinator.sampling import Participation
from fedretrain.core.rng import seeds_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.coordinator.sampling import Cohort, Sampler


@dataclass(frozen=True, eq=False)
class OnePerPerson:
    """Draws persons by another sampler, and one device of each.

    Attributes:
        sampler: Draws among the persons; its sizes count persons.
        person_of: ``[N]`` int64 the person of each device, from 0 on without gaps.
    """

    sampler: Sampler
    person_of: NDArray[np.int64]

    @cached_property
    def num_persons(self) -> int:
        """How many persons there are."""
        return int(self.person_of.max(initial=-1)) + 1

    def expected(self, population: int) -> float:
        """The sampler's, of persons; `population` counts devices."""
        if population != len(self.person_of):
            raise ValueError(f"{len(self.person_of)} devices have a person, the population is {population}")
        return self.sampler.expected(self.num_persons)

    def cohort(
        self,
        seed: int,
        round_: int,
        history: Participation,
        eligible: NDArray[np.bool_] | None = None,
    ) -> Cohort:
        """Draw a cohort of devices, no two of one person."""
        devices = np.arange(len(history)) if eligible is None else np.flatnonzero(eligible)
        reachable = np.zeros(self.num_persons, dtype=bool)
        reachable[self.person_of[devices]] = True
        drawn = self.sampler.cohort(seed, round_, self.persons_history(history), reachable)
        chosen = np.zeros(self.num_persons, dtype=bool)
        chosen[drawn.clients] = True
        candidates = devices[chosen[self.person_of[devices]]]
        keys = seeds_for(seed, round_, candidates, "device of a person")
        order = np.lexsort((keys, self.person_of[candidates]))
        _, first = np.unique(self.person_of[candidates[order]], return_index=True)
        return replace(drawn, clients=np.sort(candidates[order][first]).astype(np.int64))

    def persons_history(self, history: Participation) -> Participation:
        """The history of persons: the latest round of any device, and the sum of all their participations."""
        persons = Participation.none(self.num_persons)
        np.maximum.at(persons.last_round, self.person_of, history.last_round)
        np.add.at(persons.count, self.person_of, history.count)
        return persons
