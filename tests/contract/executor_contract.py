"""What every executor must do, whatever its speed; subclass `ExecutorContract` and name the executor."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from fedretrain.core.errors import PrivacyError
from fedretrain.core.types import ClientData
from fedretrain.training.config import (
    ExampleDp,
    LocalTraining,
    LossKind,
    MethodConfig,
    MethodKind,
    OptimizerConfig,
)
from fedretrain.training.executor import executor_for
from fedretrain.training.methods.make import make_task
from tests.training_cases import clients, model_case

LOCAL = LocalTraining(batch_size=4, epochs=2, optimizer=OptimizerConfig(lr=0.1, momentum=0.5), prox_mu=0.1)
DP = LocalTraining(
    batch_size=4,
    epochs=0,
    max_steps=5,
    optimizer=OptimizerConfig(lr=0.1),
    example_dp=ExampleDp(noise_multiplier=0.8, clip_norm=0.5),
)
SIZES = (3, 12, 0, 27, 5)
METHODS = list(MethodKind)


def by_client(executor, shared, work):
    """Each client's row: (delta, personal, loss, number of examples)."""
    rows = {}
    for block in executor.train(shared, work):
        for i, client in enumerate(block.clients):
            assert int(client) not in rows, "a client came twice"
            rows[int(client)] = (
                block.delta_KP[i].copy(),
                block.personal_KQ[i].copy(),
                float(block.loss[i]),
                int(block.num_examples[i]),
            )
    return rows


