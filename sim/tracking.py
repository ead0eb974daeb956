"""A finished run, shown in MLflow.

Rules of this file:
    * MLflow is a view. The run folder is complete before this is called, so whatever goes wrong here loses nothing:
      it is a `UserError` that says so.
    * Everything is sent in batches (a call costs 10 to 50 ms) and curves are thinned to `_MAX_POINTS` metrics; every
      point is in `rounds.parquet`, which is one of the artifacts.
    * Importing MLflow takes a second or more: only here, and only when called, and within
      `quiet_mlflow.quiet`.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fedretrain.core.errors import UserError
from fedretrain.server.quiet_mlflow import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sim.results import RoundRecord, Run

_MAX_POINTS = 2_000
_BATCH_METRICS, _BATCH_PARAMS = 1_000, 100  # the tracking API's limits
_MAX_VALUE = 5_000  # characters of a parameter; MLflow refuses more than 6,000


def log_run(run: Run, folder: Path, root: Path, tracking_uri: str = "") -> str:
    """Log a finished run.

    Args:
        run: The run, as `RunFolder.finish` returned it.
        folder: Its folder: every file in it becomes an artifact.
        root: Folder of all outputs; holds ``mlflow.db`` and ``mlartifacts`` where no server is named.
        tracking_uri: A tracking server, or empty for the embedded SQLite store.

    Returns:
        MLflow's id of the run.

    Raises:
        UserError: If MLflow cannot be reached or written to. The run folder is untouched.
    """
    try:
        with quiet(), _alone(root, embedded=not tracking_uri):
            return _log(run, folder, root.absolute(), tracking_uri)
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0][:200] or type(error).__name__
        raise UserError(
            f"the run is finished and kept, but MLflow did not take it: {reason}",
            where=f"{folder}, tracking_uri={tracking_uri or 'embedded'}",
            fix="check tracking_uri=, or leave it out to use the embedded store",
        ) from error


def _log(run: Run, folder: Path, root: Path, tracking_uri: str) -> str:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri or f"sqlite:///{root / 'mlflow.db'}")
    experiment = _experiment(client, run.summary.experiment, None if tracking_uri else root / "mlartifacts")
    started_ms = _started_ms(run)
    name = f"{folder.parent.name}/{folder.name}"
    run_id: str = client.create_run(experiment, start_time=started_ms, run_name=name).info.run_id
    points = [Metric(key, value, started_ms + int(1000 * at), step) for key, step, at, value in curves(run)]
    finals = [Metric(key, value, started_ms, 0) for key, value in final_metrics(run).items()]
    params = [Param(key, value[:_MAX_VALUE]) for key, value in parameters(run.config).items()]
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags(run).items()])
    for batch in _batches(params, _BATCH_PARAMS):
        client.log_batch(run_id, params=batch)
    for batch in _batches(points + finals, _BATCH_METRICS):
        client.log_batch(run_id, metrics=batch)
    client.log_artifacts(run_id, str(folder))
    client.set_terminated(run_id, end_time=started_ms + int(1000 * run.summary.seconds))
    return run_id


def curves(run: Run) -> list[tuple[str, int, float, float]]:
    """Metrics of each arm by round, mean over seeds: (key, round, virtual instant in seconds, value)."""
    cells: dict[tuple[str, int], list[float]] = defaultdict(list)
    instants: dict[int, float] = {}
    for record in run.rounds:
        instants[record.round] = max(record.at, instants.get(record.round, record.at))
        for name, value in _round_metrics(record).items():
            if value is not None and math.isfinite(value):
                cells[_key(f"{record.arm}/{name}"), record.round].append(value)
    kept = _thin(sorted({round_ for _, round_ in cells}), len({key for key, _ in cells}))
    return [
        (key, round_, instants[round_], sum(values) / len(values))
        for (key, round_), values in sorted(cells.items())
        if round_ in kept
    ]


def final_metrics(run: Run) -> dict[str, float]:
    """The figures of the summary that people sort runs by."""
    found: dict[str, float | None] = {"seconds": run.summary.seconds}
    for arm in run.summary.arms:
        best = arm.headline
        models = {} if best is None else {"global": best.global_model, "personalized": best.personalized}
        for which, model in models.items():
            if model is not None:
                for part in ("mean", "p10", "worst"):
                    found[f"{arm.arm}/final/{which}_{part}"] = getattr(model.score, part).value
                found[f"{arm.arm}/final/{which}_macro_f1"] = (
                    model.macro_f1.mean.value if model.macro_f1 else None
                )
        found[f"{arm.arm}/final/epsilon"] = arm.privacy.epsilon if arm.privacy else None
        found[f"{arm.arm}/final/bytes_up"] = arm.bytes_up
    return {_key(k): float(v) for k, v in found.items() if v is not None and math.isfinite(v)}


def tags(run: Run) -> dict[str, str]:
    """What makes a run citable: its digests, versions and privacy claims."""
    s = run.summary
    found = {
        "data_digest": s.data_digest,
        "config_digest": s.config_digest,
        "code_version": s.environment.code_version,
        "schema_version": str(s.schema_version),
        "seeds": ", ".join(map(str, s.seeds)),
    }
    for arm in s.arms:
        for seed, digest in arm.weights_digests.items():
            found[_key(f"weights_digest.{arm.arm}.{seed}")] = digest
        if arm.privacy is not None:
            p = arm.privacy
            found[_key(f"epsilon.{arm.arm}")] = (
                f"{p.epsilon:.4g} at delta {p.delta:g}, {p.sampling}, {p.relation}, {p.unit}"
            )
    return found


def parameters(config: str) -> dict[str, str]:
    """The configuration as flat parameters: ``fleet.num_devices`` and the like."""
    import yaml

    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[_key(prefix)] = str(value)

    walk("", yaml.safe_load(config) or {})
    return {key: value for key, value in flat.items() if key}


def _round_metrics(record: RoundRecord) -> dict[str, float | None]:
    g, p = record.global_score, record.personalized_score
    return {
        "global_mean": g.mean if g else None,
        "global_p10": g.p10 if g else None,
        "personalized_mean": p.mean if p else None,
        "personalized_p10": p.p10 if p else None,
        "train_loss": record.train_loss,
        "epsilon": record.epsilon,
        "update_norm": record.update_norm,
        "clip_norm": record.clip_norm,
        "replied": float(record.replied),
        "bytes_up": float(record.bytes_up),
        "drift_fraction": record.drift_fraction,
    }


def _thin(rounds: Sequence[int], num_keys: int) -> set[int]:
    """Evenly spread rounds, the last among them, so that all curves together stay under `_MAX_POINTS`."""
    stride = max(1, math.ceil(len(rounds) * num_keys / _MAX_POINTS))
    return set(rounds[::-1][::stride])


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _key(name: str) -> str:
    """A name that MLflow takes: letters, digits and ``_-./``; at most 250 characters."""
    return re.sub(r"[^\w\-./ ]", "_", name)[:250]


def _started_ms(run: Run) -> int:
    return int(1000 * datetime.fromisoformat(run.summary.started_at).timestamp())


def _experiment(client: Any, name: str, artifacts: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=artifacts and artifacts.as_uri()))
    except MlflowException:  # another job of a sweep made it in between
        if found := client.get_experiment_by_name(name):
            return str(found.experiment_id)
        raise


@contextlib.contextmanager
def _alone(root: Path, *, embedded: bool) -> Iterator[None]:
    """One writer of the embedded store at a time: jobs of a sweep would otherwise race to create its tables."""
    if not embedded:
        yield
        return
    import fcntl

    root.mkdir(parents=True, exist_ok=True)
    with (root / ".mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
