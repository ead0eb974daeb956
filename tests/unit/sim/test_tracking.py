"""MLflow: against a real SQLite store, and a server that is not there."""

from __future__ import annotations

import os
import time

import pytest

from fedretrain.core.errors import UserError
from sim.outputs import load_run
from sim.tracking import curves, log_run, parameters, tags
from tests.unit.sim.record_factory import STARTED, finished_folder, make_run


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """One run in a real store: (client, run of MLflow, our run, root)."""
    root = tmp_path_factory.mktemp("tracking") / "outputs"
    run = make_run(num_seeds=2, num_rounds=60)
    folder = finished_folder(root, run)
    run_id = log_run(run, folder.path, root)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    return client, client.get_run(run_id), run, folder


def test_the_run_is_finished_under_its_experiment(logged):
    client, found, _, folder = logged
    assert found.info.status == "FINISHED"
    assert client.get_experiment(found.info.experiment_id).name == "watch"
    assert found.info.run_name == f"watch/{folder.path.name}"


def test_digests_and_epsilon_are_tags(logged):
    _, found, run, _ = logged
    assert found.data.tags["data_digest"] == run.summary.data_digest
    assert found.data.tags["config_digest"] == run.summary.config_digest
    assert found.data.tags["epsilon.personal_dp"] == "7.05 at delta 1e-05, poisson, add_remove, device"
    assert found.data.tags["weights_digest.fedavg.1"] == f"{1:064x}"


def test_the_configuration_is_parameters(logged):
    _, found, _, _ = logged
    assert found.data.params == {"experiment": "watch", "fleet.num_devices": "80", "privacy.delta": "1e-05"}


def test_every_round_of_every_arm_is_a_point_of_a_curve(logged):
    client, found, run, _ = logged
    history = client.get_metric_history(found.info.run_id, "personal_dp/epsilon")
    assert [m.step for m in history] == list(range(60))
    assert history[-1].value == pytest.approx(7.05)
    best = run.summary.arms[1].headline.personalized.score.mean.value
    assert found.data.metrics["personal/final/personalized_mean"] == pytest.approx(best)


def test_the_folder_is_the_artifacts(logged):
    client, found, _, folder = logged
    names = {a.path for a in client.list_artifacts(found.info.run_id)}
    assert names == {p.name for p in folder.path.iterdir()}


def test_logging_again_is_quick_quiet_and_writes_beside_the_first(logged, capfd):
    client, found, run, folder = logged
    began = time.process_time()
    log_run(run, folder.path, folder.root)
    assert time.process_time() - began < 2.0  # about 0.3 s; processor time, whatever else the machine does
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert len(client.search_runs([found.info.experiment_id])) >= 2


def test_telemetry_is_off(logged):
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://x"])
def test_a_server_that_does_not_answer_costs_one_line_and_no_output(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = make_run(num_seeds=1, num_rounds=2)
    folder = finished_folder(tmp_path, run)
    with pytest.raises(UserError, match="finished and kept, but MLflow did not take it") as caught:
        log_run(run, folder.path, tmp_path, uri)
    assert "\n" not in str(caught.value)
    assert load_run(folder.path).summary.started_at == STARTED.isoformat()


def test_a_damaged_store_is_one_line(tmp_path):
    run = make_run(num_seeds=1, num_rounds=2)
    folder = finished_folder(tmp_path, run)
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(UserError, match="finished and kept"):
        log_run(run, folder.path, tmp_path)


def test_long_curves_are_thinned_and_keep_their_last_round():
    points = curves(make_run(num_seeds=1, num_rounds=400, num_virtual=0))
    assert len(points) <= 2_500
    assert max(step for _, step, _, _ in points) == 399


def test_odd_configurations_become_parameters():
    assert parameters("a:\n  b: [1, 2]\n  c: {}\n'd e$f': null\n") == {
        "a.b": "[1, 2]",
        "a.c": "{}",
        "d e_f": "None",
    }
    assert parameters("") == {}


def test_tags_name_every_arm_with_dp():
    assert [t for t in tags(make_run(num_seeds=1, num_rounds=1)) if t.startswith("epsilon")] == [
        "epsilon.personal_dp"
    ]
