"""A population's first champion: trained on the server's pool, or brought as weights or ONNX.

Rules of this file:
    * A model comes as safetensors of the training file's plan, or as ONNX (`model_files`). Nothing that executes code is read.
    * An ONNX model that is the plan's, by names, shapes and answers, becomes the plan's, and campaigns go on from it; any other is served
      and watched, and is not retrained.
    * Bins are those of the pool: it is what the champion was made on. Sanity inputs are made up, never a device's samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.artifacts.decision import Calibration, Decision
from fedretrain.artifacts.delta import release
from fedretrain.artifacts.inference import Model
from fedretrain.artifacts.manifest import Personalization, Strategy, TrainingRecord
from fedretrain.artifacts.package import Contents, write_package
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.frozen import freeze
from fedretrain.core.ids import ClientId
from fedretrain.core.rng import seed_for
from fedretrain.core.types import ClientData, Objective
from fedretrain.features.pipeline import Pipeline
from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.rebin import even_bins
from fedretrain.server.model_files import read_onnx, read_weights
from fedretrain.training.executor import ClientWork
from fedretrain.training.export import export_graph
from fedretrain.training.personal import effective_params
from fedretrain.validation.sanity import make_vectors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from fedretrain.artifacts.store import ContentStore
    from fedretrain.core.params import Params
    from fedretrain.features.schema import Schema
    from fedretrain.monitoring.bins import Bins
    from fedretrain.server.model_files import OnnxParts
    from fedretrain.server.pool import Pool
    from fedretrain.server.training_file import TrainingFile
    from fedretrain.training.plan import Trainer
    from fedretrain.validation.sanity import SanityVectors

SANITY_ROWS = 32
NUM_EVEN_BINS = 100
"""Bins of a champion that came without data: fine enough to find quantiles in."""
_NUM_MADE_UP = 4096
TOLERANCE = 1e-4
FROM_ONNX = "first champion, an ONNX model that no campaign retrains"
"""The recipe of a model that is not the training file's."""


