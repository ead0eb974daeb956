"""From a campaign's weights to a package that can be signed: what is evaluated, hashed and shipped is one and the same.

Rules of this file:
    * The delta to the base is quantised first; the released weights are *defined* as base plus dequantised delta.
    * Everything that does not come from training (pipeline, graph, calibration, decision rule, bins) is the base's: a
      campaign changes weights and nothing else.
    * Sanity vectors have the base's inputs, which are no device's samples, and the new model's own answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedretrain.artifacts.delta import release
from fedretrain.artifacts.inference import Model, Predictor
from fedretrain.artifacts.package import Contents, write_package
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.validation.sanity import SanityVectors

if TYPE_CHECKING:
    from fedretrain.artifacts.manifest import TrainingRecord
    from fedretrain.artifacts.package import Package
    from fedretrain.artifacts.store import ContentStore
    from fedretrain.core.params import Params
    from fedretrain.training.plan import TrainingPlan


def shared_of(package: Package, plan: TrainingPlan, where: str) -> Params:
    """The shared parameters of a package, by the plan that trains it on.

    Args:
        package: Of the champion.
        plan: Of the training file.
        where: The training file, for messages.

    Raises:
        ConfigError: If the plan is another model's.
    """
    names = plan.make().task.shared.names
    missing = [name for name in names if name not in package.weights]
    if missing:
        raise ConfigError(
            f"the champion has no parameter {missing[0]}",
            where=where,
            fix="let the training file's plan be the model that was imported",
        )
    return {name: package.weights[name] for name in names}


def release_version(
    store: ContentStore,
    base: Package,
    shared: Params,
    *,
    version: int,
    created_at: float,
    training: TrainingRecord,
    report: bytes = b"",
) -> str:
    """Write the package of a new version; its digest.

    Args:
        store: Where packages are.
        base: The package that training began with.
        shared: The shared parameters that it led to.
        version: The new number.
        created_at: Instant, seconds since the epoch.
        training: Where the weights come from.
        report: The evaluation report; empty for none.

    Raises:
        DataError: If the parameters are not finite, or are another model's.
    """
    unknown = sorted(set(shared) - set(base.weights))
    if unknown:
        raise DataError(
            f"the weights hold {unknown[0]}, which the model does not have",
            where="weights",
            fix="train it again",
        )
    broken = [name for name, leaf in shared.items() if not np.isfinite(leaf).all()]
    if broken:
        raise DataError(
            f"{broken[0]} is not finite", where="weights", fix="lower the learning rate, and train again"
        )
    made = release(base.weights, {**base.weights, **shared})
    manifest = base.manifest
    predictor = Predictor(manifest, base.pipeline, Model(base.graph, made.weights))
    inputs = base.sanity.inputs
    vectors = SanityVectors(inputs, predictor.scores(inputs).astype(np.float64), base.sanity.tolerance)
    return write_package(
        store,
        Contents(made, base.graph, base.pipeline, vectors, base.baseline, report),
        population=manifest.population,
        version=version,
        created_at=created_at,
        outputs=manifest.outputs,
        objective=manifest.objective,
        calibration=manifest.calibration,
        decision=manifest.decision,
        personalization=manifest.personalization,
        training=training,
    )
