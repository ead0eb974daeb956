from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedretrain.core.errors import ConfigError
from fedretrain.core.types import ClientData, Objective
from fedretrain.training.blend import blend, distance
from fedretrain.training.config import LocalTraining, LossKind, MethodConfig, MethodKind, OptimizerConfig
from fedretrain.training.each import EachExecutor
from fedretrain.training.keep import BlendConfig, Verdict
from fedretrain.training.methods.make import make_task
from tests.training_cases import clients, model_case

LOCAL = LocalTraining(batch_size=8, epochs=6, optimizer=OptimizerConfig(lr=0.2))


def setup(kind=MethodKind.FEDPER, local=LOCAL, sizes=(80, 120, 60)):
    case = model_case("mlp", 4 if local.loss is LossKind.CROSS_ENTROPY else 1)
    task = make_task(MethodConfig(kind=kind, personal_epochs=8), local, case.model)
    shared = {n: case.model.first_params()[n] for n in task.shared.names}
    return EachExecutor(task, case.model, local), task, shared, clients(case.shape, sizes, loss=local.loss)


class _Fixed:
    """An executor whose re-fit and outputs are what the test says; its outputs equal the personal state."""

    def __init__(self, fitted):
        self.fitted, self.seen = fitted, []

    def refit(self, shared, work):
        self.seen = [len(one.data) for one in work]
        return np.array([self.fitted[int(one.client)] for one in work], np.float32)

    def predict(self, shared, work, *, personalized):
        own = [one.personal if personalized else None for one in work]
        level = [shared["level"] if row is None else row[0] for row in own]
        return [np.full((len(one.data), 1), n, np.float32) for one, n in zip(work, level, strict=True)]


def constant(number, personal, size=20):
    """A client whose target is always 0: the state nearer to 0 is the better one."""
    one = clients((2,), (size,), loss=LossKind.MSE)[0]
    data = ClientData(one.data.x, np.zeros(size, np.float32))
    return replace(one, client=number, data=data, personal=personal)


@pytest.mark.parametrize("kind", [k for k in MethodKind if k is not MethodKind.FEDAVG])
def test_a_good_refit_is_kept(kind):
    executor, _, shared, work = setup(kind)
    result = blend(executor, shared, work, Objective.CLASSIFICATION, BlendConfig())
    assert result.kept.any()
    for i, one in enumerate(work):
        assert (result.personal[i] is not None) == result.kept[i]
        if result.kept[i]:
            assert result.after[i] >= result.before[i]
            fit, _ = BlendConfig().split(one.data)
            np.testing.assert_array_equal(
                result.personal[i], executor.refit(shared, [replace(one, data=fit)])[0]
            )


def test_a_refit_that_scores_lower_is_refused_and_the_old_state_stays():
    old = [np.array([s], np.float32) for s in (0.5, 0.1, 0.3)]
    work = [constant(i, state) for i, state in enumerate(old)]
    executor = _Fixed({0: [0.2], 1: [0.4], 2: [0.3]})
    result = blend(executor, {"level": 9.0}, work, Objective.REGRESSION, BlendConfig())
    assert result.verdicts == (Verdict.KEPT, Verdict.FELL, Verdict.KEPT)  # an equal score does not fall
    assert result.kept.tolist() == [True, False, True]
    assert [float(p[0]) for p in result.personal] == pytest.approx([0.2, 0.1, 0.3])
    assert executor.seen == [15, 15, 15]


def test_the_gain_is_of_what_the_device_goes_on_with_over_the_new_global_model():
    old = [np.array([s], np.float32) for s in (0.5, 0.1, np.nan)]
    work = [constant(i, state) for i, state in enumerate(old)] + [constant(3, None, size=4)]
    fitted = {0: [0.2], 1: [0.4], 2: [np.nan]}
    result = blend(_Fixed(fitted), {"level": 0.25}, work, Objective.REGRESSION, BlendConfig())
    assert result.plain[:3] == pytest.approx([-0.25] * 3)
    assert result.gain[:2] == pytest.approx(
        [-0.2 + 0.25, -0.1 + 0.25]
    )  # the second one stays with what it had
    assert np.isnan(result.gain[2:]).all()


