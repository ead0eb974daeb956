"""Messages survive the trip, and a peer that sends nonsense is a value, not an exception."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.core.ids import ClientId
from fedretrain.core.params import Layout
from fedretrain.core.types import ClientFailure, FailureKind, UpdateBlock
from fedretrain.training.upload import pack, unpack
from fedretrain.wire.records import (
    Reply,
    TrainOrder,
    WireError,
    decode_order,
    decode_reply,
    encode_failure,
    encode_order,
    encode_update,
)

BASE = {
    "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "temperature": np.float32(2.5).reshape(()),
}
LAYOUT = Layout.of(BASE)


def order(**changes: object) -> TrainOrder:
    return TrainOrder(
        **{"client": ClientId(7), "round": 3, "base": BASE, "base_version": 2, "seed": 2**64 - 1, **changes}
    )


def block(delta: np.ndarray, client: int = 7, num_examples: int = 12) -> UpdateBlock:
    personal = np.full((1, 5), 99.0, dtype=np.float32)
    return UpdateBlock(
        np.array([client]), delta[None, :], np.array([num_examples]), np.array([0.5], np.float32), personal
    )


def through_flower(records: RecordDict) -> RecordDict:
    """To bytes and back, as Flower's transport does it."""
    return recorddict_from_proto(recorddict_to_proto(records))


def good_reply(sent: TrainOrder) -> RecordDict:
    return encode_update(sent, block(np.linspace(-1, 1, LAYOUT.size, dtype=np.float32)))


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_an_order_survives_the_trip(clip_norm: float | None) -> None:
    sent = order(
        clip_norm=clip_norm, at=12.5, deadline_s=math.inf, options={"experiment": "watch", "lr": 0.1, "k": 3}
    )
    got = decode_order(through_flower(encode_order(sent)))
    assert {name: leaf.tobytes() for name, leaf in got.base.items()} == {
        name: np.asarray(leaf).tobytes() for name, leaf in BASE.items()
    }
    assert got.base["temperature"].shape == ()
    assert (got.client, got.round, got.base_version, got.seed) == (7, 3, 2, 2**64 - 1)
    assert (got.clip_norm, got.at, got.deadline_s, got.with_statistics) == (clip_norm, 12.5, math.inf, False)
    assert dict(got.options) == {"experiment": "watch", "lr": 0.1, "k": 3}


@given(st.lists(st.floats(width=32), min_size=LAYOUT.size, max_size=LAYOUT.size))
def test_an_update_survives_bit_for_bit(values: list[float]) -> None:
    delta = np.array(values, dtype=np.float32)
    sent = order(with_statistics=True)
    got = decode_reply(sent, LAYOUT, through_flower(encode_update(sent, block(delta), busy_s=0.25)))
    assert isinstance(got, Reply)
    assert got.block.delta_KP[0].tobytes() == delta.tobytes()
    assert (got.block.num_examples[0], got.block.loss[0], got.busy_s) == (12, 0.5, 0.25)


def test_a_reply_carries_no_statistics_unless_asked_for() -> None:
    records = good_reply(order())
    (config,) = records.config_records.values()
    assert set(config) == {"format", "client", "round", "base_version", "layout"}
    assert not records.metric_records
    got = decode_reply(order(), LAYOUT, records)
    assert isinstance(got, Reply)
    assert got.block.num_examples[0] == 1
    assert np.isnan(got.block.loss[0])


def test_personal_state_has_no_place_in_a_reply() -> None:
    records = good_reply(order(with_statistics=True))
    arrays = [array.numpy() for record in records.array_records.values() for array in record.values()]
    assert [array.shape for array in arrays] == [(LAYOUT.size,)]
    assert not np.isin(99.0, arrays[0])


def test_an_error_reply_is_a_dropped_client() -> None:
    assert decode_reply(order(), LAYOUT, None) == ClientFailure(
        ClientId(7), FailureKind.DROPPED, "an error reply"
    )


def test_a_device_may_refuse() -> None:
    records = through_flower(encode_failure(order(), FailureKind.REFUSED, "on battery" + "!" * 1000))
    got = decode_reply(order(), LAYOUT, records)
    assert isinstance(got, ClientFailure)
    assert got.kind is FailureKind.REFUSED
    assert got.detail.startswith("on battery")
    assert len(got.detail) <= 200


@pytest.mark.parametrize("changes", [{"base_version": 1}, {"round": 2}])
def test_an_update_from_another_base_is_stale(changes: dict[str, int]) -> None:
    got = decode_reply(order(), LAYOUT, good_reply(order(**changes)))
    assert isinstance(got, ClientFailure)
    assert got.kind is FailureKind.STALE


def _with_delta(array: Array) -> RecordDict:
    records = good_reply(order())
    records["fedretrain.update"] = ArrayRecord({"delta": array})
    return records


