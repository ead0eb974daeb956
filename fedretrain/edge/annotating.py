"""Labels that people brought to the coordinator: taken here as any other of people, and answered for.

Rules of this file:
    * Taking one again changes nothing, so an answer that was lost is given again.
    * What is answered is whether the prediction is still known, and which heuristics had labelled it as the annotation does. The labels
      themselves stay here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.core.errors import DataError
from fedretrain.edge.examples import API, HEURISTIC
from fedretrain.wire.control import PROTOCOL
from fedretrain.wire.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    from fedretrain.edge.control import ControlClient
    from fedretrain.edge.device import DeviceRuntime

_MOST_CALLS = 20
"""In one visit; the rest follows with the next."""


def take_annotations(runtime: DeviceRuntime, client: ControlClient) -> None:
    """Fetch what waits, take it, and answer, until nothing waits.

    Raises:
        ControlError: If the coordinator cannot be reached.
    """
    outcomes: list[pb.AnnotationOutcome] = []
    for _ in range(_MOST_CALLS):
        reply = client.annotate(pb.AnnotateRequest(protocol=PROTOCOL, outcomes=outcomes))
        if not reply.annotations:
            return
        outcomes = [_taken(runtime, one) for one in reply.annotations]
    client.annotate(pb.AnnotateRequest(protocol=PROTOCOL, outcomes=outcomes))


def _taken(runtime: DeviceRuntime, one: pb.Annotation) -> pb.AnnotationOutcome:
    """Take one annotation; what to answer."""
    try:
        found = runtime.label(one.of, one.label, API)
    except DataError:  # it is not kept any more, or this model has no such class
        return pb.AnnotationOutcome(number=one.number, known=False)
    said: dict[str, bool] = {}
    with runtime.store.database.mutex:
        for prediction in found:
            for label in runtime.store.served.history(prediction):
                if label.source.startswith(HEURISTIC):  # the last word of each counts
                    said[label.source.removeprefix(HEURISTIC)] = label.label == one.label
    heuristics = [pb.HeuristicOutcome(source=name, agreed=agreed) for name, agreed in sorted(said.items())]
    return pb.AnnotationOutcome(number=one.number, known=True, heuristics=heuristics)
