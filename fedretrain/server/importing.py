"""A population's first champion: trained on the server's pool, or brought as weights.

Rules of this file:
    * A model comes as safetensors of the training file's plan. Nothing that executes code is read: no pickle, no archive.
    * Bins are those of the pool: it is what the champion was made on. Sanity inputs are made up, never a device's samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.artifacts.decision import Calibration, Decision
from fedretrain.artifacts.delta import release
from fedretrain.artifacts.inference import Model
from fedretrain.artifacts.manifest import Personalization, Strategy, TrainingRecord
from fedretrain.artifacts.package import Contents, write_package
from fedretrain.artifacts.weights import decode_params
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.frozen import freeze
from fedretrain.core.ids import ClientId
from fedretrain.core.rng import seed_for
from fedretrain.core.types import ClientData, Objective
from fedretrain.features.pipeline import Pipeline
from fedretrain.monitoring.bins import fit_bins
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
    from fedretrain.server.pool import Pool
    from fedretrain.server.training_file import TrainingFile
    from fedretrain.training.plan import Trainer

SANITY_ROWS = 32
TOLERANCE = 1e-4


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


def _fitted(training: TrainingFile, features: Pipeline, pool: Pool, outputs: tuple[str, ...]) -> Pipeline:
    """The features, fitted to the pool.

    Raises:
        ConfigError: If plan, features and outputs do not fit each other.
    """
    schema = features.schema
    assert schema is not None
    pipeline = features.fit(pool.x, schema, device=pool.labelled.device_N)
    if pipeline.has_local:
        raise ConfigError(
            "a first champion with local numbers", where="features", fix="use a scaler that is not local"
        )
    plan = training.plan
    if pipeline.output_shape(schema) != tuple(plan.input_shape) or len(outputs) != plan.num_outputs:
        raise ConfigError(
            f"the features give {pipeline.output_shape(schema)} and there are {len(outputs)} outputs; "
            f"the plan wants {tuple(plan.input_shape)} and {plan.num_outputs}",
            where="training.plan",
            fix="set input_shape and num_outputs to what the features and labels are",
        )
    return pipeline


def _bins(pipeline: Pipeline, x: NDArray[np.float32]) -> Bins:
    """The bins of model inputs ``[N, *F]``."""
    flat, schema = x.reshape(len(x), -1), pipeline.schema
    assert schema is not None
    names = pipeline.feature_names(schema)
    names = names if len(names) == flat.shape[1] else tuple(f"input {i}" for i in range(flat.shape[1]))
    return fit_bins(flat, names)


def first_package(
    store: ContentStore,
    training: TrainingFile,
    features: Pipeline,
    pool: Pool,
    *,
    population: str,
    version: int,
    created_at: float,
    outputs: tuple[str, ...],
    weights: bytes = b"",
    num_rounds: int = 20,
) -> str:
    """Write the package of a first champion; its digest.

    Args:
        store: Where packages are.
        training: Its plan is the model.
        features: From raw rows to model inputs.
        pool: Labelled rows: bins, and training where no weights are given.
        population: Whose model.
        version: Its number.
        created_at: Instant, seconds since the epoch.
        outputs: Names of the outputs.
        weights: Safetensors of every parameter; empty: it is trained on the pool.
        num_rounds: Of that training.

    Raises:
        ConfigError: If plan, features and outputs do not fit each other.
        DataError: If the weights are not this model's, or training ran away.
    """
    plan, pipeline = training.plan, _fitted(training, features, pool, outputs)
    schema = pipeline.schema
    assert schema is not None
    trainer = plan.make()
    x = pipeline.apply(pool.x)
    if weights:
        tree = _checked(decode_params(weights), trainer)
    else:
        tree = train_on_pool(trainer, ClientData(x, pool.labelled.label_N), num_rounds)
    made = release(None, tree)
    graph = export_graph(trainer.model, plan.input_shape)
    objective = Objective.CLASSIFICATION if plan.num_outputs > 1 else Objective.REGRESSION
    model = Model(graph, made.weights)

    def scores(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        answers = Calibration().apply(model.predict(pipeline.apply(rows)))
        return Decision().scores(answers, objective)

    vectors = make_vectors(scores, _clear(scores, schema), tolerance=TOLERANCE)
    about = TrainingRecord(
        strategy=Strategy.IMPORTED if weights else Strategy.CENTRAL,
        recipe="first champion",
        snapshot=pool.digest,
        rounds=0 if weights else num_rounds,
    )
    return write_package(
        store,
        Contents(made, graph, pipeline, vectors, freeze(_bins(pipeline, x))),
        population=population,
        version=version,
        created_at=created_at,
        outputs=outputs,
        objective=objective,
        personalization=_personalization(trainer),
        training=about,
    )


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
