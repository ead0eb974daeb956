"""Reports of a device as messages of the control plane, and back.

Rules of this file:
    * A message is untrusted: sizes are checked against what is expected before an array is made, and what does not fit is a
      `MalformedError` that names the field.
    * A device names packages by digest; whoever knows the fleet's versions maps them to numbers (`version_of`).
    * A candidate that is scored in shadow reports under a version of its own (`shadow_version`), so that what is served and
      what is only scored are never added.

Shapes: as in `monitoring.reports`, K = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError

from fedretrain.core.errors import FedretrainError
from fedretrain.monitoring.reports import (
    NUM_CONFIDENCE_BINS,
    NUM_DELAY_BINS,
    NUM_DISTANCE_BINS,
    NUM_LATENCY_BINS,
    LabelReports,
    Reports,
)
from fedretrain.training.keep import Verdict
from fedretrain.wire.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

PROTOCOL = 1
"""The version of the control plane that this release speaks."""

CALL_S = 20.0
"""How long a device waits for the answer to a call: what is left of it tells the gateway how long the call waited there (`server.lateness`)."""
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""No message is longer, either way."""
FIXED_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 20))
"""Both ends' windows, not found by a probe: it answers each of a device's few small messages with a ping, a quarter of what a heartbeat costs."""

SHADOW = 1 << 30
"""Added to a version's number where it was scored in shadow, not served."""

MAX_KPIS = 64
MAX_KIND = 40
MAX_DETAIL = 500
MAX_EVALUATION = 100
NO_TELEMETRY = -1.0
"""The length of a slot that tells devices to report nothing."""
_MAX_SLOT = 1 << 40
_MAX_COUNT = 2**31 - 1
_MAX_SUM = 2**53


class MalformedError(FedretrainError):
    """A message that is not what it says. Names the field."""


@dataclass(frozen=True)
class ReportShape:
    """What a report must look like.

    Attributes:
        num_features: F.
        num_cells: C.
        num_outputs: M.
        classification: Labels come as confusion counts.
    """

    num_features: int
    num_cells: int
    num_outputs: int
    classification: bool = True


@dataclass(frozen=True)
class Alert:
    """Something that a person should know of a device.

    Attributes:
        device: Its number.
        kind: One word.
        package: Digest of the package that it is about; may be empty.
        detail: For people.
    """

    device: int
    kind: str
    package: str
    detail: str


@dataclass(frozen=True)
class Refreshed:
    """What became of a refresh that a device was ordered.

    Attributes:
        device: Its number.
        refresh: Which, as the assignment numbers it.
        package: Digest of what it was re-fitted beside.
        verdict: Whether it was kept, or why not.
    """

    device: int
    refresh: int
    package: str
    verdict: Verdict


@dataclass(frozen=True)
class Evaluated:
    """A device's answer to a federated evaluation; `wire.answers` reads it, once it is known what was asked.

    Attributes:
        device: Its number.
        evaluation: Which, by its own word.
        content: The message.
    """

    device: int
    evaluation: str
    content: bytes


def shadow_version(version: int) -> int:
    """The number under which a candidate's shadow scores are kept."""
    return version + SHADOW


def encode_report(rows: Reports, package: str, *, shadow: bool = False) -> bytes:
    """One row of telemetry as a message.

    Args:
        rows: K = 1.
        package: Digest of what predicted.
        shadow: Whether it was only scored.
    """
    report = pb.DeviceReport(
        package=package,
        shadow=shadow,
        slot=int(rows.slot_K[0]),
        row=int(rows.sequence_K[0]),
        bins=rows.bins,
        features=_flat(rows.features_KFC),
        violations=_flat(rows.violations_KF),
        outputs=_flat(rows.outputs_KM),
        confidence=_flat(rows.confidence_KB),
        entropy=_flat(rows.entropy_KB),
        latency=_flat(rows.latency_KL),
        kpis={name: pb.Kpi(total=float(v[0, 0]), weight=float(v[0, 1])) for name, v in rows.kpis.items()},
        distance=_optional(rows.distance_KP),
        gap=_optional(rows.gap_K2),
        bases=_optional(rows.bases_K2),
    )
    return pb.Payload(report=report).SerializeToString()


def encode_labels(rows: LabelReports, package: str, *, shadow: bool = False) -> bytes:
    """One row of labels as a message; arguments as for `encode_report`."""
    labels = pb.LabelReport(
        package=package,
        shadow=shadow,
        slot=int(rows.slot_K[0]),
        row=int(rows.sequence_K[0]),
        confusion=_optional(rows.confusion_KMM),
        error=_optional(rows.error_K2),
        calibration=_flat(rows.calibration_KB2),
        log_loss=0 if rows.log_loss_K is None else int(rows.log_loss_K[0]),
        delay=_flat(rows.delay_KD),
    )
    return pb.Payload(labels=labels).SerializeToString()


def encode_alert(kind: str, package: str = "", detail: str = "") -> bytes:
    """Something that a person should know of a device.

    Args:
        kind: One word, such as ``local_rollback``.
        package: Digest of the package that it is about.
        detail: For people; cut to `MAX_DETAIL` characters.
    """
    return pb.Payload(
        alert=pb.Alert(kind=kind, package=package, detail=detail[:MAX_DETAIL])
    ).SerializeToString()


def encode_refreshed(refresh: int, package: str, verdict: Verdict) -> bytes:
    """What became of a refresh that the device was ordered; see `Refreshed`."""
    told = pb.Refreshed(refresh=refresh, package=package, verdict=verdict.value)
    return pb.Payload(refreshed=told).SerializeToString()


