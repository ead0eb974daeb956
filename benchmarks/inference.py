"""``python -m benchmarks.inference``: what a device pays for answers that are a package's, and what a delta saves.

Rules of this file:
    * One JSON line per measurement, ratios first, with versions and cores.
    * Times are CPU time in one process, the least of several alternating repetitions, over bare onnxruntime: a session
      with the same graph that has its weights inside, called with ready model inputs, one thread.
    * `model` is `artifacts.inference.Model.predict` on the same inputs. `answer` is a whole `Predictor` call: pipeline, model,
      calibration, decision, confidence and entropy, from raw samples.
    * Bytes are those of a real update: the weights after local training on the base, as a delta and in full; and all that
      a device fetches to install it, by delta and in full.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from benchmarks.measure import cores, versions
from benchmarks.results import append
from fedretrain.artifacts.decision import class_probabilities
from fedretrain.artifacts.delta import release
from fedretrain.artifacts.inference import Model, Predictor
from fedretrain.artifacts.package import Contents, open_package, write_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.core.ids import ClientId
from fedretrain.core.types import ClientData
from fedretrain.edge.slots import Slots
from fedretrain.features.pipeline import Pipeline
from fedretrain.features.scaler import Scaler
from fedretrain.features.schema import Channel, Schema
from fedretrain.features.steps import ChannelFirst
from fedretrain.training.config import LocalTraining, MethodConfig
from fedretrain.training.each import EachExecutor
from fedretrain.training.executor import ClientWork
from fedretrain.training.export import export_graph
from fedretrain.training.methods.make import make_task
from fedretrain.training.models import cnn1d, gru, mlp
from fedretrain.validation.sanity import make_vectors

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fedretrain.artifacts.delta import Release
    from fedretrain.core.params import Params
    from fedretrain.training.models import ModelBundle

CHANNELS, WINDOW, CLASSES = 6, 64, 6
CASES: dict[str, Callable[[], ModelBundle]] = {
    "mlp_25k": lambda: mlp((CHANNELS, WINDOW), CLASSES, 0),
    "cnn1d_12k": lambda: cnn1d((CHANNELS, WINDOW), CLASSES, 0),
    "cnn1d_large": lambda: cnn1d((CHANNELS, WINDOW), CLASSES, 0, channels=(64, 128, 128)),
    "gru_4k": lambda: gru((CHANNELS, WINDOW), CLASSES, 0),
}
BATCHES = (1, 64)
_REPEATS, _BLOCK_S = 15, 0.02


@dataclass(frozen=True)
class Problem:
    """A model with a package's other parts.

    Attributes:
        bundle: The model.
        pipeline: From raw windows ``[N, T, C]`` to model inputs ``[N, C, T]``.
        rows: ``[R, T, C]`` raw windows.
        labels: ``[R]``.
    """

    bundle: ModelBundle
    pipeline: Pipeline
    rows: NDArray[np.float32]
    labels: NDArray[np.int64]


def problem(name: str) -> Problem:
    """Windows of noise around a level that tells their class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=256)
    levels = rng.uniform(-1, 1, (CLASSES, 1, CHANNELS))
    rows = np.clip(levels[labels] + rng.normal(0, 0.5, (256, WINDOW, CHANNELS)), -2, 2).astype(np.float32)
    schema = Schema(tuple(Channel(f"c{i}", "g", -2.0, 2.0) for i in range(CHANNELS)), window=WINDOW)
    pipeline = Pipeline((Scaler("range"), ChannelFirst())).fit(rows, schema)
    return Problem(CASES[name](), pipeline, rows, labels)


def trained(case: Problem, start: Params) -> Params:
    """The weights after two epochs of local training."""
    local, method = LocalTraining(epochs=2, batch_size=16), MethodConfig()
    task = make_task(method, local, case.bundle)
    work = [ClientWork(ClientId(0), ClientData(case.pipeline(case.rows), case.labels), None, 7)]
    (block,) = EachExecutor(task, case.bundle, local).train(start, work)
    return task.shared.unpack(task.shared.pack(start) + block.delta_KP[0])


def package(case: Problem, released: Release, store: ContentStore, version: int) -> str:
    """A package of released weights; its digest."""
    graph = export_graph(case.bundle, (CHANNELS, WINDOW))
    model = Model(graph, released.weights)
    vectors = make_vectors(
        lambda rows: class_probabilities(model.predict(case.pipeline(rows))), case.rows[:4], tolerance=1e-6
    )
    parts = Contents(released, graph, case.pipeline, vectors)
    names = tuple(f"class{i}" for i in range(CLASSES))
    return write_package(store, parts, population="bench", version=version, created_at=0.0, outputs=names)


