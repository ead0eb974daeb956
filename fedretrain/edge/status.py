"""How a logical device is, as people ask it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedretrain.artifacts.identity import read_identity
from fedretrain.edge.example_ledger import LEDGER, shown

if TYPE_CHECKING:
    from fedretrain.edge.device import DeviceRuntime


def not_enrolled(name: str, mistake: str = "") -> dict[str, Any]:
    """What can be said of a device that has no place in its fleet yet.

    Args:
        name: Its id.
        mistake: Why it gets none until a person has mended something; empty where it goes on trying.
    """
    found = {"device": name, "enrolled": False, "serves": "", "safe_mode": False, "refused": ""}
    return {**found, "mistake": mistake, "example_privacy": None}


@dataclass(frozen=True)
class DeviceStatus:
    """A device, for people and scripts.

    Attributes:
        device: Its id.
        population: Its fleet.
        serves: Digest of the version that answers; empty: the rules baseline.
        shadows: Digest of the version that is scored beside it.
        safe_mode: Whether the coordinator has ordered the rules baseline.
        healthy: Whether what it serves has passed its checks and predicted.
        counter: Of the newest assignment.
        refused: A version that it would not serve.
        refused_reason: Why.
        holds: Versions in its slots.
        outputs: Names of the classes; empty before the first install.
        clock_at: Its clock, seconds since the epoch.
        clock_trusted: Whether that is trusted.
        pending_records: Records that wait to be sent.
        num_predictions: Predictions that are kept.
        num_labelled: Of those, with a label.
        heard_at: When the coordinator was heard last; 0 for never since the start.
        problem: What went wrong at the last visit.
        certificate_expires_at: When its certificate ends; it renews it before that.
        example_privacy: What example-level DP has cost its examples, with unit, relation and scope; None: nothing.
        enrolled: Whether it has a place in its fleet: every device that runs has.
    """

    device: str
    population: str
    serves: str
    shadows: str
    safe_mode: bool
    healthy: bool
    counter: int
    refused: str
    refused_reason: str
    holds: tuple[str, ...]
    outputs: tuple[str, ...]
    clock_at: float
    clock_trusted: bool
    pending_records: int
    num_predictions: int
    num_labelled: int
    heard_at: float
    problem: str
    certificate_expires_at: float
    example_privacy: dict[str, Any] | None
    enrolled: bool = True

    @classmethod
    def of(cls, runtime: DeviceRuntime) -> DeviceStatus:
        """Of a device that runs."""
        told, store, serving = runtime.remembered.value, runtime.store, runtime.answering.serving
        state, outbox = store.clock.look(), store.outbox.status()
        with store.database.mutex:
            num = store.reads()[0].size()
        model = serving.model
        return cls(
            device=runtime.joined.device,
            population=runtime.joined.population,
            serves=serving.version,
            shadows=serving.candidate,
            safe_mode=told.safe_mode,
            healthy=runtime.is_healthy,
            counter=told.counter,
            refused=told.refused,
            refused_reason=told.refused_reason,
            holds=runtime.slots.state.held,
            outputs=() if model is None else model.package.manifest.outputs,
            clock_at=state.guess_at,
            clock_trusted=state.at is not None,
            pending_records=outbox.num_stored + outbox.num_buffered,
            num_predictions=num + runtime.answering.num_waiting,
            num_labelled=sum(serving.rules.told.values()),
            heard_at=runtime.visit.heard_at,
            problem=runtime.visit.problem,
            certificate_expires_at=read_identity(runtime.joined.certificate.encode()).expires_at,
            example_privacy=shown(runtime.folder / LEDGER, runtime.config.training.example_budget),
        )
