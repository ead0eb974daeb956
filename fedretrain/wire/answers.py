"""What devices answer to a federated evaluation, as messages of the control plane, and back.

Rules of this file:
    * A message is untrusted: it is held against the question that was asked, and what does not fit is a `MalformedError` that
      names the field.
    * A device that has no counts says why, by a name of `FailureKind`: a failure is a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from fedretrain.core.errors import DataError
from fedretrain.core.types import FailureKind
from fedretrain.validation.answers import from_numbers, to_numbers
from fedretrain.wire.control import MalformedError
from fedretrain.wire.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    from fedretrain.validation.rows import Layout
    from fedretrain.validation.statistics import DeviceStatistics

_FIELDS = {
    "paired_DSTM4": "paired",
    "loss_DST2": "loss",
    "sound_DST": "sound",
    "confusion_D2MM": "confusion",
    "calibration_D2B3": "calibration",
    "segment_DQ4": "segment",
    "segment_loss_DQ2": "segment_loss",
    "broken_D2": "broken",
}
"""Where each sum of the statistics stands in the message."""
SAID = (FailureKind.NO_DATA, FailureKind.REFUSED, FailureKind.UNAVAILABLE)
"""What a device may say of itself; the others the server says of it."""


def encode_answer(evaluation: str, stats: DeviceStatistics) -> bytes:
    """What one device counted, D = 1."""
    answer = pb.EvaluationAnswer(evaluation=evaluation)
    for name, values in to_numbers(stats).items():
        getattr(answer, _FIELDS[name]).extend(values)
    return pb.Payload(evaluation=answer).SerializeToString()


def encode_no_answer(evaluation: str, failure: FailureKind) -> bytes:
    """Why a device counted nothing."""
    answer = pb.EvaluationAnswer(evaluation=evaluation, failure=failure.value)
    return pb.Payload(evaluation=answer).SerializeToString()


def decode_answer(
    content: bytes,
    layout: Layout,
    *,
    device: int,
    group: int,
    from_at: float,
    until_at: float,
    max_rows: int,
) -> DeviceStatistics | FailureKind:
    """What a device answered.

    Args:
        content: The message `control.Evaluated` holds.
        layout: The cells that were asked for.
        device: Who sent it, by its certificate.
        group: Its group.
        from_at: Where the period that was asked for begins.
        until_at: Where it ends.
        max_rows: The most rows that were asked for.

    Raises:
        MalformedError: If it is no answer to that.
    """
    message = pb.EvaluationAnswer()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise MalformedError("evaluation: not readable") from error
    if message.failure:
        known = {kind.value: kind for kind in SAID}
        if message.failure not in known:
            raise MalformedError("failure: one that no device says")
        return known[message.failure]
    numbers = {name: getattr(message, field) for name, field in _FIELDS.items()}
    try:
        return from_numbers(
            layout,
            numbers,
            device=device,
            group=group,
            from_at=from_at,
            until_at=until_at,
            max_rows=max_rows,
        )
    except DataError as error:
        raise MalformedError(f"{_FIELDS.get(error.where, error.where)}: {error.what}") from error
