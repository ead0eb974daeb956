"""What is known at a tick, and what people order.

Rules of this file:
    * Views, readings and a rollout's evidence are levels: they say what holds now, and saying it twice changes nothing.
    * An order is given once. One that changes nothing, or that nobody's name stands behind, has no effect and no event: whoever
      ordered looks at the state, and orders again. One whose giver may not give it, or that is not their word, is refused, which is
      an event.
    * Approvals, and a person's commands to a rollout, are in the rollout's own evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from fedretrain.coordinator.roles import Roles
from fedretrain.rollout.evidence import RolloutEvidence
from fedretrain.rollout.quarantine import Release
from fedretrain.rollout.safety import SafetyOrder

if TYPE_CHECKING:
    from fedretrain.coordinator.cycle_events import Refused, Trained
    from fedretrain.monitoring.baseline import Baseline
    from fedretrain.monitoring.view import FleetView
    from fedretrain.retraining.signals import Signals
    from fedretrain.rollout.quarantine import QuarantineEvidence
    from fedretrain.rollout.safety import Reading


@dataclass(frozen=True)
class Propose:
    """Bring a version that exists: it waits for a rollout like any other, and passes the same gates.

    Attributes:
        version: Which.
        by: Who.
        reason: For people.
        detectable: The smallest relative regression that each step could detect; empty if not known.
    """

    version: int
    by: str
    reason: str = ""
    detectable: tuple[float, ...] = ()


@dataclass(frozen=True)
class Withdraw:
    """A version may no longer be installed or served: it is quarantined, and taken back wherever it is.

    Attributes:
        version: Which.
        by: Who.
        reason: For people.
    """

    version: int
    by: str
    reason: str = ""


@dataclass(frozen=True)
class Quarantine:
    """A device is kept out: its evidence and its updates do not count until a person lets it in again (`Release`).

    Attributes:
        device: Its number.
        by: Who.
        reason: For people.
    """

    device: int
    by: str
    reason: str = ""


@dataclass(frozen=True)
class ServeAgain:
    """The champion serves again although its confidence had decayed.

    Attributes:
        by: Who.
        reason: For people.
    """

    by: str
    reason: str = ""


@dataclass(frozen=True)
class Retrain:
    """A retrain is wanted now, whatever triggers and the cool-down say; budget, safe mode and switches still count.

    Attributes:
        by: Who.
        reason: For people.
    """

    by: str
    reason: str = ""


@dataclass(frozen=True)
class Resubmit:
    """A version that failed tries again: out of quarantine, and through every gate from the first on.

    Attributes:
        version: Which.
        by: Who.
        reason: For people.
    """

    version: int
    by: str
    reason: str = ""


@dataclass(frozen=True)
class Discard:
    """A version that failed is given up: it stays in quarantine for good.

    Attributes:
        version: Which.
        by: Who.
        reason: For people.
    """

    version: int
    by: str
    reason: str = ""


@dataclass(frozen=True)
class UnderWay:
    """A training campaign that is going on.

    Attributes:
        version: What it is to make.
        begun_at: Instant, seconds.
        max_s: After so long it is given up.
    """

    version: int
    begun_at: float
    max_s: float


Order: TypeAlias = (
    SafetyOrder | Release | Propose | Withdraw | Quarantine | ServeAgain | Retrain | Resubmit | Discard
)


@dataclass(frozen=True)
class Evidence:
    """What is known at a tick.

    Attributes:
        views: The monitors' windows that are due; none between strides, or while a new champion has no baseline. Windows of
            another version than the champion are passed over.
        baseline: The champion's record, where there are views.
        signals: For retraining; None where retraining is not to be decided now.
        trained: A campaign that ended.
        under_way: The campaign that goes on; None where none does, or nothing limits it.
        rollout: For the rollout that is on. What the state knows itself (safe mode, switches, what is withdrawn, what waits) is
            filled in from there.
        readings: What safety limits are read from beside the views; in safe mode those of what serves then.
        orders: What people order.
        refused: What was ordered in people's names, and is not their word.
        faults: Faults and clean measurements of devices and versions in one window, from elsewhere than monitors.
        decides_otherwise: Waiting versions whose decision thresholds are not the champion's.
        roles: Who may order and approve what.
        num_devices: Devices of the fleet, those kept out included; None where nobody has counted them, and nobody can say whether a
            rollout's steps have devices enough.
    """

    views: tuple[FleetView, ...] = ()
    baseline: Baseline | None = None
    signals: Signals | None = None
    trained: Trained | None = None
    under_way: UnderWay | None = None
    rollout: RolloutEvidence = field(default_factory=RolloutEvidence)
    readings: tuple[Reading, ...] = ()
    orders: tuple[Order, ...] = ()
    refused: tuple[Refused, ...] = ()
    faults: QuarantineEvidence | None = None
    decides_otherwise: frozenset[int] = frozenset()
    roles: Roles = field(default_factory=Roles)
    num_devices: int | None = None
