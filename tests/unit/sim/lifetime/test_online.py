"""Online learning in a small life: steps against plain PyTorch, reverts, and who is predicted with what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from fedretrain.retraining.config import Mode, OnlineGuard, Strategy
from fedretrain.retraining.online import OnlineStatus, Resumed, Reverted, RevertReason
from sim.configure import configure
from sim.lifetime.loop import Living
from sim.lifetime.online import Learner
from sim.lifetime.policies import policies_of
from sim.lifetime.underway import live

SMALL = (
    "experiment=lifetime_synthetic",
    "runner=local",
    "drift=none",
    "availability=always",
    "labels=immediate",
    "fleet.num_devices=6",
    "fleet.num_sites=1",
    "fleet.num_types=1",
    "campaign.cohort_size=6",
    "lifetime.duration_s=172800",
    "fleet.generator.num_samples=624",  # 16 days of history by the hour, two of life by the tenth of one
    "fleet.generator.scored_fraction=0.384615",
    "lifetime.initial_rounds=2",
    "lifetime.retrain_rounds=2",
    "policies=[hybrid]",
)
LR, HOUR = 0.05, 3600.0


@pytest.fixture(scope="module", params=["finetune", "fedavg", "fedper"])
def living(request):
    config = configure([*SMALL, f"personalization={request.param}"])
    made = Living(config, policies_of(config.lifetime)[0], 0)
    made.begin()
    return made


def learner(living, **guard):
    made = Learner(living.arm, living.fleet, living.serving, OnlineGuard(**guard), LR)
    made.start(1)
    return made


def arrivals(living, start_at=0.0, end_at=6 * HOUR):
    return living.rows.labelled_between(start_at, end_at)


def whole_model(living, device):
    """What a device serves, as a tree of tensors."""
    versions, task = living.serving.versions, living.arm.task
    tree = {n: torch.from_numpy(np.array(leaf)) for n, leaf in versions.shared[1].items()}
    row = versions.personal[1].get(device) if task.personal.size else None
    if row is None:
        return task.global_params(tree)
    return task.model_params(tree, {n: torch.from_numpy(v) for n, v in task.personal.unpack(row).items()})


def flat(tree):
    return np.concatenate([tree[name].detach().numpy().ravel() for name in sorted(tree)]).astype(np.float64)


def by_hand(living, device, rows, guard):
    """Sample after sample with autograd: a gradient step, tied to the champion, no longer than the cap."""
    anchor = whole_model(living, device)
    now = {name: leaf.clone() for name, leaf in anchor.items()}
    for r in rows:
        leaves = {name: leaf.requires_grad_() for name, leaf in now.items()}
        logits = functional_call(living.arm.model.module, leaves, (torch.from_numpy(living.rows.x[r][None]),))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([int(living.rows.y[r])]))
        grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        place, champion, gradient = flat(leaves), flat(anchor), flat(grads)
        step = (
            champion + (place - champion - LR * gradient) / (1 + LR * guard.proximal) - place
        )  # the proximal term, taken implicitly
        step *= min(1.0, guard.max_step / np.linalg.norm(step))
        after, begin = place + step, 0
        for name in sorted(now):
            size = now[name].numel()
            leaf = after[begin : begin + size].reshape(tuple(now[name].shape)).astype(np.float32)
            now[name], begin = torch.from_numpy(leaf), begin + size
    return flat(now)


def test_a_copy_steps_as_by_hand(living):
    guard = OnlineGuard(max_step=0.05, proximal=0.5)
    online = learner(living, max_step=0.05, proximal=0.5)
    which = arrivals(living)
    changed, told = online.learn(which, 6 * HOUR)
    assert not told
    rows = living.rows
    for device in changed.tolist():
        mine = [r for r in which.tolist() if rows.device[r] == device and not living.fleet.held_out[r]]
        expected = by_hand(living, device, mine, guard)
        np.testing.assert_allclose(online._copies[device].params, expected, rtol=0, atol=2e-5)
    assert set(changed.tolist()) == set(range(6))


def test_held_out_rows_are_not_learnt(living):
    online = learner(living)
    held = arrivals(living, end_at=48 * HOUR)
    held = held[living.fleet.held_out[held]]
    changed, _ = online.learn(held, 48 * HOUR)
    assert len(held) > 0
    assert not len(changed)


def test_predictions_are_the_copys_and_the_others_stay(living):
    online = learner(living, max_step=1.0)
    which = arrivals(living, end_at=24 * HOUR)
    online.learn(which[living.rows.device[which] == 2], 24 * HOUR)
    coming = np.arange(*living.rows.between(24 * HOUR, 48 * HOUR).indices(len(living.rows))[:2])
    living.serving.predict_served(coming)
    before = living.serving.outputs.confidence.copy()
    online.predict(coming, living.serving.outputs)
    after = living.serving.outputs.confidence
    mine = living.rows.device[coming] == 2
    np.testing.assert_allclose(after[coming[~mine]], before[coming[~mine]], rtol=0, atol=1e-6)
    assert np.abs(after[coming[mine]] - before[coming[mine]]).max() > 1e-4


def test_beyond_its_distance_a_copy_goes_back_rests_and_goes_on(living):
    online = learner(living, max_distance=1e-6, rest_s=HOUR, max_reverts=2)
    first = arrivals(living)
    _, told = online.learn(first, 6 * HOUR)
    assert {one.device for one in told} == set(range(6))
    assert all(isinstance(one.event, Reverted) and one.event.why is RevertReason.DISTANCE for one in told)
    for copy in online._copies.values():
        np.testing.assert_array_equal(copy.params, copy.anchor)
        assert copy.state.status is OnlineStatus.RESTING
    _, told = online.learn(arrivals(living, 6 * HOUR, 7 * HOUR), 7 * HOUR)
    assert all(isinstance(one.event, Resumed) for one in told)
    _, told = online.learn(arrivals(living, 7 * HOUR, 14 * HOUR), 14 * HOUR)
    assert all(isinstance(one.event, Reverted) and one.event.is_last for one in told)
    changed, told = online.learn(arrivals(living, 14 * HOUR, 30 * HOUR), 30 * HOUR)
    assert not len(changed)
    assert not told


def test_wrong_labels_are_taken_back_by_their_loss(living):
    """A copy that learns nonsense in great steps is worse than the champion on samples to come."""
    guard = {"max_step": 5.0, "max_distance": 1e9, "proximal": 0.0, "mean_samples_to_false_revert": 50.0}
    online = Learner(living.arm, living.fleet, living.serving, OnlineGuard(**guard), 5.0)
    online.start(1)
    _, told = online.learn(arrivals(living, end_at=48 * HOUR), 48 * HOUR)
    assert told
    assert all(isinstance(one.event, Reverted) and one.event.why is RevertReason.LOSS for one in told)


def test_a_device_that_serves_something_else_has_no_copy(living):
    online = learner(living)
    living.serving.version[3] = 2
    try:
        online.learn(arrivals(living), 6 * HOUR)
        assert 3 not in online.devices
    finally:
        living.serving.version[3] = 1
    online.stop()
    assert not len(online.devices)


def lived(**guard):
    config = configure(SMALL)
    named = policies_of(config.lifetime)[0]
    retraining = replace(
        named.policy.retraining,
        mode=Mode.ALWAYS,
        rules=(),
        default_strategy=Strategy.ONLINE,
        min_labels=0,
        online=OnlineGuard(**guard),
    )
    return live(config, replace(named, policy=replace(named.policy, retraining=retraining)), 0)


def test_a_life_learns_online_tells_of_reverts_and_repeats():
    calm, tight = lived(), lived(max_distance=0.05)
    kinds = [event.kind for event in calm.events]
    assert "online_started" in kinds
    assert "online_reverted" not in kinds
    reverted = [event for event in tight.events if event.kind == "online_reverted"]
    assert reverted
    assert "Distance" in reverted[0].text
    assert calm.summary.accuracy != tight.summary.accuracy
    assert lived(max_distance=0.05).summary.digest == tight.summary.digest != calm.summary.digest