def bare(graph: bytes, weights: Params) -> Callable[[NDArray[np.float32]], Any]:
    """The same graph with its weights inside, run by onnxruntime alone."""
    model = onnx.load_from_string(graph)
    for one in model.graph.initializer:
        if one.name in weights:
            one.CopyFrom(numpy_helper.from_array(np.asarray(weights[one.name]), one.name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(["y"], {"x": x})[0]


def speed(name: str, batch: int) -> dict[str, Any]:
    """Times over bare onnxruntime, for rows of one call."""
    case = problem(name)
    with tempfile.TemporaryDirectory() as folder:
        store = ContentStore(folder)
        made = open_package(store, package(case, release(None, case.bundle.first_params()), store, 1))
    predictor, plain = Predictor.of(made), bare(made.graph, made.weights)
    rows = case.rows[:batch]
    x = case.pipeline(rows)
    if not np.allclose(plain(x), predictor.model.predict(x), atol=1e-5):
        raise RuntimeError("injected weights do not compute what weights inside the graph do")
    timed = alternate(
        {
            "bare": lambda: plain(x),
            "model": lambda: predictor.model.predict(x),
            "answer": lambda: predictor(rows),
        }
    )
    cpu_ms = {engine: 1e3 * min(times) for engine, times in timed.items()}
    return {
        "case": f"{name}_x{batch}",
        "model_over_bare": round(cpu_ms["model"] / cpu_ms["bare"], 3),
        "answer_over_bare": round(cpu_ms["answer"] / cpu_ms["bare"], 3),
        "cpu_ms": {engine: round(ms, 5) for engine, ms in cpu_ms.items()},
        "spread": {engine: round(_spread(times), 3) for engine, times in timed.items()},
        "rows": batch,
        "num_parameters": sum(leaf.size for leaf in made.weights.values()),
    }


def alternate(engines: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """CPU seconds of one call of each engine, taken in turns so that a noisy neighbour meets all alike."""
    calls = {}
    for engine, run in engines.items():
        run()
        start, calls[engine] = time.process_time(), 1
        while time.process_time() - start < _BLOCK_S:
            run()
            calls[engine] += 1
    times: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(_REPEATS):
        for engine, run in engines.items():
            start = time.process_time()
            for _ in range(calls[engine]):
                run()
            times[engine].append((time.process_time() - start) / calls[engine])
    return times


def sizes(name: str) -> dict[str, Any]:
    """Bytes of an update by delta over those in full."""
    case = problem(name)
    first = release(None, case.bundle.first_params())
    second = release(first.weights, trained(case, first.weights))
    if second.delta_bytes is None:
        raise RuntimeError("the delta of an ordinary update is not smaller than the full file")
    with tempfile.TemporaryDirectory() as folder:
        store = ContentStore(Path(folder) / "server")
        old, new = package(case, first, store, 1), package(case, second, store, 2)
        holder, blank = (Slots(Path(folder) / one) for one in ("holder", "blank"))
        holder.stage(old, store.get)
        holder.activate(old)
        by_delta, in_full = holder.stage(new, store.get), blank.stage(new, store.get)
    return {
        "case": f"{name}_bytes",
        "full_over_delta": round(len(second.full_bytes) / len(second.delta_bytes), 2),
        "install_in_full_over_by_delta": round(in_full.fetched_bytes / by_delta.fetched_bytes, 2),
        "delta_bytes": len(second.delta_bytes),
        "full_bytes": len(second.full_bytes),
        "install_by_delta_bytes": by_delta.fetched_bytes,
        "install_in_full_bytes": in_full.fetched_bytes,
        "graph_bytes": len(export_graph(case.bundle, (CHANNELS, WINDOW))),
    }


def _spread(times: list[float]) -> float:
    """The interquartile range over the median."""
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / middle


def main() -> int:
    """Print one JSON line per measurement."""
    place = {"versions": versions("numpy", "onnxruntime", "fedretrain"), "cores": cores()}
    for name in CASES:
        for line in (sizes(name), *(speed(name, batch) for batch in BATCHES)):
            print(json.dumps({**line, **place}), flush=True)
            append("inference", {**line, **place})
    return 0


if __name__ == "__main__":
    sys.exit(main())
