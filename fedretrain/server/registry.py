"""MLflow as the registry that people look at: one registered model for each population.

Rules of this file:
    * MLflow is a view of the event log, and nothing reads it back but `compare`. `show` is level-triggered: it looks at what is there and mends
      what differs, so it may be called at any time, again after any crash, and by whoever is the coordinator now.
    * Strangers (versions that the log does not have) are named and left alone; a parameter that differs is named: MLflow changes none.
    * Importing MLflow takes seconds and a call 10 to 20 ms: only here, only when called, never in the coordinator's own thread (see
      `registry_thread`). Its telemetry is off and its log is quiet, see `quiet_mlflow`.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.core.errors import UserError
from fedretrain.server.quiet_mlflow import quiet
from fedretrain.server.registry_view import (
    MANIFEST,
    Difference,
    Found,
    FoundVersion,
    Kind,
    RegistryView,
    VersionView,
    differences,
    match,
    metrics,
    params,
    run_tags,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PAGE = 200
_BATCH_PARAMS = 100  # the tracking API's limit
_SQLITE = "sqlite:///"
_DESCRIPTION = "A view. What counts is the event log of fedretrain; `fedretrain verify` compares."
_ONE_AT_A_TIME = threading.Lock()  # two first calls would race to make the embedded store's tables


def default_uri(folder: Path) -> str:
    """The embedded store of a folder."""
    return f"{_SQLITE}{folder.absolute() / 'mlflow.db'}"


class Registry:
    """One population in MLflow. Any thread may call it.

    Args:
        uri: Tracking URI; ``sqlite:///PATH`` keeps artifacts beside the file.
        population: Its name, which the experiment and the registered model have too.
    """

    def __init__(self, uri: str, population: str) -> None:
        self.uri, self.population = uri, population
        self._made: Any = None

    def show(self, view: RegistryView) -> list[str]:
        """Make MLflow say what the log says.

        Returns:
            What it said otherwise before, as `compare` names it.

        Raises:
            UserError: If MLflow cannot be reached or written to. Calling again goes on from what is there.
        """
        with self._told():
            experiment = self._experiment()
            found = self._find(experiment)
            wrong = differences(view, found)
            if not found.exists:
                self._client.create_registered_model(self.population, description=_DESCRIPTION)
            _Mending(self._client, self.population, experiment, view, found).mend(wrong)
        return [str(one) for one in wrong]

    def compare(self, view: RegistryView) -> list[str]:
        """What MLflow says otherwise than the log; empty: nothing. Changes nothing.

        Raises:
            UserError: If MLflow cannot be reached.
        """
        with self._told():
            experiment = self._client.get_experiment_by_name(self.population)
            found = Found() if experiment is None else self._find(experiment.experiment_id)
            return [str(one) for one in differences(view, found)]

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Whatever goes wrong inside is one line for people."""
        try:
            with _ONE_AT_A_TIME, quiet():
                yield
        except Exception as error:
            reason = str(error).strip().split("\n", 1)[0][:200] or type(error).__name__
            raise UserError(
                f"MLflow cannot be shown to, or read: {reason}",
                where=f"mlflow={self.uri}",
                fix="check the address; nothing depends on it, the log is complete without it",
            ) from error

    @property
    def _client(self) -> Any:
        if self._made is None:
            from mlflow.tracking import MlflowClient

            if self.uri.startswith(_SQLITE):
                Path(self.uri.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
            self._made = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._made

    def _experiment(self) -> str:
        """The experiment's id; it is made, or taken out of MLflow's bin."""
        found = self._client.get_experiment_by_name(self.population)
        if found is None:
            return str(self._client.create_experiment(self.population, artifact_location=self._artifacts()))
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _artifacts(self) -> str | None:
        if not self.uri.startswith(_SQLITE):
            return None  # the server says where
        beside = Path(self.uri.removeprefix(_SQLITE)).parent
        return (beside / "mlartifacts" / self.population).as_uri()

    def _find(self, experiment: str) -> Found:
        """What MLflow has."""
        from mlflow.entities import ViewType

        named = f"name='{self.population}'"
        (model,) = self._client.search_registered_models(named) or (None,)
        if model is None:
            return Found()
        versions = _pages(lambda token: self._client.search_model_versions(named, _PAGE, page_token=token))
        runs = _pages(
            lambda token: self._client.search_runs([experiment], "", ViewType.ALL, _PAGE, page_token=token)
        )
        by_id = {run.info.run_id: run for run in runs}
        found = [
            self._version(one, by_id[one.run_id])
            for one in sorted(versions, key=lambda one: int(one.version))
            if one.run_id in by_id
        ]
        aliases = {alias: str(number) for alias, number in model.aliases.items()}
        return Found(exists=True, versions=tuple(found), aliases=aliases)

    def _version(self, one: Any, run: Any) -> FoundVersion:
        is_deleted = run.info.lifecycle_stage == "deleted"
        return FoundVersion(
            number=str(one.version),
            run=run.info.run_id,
            tags=dict(one.tags),
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            manifest=self._digest(run.info.run_id),
            is_run_deleted=is_deleted,
        )

    def _digest(self, run: str) -> str:
        """SHA-256 of a run's manifest; empty if it has none."""
        if MANIFEST not in {one.path for one in self._client.list_artifacts(run)}:
            return ""
        with tempfile.TemporaryDirectory(prefix="fedretrain-") as folder:
            content = Path(self._client.download_artifacts(run, MANIFEST, folder)).read_bytes()
        return hashlib.sha256(content).hexdigest()


class _Mending:
    """Writes what differs."""

    def __init__(self, client: Any, name: str, experiment: str, view: RegistryView, found: Found) -> None:
        self._client, self._name, self._experiment, self._view = client, name, experiment, view
        self._versions = {one.version: one for one in view.versions}
        self._entries = {version: (one.number, one.run) for version, one in match(view, found).items()}

    def mend(self, wrong: list[Difference]) -> None:
        """Versions before the aliases that point at them: the order of `differences`."""
        acts: dict[Kind, Callable[[Difference], None]] = {
            Kind.VERSION: self._add,
            Kind.RUN: lambda one: self._client.restore_run(self._entries[one.version][1]),
            Kind.TAG: self._tag,
            Kind.METRIC: self._metric,
            Kind.ARTIFACT: lambda one: self._manifest(one.version, self._entries[one.version][1]),
            Kind.PARAM: self._param,
            Kind.ALIAS: self._alias,
        }
        for one in wrong:
            if one.kind in acts:
                acts[one.kind](one)

    def _add(self, one: Difference) -> None:
        """A version with its run: the run is complete before anything points at it; a crash in between leaves a run that nothing points at."""
        version = self._versions[one.version]
        tags = {key: value for key, value in self._view.tags(version).items() if value}
        started_ms = int(1000 * version.at)
        run = self._client.create_run(
            self._experiment, started_ms, run_tags(self._view.tags(version)), f"version {version.version}"
        )
        run_id: str = run.info.run_id
        self._log(run_id, version, started_ms)
        self._manifest(version.version, run_id)
        self._client.set_terminated(run_id, end_time=started_ms)
        made = self._client.create_model_version(
            self._name, run.info.artifact_uri, run_id, tags, description=version.origin
        )
        self._entries[version.version] = (str(made.version), run_id)

    def _log(self, run: str, version: VersionView, at_ms: int) -> None:
        from mlflow.entities import Metric, Param

        numbers = [Metric(key, value, at_ms, 0) for key, value in metrics(version).items()]
        texts = [Param(key, value) for key, value in params(version).items()]
        for start in range(0, len(texts), _BATCH_PARAMS):
            self._client.log_batch(run, params=texts[start : start + _BATCH_PARAMS])
        self._client.log_batch(run, metrics=numbers)

    def _manifest(self, version: int, run: str) -> None:
        if text := self._versions[version].manifest:
            self._client.log_text(run, text, MANIFEST)

    def _tag(self, one: Difference) -> None:
        number, _ = self._entries[one.version]
        if one.wanted:
            self._client.set_model_version_tag(self._name, number, one.key, one.wanted)
        else:
            self._client.delete_model_version_tag(self._name, number, one.key)

    def _metric(self, one: Difference) -> None:
        """One step after whatever was logged: of a metric MLflow shows the last step."""
        _, run = self._entries[one.version]
        steps = [point.step for point in self._client.get_metric_history(run, one.key)]
        self._client.log_metric(
            run, one.key, float(one.wanted), int(1000 * time.time()), max(steps, default=-1) + 1
        )

    def _param(self, one: Difference) -> None:
        if not one.found:
            self._client.log_param(self._entries[one.version][1], one.key, one.wanted)

    def _alias(self, one: Difference) -> None:
        if one.wanted:
            number, _ = self._entries[int(one.wanted)]
            self._client.set_registered_model_alias(self._name, one.key, number)
        else:
            self._client.delete_registered_model_alias(self._name, one.key)


def _pages(ask: Callable[[str | None], Any]) -> list[Any]:
    """Everything of a question that is answered page by page."""
    found, token = [], None
    while True:
        page = ask(token)
        found += page
        token = page.token or None
        if token is None:
            return found
