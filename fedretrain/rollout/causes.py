"""The vocabulary of rollouts: phases, causes, kinds of rollback and of events.

Rules of this file:
    * Names only. What may follow what is `transitions.py`.
    * A cause says whose fault it is: only a fault of the model quarantines the model.
"""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Where a rollout is."""

    PENDING = "pending"  # waits for its validation, and where it is wanted for the simulation gate
    SHADOW = "shadow"  # scored, not served
    APPROVAL = "approval"  # waits for a person, exposure as it was
    CANARY = "canary"  # served by few
    RAMP = "ramp"  # served by more
    CHAMPION = "champion"
    DE_ESCALATING = "de_escalating"  # exposure walks down the steps
    ROLLING_BACK = "rolling_back"  # taken back; open until each exposed device has confirmed or expired
    ROLLED_BACK = "rolled_back"
    FROZEN = "frozen"  # shadow only, for debugging; leaves by a person


LIVE = (Phase.PENDING, Phase.SHADOW, Phase.APPROVAL, Phase.CANARY, Phase.RAMP)
"""On the way up."""
OPEN = (*LIVE, Phase.DE_ESCALATING, Phase.ROLLING_BACK, Phase.FROZEN)
"""Neither CHAMPION nor ROLLED_BACK: occupies the fleet's one place for a rollout."""


class ApprovalPoint(StrEnum):
    """What may need a person's agreement before it begins."""

    CANARY = "canary"
    RAMP = "ramp"  # each step after the canary
    CHAMPION = "champion"


class Change(StrEnum):
    """How a candidate came about: the classes for which a policy may waive approvals."""

    INCREMENTAL = "incremental"  # retrained from the champion's weights
    FULL = "full"  # retrained from fresh weights
    IMPORTED = "imported"  # a person brought it
    RESUBMITTED = "resubmitted"  # it failed before, and a person tries it again


class RollbackKind(StrEnum):
    """How a candidate is taken back."""

    IMMEDIATE = "immediate"
    GRADUAL = "gradual"
    FREEZE = "freeze"


class Cause(StrEnum):
    """Why a candidate is taken back, or why it is held."""

    GATE_FAILED = "gate_failed"
    KPI_REGRESSION = "kpi_regression"
    VALIDATION_FAILED = "validation_failed"
    SIMULATION_FAILED = "simulation_failed"
    INSTALL_FAILED = "install_failed"  # the devices' own health checks refuse it
    INCONCLUSIVE = "inconclusive"
    NOT_SIMULATED = "not_simulated"  # the simulation gate is undecided, or could not be run
    NOT_INSTALLED = "not_installed"
    NOT_COVERED = "not_covered"  # hours or device types that shadow has not seen
    METRIC_SOURCE = "metric_source"
    APPROVAL_REFUSED = "approval_refused"
    APPROVAL_EXPIRED = "approval_expired"
    OPERATOR = "operator"
    SUPERSEDED = "superseded"
    CHAMPION_WITHDRAWN = "champion_withdrawn"
    SAFE_MODE = "safe_mode"
    KILL = "kill"


ALWAYS_IMMEDIATE = frozenset({Cause.CHAMPION_WITHDRAWN, Cause.SAFE_MODE, Cause.KILL})
"""Causes that no policy may make slow."""
MODEL_AT_FAULT = frozenset(
    {
        Cause.GATE_FAILED,
        Cause.KPI_REGRESSION,
        Cause.VALIDATION_FAILED,
        Cause.SIMULATION_FAILED,
        Cause.INSTALL_FAILED,
    }
)
"""Causes that quarantine the candidate."""


class IncidentKind(StrEnum):
    """Where the trouble of an incident lies."""

    MODEL = "model"
    METRIC_SOURCE = "metric_source"  # the measuring, not the model
    UNDECIDED = "undecided"  # too little evidence, or devices that could not be reached
    FLEET = "fleet"
    OPERATOR = "operator"


def incident_kind(cause: Cause) -> IncidentKind:
    """Where the trouble behind `cause` lies."""
    if cause in MODEL_AT_FAULT:
        return IncidentKind.MODEL
    if cause is Cause.METRIC_SOURCE:
        return IncidentKind.METRIC_SOURCE
    if cause in (Cause.CHAMPION_WITHDRAWN, Cause.SAFE_MODE):
        return IncidentKind.FLEET
    if cause in (Cause.INCONCLUSIVE, Cause.NOT_SIMULATED, Cause.NOT_INSTALLED, Cause.NOT_COVERED):
        return IncidentKind.UNDECIDED
    return IncidentKind.OPERATOR


class EventKind(StrEnum):
    """What happened to a rollout."""

    CREATED = "created"
    SHADOW_STARTED = "shadow_started"
    GATE_PASSED = "gate_passed"
    APPROVAL_ASKED = "approval_asked"
    APPROVED = "approved"
    CANARY_STARTED = "canary_started"
    RAMP_STARTED = "ramp_started"
    PROMOTED = "promoted"
    INSTALLED = "installed"
    HELD = "held"
    ASKED = "asked"
    EXTENDED = "extended"
    SOURCE_BROKE = "source_broke"
    SOURCE_OVERDUE = "source_overdue"
    SOURCE_MENDED = "source_mended"
    PAUSED = "paused"
    RESUMED = "resumed"
    DE_ESCALATION_STARTED = "de_escalation_started"
    STEPPED_DOWN = "stepped_down"
    FROZEN = "frozen"
    UNFROZEN = "unfrozen"
    ROLLBACK_STARTED = "rollback_started"
    RETARGETED = "retargeted"
    ROLLED_BACK = "rolled_back"
    HOLDBACK_ENDED = "holdback_ended"
