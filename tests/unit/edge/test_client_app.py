"""What a device answers to an order."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedretrain.core.ids import ClientId
from fedretrain.core.params import Layout
from fedretrain.core.types import ClientData, ClientFailure, FailureKind
from fedretrain.edge.client_app import Device
from fedretrain.edge.example_ledger import ExampleLedger
from fedretrain.edge.example_privacy import Account
from fedretrain.edge.training_data import FolderData
from fedretrain.training.config import ExampleDp, LocalTraining, MethodConfig, MethodKind, Upload
from fedretrain.training.upload import CLIP_MARGIN
from fedretrain.wire.records import (
    PLAN_OPTION,
    Reply,
    TrainOrder,
    WireError,
    decode_reply,
    decode_roll,
    encode_order,
    encode_roll,
)
from tests.flower_cases import PLAN, examples

if TYPE_CHECKING:
    from pathlib import Path

FEDPER = replace(PLAN, method=MethodConfig(MethodKind.FEDPER))


@pytest.fixture
def data(tmp_path: Path) -> FolderData:
    found = FolderData(tmp_path)
    found.put_examples(ClientId(3), examples(3))
    found.put_examples(ClientId(12), examples(12))
    return found


def order(client: int = 3, plan: str = "", **changes: object) -> TrainOrder:
    base = (FEDPER if "fedper" in plan else PLAN).make().first_shared()
    made = TrainOrder(ClientId(client), 4, base, 2, 9, at=50.0, options={PLAN_OPTION: plan or PLAN.to_text()})
    return replace(made, **changes)  # type: ignore[arg-type]


def answer(data: FolderData, asked: TrainOrder) -> Reply | ClientFailure:
    return decode_reply(asked, Layout.of(asked.base), Device(data).answer(encode_order(asked)))


def kind(found: Reply | ClientFailure) -> FailureKind:
    assert isinstance(found, ClientFailure)
    return found.kind


def test_it_trains_what_it_holds(data: FolderData) -> None:
    found = answer(data, order())
    assert isinstance(found, Reply)
    assert found.block.clients.tolist() == [3]
    assert np.linalg.norm(found.block.delta_KP) > 0


def test_the_same_order_gives_the_same_update(data: FolderData) -> None:
    one, other = answer(data, order()), answer(data, order())
    assert isinstance(one, Reply)
    assert isinstance(other, Reply)
    assert one.block.delta_KP.tobytes() == other.block.delta_KP.tobytes()
    again = answer(data, order(round=5))
    assert isinstance(again, Reply)
    assert again.block.delta_KP.tobytes() != one.block.delta_KP.tobytes()


def test_a_client_of_another_agent_is_refused(data: FolderData) -> None:
    assert kind(answer(data, order(4))) is FailureKind.REFUSED


def test_without_labels_there_is_nothing_to_train_on(data: FolderData) -> None:
    data.put_examples(ClientId(5), ClientData(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)))
    assert kind(answer(data, order(5))) is FailureKind.NO_DATA


def test_what_became_known_later_is_left_out(data: FolderData) -> None:
    data.put_examples(ClientId(5), examples(5), known_at=np.full(12, 60.0))
    assert kind(answer(data, order(5))) is FailureKind.NO_DATA
    assert isinstance(answer(data, order(5, at=60.0)), Reply)


@pytest.mark.parametrize("plan", ["", "{", '{"model":"mlp"}', '{"model":"os:system"}'])
def test_a_plan_that_is_none_is_refused(data: FolderData, plan: str) -> None:
    asked = order()
    found = answer(data, replace(asked, options={PLAN_OPTION: plan} if plan else {}))
    assert kind(found) is FailureKind.REFUSED


def test_the_parameters_of_another_model_are_refused(data: FolderData) -> None:
    asked = order()
    base = {name: leaf for name, leaf in asked.base.items() if not name.startswith("head")}
    assert kind(answer(data, replace(asked, base=base))) is FailureKind.REFUSED


def test_a_message_that_is_no_order_raises(data: FolderData) -> None:
    with pytest.raises(WireError):
        Device(data).answer(encode_roll([]))


def test_personal_state_stays_here_and_is_kept(data: FolderData) -> None:
    asked = order(plan=FEDPER.to_text())
    message = Device(data).answer(encode_order(asked))
    assert list(message.array_records) == ["fedretrain.update"]
    row = data.personal(ClientId(3))
    assert row is not None
    assert row.size == FEDPER.make().task.personal.size
    Device(data).answer(encode_order(asked))  # trains on from it
    later = data.personal(ClientId(3))
    assert later is not None
    assert later.tobytes() != row.tobytes()


def test_the_device_clips_to_a_little_more_than_the_clip_norm(data: FolderData) -> None:
    free, bound = answer(data, order()), answer(data, order(clip_norm=1e-3))
    assert isinstance(free, Reply)
    assert isinstance(bound, Reply)
    norm = float(np.linalg.norm(bound.block.delta_KP.astype(np.float64)))
    assert 1e-3 < norm <= 1e-3 * CLIP_MARGIN * (1 + 1e-6)  # so the server still sees that it was clipped
    cosine = float((bound.block.delta_KP * free.block.delta_KP).sum())
    assert cosine == pytest.approx(norm * float(np.linalg.norm(free.block.delta_KP)), rel=1e-5)


def test_a_short_update_is_not_touched(data: FolderData) -> None:
    free, bound = answer(data, order()), answer(data, order(clip_norm=1e3))
    assert isinstance(free, Reply)
    assert isinstance(bound, Reply)
    assert free.block.delta_KP.tobytes() == bound.block.delta_KP.tobytes()


def test_a_roll_call_names_the_clients(data: FolderData) -> None:
    assert decode_roll(Device(data).roll()) == (3, 12)
    assert decode_roll(None) == ()
    assert decode_roll(encode_order(order())) == ()


PRIVATE = replace(
    PLAN, training=LocalTraining(batch_size=4, epochs=0, max_steps=3, example_dp=ExampleDp(1.5, 0.5))
)


def accounted(data: FolderData, folder: Path, **changes: object) -> ExampleLedger:
    account = Account(str(folder / "ledger.db"), 0.0, 1e-5)
    data.put_account(ClientId(3), replace(account, **changes))  # type: ignore[arg-type]
    return ExampleLedger(folder / "ledger.db")


def refusal(data: FolderData, asked: TrainOrder) -> str:
    found = answer(data, asked)
    assert isinstance(found, ClientFailure)
    assert found.kind is FailureKind.REFUSED
    return found.detail


def test_an_update_is_charged_before_it_is_answered(data: FolderData, tmp_path: Path) -> None:
    ledger = accounted(data, tmp_path)
    for round_ in range(2):
        assert isinstance(answer(data, order(plan=PRIVATE.to_text(), round=round_)), Reply)
        assert len(ledger.rows()) == round_ + 1
    charge = ledger.rows()[-1].charge
    assert (charge.round, charge.num_examples, charge.num_steps) == (1, 12, 3)
    assert (charge.sample_rate, charge.noise_multiplier, charge.clip_norm) == (4 / 12, 1.5, 0.5)


def test_the_same_order_twice_is_two_updates_with_noise_of_their_own(
    data: FolderData, tmp_path: Path
) -> None:
    ledger = accounted(data, tmp_path)
    one, other = (answer(data, order(plan=PRIVATE.to_text())) for _ in range(2))
    assert isinstance(one, Reply)
    assert isinstance(other, Reply)
    assert not np.array_equal(one.block.delta_KP, other.block.delta_KP)
    assert len(ledger.rows()) == 2


def test_a_spent_budget_is_refused_by_name_and_nothing_is_charged(data: FolderData, tmp_path: Path) -> None:
    ledger = accounted(data, tmp_path)
    answer(data, order(plan=PRIVATE.to_text()))
    accounted(data, tmp_path, epsilon=ledger.rows()[-1].epsilon)
    assert "the example budget of this device is spent" in refusal(data, order(plan=PRIVATE.to_text()))
    assert len(ledger.rows()) == 1
    assert isinstance(answer(data, order()), Reply)  # without example-level DP nothing is asked of it


def test_what_would_make_the_claim_false_is_refused_here_too(data: FolderData, tmp_path: Path) -> None:
    plan = PRIVATE.to_text()
    assert "keeps no ledger" in refusal(data, order(plan=plan))
    ledger = accounted(data, tmp_path)
    assert "without noise" in refusal(data, order(plan=plan, with_statistics=True))
    loud = replace(PRIVATE, training=replace(PRIVATE.training, example_dp=ExampleDp(0.0, 0.5)))
    assert "noise is off" in refusal(data, order(plan=loud.to_text()))
    fedrep = replace(PRIVATE, method=MethodConfig(MethodKind.FEDREP))
    assert "fedrep" in refusal(data, order(plan=fedrep.to_text()))
    batched = replace(PRIVATE, executor="batched")
    assert "use each" in refusal(data, order(plan=batched.to_text()))
    accounted(data, tmp_path, has_local=True)
    assert "own scaler" in refusal(data, order(plan=plan))
    accounted(data, tmp_path, delta=0.5)
    assert "not below 1/12" in refusal(data, order(plan=plan))
    assert ledger.rows() == ()


def test_a_head_that_was_fitted_without_noise_never_goes_into_private_training(
    data: FolderData, tmp_path: Path
) -> None:
    accounted(data, tmp_path)
    fedper = replace(PRIVATE, method=MethodConfig(MethodKind.FEDPER))
    size = fedper.make().task.personal.size
    own = np.full(size, 1e6, np.float32)  # would push every gradient
    data.commit_personal(ClientId(3), own, 1)
    base = fedper.make().first_shared()
    found = answer(data, replace(order(plan="fedper"), base=base, options={PLAN_OPTION: fedper.to_text()}))
    assert isinstance(found, Reply)
    assert np.isfinite(found.block.delta_KP).all()
    noised = data.personal(ClientId(3), noised=True)
    assert noised is not None
    assert np.abs(noised).max() < 1e3
    kept = data.personal(ClientId(3))
    assert kept is not None
    assert kept.tobytes() == own.tobytes()


PACKED = replace(PLAN, training=replace(PLAN.training, upload=Upload.INT8))


def test_a_quantised_update_is_nearly_the_whole_one_and_its_error_is_fed_back(data: FolderData) -> None:
    plan, device = PACKED.to_text(), Device(data, "c1")
    whole = answer(data, order())
    assert isinstance(whole, Reply)
    size, sent = whole.block.delta_KP.size, np.zeros(whole.block.delta_KP.size)
    for times in (1, 2, 3):
        asked = order(plan=plan)
        found = decode_reply(asked, Layout.of(asked.base), device.answer(encode_order(asked)))
        assert isinstance(found, Reply)
        headers = 2 * 128  # numpy's, of two small vectors
        assert found.size_bytes - headers <= 0.5 * 4 * size
        sent += found.block.delta_KP[0]
        left = data.residual(ClientId(3), "c1")
        assert left is not None
        np.testing.assert_allclose(sent + left, times * whole.block.delta_KP[0], atol=1e-5)
    assert left.shape == (size,)
    assert np.abs(left).max() > 0
    assert data.residual(ClientId(3), "c2") is None  # another campaign begins without it


def test_a_quantised_update_is_inside_the_bound(data: FolderData) -> None:
    bound = 1e-3
    for round_ in range(5):
        asked = order(plan=PACKED.to_text(), clip_norm=bound, round=round_)
        found = answer(data, asked)
        assert isinstance(found, Reply)
        assert bound < np.linalg.norm(found.block.delta_KP.astype(np.float64)) <= bound * CLIP_MARGIN
