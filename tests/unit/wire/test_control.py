"""Reports as messages: there and back, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.monitoring.reports import (
    NUM_CONFIDENCE_BINS,
    NUM_DELAY_BINS,
    NUM_DISTANCE_BINS,
    NUM_LATENCY_BINS,
    LabelReports,
    Reports,
)
from fedretrain.training.keep import Verdict
from fedretrain.wire.control import (
    Alert,
    MalformedError,
    Refreshed,
    ReportShape,
    decode,
    encode_alert,
    encode_labels,
    encode_refreshed,
    encode_report,
    shadow_version,
)
from fedretrain.wire.v1 import fleet_pb2 as pb

SHAPE = ReportShape(num_features=3, num_cells=5, num_outputs=4)
PACKAGE = "ab" * 32


def _head(rng):
    return {
        "device_K": np.array([7]),
        "slot_K": rng.integers(0, 1000, 1),
        "version_K": np.array([3]),
        "sequence_K": rng.integers(0, 2**32, 1),
        "sent_at_K": np.array([12.5]),
    }


def _report(seed=0, **columns):
    rng = np.random.default_rng(seed)

    def counts(*shape):
        return rng.integers(0, 100, (1, *shape)).astype(np.int32)

    return Reports(
        **_head(rng),
        bins="bins",
        features_KFC=counts(3, 5),
        violations_KF=counts(3),
        outputs_KM=counts(4),
        confidence_KB=counts(NUM_CONFIDENCE_BINS),
        entropy_KB=counts(NUM_CONFIDENCE_BINS),
        latency_KL=counts(NUM_LATENCY_BINS),
        kpis={"false_alarms": np.array([[2.0, 0.5]])},
        **columns,
    )


PERSONAL = {
    "distance_KP": np.arange(NUM_DISTANCE_BINS, dtype=np.int32)[None],
    "gap_K2": np.array([[-0.125, 3.0]]),
    "bases_K2": np.array([[2, 1]], np.int32),
}


def _labels(seed=0, *, classification=True):
    rng = np.random.default_rng(seed)
    return LabelReports(
        **_head(rng),
        confusion_KMM=rng.integers(0, 9, (1, 4, 4)).astype(np.int32) if classification else None,
        error_K2=None if classification else np.array([[1.5, 3.0]]),
        calibration_KB2=rng.integers(0, 9, (1, NUM_CONFIDENCE_BINS, 2)).astype(np.int32),
        delay_KD=rng.integers(0, 9, (1, NUM_DELAY_BINS)).astype(np.int32),
        log_loss_K=rng.integers(0, 9_000, 1) if classification else None,
    )


def _same(one, other):
    assert one._arrays().keys() == other._arrays().keys()
    for name, value in one._arrays().items():
        np.testing.assert_array_equal(value, other._arrays()[name], err_msg=name)


@pytest.mark.parametrize("seed", range(3))
def test_a_report_comes_back_as_it_was(seed):
    rows = _report(seed)
    _same(decode(encode_report(rows, PACKAGE), 7, 12.5, SHAPE, {PACKAGE: 3}.get), rows)


@pytest.mark.parametrize("names", [(), ("gap_K2",), ("bases_K2", "distance_KP"), tuple(PERSONAL)])
def test_what_is_said_of_personal_models_comes_back_and_silence_too(names):
    rows = _report(**{name: PERSONAL[name] for name in names})
    read = decode(encode_report(rows, PACKAGE), 7, 12.5, SHAPE, {PACKAGE: 3}.get)
    _same(read, rows)
    assert [getattr(read, name) is not None for name in PERSONAL] == [name in names for name in PERSONAL]


def test_nothing_counted_is_not_silence():
    rows = _report(**{name: np.zeros_like(column) for name, column in PERSONAL.items()})
    _same(decode(encode_report(rows, PACKAGE), 7, 12.5, SHAPE, {PACKAGE: 3}.get), rows)


@pytest.mark.parametrize("classification", [True, False])
def test_labels_come_back_as_they_were(classification):
    rows = _labels(classification=classification)
    shape = ReportShape(3, 5, 4, classification)
    _same(decode(encode_labels(rows, PACKAGE), 7, 12.5, shape, {PACKAGE: 3}.get), rows)


def test_what_is_only_scored_has_a_version_of_its_own():
    read = decode(encode_report(_report(), PACKAGE, shadow=True), 7, 0.0, SHAPE, {PACKAGE: 3}.get)
    assert read.version_K.tolist() == [shadow_version(3)]


def test_the_sender_is_not_what_the_message_says():
    assert decode(encode_report(_report(), PACKAGE), 9, 0.0, SHAPE, {PACKAGE: 3}.get).device_K.tolist() == [9]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"features": [1, 2]}, "features"),
        ({"outputs": [1] * 5}, "outputs"),
        ({"latency": [2**32 - 1] * NUM_LATENCY_BINS}, "latency"),
        ({"distance": [1]}, "distance"),
        ({"gap": [0.5, 1.0, 1.0]}, "gap"),
        ({"bases": [1]}, "bases"),
        ({"bases": [2**31, 1]}, "bases"),
        ({"slot": 2**60}, "slot"),
        ({"package": "cd" * 32}, "package"),
    ],
)
def test_a_report_of_another_shape_is_refused_by_name(change, named):
    payload = pb.Payload.FromString(encode_report(_report(), PACKAGE))
    message = payload.report
    for field, value in change.items():
        if isinstance(value, list):
            del getattr(message, field)[:]
            getattr(message, field).extend(value)
        else:
            setattr(message, field, value)
    with pytest.raises(MalformedError, match=f"^{named}:"):
        decode(payload.SerializeToString(), 7, 0.0, SHAPE, {PACKAGE: 3}.get)


def test_too_many_kpis_are_refused():
    payload = pb.Payload.FromString(encode_report(_report(), PACKAGE))
    message = payload.report
    for i in range(100):
        message.kpis[f"k{i}"].total = 1.0
    with pytest.raises(MalformedError, match="kpis"):
        decode(payload.SerializeToString(), 7, 0.0, SHAPE, {PACKAGE: 3}.get)


def test_an_alert_comes_back():
    payload = encode_alert("local_rollback", PACKAGE, "x" * 9999)
    assert decode(payload, 7, 0.0, SHAPE, {}.get) == Alert(7, "local_rollback", PACKAGE, "x" * 500)


@pytest.mark.parametrize("payload", [b"", pb.Payload(alert=pb.Alert()).SerializeToString()])
def test_what_says_nothing_is_refused(payload):
    with pytest.raises(MalformedError):
        decode(payload, 7, 0.0, SHAPE, {}.get)


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(payload):
    try:
        read = decode(payload, 7, 0.0, SHAPE, {PACKAGE: 3}.get)
    except MalformedError:
        return
    assert isinstance(read, Alert)  # a report cannot come about by chance: its counts have exact numbers


@given(st.data())
def test_a_flipped_byte_is_read_or_refused(data):
    payload = bytearray(encode_report(_report(), PACKAGE))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        rows = decode(bytes(payload), 7, 0.0, SHAPE, {PACKAGE: 3}.get)
    except MalformedError:
        return
    assert isinstance(rows, Reports)
    assert (rows.features_KFC.shape, rows.outputs_KM.shape) == ((1, 3, 5), (1, 4))
    assert (rows.features_KFC >= 0).all()


@pytest.mark.parametrize("verdict", list(Verdict))
def test_what_became_of_a_refresh_goes_there_and_back(verdict):
    found = decode(encode_refreshed(4, PACKAGE, verdict), 7, 0.0, SHAPE, {}.get)
    assert found == Refreshed(7, 4, PACKAGE, verdict)


def test_a_verdict_that_nobody_knows_is_refused_by_name():
    told = pb.Payload(refreshed=pb.Refreshed(refresh=1, verdict="splendid")).SerializeToString()
    with pytest.raises(MalformedError, match="refreshed"):
        decode(told, 7, 0.0, SHAPE, {}.get)