def read_features(path: Path) -> Pipeline:
    """The features of a population: a pipeline with its schema, fitted or not.

    Raises:
        ConfigError: If it cannot be read, or names no schema.
    """
    try:
        pipeline = Pipeline.from_json(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"it cannot be read: {error.strerror}", where=str(path), fix="name the file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError("these features are no text", where=str(path), fix="write JSON") from error
    except DataError as error:
        raise ConfigError(error.what, where=str(path), fix=error.fix) from error
    if pipeline.schema is None:
        raise ConfigError("the features name no schema", where=str(path), fix="give schema and steps")
    return pipeline


def train_on_pool(trainer: Trainer, data: ClientData, num_rounds: int) -> dict[str, NDArray[np.float32]]:
    """The whole model after so many rounds of one client that holds every row.

    Raises:
        DataError: If training runs away.
    """
    shared: Params = trainer.first_shared()
    layout, personal = trainer.task.shared, None
    for round_ in range(num_rounds):
        work = ClientWork(ClientId(0), data, personal, seed_for(trainer.plan.model_seed, round_, -1, "pool"))
        (block,) = trainer.executor.train(shared, [work])
        shared = layout.unpack(layout.pack(shared) + block.delta_KP[0])
        personal = block.personal_KQ[0] if trainer.task.personal.size else None
    if not all(np.isfinite(leaf).all() for leaf in shared.values()):
        raise DataError(
            "training on the pool ran away", where="training.plan.training", fix="lower the learning rate"
        )
    own = {} if personal is None else trainer.task.personal.unpack(personal)
    whole = trainer.model.first_params()
    how = _personalization(trainer)
    return (
        {**whole, **effective_params(how.method, {**whole, **shared}, own, how.fixed)}
        if own
        else {**whole, **shared}
    )


def _fitted(
    features: Pipeline,
    pool: Pool | None,
    outputs: tuple[str, ...],
    input_shape: tuple[int, ...],
    num_outputs: int,
) -> Pipeline:
    """The features, fitted to the pool; without one they must need no data, or bring their numbers.

    Raises:
        ConfigError: If model, features and outputs do not fit each other.
    """
    schema = features.schema
    assert schema is not None
    if pool is not None:
        pipeline = features.fit(pool.x, schema, device=pool.labelled.device_N)
    else:
        pipeline = features if features.pooled_steps else features.fit(_made_up(schema, 1), schema)
    if pipeline.has_local:
        raise ConfigError(
            "a first champion with local numbers", where="features", fix="use a scaler that is not local"
        )
    if pipeline.output_shape(schema) != input_shape or len(outputs) != num_outputs:
        raise ConfigError(
            f"the features give {pipeline.output_shape(schema)} and there are {len(outputs)} outputs; "
            f"the model wants {input_shape} and {num_outputs}",
            where="training.plan",
            fix="set input_shape and num_outputs to what the features and labels are",
        )
    try:
        pipeline.apply(_made_up(schema, 1))
    except DataError as error:
        raise ConfigError(
            error.what, where="features", fix="name a pool, or bring fitted features"
        ) from error
    return pipeline


def _bins(pipeline: Pipeline, x: NDArray[np.float32] | None) -> Bins:
    """The bins of model inputs ``[N, *F]``; without any, even ones over all that the schema allows (`baseline collect` makes better)."""
    schema = pipeline.schema
    assert schema is not None
    given = pipeline.apply(_made_up(schema, _NUM_MADE_UP)) if x is None else x
    flat = given.reshape(len(given), -1)
    names = pipeline.feature_names(schema)
    names = names if len(names) == flat.shape[1] else tuple(f"input {i}" for i in range(flat.shape[1]))
    if x is not None:
        return fit_bins(flat, names)
    _check_bounded(schema)
    low_F, high_F = flat.min(axis=0).astype(np.float64), flat.max(axis=0).astype(np.float64)
    return even_bins(low_F, high_F, names, NUM_EVEN_BINS)


def _check_bounded(schema: Schema) -> None:
    """Without data, the schema's ranges are all that is known of the inputs."""
    for channel in schema.channels:
        if not (np.isfinite(channel.low) and np.isfinite(channel.high)):
            raise ConfigError(
                f"the channel {channel.name!r} has no range", where="features", fix="bound it, or name a pool"
            )


def _made_up(schema: Schema, num: int) -> NDArray[np.float32]:
    """Made-up raw rows ``[N, ...]`` in the schema's ranges: a level of their own, and around it anything from stillness to noise."""
    draw, shape = np.random.default_rng(0), schema.row_shape
    level = draw.uniform(size=(num, *(1 for _ in shape[:-1]), shape[-1]))
    level.reshape(num, -1)[:2] = np.array([[0.0], [1.0]])[:num]  # the ends themselves
    swing = draw.uniform(size=(num, *(1 for _ in shape))) * draw.uniform(-1.0, 1.0, size=(num, *shape))
    swing[:2] = 0.0
    low = np.where(np.isfinite(schema.lows), schema.lows, -1.0)
    high = np.where(np.isfinite(schema.highs), schema.highs, 1.0)
    rows: NDArray[np.float32] = (low + np.clip(level + swing, 0.0, 1.0) * (high - low)).astype(np.float32)
    return rows


@dataclass(frozen=True, eq=False)
class _First:
    """What a first champion is made of, beside its features."""

    graph: bytes
    tree: dict[str, NDArray[np.float32]]
    personalization: Personalization
    strategy: Strategy
    recipe: str


def first_package(
    store: ContentStore,
    training: TrainingFile | None,
    features: Pipeline,
    pool: Pool | None,
    *,
    population: str,
    version: int,
    created_at: float,
    outputs: tuple[str, ...] = (),
    weights: bytes = b"",
    onnx: bytes = b"",
    num_rounds: int = 20,
) -> str:
    """Write the package of a first champion; its digest.

    Args:
        store: Where packages are.
        training: Its plan is the model; None for an ONNX model that no campaign retrains.
        features: From raw rows to model inputs.
        pool: Labelled rows: bins, and training where no model is given; None: bins are even until `baseline collect`.
        population: Whose model.
        version: Its number.
        created_at: Instant, seconds since the epoch.
        outputs: Names of the outputs; empty: they are numbered.
        weights: Safetensors of every parameter of the plan.
        onnx: An ONNX model; with neither, the plan is trained on the pool.
        num_rounds: Of that training.

    Raises:
        ConfigError: If model, features and outputs do not fit each other.
        DataError: If the weights are not this model's, the ONNX model cannot be taken apart, or training ran away.
    """
    parts = read_onnx(onnx) if onnx else None
    if parts is not None:
        input_shape, num_outputs = parts.input_shape, parts.num_outputs
    else:
        assert training is not None
        input_shape, num_outputs = tuple(training.plan.input_shape), training.plan.num_outputs
    outputs = outputs or tuple(f"output {i}" for i in range(num_outputs))
    pipeline = _fitted(features, pool, outputs, input_shape, num_outputs)
    x = None if pool is None else pipeline.apply(pool.x)
    if parts is not None:
        first = _of_onnx(parts, training)
    else:
        assert training is not None
        data = None if pool is None or x is None else ClientData(x, pool.labelled.label_N)
        first = _of_plan(training.plan.make(), weights, data, num_rounds)
    objective = Objective.CLASSIFICATION if num_outputs > 1 else Objective.REGRESSION
    made = release(None, first.tree)
    about = TrainingRecord(
        strategy=first.strategy,
        recipe=first.recipe,
        snapshot="" if pool is None else pool.digest,
        rounds=num_rounds if first.strategy is Strategy.CENTRAL else 0,
    )
    vectors = _sanity(Model(first.graph, made.weights), pipeline, objective)
    return write_package(
        store,
        Contents(made, first.graph, pipeline, vectors, freeze(_bins(pipeline, x))),
        population=population,
        version=version,
        created_at=created_at,
        outputs=outputs,
        objective=objective,
        personalization=first.personalization,
        training=about,
    )


def _of_plan(trainer: Trainer, weights: bytes, data: ClientData | None, num_rounds: int) -> _First:
    """The plan's model, from weights or trained on the pool."""
    graph = export_graph(trainer.model, trainer.plan.input_shape)
    how = _personalization(trainer)
    if weights:
        tree = _checked(read_weights(weights), trainer)
        return _First(graph, tree, how, Strategy.IMPORTED, "first champion")
    if data is None:
        raise ConfigError("there is nothing to train on", where="pool", fix="name a pool, or bring a model")
    return _First(graph, train_on_pool(trainer, data, num_rounds), how, Strategy.CENTRAL, "first champion")


def _of_onnx(parts: OnnxParts, training: TrainingFile | None) -> _First:
    """An ONNX model; the plan's own graph where it is the plan's model."""
    trainer = None if training is None else training.plan.make()
    if trainer is not None and _is_plans(parts, trainer):
        graph = export_graph(trainer.model, trainer.plan.input_shape)
        return _First(graph, parts.weights, _personalization(trainer), Strategy.IMPORTED, "first champion")
    return _First(parts.graph, parts.weights, Personalization(), Strategy.IMPORTED, FROM_ONNX)


def _is_plans(parts: OnnxParts, trainer: Trainer) -> bool:
    """Whether a model has the plan's parameters by name and shape, and answers as the plan's model does with them."""
    wanted = {name: np.shape(leaf) for name, leaf in trainer.model.first_params().items()}
    if wanted != {name: leaf.shape for name, leaf in parts.weights.items()}:
        return False
    if parts.input_shape != tuple(trainer.plan.input_shape):
        return False
    graph = export_graph(trainer.model, trainer.plan.input_shape)
    rows = np.random.default_rng(0).normal(size=(SANITY_ROWS, *parts.input_shape)).astype(np.float32)
    ours, theirs = Model(graph, parts.weights).predict(rows), Model(parts.graph, parts.weights).predict(rows)
    return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def _sanity(model: Model, pipeline: Pipeline, objective: Objective) -> SanityVectors:
    """What the model must answer, from raw rows that are made up."""
    schema = pipeline.schema
    assert schema is not None

    def scores(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        answers = Calibration().apply(model.predict(pipeline.apply(rows)))
        return Decision().scores(answers, objective)

    return make_vectors(scores, _clear(scores, schema), tolerance=TOLERANCE)


def _personalization(trainer: Trainer) -> Personalization:
    model, method = trainer.model, trainer.plan.method
    fixed = tuple(sorted(set(model.first) - set(model.trainable)))
    return Personalization(method.kind, tuple(method.personal_patterns), fixed)


def _checked(tree: dict[str, NDArray[np.float32]], trainer: Trainer) -> dict[str, NDArray[np.float32]]:
    """Weights that are every parameter of the model, and no other."""
    wanted = trainer.model.first_params()
    wrong = sorted(
        (set(tree) ^ set(wanted))
        | {name for name in set(tree) & set(wanted) if tree[name].shape != np.shape(wanted[name])}
    )
    if wrong:
        raise DataError(
            f"the weights do not fit the plan at {wrong[0]}",
            where="weights",
            fix="export every parameter by its name",
        )
    return tree


def _clear(
    scores: Callable[[NDArray[np.float32]], NDArray[np.float32]], schema: Schema
) -> NDArray[np.float32]:
    """Made-up raw rows inside the schema's ranges on which the model is in no doubt."""
    shape = (8 * SANITY_ROWS, *schema.row_shape)
    low = np.where(np.isfinite(schema.lows), schema.lows, -1.0)
    high = np.where(np.isfinite(schema.highs), schema.highs, 1.0)
    wave = np.cos(np.arange(np.prod(shape), dtype=np.float64) * 0.7).reshape(shape)
    rows = (0.5 * (low + high) + 0.25 * (high - low) * wave).astype(np.float32)
    answers = np.sort(scores(rows), axis=1)
    sure = np.ones(len(rows), dtype=np.bool_)
    if answers.shape[1] > 1:
        sure = answers[:, -1] - answers[:, -2] > 10 * TOLERANCE
    if not sure.any():
        raise DataError("the model is sure of nothing", where="weights", fix="train it longer")
    return rows[sure][:SANITY_ROWS]