def _with_config(**changes: object) -> RecordDict:
    records = good_reply(order())
    config = {**dict(records.config_records["fedretrain.reply"]), **changes}
    records["fedretrain.reply"] = ConfigRecord({name: v for name, v in config.items() if v is not None})
    return records


def _raw(data: bytes) -> Array:
    return Array(dtype="float32", shape=(LAYOUT.size,), stype="numpy.ndarray", data=data)


def _claims_a_terabyte() -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, np.zeros(LAYOUT.size, np.float32))
    return file.getvalue().replace(f"({LAYOUT.size},)".encode(), b"(999999999999,)")


def _pickle() -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}] * LAYOUT.size, dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        _with_delta(Array(np.zeros(LAYOUT.size + 1, np.float32))),
        _with_delta(Array(np.zeros((1, LAYOUT.size), np.float32))),
        _with_delta(Array(np.zeros(LAYOUT.size, np.float64))),
        _with_delta(Array(np.zeros(LAYOUT.size, np.int32))),
        _with_delta(Array(np.zeros(100_000, np.float32))),
        _with_delta(_raw(b"")),
        _with_delta(_raw(b"\x93NUMPY garbage")),
        _with_delta(_raw(_claims_a_terabyte())),
        _with_delta(_raw(_pickle())),
        _with_delta(Array(dtype="float32", shape=(7,), stype="torch.Tensor", data=b"xx")),
        _with_config(format=2),
        _with_config(client=8),
        _with_config(client="7"),
        _with_config(layout="0" * 64),
        _with_config(layout=None),
        _with_config(round=None),
        _with_config(failure="no such kind"),
        RecordDict({"fedretrain.reply": good_reply(order())["fedretrain.reply"]}),
    ],
)
def test_nonsense_is_a_malformed_client(records: RecordDict) -> None:
    got = decode_reply(order(), LAYOUT, records)
    assert isinstance(got, ClientFailure)
    assert (got.client, got.kind) == (7, FailureKind.MALFORMED)


def test_a_missing_statistic_is_malformed() -> None:
    got = decode_reply(order(with_statistics=True), LAYOUT, good_reply(order()))
    assert isinstance(got, ClientFailure)
    assert got.kind is FailureKind.MALFORMED


def test_an_unreadable_order_is_named() -> None:
    with pytest.raises(WireError, match="no readable order"):
        decode_order(RecordDict())
    records = encode_order(order())
    records.config_records["fedretrain.order"]["format"] = 9
    with pytest.raises(WireError, match="format 9"):
        decode_order(records)


def test_an_update_of_another_client_is_our_own_defect() -> None:
    with pytest.raises(ValueError, match="client 7"):
        encode_update(order(), block(np.zeros(LAYOUT.size, np.float32), client=8))


def packed_reply(**changes: Array) -> tuple[TrainOrder, RecordDict]:
    sent, delta = order(), np.linspace(-1, 1, LAYOUT.size, dtype=np.float32)
    packed, _ = pack(delta[None, :], np.zeros((1, LAYOUT.size), np.float32), LAYOUT, None)
    records = encode_update(sent, block(delta), packed=packed)
    records.array_records["fedretrain.update"] = ArrayRecord(
        {**dict(records.array_records["fedretrain.update"].items()), **changes}
    )
    return sent, through_flower(records)


def test_a_quantised_update_is_read_as_the_device_knows_it() -> None:
    asked, records = packed_reply()
    found = decode_reply(asked, LAYOUT, records)
    assert isinstance(found, Reply)
    delta = np.linspace(-1, 1, LAYOUT.size, dtype=np.float32)[None, :]
    sent = unpack(pack(delta, np.zeros_like(delta), LAYOUT, None)[0], LAYOUT)
    assert found.block.delta_KP.tobytes() == sent.tobytes()
    assert found.size_bytes == sum(
        len(one.data) for one in records.array_records["fedretrain.update"].values()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"codes": Array(np.zeros(10**6, np.int8))},
        {"codes": Array(np.zeros(3, np.int8))},
        {"codes": Array(np.zeros(LAYOUT.size, np.float32))},
        {"scales": Array(np.zeros(10**6, np.float32))},
        {"scales": Array(np.zeros(1, np.float64))},
    ],
)
def test_codes_of_another_size_or_type_are_malformed(changes: dict[str, Array]) -> None:
    asked, records = packed_reply(**changes)
    found = decode_reply(asked, LAYOUT, records)
    assert isinstance(found, ClientFailure)
    assert found.kind is FailureKind.MALFORMED


def test_an_update_without_its_scales_is_malformed() -> None:
    asked, records = packed_reply()
    codes = records.array_records["fedretrain.update"]["codes"]
    records.array_records["fedretrain.update"] = ArrayRecord({"codes": codes})
    found = decode_reply(asked, LAYOUT, records)
    assert isinstance(found, ClientFailure)
    assert found.kind is FailureKind.MALFORMED