class ExecutorContract:
    """The contract; `name` is what `executor_for` is asked for."""

    name: ClassVar[str]
    # How far a client's numbers may move with the company it trains in: 0 is bit for bit.
    atol: ClassVar[float] = 0.0

    def setup(self, kind=MethodKind.FEDAVG, local=LOCAL, model="mlp", sizes=SIZES):
        case = model_case(model, 4 if local.loss is LossKind.CROSS_ENTROPY else 1)
        task = make_task(MethodConfig(kind=kind), local, case.model)
        executor = executor_for(self.name, task, case.model, local)
        shared = {n: case.model.first_params()[n] for n in task.shared.names}
        return executor, task, shared, clients(case.shape, sizes, loss=local.loss)

    def assert_same_rows(self, a, b):
        for got, expected in zip(a[:2], b[:2], strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=self.atol)
        np.testing.assert_allclose(a[2], b[2], rtol=0, atol=self.atol, equal_nan=True)

    @pytest.mark.parametrize("kind", METHODS)
    def test_every_client_is_in_exactly_one_block(self, kind):
        executor, task, shared, work = self.setup(kind)
        rows = by_client(executor, shared, work)
        assert sorted(rows) == sorted(int(one.client) for one in work)
        for one in work:
            delta, personal, _, number = rows[int(one.client)]
            assert delta.shape == (task.shared.size,)
            assert delta.dtype == np.float32
            assert personal.shape == (task.personal.size,)
            assert personal.dtype == np.float32
            assert number == len(one.data)

    @pytest.mark.parametrize("kind", METHODS)
    def test_company_and_order_do_not_change_a_client(self, kind):
        executor, _, shared, work = self.setup(kind)
        together = by_client(executor, shared, work)
        backwards = by_client(executor, shared, work[::-1])
        for one in work:
            alone = by_client(executor, shared, [one])[int(one.client)]
            self.assert_same_rows(alone, together[int(one.client)])
            self.assert_same_rows(backwards[int(one.client)], together[int(one.client)])

    def test_a_second_run_is_the_same_bit_for_bit(self):
        executor, _, shared, work = self.setup(MethodKind.APFL)
        first, second = by_client(executor, shared, work), by_client(executor, shared, work)
        for client, row in first.items():
            np.testing.assert_array_equal(row[0], second[client][0])
            np.testing.assert_array_equal(row[1], second[client][1])

    @pytest.mark.parametrize("kind", METHODS)
    def test_what_was_given_is_not_changed(self, kind):
        executor, task, shared, work = self.setup(kind)
        work = [replace(one, personal=np.full(task.personal.size, 0.1, np.float32)) for one in work]
        before = [(one.data.x.copy(), one.data.y.copy(), one.personal.copy()) for one in work]
        base = {n: t.copy() for n, t in shared.items()}
        by_client(executor, shared, work)
        executor.refit(shared, work)
        executor.predict(shared, work, personalized=True)
        for one, (x, y, personal) in zip(work, before, strict=True):
            np.testing.assert_array_equal(one.data.x, x)
            np.testing.assert_array_equal(one.data.y, y)
            np.testing.assert_array_equal(one.personal, personal)
        for name, leaf in base.items():
            np.testing.assert_array_equal(shared[name], leaf)

    @pytest.mark.parametrize("kind", METHODS)
    def test_a_client_without_samples_moves_nothing(self, kind):
        executor, _, shared, work = self.setup(kind)
        delta, _, loss, number = by_client(executor, shared, work)[int(work[2].client)]
        assert number == 0
        assert not delta.any()
        assert np.isnan(loss)

    def test_no_clients_no_blocks(self):
        executor, _, shared, _ = self.setup()
        assert by_client(executor, shared, []) == {}
        assert executor.refit(shared, []).shape == (0, 0)
        assert executor.predict(shared, [], personalized=True) == []

    @pytest.mark.parametrize("kind", METHODS)
    def test_rounds_of_training_lower_the_loss(self, kind):
        executor, task, shared, work = self.setup(kind, sizes=(24, 30, 40))
        losses = []
        for _ in range(12):
            rows = by_client(executor, shared, work)
            losses.append(np.mean([row[2] for row in rows.values()]))
            step = task.shared.unpack(np.mean([row[0] for row in rows.values()], axis=0))
            shared = {n: t + step[n] for n, t in shared.items()}
            work = [replace(one, personal=rows[int(one.client)][1], seed=one.seed + 1) for one in work]
        assert losses[-1] < 0.8 * losses[0]

    def test_a_broken_client_harms_no_other(self):
        executor, _, shared, work = self.setup()
        clean = by_client(executor, shared, work)
        broken = replace(work[3], data=ClientData(np.full_like(work[3].data.x, np.nan), work[3].data.y))
        rows = by_client(executor, shared, [*work[:3], broken, work[4]])
        assert np.isnan(rows[int(broken.client)][0]).any()
        for one in (*work[:3], work[4]):
            self.assert_same_rows(rows[int(one.client)], clean[int(one.client)])

    @pytest.mark.parametrize("kind", METHODS)
    def test_refit_gives_personal_state_in_the_order_of_the_work(self, kind):
        executor, task, shared, work = self.setup(kind)
        fitted = executor.refit(shared, work)
        assert fitted.shape == (len(work), task.personal.size)
        assert fitted.dtype == np.float32
        backwards = executor.refit(shared, work[::-1])
        np.testing.assert_allclose(fitted, backwards[::-1], rtol=0, atol=self.atol)

    @pytest.mark.parametrize("kind", METHODS)
    def test_refit_starts_from_the_state_that_is_given(self, kind):
        executor, task, shared, work = self.setup(kind)
        given = [replace(one, personal=np.full(task.personal.size, 0.2, np.float32)) for one in work]
        same = np.array_equal(executor.refit(shared, given), executor.refit(shared, work))
        # FedAvg has no state; a fine-tuned copy starts from the global model by definition.
        assert same == (kind in {MethodKind.FEDAVG, MethodKind.FINETUNE})

    @pytest.mark.parametrize("model", ["mlp", "cnn1d", "gru"])
    def test_predictions_come_in_order_with_one_row_per_sample(self, model):
        executor, _, shared, work = self.setup(model=model)
        outputs = executor.predict(shared, work, personalized=False)
        assert [o.shape for o in outputs] == [(len(one.data), 4) for one in work]
        for one, together in zip(work, outputs, strict=True):
            alone = executor.predict(shared, [one], personalized=False)[0]
            np.testing.assert_allclose(alone, together, rtol=0, atol=max(self.atol, 1e-6))

    @pytest.mark.parametrize("kind", METHODS)
    def test_predictions_follow_the_personal_state(self, kind):
        executor, task, shared, work = self.setup(kind)
        plain = executor.predict(shared, work, personalized=False)
        # Without any personal state the personalized model is the global one.
        for a, b in zip(executor.predict(shared, work, personalized=True), plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=self.atol)
        state = np.full(task.personal.size, 0.3, np.float32)
        personal = executor.predict(shared, [replace(one, personal=state) for one in work], personalized=True)
        assert np.allclose(personal[1], plain[1]) == (kind is MethodKind.FEDAVG)

    @pytest.mark.parametrize("loss", [LossKind.MSE, LossKind.HUBER])
    def test_regression_trains(self, loss):
        executor, _, shared, work = self.setup(local=replace(LOCAL, loss=loss))
        rows = by_client(executor, shared, work)
        assert np.isfinite(rows[int(work[1].client)][0]).all()
        assert executor.predict(shared, work, personalized=False)[1].shape == (12, 1)

    @pytest.mark.parametrize("kind", [k for k in METHODS if k is not MethodKind.FEDREP])
    def test_example_dp_keeps_the_contract(self, kind):
        executor, _, shared, work = self.setup(kind, DP)
        rows = by_client(executor, shared, work)
        again = by_client(executor, shared, work[::-1])
        for one in work:
            self.assert_same_rows(rows[int(one.client)], again[int(one.client)])
        assert not rows[int(work[2].client)][0].any()  # no samples: no step, no noise, no charge
        assert executor.refit(shared, work).shape[0] == len(work)

    def test_example_dp_is_refused_with_fedrep(self):
        with pytest.raises(PrivacyError, match="fedrep"):
            self.setup(MethodKind.FEDREP, DP)