def decode(
    payload: bytes, device: int, sent_at: float, shape: ReportShape, version_of: Callable[[str], int | None]
) -> Reports | LabelReports | Alert | Refreshed | Evaluated:
    """What a record says.

    Args:
        payload: The message.
        device: Number of the device that sent it, by its certificate.
        sent_at: Its clock when it sent.
        shape: What to expect.
        version_of: The number of a package; None where it was never released.

    Raises:
        MalformedError: If it is no such message, or has another shape.
    """
    message = _parse(payload)
    what = message.WhichOneof("what")
    if what == "alert":
        alert = message.alert
        if not 0 < len(alert.kind) <= MAX_KIND or len(alert.detail) > MAX_DETAIL:
            raise MalformedError("alert: without a kind, or too long")
        return Alert(device, alert.kind, alert.package, alert.detail)
    if what == "refreshed":
        return _refreshed(message.refreshed, device)
    if what == "evaluation":
        name = message.evaluation.evaluation
        if not 0 < len(name) <= MAX_EVALUATION:
            raise MalformedError("evaluation: without a name, or too long")
        return Evaluated(device, name, message.evaluation.SerializeToString())
    if what is None:
        raise MalformedError("payload: says nothing")
    if what == "report":
        return _reports(message.report, _head(message.report, device, sent_at, version_of), shape)
    return _label_reports(message.labels, _head(message.labels, device, sent_at, version_of), shape)


def _refreshed(message: pb.Refreshed, device: int) -> Refreshed:
    if message.verdict not in set(Verdict):
        raise MalformedError("refreshed: a verdict that nobody knows")
    return Refreshed(device, message.refresh, message.package, Verdict(message.verdict))


def _reports(message: pb.DeviceReport, head: dict[str, NDArray[Any]], shape: ReportShape) -> Reports:
    if len(message.kpis) > MAX_KPIS:
        raise MalformedError(f"kpis: {len(message.kpis)}, at most {MAX_KPIS}")
    cells = (shape.num_features, shape.num_cells)
    return Reports(
        **head,
        bins=message.bins,
        features_KFC=_counts("features", message.features, cells),
        violations_KF=_counts("violations", message.violations, (shape.num_features,)),
        outputs_KM=_counts("outputs", message.outputs, (shape.num_outputs,)),
        confidence_KB=_counts("confidence", message.confidence, (NUM_CONFIDENCE_BINS,)),
        entropy_KB=_counts("entropy", message.entropy, (NUM_CONFIDENCE_BINS,)),
        latency_KL=_counts("latency", message.latency, (NUM_LATENCY_BINS,)),
        kpis={name: np.array([[kpi.total, kpi.weight]]) for name, kpi in message.kpis.items()},
        distance_KP=_counts("distance", message.distance, (NUM_DISTANCE_BINS,)) if message.distance else None,
        gap_K2=_reals("gap", message.gap, 2) if message.gap else None,
        bases_K2=_counts("bases", message.bases, (2,)) if message.bases else None,
    )


def _label_reports(
    message: pb.LabelReport, head: dict[str, NDArray[Any]], shape: ReportShape
) -> LabelReports:
    square = (shape.num_outputs, shape.num_outputs)
    confusion = _counts("confusion", message.confusion, square) if shape.classification else None
    return LabelReports(
        **head,
        confusion_KMM=confusion,
        error_K2=None if shape.classification else _reals("error", message.error, 2),
        calibration_KB2=_counts("calibration", message.calibration, (NUM_CONFIDENCE_BINS, 2)),
        delay_KD=_counts("delay", message.delay, (NUM_DELAY_BINS,)),
        log_loss_K=_sum("log_loss", message.log_loss) if shape.classification else None,
    )


def _head(
    message: Any, device: int, sent_at: float, version_of: Callable[[str], int | None]
) -> dict[str, NDArray[Any]]:
    """What both kinds of rows carry."""
    if message.slot > _MAX_SLOT:
        raise MalformedError(f"slot: {message.slot}")
    version = version_of(message.package)
    if version is None:
        raise MalformedError("package: nobody released it")
    return {
        "device_K": np.array([device], dtype=np.int64),
        "slot_K": np.array([message.slot], dtype=np.int64),
        "version_K": np.array([shadow_version(version) if message.shadow else version], dtype=np.int64),
        "sequence_K": np.array([message.row], dtype=np.int64),
        "sent_at_K": np.array([sent_at], dtype=np.float64),
    }


def _parse(payload: bytes) -> pb.Payload:
    message = pb.Payload()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise MalformedError("payload: not readable") from error
    return message


def _counts(name: str, values: Sequence[int], shape: tuple[int, ...]) -> NDArray[np.int32]:
    """``[1, *shape]``; the number of values is checked before an array is made."""
    if len(values) != math.prod(shape):
        raise MalformedError(f"{name}: {len(values)} counts, not {math.prod(shape)}")
    if values and max(values) > _MAX_COUNT:
        raise MalformedError(f"{name}: a count above {_MAX_COUNT}")
    return np.array(values, dtype=np.int32).reshape(1, *shape)


def _sum(name: str, value: int) -> NDArray[np.int64]:
    """``[1]``."""
    if value > _MAX_SUM:
        raise MalformedError(f"{name}: a sum above {_MAX_SUM}")
    return np.array([value], dtype=np.int64)


def _reals(name: str, values: Sequence[float], size: int) -> NDArray[np.float64]:
    if len(values) != size:
        raise MalformedError(f"{name}: {len(values)} numbers, not {size}")
    return np.array([values], dtype=np.float64)


def _flat(array: NDArray[Any]) -> list[Any]:
    flat: list[Any] = array.reshape(-1).tolist()
    return flat


def _optional(array: NDArray[Any] | None) -> list[Any]:
    """Nothing where there is none: no array here is empty."""
    return [] if array is None else _flat(array)
