"""``python -m benchmarks.gas_central [a|b] [KEY=VALUE ...]``: what central models reach where ``lifetime_gas`` learns federated.

Rows, features, labels and seeds are those of the two shipped experiments, read through the simulator's own loaders:
    a: ``lifetime_gas``: no label of a batch is known before it is over. Fitted once, as each batch begins.
    b: ``lifetime_gas_prequential``: every row is scored first; a tenth of the exposures gets a label, a quarter of a batch
       late. Fitted anew `REFITS` times in each batch.

Rules of this file:
    * Each fit is from scratch, on every label that has arrived by then, of all nodes together; it scores what comes before the
      next fit. The federated side is ``python -m sim experiment=...`` and nothing else.
    * Views: ``pooled``: a model of one node's 32 inputs, trained on the rows of all four, which is what the federation
      learns too. ``joined``: a model of all 128 inputs of an exposure, which no node sees.
    * Models: ``mlp`` is the experiment's own, trained by the library as one client that holds every row. ``logistic`` and
      ``svc`` (RBF) are scikit-learn's; the ridge and the margin's price are chosen on `CHOSEN_ON`, the first batches, for
      each view and protocol, and scored on the rest apart (``mean_after``).
    * One JSON line for each protocol, view and model: the mean over batches (each batch counts once, as in the README) and every
      batch, with Student's t interval over seeds. More words override the experiments: ``seeds=5``.

It needs the folder with the public data sets: ``FEDRETRAIN_DATA`` (or ``data_dir=FOLDER``).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from benchmarks.measure import versions
from benchmarks.results import append
from fedretrain.core.errors import DataError, UserError
from fedretrain.core.ids import ClientId
from fedretrain.core.rng import seed_for
from fedretrain.core.types import ClientData
from fedretrain.training import models
from fedretrain.training.config import MethodConfig
from fedretrain.training.executor import ClientWork, executor_for
from fedretrain.training.methods.make import make_task
from sim.arm import Arms
from sim.configure import configure
from sim.lifetime.rows import LifeRows
from sim.statistics import FRACTION, over_seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from fedretrain.core.params import Params
    from sim.arm import Arm

PROTOCOLS = {"a": "lifetime_gas", "b": "lifetime_gas_prequential"}
REFITS = {"a": 1, "b": 6}
CHOSEN_ON = ("batch 2", "batch 3", "batch 4")
GRID = {"logistic": (0.1, 1.0, 10.0, 100.0), "svc": (1.0, 10.0, 100.0, 1000.0)}
"""Values of scikit-learn's C."""


@dataclass(frozen=True)
class Rows:
    """What a central model sees.

    Attributes:
        x: ``[R, F]`` inputs in the order of time.
        y: ``[R]`` classes.
        event_at: ``[R]``.
        label_at: ``[R]`` inf: never.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    event_at: NDArray[np.float64]
    label_at: NDArray[np.float64]


class Fit(Protocol):
    """Trains on labelled rows; gives what predicts classes ``[n]`` of inputs ``[n, F]``."""

    def __call__(
        self, x: NDArray[np.float32], y: NDArray[np.int64], seed: int
    ) -> Callable[[NDArray[np.float32]], NDArray[np.int64]]:
        """See above."""
        ...


def views(rows: LifeRows, num_devices: int) -> dict[str, Rows]:
    """The same exposures by node, and joined over all nodes.

    Raises:
        DataError: If the nodes did not meet the same exposures with the same labels.
    """
    pooled = Rows(rows.x, rows.y, rows.event_at, rows.label_at)
    own = [rows.of_device(device) for device in range(num_devices)]
    for name in ("event_at", "label_at", "y"):
        column = getattr(rows, name)
        if any(not np.array_equal(column[own[0]], column[mine]) for mine in own):
            raise DataError(f"nodes differ in {name}", where="gas_drift", fix="leave labels.shared=true")
    joined = np.concatenate([rows.x[mine] for mine in own], axis=1)
    return {
        "pooled": pooled,
        "joined": Rows(joined, rows.y[own[0]], rows.event_at[own[0]], rows.label_at[own[0]]),
    }


def as_one_client(arm: Arm, nodes: int) -> Fit:
    """The experiment's model and training, by one client that holds every row.

    Args:
        arm: Model and training of the experiment.
        nodes: Whose rows it holds apart: a batch holds as many times the rows of a node's, so that a round has a node's steps.
    """
    rounds = arm.config.lifetime.initial_rounds
    hidden = arm.config.model.mlp.hidden

    def fit(
        x: NDArray[np.float32], y: NDArray[np.int64], seed: int
    ) -> Callable[[NDArray[np.float32]], NDArray[np.int64]]:
        model = models.mlp(x.shape[1:], arm.world.fleet.num_outputs, seed, hidden=hidden)
        batch_size = nodes * arm.training.batch_size
        training = replace(arm.training, batch_size=batch_size, max_steps=0)
        task = make_task(MethodConfig(), training, model)
        executor = executor_for(arm.config.runner.executor, task, model, training)
        shared: Params = model.first_params()
        for round_ in range(rounds):
            work = ClientWork(ClientId(0), ClientData(x, y), None, seed_for(seed, round_, 0, "central"))
            (block,) = executor.train(shared, [work])
            shared = task.shared.unpack(task.shared.pack(shared) + block.delta_KP[0])
        return lambda new: executor.predict(
            shared,
            [ClientWork(ClientId(0), ClientData(new, np.zeros(len(new), np.int64)), None, 0)],
            personalized=False,
        )[0].argmax(axis=1)

    return fit


def of_sklearn(kind: str, price: float) -> Fit:
    """scikit-learn's logistic regression or RBF support vectors, inputs standardised on the rows that are fitted."""

    def fit(
        x: NDArray[np.float32], y: NDArray[np.int64], seed: int
    ) -> Callable[[NDArray[np.float32]], NDArray[np.int64]]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import SVC

        middle, spread = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
        model = (
            LogisticRegression(C=price, max_iter=2000, random_state=seed % 2**31)
            if kind == "logistic"
            else SVC(C=price, gamma="scale")
        )
        model.fit((x - middle) / spread, y)
        return lambda new: model.predict((new - middle) / spread)

    return fit