def test_the_distance_is_relative_to_the_global_model():
    for kind in (MethodKind.FINETUNE, MethodKind.FEDPER, MethodKind.APFL):
        executor, task, shared, work = setup(kind)
        tree = {n: torch.from_numpy(np.array(leaf)) for n, leaf in shared.items()}
        first = {n: leaf.detach().numpy() for n, leaf in task.first_personal(tree).items()}
        assert distance(task, shared, task.personal.pack(first)) == pytest.approx(0.0, abs=1e-6)
        (fitted,) = executor.refit(shared, work[:1])
        assert distance(task, shared, fitted) > 0.01
    _, task, shared, _ = setup(MethodKind.FINETUNE)
    double = task.personal.pack({n: 2 * leaf for n, leaf in shared.items()})
    assert distance(task, shared, double) == pytest.approx(1.0, rel=1e-6)
    nothing = {n: np.zeros_like(leaf) for n, leaf in shared.items()}
    assert distance(task, nothing, double) == np.inf


def test_tolerance_lets_a_score_fall_a_little():
    work = [constant(0, np.array([0.1], np.float32))]
    for tolerance, verdict in ((0.05, Verdict.FELL), (0.2, Verdict.KEPT)):
        config = BlendConfig(tolerance=tolerance)
        result = blend(_Fixed({0: [0.2]}), {"level": 0.0}, work, Objective.REGRESSION, config)
        assert result.verdicts == (verdict,)


def test_a_device_without_state_is_compared_with_the_model_it_serves():
    work = [constant(0, None)]
    shared, better = {"level": 0.05}, {"level": 0.01}
    result = blend(_Fixed({0: [0.03]}), shared, work, Objective.REGRESSION, BlendConfig())
    assert result.verdicts == (Verdict.KEPT,)
    result = blend(_Fixed({0: [0.03]}), shared, work, Objective.REGRESSION, BlendConfig(), serving=better)
    assert result.verdicts == (Verdict.FELL,)
    assert result.personal == (None,)


def test_a_refit_that_ran_away_is_refused_and_a_broken_old_state_is_replaced():
    work = [constant(0, np.array([0.1], np.float32)), constant(1, np.array([np.nan], np.float32))]
    result = blend(_Fixed({0: [np.nan], 1: [5.0]}), {"level": 0.0}, work, Objective.REGRESSION, BlendConfig())
    assert result.verdicts == (Verdict.NONFINITE, Verdict.KEPT)


def test_too_few_samples_are_never_judged():
    work = [constant(0, np.array([0.1], np.float32), size=n) for n in (0, 9, 10)]
    work = [replace(one, client=i) for i, one in enumerate(work)]
    result = blend(_Fixed({2: [0.0]}), {"level": 0.0}, work, Objective.REGRESSION, BlendConfig())
    assert result.verdicts == (Verdict.TOO_FEW, Verdict.TOO_FEW, Verdict.KEPT)
    assert np.isnan(result.before[:2]).all()
    assert blend(_Fixed({}), {"level": 0.0}, work[:2], Objective.REGRESSION, BlendConfig()).kept.sum() == 0


def test_the_hold_out_is_the_newest_part():
    data = ClientData(np.arange(20, dtype=np.float32)[:, None], np.arange(20))
    fit, held = BlendConfig(holdout_fraction=0.3).split(data)
    assert fit.y.tolist() == list(range(14))
    assert held.y.tolist() == list(range(14, 20))


@pytest.mark.parametrize(
    "wrong",
    [{"holdout_fraction": 0.0}, {"holdout_fraction": 1.0}, {"min_holdout": 0}, {"tolerance": float("nan")}],
)
def test_an_impossible_configuration_is_refused(wrong):
    with pytest.raises(ConfigError):
        BlendConfig(**wrong)
