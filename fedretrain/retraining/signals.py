"""Signals: everything a retraining decision may look at, and a small typed language of conditions on them.

Rules of this file:
    * A signal is a number, a truth value or a word, by name. What is not known is None (NaN becomes None): it neither
      fires a trigger nor proves that all is well.
    * Conditions are data, checked when they are made: an unknown name or a value of another type than its signal's is a
      `ConfigError` that names the nearest signal. No condition can fail while a fleet is running.
    * Scores are fractions, more is better: accuracy, macro-F1, or one minus a relative error.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields
from enum import StrEnum
from types import NoneType
from typing import get_args, get_type_hints

from fedretrain.core.checks import finite, require
from fedretrain.core.errors import ConfigError, DataError

SignalValue = bool | float | str | None


class DriftScope(StrEnum):
    """Where the drift lives."""

    NONE = "none"
    DEVICE = "device"
    CLUSTER = "cluster"
    FLEET = "fleet"


@dataclass(frozen=True)
class Signals:
    """One look at the fleet, at its labels, at what retraining would cost and at what forbids it.

    Attributes:
        psi_max: Largest PSI of a feature that is beyond its null.
        drifted_feature_fraction: Share of features beyond their null.
        drift_confirmed: Whether the drift recipe holds (consecutive windows).
        drift_scope: Where the drift lives; a single device's broken sensor is no reason to retrain a model.
        output_psi: PSI of the predictions against the champion's own baseline.
        low_confidence_fraction: Share of predictions with low confidence.
        confidence_decayed: Whether the confidence recipe holds.
        score_drop: Fall of the labelled score since the champion's own baseline.
        score_drop_low: Lower end of its interval: so much it has fallen at least.
        score_drop_high: Upper end: more than this it has not fallen.
        estimated_score_drop: The fall as estimated from calibrated confidence, without labels.
        kpi_regression: Worst relative regression of a KPI.
        kpi_breached: Whether a sequential test says that a KPI is beyond its limit.
        schema_changed: Whether the feature set is another than the champion's.
        structural_change: Whether inputs or labels no longer mean what they meant (new classes, another unit).
        telemetry_fraction: Share of the expected reports that arrived.
        label_completeness: Share of the labels of the judged window that are expected to be here by now.
        num_labels: Labels that came back since the fleet began, where they are (on devices or at the server).
        num_pool_rows: Labelled rows of the server-held pool; 0 without one.
        labels_leave_devices: Whether labels may be sent to the server.
        wanted_within_s: How soon a better model is wanted; infinite without a hurry.
        personal_gain: Score of personal models minus score of the global model on the same devices.
        refused_base_fraction: Share of devices that stayed with an older base after an update.
        can_personalize: Whether devices can refresh their personal state.
        retrain_running: Whether a retrain was decided and has not ended.
        rollout_in_progress: Whether a candidate is between PENDING and its end.
        safe_mode: Whether the fleet is in SAFE_MODE.
        training_killed: The kill switch of training.
        rollouts_killed: The kill switch of rollouts.
        installs_killed: The kill switch of installs.
        remaining_epsilon: What the population's promise has left; None where nothing was promised.
        campaign_epsilon: What one federated campaign would add to it.
        filter_allows: The privacy filter's own answer for such a campaign; None where it was not asked.
        asked_by: A person who wants a retrain now; empty where nobody does.

    Raises:
        DataError: If a count is negative, or a cost or a duration is no number of at least 0.
    """

    psi_max: float | None = None
    drifted_feature_fraction: float | None = None
    drift_confirmed: bool = False
    drift_scope: DriftScope = DriftScope.NONE
    output_psi: float | None = None
    low_confidence_fraction: float | None = None
    confidence_decayed: bool = False
    score_drop: float | None = None
    score_drop_low: float | None = None
    score_drop_high: float | None = None
    estimated_score_drop: float | None = None
    kpi_regression: float | None = None
    kpi_breached: bool = False
    schema_changed: bool = False
    structural_change: bool = False
    telemetry_fraction: float | None = None
    label_completeness: float | None = None
    num_labels: int = 0
    num_pool_rows: int = 0
    labels_leave_devices: bool = False
    wanted_within_s: float = math.inf
    personal_gain: float | None = None
    refused_base_fraction: float | None = None
    can_personalize: bool = True
    retrain_running: bool = False
    rollout_in_progress: bool = False
    safe_mode: bool = False
    training_killed: bool = False
    rollouts_killed: bool = False
    installs_killed: bool = False
    remaining_epsilon: float | None = None
    campaign_epsilon: float = 0.0
    filter_allows: bool | None = None
    asked_by: str = ""

    def __post_init__(self) -> None:
        if min(self.num_labels, self.num_pool_rows) < 0:
            raise DataError("a negative number of labels", where="signals", fix="count rows from 0")
        for name in ("campaign_epsilon", "wanted_within_s"):
            if not getattr(self, name) >= 0:
                raise DataError(
                    f"{getattr(self, name)} is no number of at least 0",
                    where=f"signals.{name}",
                    fix="give infinity if it is not known",
                )
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and math.isnan(value):
                object.__setattr__(self, each.name, None)

    def value(self, name: str) -> SignalValue:
        """The signal of that name, None if it is not known."""
        found: SignalValue = getattr(self, name)
        return found


class SignalType(StrEnum):
    """What a signal's values are."""

    NUMBER = "a number"
    TRUTH = "true or false"
    WORD = "a word"


