"""What an epsilon claims, in what it needs to be true and in words.

Rules of this file:
    * A configuration in which the claim would be false is refused, with the reason and the way out.
    * Every printed epsilon says whom it protects, against what, and what it does not cover.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.core.errors import PrivacyError
from fedretrain.privacy.event import (
    PrivacyEvent,
    Rule,
    Sampling,
    amplification_rules,
    displacement_rule,
)
from fedretrain.privacy.mechanism import Relation, Unit

if TYPE_CHECKING:
    from collections.abc import Iterable


def check_claims(
    *,
    relation: Relation | str = Relation.ZERO_OUT,
    unit: Unit | str = Unit.DEVICE,
    sampling: Sampling | str = Sampling.FIXED_SIZE,
    amplified: bool = False,
    aggregator: str = "mean",
    weights: str = "uniform",
    denominator: str = "expected",
    stop_at_quorum: bool = False,
    abandon_uncharged: bool = False,
    cohorts_published: bool = False,
    counts_published: bool = False,
    devices_per_person_known: bool = True,
) -> None:
    """Refuse a configuration whose privacy claim would be false.

    Args:
        relation: Neighbouring relation claimed.
        unit: Whom the claim protects.
        sampling: How cohorts are drawn.
        amplified: Whether amplification by sampling is claimed.
        aggregator: ``"mean"`` is the only one whose sensitivity is known.
        weights: ``"uniform"`` or ``"examples"``.
        denominator: ``"expected"`` (a public constant) or ``"replied"``.
        stop_at_quorum: A round ends once enough have answered.
        abandon_uncharged: A round below quorum releases nothing and charges nothing.
        cohorts_published: The adversary learns who was in which round.
        counts_published: The adversary learns how many answered.
        devices_per_person_known: Devices of one person are known as such (needed for the unit person).

    Raises:
        PrivacyError: Naming the first rule that is broken.
    """
    relation, unit, sampling = Relation(relation), Unit(unit), Sampling(sampling)
    rules = [
        *_mechanism_rules(aggregator, weights, denominator),
        *_relation_rules(relation, sampling, stop_at_quorum=stop_at_quorum),
        (
            unit is Unit.PERSON and not devices_per_person_known,
            "the privacy unit is a person, but nothing says which devices are one person's",
            "give each device's person, or declare the unit device",
        ),
        *amplification_rules(relation, unit, sampling) * amplified,
        *_secrecy_rules(abandon_uncharged=abandon_uncharged, published=cohorts_published or counts_published)
        * amplified,
    ]
    for broken, what, fix in rules:
        if broken:
            raise PrivacyError(what, where="privacy", fix=fix)


def _mechanism_rules(aggregator: str, weights: str, denominator: str) -> list[Rule]:
    return [
        (
            aggregator != "mean",
            f"the aggregator {aggregator} with differential privacy: its sensitivity is not the clip norm",
            "use the mean, or switch privacy off",
        ),
        (
            weights != "uniform",
            f"updates weighted by {weights} with differential privacy: one client could carry almost all weight",
            "use uniform weights, or switch privacy off",
        ),
        (
            denominator != "expected",
            "the noisy sum divided by the number that answered: fewer answers raise the sensitivity, not the noise",
            "divide by the expected cohort, a public constant",
        ),
    ]


def _relation_rules(relation: Relation, sampling: Sampling, *, stop_at_quorum: bool) -> list[Rule]:
    return [
        (
            relation is Relation.ADD_REMOVE and stop_at_quorum,
            "stopping at a quorum under add/remove: one reply more displaces another, which moves the sum by 2C",
            "wait for every reply before the deadline, or claim zero_out without amplification",
        ),
        displacement_rule(relation, sampling),
    ]


def _secrecy_rules(*, abandon_uncharged: bool, published: bool) -> list[Rule]:
    return [
        (
            published,
            "amplification claimed while cohorts or counts are published: who knows the coin gains nothing by it",
            "keep cohorts and counts secret, or set amplified=false",
        ),
        (
            abandon_uncharged,
            "amplification claimed while a small round is abandoned without a charge: that reveals its size",
            "charge every round that was started, or set amplified=false",
        ),
    ]


_WHOM = {
    Unit.PERSON: "one person, with all devices",
    Unit.DEVICE: "one device (a person with several is protected less)",
    Unit.RECORDING: "one recording of a device (a device or a person is protected less)",
}
_HOW = {
    Relation.ZERO_OUT: "contributing or not, membership and reply times being public",
    Relation.ADD_REMOVE: "being in the population or not",
    # How long a device trains, so which replies are late, may follow its data: the claim takes them as given.
    Relation.REPLACE_ONE: "having these data or any other, membership and reply times being public and taken not to "
    "depend on the data",
}
_SCOPE = (
    "Scope: the released shared weights only; not telemetry, not the contents of the model package, not a choice of "
    "champion made on un-noised telemetry"
)


def scope_text(epsilon: float, delta: float, events: Iterable[PrivacyEvent]) -> str:
    """What stands beside a printed epsilon: whom it protects, on what grounds, and its scope."""
    claims = sorted({(e.relation, e.unit, e.sampling, e.amplified) for e in events})
    if not claims:
        return f"epsilon 0 at delta {delta:g}: nothing was released under differential privacy."
    relation, unit, _, _ = claims[0]
    sampling = ", ".join(
        f"{sampling} cohorts{' with amplification (cohorts secret)' if amplified else ' without amplification'}"
        for _, _, sampling, amplified in claims
    )
    return (
        f"epsilon {epsilon:.3g} at delta {delta:g} for {_WHOM[unit]}, {_HOW[relation]}; {sampling}, the most charged "
        f"unit. {_SCOPE}."
    )
