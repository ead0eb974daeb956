"""What devices serve and predict: against the model itself, and who keeps what when versions come and go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call

from fedretrain.artifacts.decision import NOT_FINITE
from fedretrain.training.executor import executor_for
from sim.lifetime.serving import Outputs
from tests.lifetime_cases import HOUR, born, small


def test_outputs_keep_label_confidence_and_entropy():
    outputs = Outputs.empty(4)
    outputs.put(np.array([2, 0, 3]), np.log(np.array([[0.2, 0.8], [0.5, 0.5], [np.nan, 1.0]], np.float32)))
    assert outputs.label.tolist() == [0, NOT_FINITE, 1, NOT_FINITE]
    np.testing.assert_allclose(outputs.confidence, [0.5, 0.0, 0.8, 0.0], rtol=1e-6)
    expected = -(0.2 * np.log2(0.2) + 0.8 * np.log2(0.8))
    np.testing.assert_allclose(outputs.entropy, [1.0, 1.0, expected, 1.0], rtol=1e-6)


@pytest.fixture(params=["finetune", "fedavg", "fedper"])
def living(request):
    return made(request.param)


def made(method, *words):
    return born(small(6, 2, f"personalization={method}", "lifetime.initial_rounds=12", *words))


def by_hand(living, row, version):
    """Class probabilities of one row by the model of its device, with plain torch."""
    task, versions, device = living.arm.task, living.serving.versions, int(living.rows.device[row])
    tree = {n: torch.from_numpy(np.array(leaf)) for n, leaf in versions.shared[version].items()}
    own = versions.personal[version].get(device) if task.personal.size else None
    if own is None:
        params = task.global_params(tree)
    else:
        params = task.model_params(
            tree, {n: torch.from_numpy(v) for n, v in task.personal.unpack(own).items()}
        )
    logits = functional_call(living.arm.model.module, params, (torch.from_numpy(living.rows.x[row][None]),))
    return torch.softmax(logits, dim=1)[0].detach().numpy()


def test_a_row_is_predicted_by_the_model_of_its_own_device(living):
    rows = living.rows.between(0.0, 6 * HOUR)
    which = np.arange(rows.start, rows.stop)
    if living.arm.task.personal.size:
        living.serving.versions.personal[1].pop(3, None)  # one device has no personal state
        assert len(living.serving.versions.personal[1]) == 5
    living.serving.predict_served(which)
    outputs = living.serving.outputs
    for row in which:
        share = by_hand(living, row, 1)
        assert outputs.label[row] == share.argmax()
        assert outputs.confidence[row] == pytest.approx(share.max(), abs=2e-5)
    assert (living.serving.row_version[which] == 1).all()
    found = living.serving.probabilities(which[::-1], 1)
    np.testing.assert_allclose(found, [by_hand(living, row, 1) for row in which[::-1]], atol=2e-5)


def test_the_reference_executor_says_the_same_of_inputs_that_are_nobodys(living):
    arm = living.arm
    inputs = living.rows.x[:5]
    each = executor_for("each", arm.task, arm.model, arm.training)
    found = living.serving.of_inputs(inputs, 1, arm.executor)
    np.testing.assert_allclose(found, living.serving.of_inputs(inputs, 1, each), atol=1e-4)


def worse(living):
    """Version 2: a model that has forgotten everything."""
    versions = living.serving.versions
    versions.add(2, {name: np.zeros_like(leaf) for name, leaf in versions.shared[1].items()}, {})


def test_a_device_refuses_what_its_own_labels_speak_against_and_stays_where_it_was(living):
    worse(living)
    before = living.serving.versions.personal[1]
    installed = living.serving.install(np.array([1, 4]), 2, at=0.0)
    assert installed.devices.tolist() == [1, 4]
    assert installed.refused.all()
    assert (living.serving.version == 1).all()
    assert living.serving.versions.personal[1] is before
    told = living.serving.told.take(np.arange(6))
    assert told.bases_K2.tolist() == [[int(device in (1, 4))] * 2 for device in range(6)]


def test_devices_tell_what_their_personal_models_gain_and_how_far_they_are(living):
    everybody, serving = np.arange(6), living.serving
    personal = living.arm.task.personal.size > 0
    slots = round(living.life.baseline_s / HOUR)
    first = living.watch.trial.served.personal(
        slots, slots
    )  # of the first champion, reported before the life
    assert (first.gap_D2[:, 1] == personal).all()
    kept = serving.versions.personal[1].keys() if personal else set()
    assert first.distance_DP.sum(axis=1).tolist() == [int(device in kept) for device in range(6)]
    assert not first.bases_D2.any()
    assert not any(part.any() for part in serving.told.take(everybody))
    serving.versions.add(2, serving.versions.shared[1], {})
    serving.prepare(everybody, 2, at=0.0)  # only scored, in shadow
    assert not any(part.any() for part in serving.told.take(everybody))
    serving.refit(everybody, at=0.0)
    again = serving.told.take(everybody)
    assert (again.gap_K2[:, 1] == personal).all()
    assert not again.bases_K2.any()
    installed = serving.install(everybody[:3], 2, at=0.0)
    there = serving.told.take(everybody)
    assert there.bases_K2[:, 0].tolist() == [1, 1, 1, 0, 0, 0]
    assert there.bases_K2[:3, 1].tolist() == installed.refused.tolist()
    serving.install(everybody, 1, at=0.0)  # the way back asks nobody
    assert not any(part.any() for part in serving.told.take(everybody))


@pytest.mark.parametrize("method", ["finetune", "fedavg"])
def test_a_good_version_is_installed_by_those_who_are_asked(method):
    living = made(method, "blend.tolerance=1.0")
    versions = living.serving.versions
    versions.add(2, versions.shared[1], {})
    installed = living.serving.install(np.array([1, 4]), 2, at=0.0)
    assert not installed.refused.any()
    assert living.serving.version.tolist() == [1, 2, 1, 1, 2, 1]
    assert set(versions.personal[2]) == ({1, 4} if living.arm.task.personal.size else set())


def test_the_way_back_needs_no_check_and_finds_everything_as_it_was(living):
    rows = living.rows.between(0.0, HOUR)
    which = np.arange(rows.start, rows.stop)
    serving, versions = living.serving, living.serving.versions
    serving.predict_served(which)
    kept = {device: row.copy() for device, row in versions.personal[1].items()}
    label, confidence = serving.outputs.label[which].copy(), serving.outputs.confidence[which].copy()
    moved = {name: leaf * np.float32(1.01) for name, leaf in versions.shared[1].items()}
    versions.add(2, moved, {})
    everybody = np.arange(6)
    there = serving.install(everybody, 2, at=0.0)
    serving.predict_served(which)
    assert not np.array_equal(serving.outputs.confidence[which], confidence)
    back = serving.install(everybody[~there.refused], 1, at=HOUR)
    assert not back.refused.any()
    serving.predict_served(which)
    np.testing.assert_array_equal(serving.outputs.label[which], label)
    np.testing.assert_array_equal(serving.outputs.confidence[which], confidence)
    assert versions.personal[1].keys() == kept.keys()
    for device, row in kept.items():
        np.testing.assert_array_equal(versions.personal[1][device], row)


@pytest.mark.parametrize("method", ["finetune", "fedavg"])
def test_a_personal_state_goes_along_to_the_next_version(method):
    living = made(method, "blend.tolerance=1.0")
    versions = living.serving.versions
    versions.add(2, versions.shared[1], {})
    taken = living.serving.personal_before(np.array([0, 2]), 2)
    if not living.arm.task.personal.size:
        assert taken == {}
        return
    assert set(taken) == {0, 2}
    assert taken[0] is versions.personal[1][0]
    living.serving.prepare(np.array([0]), 2, at=0.0)
    assert living.serving.version[0] == 1  # prepared, not served
    assert living.serving.personal_before(np.array([0]), 2)[0] is versions.personal[2][0]


def test_without_personal_state_there_is_nothing_to_refresh(living):
    kept = living.serving.refit(np.arange(6), at=0.0)
    assert (kept > 0) == (living.arm.task.personal.size > 0)