def _types() -> dict[str, SignalType]:
    found = {}
    for name, hint in get_type_hints(Signals).items():
        kinds = set(get_args(hint) or (hint,)) - {NoneType}
        found[name] = (
            SignalType.TRUTH
            if kinds == {bool}
            else SignalType.WORD
            if kinds == {DriftScope}
            else SignalType.NUMBER
        )
    return found


SIGNAL_TYPES = _types()
"""Type of each signal by name, as `Signals` declares them."""


def check_signal(name: str, key: str) -> SignalType:
    """The type of a named signal.

    Raises:
        ConfigError: If there is no such signal; names the nearest one.
    """
    if name in SIGNAL_TYPES:
        return SIGNAL_TYPES[name]
    (close,) = difflib.get_close_matches(name, SIGNAL_TYPES, n=1, cutoff=0.0)
    raise ConfigError(f"there is no signal {name!r}", where=key, fix=f"did you mean {close!r}?")


def check_value(name: str, value: bool | float | str, key: str) -> None:
    """A value that may be compared with the signal `name`.

    Raises:
        ConfigError: If it is of another type, no finite number, or not one of the signal's words.
    """
    kind = check_signal(name, "signal")
    given = _type_of(value)
    if given is not kind:
        alike = [other for other, known in SIGNAL_TYPES.items() if known is given]
        (close,) = difflib.get_close_matches(name, alike, n=1, cutoff=0.0)
        raise ConfigError(
            f"{name} is {kind.value}, {value!r} is {given.value}",
            where=key,
            fix=f"give {kind.value}; the nearest signal that is {given.value} is {close!r}",
        )
    if kind is SignalType.NUMBER:
        finite(key, float(value))
    if kind is SignalType.WORD:
        words = ", ".join(DriftScope)
        require(value in tuple(DriftScope), f"{value!r} is not one of {words}", key=key)


def _type_of(value: bool | float | str) -> SignalType:
    if isinstance(value, bool):
        return SignalType.TRUTH
    return SignalType.WORD if isinstance(value, str) else SignalType.NUMBER


class Op(StrEnum):
    """How a signal is compared; a file may give the sign or the name (`at_least`)."""

    BELOW = "<"
    AT_MOST = "<="
    IS = "=="
    IS_NOT = "!="
    AT_LEAST = ">="
    ABOVE = ">"


@dataclass(frozen=True)
class Condition:
    """``signal op value``, for example ``psi_max >= 0.2``. An unknown signal satisfies no condition.

    Attributes:
        signal: A field of `Signals`.
        op: The comparison; truth values and words know `==` and `!=` only.
        value: What the signal is compared with.
    """

    signal: str
    op: Op
    value: bool | float | str

    def __post_init__(self) -> None:
        object.__setattr__(self, "op", Op(self.op))
        kind = check_signal(self.signal, "signal")
        check_value(self.signal, self.value, "value")
        require(
            kind is SignalType.NUMBER or self.op in {Op.IS, Op.IS_NOT},
            f"{self.signal} is {kind.value}, which {self.op.value!r} does not order",
            key="op",
            fix="give == or !=",
        )

    def holds(self, signals: Signals) -> bool:
        """Whether the signals satisfy it."""
        found = signals.value(self.signal)
        if found is None:
            return False
        if self.op is Op.IS:
            return found == self.value
        if self.op is Op.IS_NOT:
            return found != self.value
        return _ordered(self.op, float(found), float(self.value))

    def __str__(self) -> str:
        """As a person writes it."""
        value = str(self.value).lower() if isinstance(self.value, bool) else f"{self.value}"
        return f"{self.signal} {self.op.value} {value}"


def _ordered(op: Op, left: float, right: float) -> bool:
    if op is Op.BELOW:
        return left < right
    if op is Op.AT_MOST:
        return left <= right
    return left >= right if op is Op.AT_LEAST else left > right


def all_hold(conditions: tuple[Condition, ...], signals: Signals) -> bool:
    """Whether every condition holds; no condition at all always does."""
    return all(condition.holds(signals) for condition in conditions)
