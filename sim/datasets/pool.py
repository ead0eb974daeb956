"""A coordinator's pool as a data set: labelled rows that the server holds, with the features of the model package.

Each device of the pool is a stream. The rows' own clock is the laboratory's, so they are placed in virtual time by their order.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import DataError
from fedretrain.core.types import Objective
from fedretrain.features.pipeline import Pipeline
from sim.datasets.base import SensorDataset, Split, Timeline, choose_future, content_digest

if TYPE_CHECKING:
    from collections.abc import Sequence


def load(
    data_dir: Path | str | None = None,
    *,
    file: str,
    features: str,
    outputs: Sequence[str],
    timeline: Timeline | None = None,
    split: str = Split.TEMPORAL,
    seed: int = 0,
    past_fraction: float = 0.7,
) -> SensorDataset:
    """A pool's rows.

    Args:
        data_dir: Unused: the file is named by its path.
        file: Safetensors, as `fedretrain.server.pool` reads them.
        features: The fitted pipeline with its schema, JSON.
        outputs: Names of the model's outputs.
        timeline: Where the rows are put in virtual time.
        split: Temporal (the last rows of each device are scored) or random.
        seed: For the random split.
        past_fraction: Share of each device's rows that is trained on.

    Raises:
        DataError: If the rows or the features cannot be read.
    """
    from fedretrain.server.pool import read_pool_file

    del data_dir
    pool = read_pool_file(Path(file))
    pipeline = Pipeline.from_json(Path(features).read_text())
    if pipeline.schema is None:
        raise DataError("the features name no schema", where=features, fix="write those of a package")
    classifies = len(outputs) > 1
    names, whose = np.unique(pool.labelled.device_N, return_inverse=True)
    order = np.lexsort((pool.labelled.at_N, whose))
    stream = np.asarray(whose[order], dtype=np.int32)
    future = choose_future(stream, past_fraction, split, seed)
    kinds = np.zeros(len(names), dtype=np.int32)
    kinds[stream] = np.unique(pool.labelled.group_N[order], return_inverse=True)[1]
    x = np.asarray(pool.x[order], dtype=np.float32)
    y = pool.labelled.label_N[order].astype(np.int64 if classifies else np.float32)
    return SensorDataset(
        name="pool",
        schema=pipeline.schema,
        objective=Objective.CLASSIFICATION if classifies else Objective.REGRESSION,
        num_outputs=len(outputs),
        class_names=tuple(outputs) if classifies else (),
        x=x,
        y=y,
        stream=stream,
        stream_names=tuple(f"pool {name}" for name in names.tolist()),
        site=np.zeros(len(names), dtype=np.int32),
        device_type=kinds,
        event_at=(timeline or Timeline()).place(stream, future),
        future=future,
        pipeline=pipeline,
        digest=content_digest(x, y, stream),
        caveats=("the rows are the server's pool, not the fleet's",),
        server_held=True,
    )