def walk(rows: Rows, fit: Fit, batch: tuple[float, float], refits: int, seed: int) -> float:
    """Accuracy in a batch: fit on what is labelled, score what comes until the next fit.

    Args:
        rows: In the order of time.
        fit: The model.
        batch: From an instant to an instant.
        refits: Evenly spread, the first as the batch begins.
        seed: Of the life.
    """
    right = total = 0
    edges = np.linspace(*batch, refits + 1).tolist()
    for at, until_at in pairwise(edges):
        first, last = np.searchsorted(rows.event_at, (at, until_at))
        if first < last:
            known = rows.label_at <= at
            predict = fit(rows.x[known], rows.y[known], seed_for(seed, -1, int(at), "central"))
            right += int((predict(rows.x[first:last]) == rows.y[first:last]).sum())
            total += int(last - first)
    return right / total


def best_price(kind: str, sides: Sequence[Side]) -> float:
    """The C of `GRID` that does best on the first batches of every seed, the smaller of equals."""

    def early(price: float) -> float:
        return float(
            np.mean([acc for side in sides for acc in side.walk(of_sklearn(kind, price), early=True)])
        )

    return max(GRID[kind], key=early)


@dataclass(frozen=True)
class Side:
    """One view of one seed's life.

    Attributes:
        rows: What is seen.
        own: The experiment's model on it.
        segments: Batches.
        refits: In each batch.
        seed: Of the life.
    """

    rows: Rows
    own: Fit
    segments: dict[str, tuple[float, float]]
    refits: int
    seed: int

    def walk(self, fit: Fit, *, early: bool = False) -> list[float]:
        """Accuracy in each batch, or in those of `CHOSEN_ON` alone."""
        names = [name for name in self.segments if name in CHOSEN_ON or not early]
        return [walk(self.rows, fit, self.segments[name], self.refits, self.seed) for name in names]


def line_of(case: str, names: Sequence[str], found_SN: NDArray[np.float64], **more: Any) -> dict[str, Any]:
    """One JSON line: means over seeds with intervals, in percent.

    Args:
        case: What was measured.
        names: ``N`` batches.
        found_SN: ``[S, N]`` accuracy by seed and batch.
        more: Further entries.
    """

    def told(values: NDArray[np.float64]) -> list[float]:
        e = over_seeds(values, FRACTION)
        return [round(100 * v, 1) for v in (e.value, e.low, e.high) if v is not None]

    late = [i for i, name in enumerate(names) if name not in CHOSEN_ON]
    return {
        "case": case,
        "mean": told(found_SN.mean(axis=1)),
        "mean_after": told(found_SN[:, late].mean(axis=1)),
        "by_batch": {name: told(found_SN[:, i]) for i, name in enumerate(names)},
        "seeds": len(found_SN),
        **more,
    }


def measure(protocol: str, words: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Every view and model under one protocol.

    Args:
        protocol: Of `PROTOCOLS`.
        words: Overrides of the experiment.
    """
    config = configure([f"experiment={PROTOCOLS[protocol]}", "runner=local", *words])
    segments = config.lifetime.segments_of(config.lifetime.duration_s)
    by_view: dict[str, list[Side]] = {}
    for seed in range(config.seed, config.seed + config.seeds):
        arm = Arms().get(config, seed)
        nodes = arm.world.fleet.num_devices
        for view, rows in views(LifeRows.of(arm.world.fleet), nodes).items():
            own = as_one_client(arm, nodes if view == "pooled" else 1)
            side = Side(rows, own, segments, REFITS[protocol], seed)
            by_view.setdefault(view, []).append(side)
    for view, sides in by_view.items():
        for kind in ("mlp", *GRID):
            price = best_price(kind, sides) if kind in GRID else None
            found = [side.walk(side.own if price is None else of_sklearn(kind, price)) for side in sides]
            more = {"protocol": PROTOCOLS[protocol], "refits_per_batch": REFITS[protocol], "c": price}
            yield line_of(f"{protocol}_{view}_{kind}", list(segments), np.array(found), **more)


def main(words: Sequence[str]) -> int:
    """Print one JSON line for each protocol, view and model."""
    torch.set_num_threads(1)
    wanted = [word for word in words if word in PROTOCOLS] or list(PROTOCOLS)
    words = [word for word in words if word not in PROTOCOLS]
    try:
        for protocol in wanted:
            for line in measure(protocol, words):
                line |= {
                    "overrides": list(words),
                    "versions": versions("torch", "scikit-learn", "fedretrain"),
                }
                print(json.dumps(line), flush=True)
                append("gas_central", line)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
