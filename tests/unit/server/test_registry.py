"""Against a real MLflow in a temporary folder. Its tables take seconds to make: one store serves all tests, a population each."""

import hashlib
from dataclasses import replace
from itertools import count

import pytest

from fedretrain.artifacts.manifest import Strategy, TrainingRecord
from fedretrain.core.errors import UserError
from fedretrain.server.registry import Registry, default_uri
from fedretrain.server.registry_view import RegistryView, VersionView

RECORD = TrainingRecord(
    strategy=Strategy.FEDERATED,
    recipe="incremental",
    cohort=8,
    rounds=3,
    epsilon=2.5,
    delta=1e-5,
    hyperparameters=(("optimizer.lr", 0.1),),
    policy="c" * 64,
)


def version(number, **more):
    manifest = f'{{"version":{number}}}'
    return VersionView(
        number,
        hashlib.sha256(manifest.encode()).hexdigest(),
        "f" * 64,
        "trained on the pool",
        1e9 + number,
        manifest=manifest,
        **more,
    )


FIRST = version(1)
SECOND = version(
    2,
    base=1,
    campaign="campaign-2",
    policy="c" * 64,
    training=RECORD,
    epsilon=2.5,
    scope="released weights",
    verdict="pass",
    simulation="PASS",
    metrics=(("accuracy", 0.875), ("worst slice: site 3", 0.5), ("latency", float("nan"))),
)
VIEW = RegistryView((FIRST, SECOND), champion=1, candidate=2, staging=2)
numbers = count()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return default_uri(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module")
def client(uri):
    from mlflow.tracking import MlflowClient

    Registry(uri, "first").show(RegistryView())
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture
def registry(uri, client):
    return Registry(uri, f"p{next(numbers)}")


def entries(client, registry):
    found = client.search_model_versions(f"name='{registry.population}'")
    return {one.tags["version"]: one for one in found}


def aliases(client, registry):
    return {
        name: str(number) for name, number in client.get_registered_model(registry.population).aliases.items()
    }


def test_what_people_see_is_what_the_log_says(registry, client):
    registry.show(VIEW)
    assert registry.compare(VIEW) == []
    one = entries(client, registry)["2"]
    assert one.tags == {
        "version": "2",
        "package": SECOND.package,
        "weights": "f" * 64,
        "origin": "trained on the pool",
        "base": "1",
        "campaign": "campaign-2",
        "policy": "c" * 64,
        "epsilon": "2.5",
        "scope": "released weights",
        "verdict": "pass",
        "simulation": "PASS",
    }
    assert aliases(client, registry) == {"champion": "1", "candidate": "2", "staging": "2"}
    run = client.get_run(one.run_id)
    assert run.data.metrics == {"accuracy": 0.875, "worst slice_ site 3": 0.5, "epsilon": 2.5}
    assert run.data.params["strategy"] == "federated"
    assert run.data.params["hyperparameters.optimizer.lr"] == "0.1"
    assert run.data.params["base"] == "1"
    assert run.info.status == "FINISHED"


def test_to_show_again_changes_nothing(registry, client):
    assert registry.show(VIEW) != []
    before = {number: one.run_id for number, one in entries(client, registry).items()}
    assert registry.show(VIEW) == []
    assert Registry(registry.uri, registry.population).show(VIEW) == []
    assert {number: one.run_id for number, one in entries(client, registry).items()} == before
    assert len(client.search_runs([client.get_experiment_by_name(registry.population).experiment_id])) == 2


def test_a_promotion_moves_the_aliases_and_tags_come_and_go(registry, client):
    registry.show(VIEW)
    later = replace(
        VIEW, champion=2, candidate=0, staging=0, drifted=frozenset({2}), quarantined=frozenset({1})
    )
    registry.show(later)
    assert registry.compare(later) == []
    assert aliases(client, registry) == {"champion": "2"}
    found = entries(client, registry)
    assert found["2"].tags["drifted"] == found["1"].tags["quarantined"] == "true"
    registry.show(replace(later, drifted=frozenset()))
    assert "drifted" not in entries(client, registry)["2"].tags


def test_a_tag_that_somebody_overwrote_is_named_and_mended(registry, client):
    registry.show(VIEW)
    client.set_model_version_tag(registry.population, "2", "package", "e" * 64)
    client.set_model_version_tag(registry.population, "2", "version", "7")
    client.set_model_version_tag(registry.population, "2", "note", "a person's own")
    client.delete_model_version_tag(registry.population, "2", "epsilon")
    client.set_model_version_tag(registry.population, "1", "drifted", "true")
    wrong = [
        "version 1: tag drifted is 'true' in MLflow, absent by the log",
        "version 2: tag version is '7' in MLflow, '2' by the log",
        f"version 2: tag package is '{'e' * 64}' in MLflow, '{SECOND.package}' by the log",
        "version 2: tag epsilon is absent in MLflow, '2.5' by the log",
    ]
    assert registry.compare(VIEW) == wrong
    assert registry.show(VIEW) == wrong
    assert registry.compare(VIEW) == []
    assert entries(client, registry)["2"].tags["note"] == "a person's own"


def test_aliases_metrics_and_artifacts_are_held_to_the_log_too(registry, client):
    registry.show(VIEW)
    client.set_registered_model_alias(registry.population, "champion", "2")
    client.delete_registered_model_alias(registry.population, "candidate")
    client.set_registered_model_alias(registry.population, "favourite", "2")
    run = entries(client, registry)["2"].run_id
    client.log_metric(run, "accuracy", 0.99, step=41)
    client.log_text(run, "{}", "manifest.json")
    empty = hashlib.sha256(b"{}").hexdigest()
    wrong = [
        "version 2: metric accuracy is '0.99' in MLflow, '0.875' by the log",
        f"version 2: artifact manifest.json is '{empty}' in MLflow, '{SECOND.package}' by the log",
        "alias champion is '2' in MLflow, '1' by the log",
        "alias candidate is absent in MLflow, '2' by the log",
    ]
    assert registry.compare(VIEW) == wrong
    registry.show(VIEW)
    assert registry.compare(VIEW) == []
    assert aliases(client, registry)["favourite"] == "2"


def test_a_version_or_run_that_somebody_deleted_comes_back(registry, client):
    registry.show(VIEW)
    client.delete_run(entries(client, registry)["1"].run_id)
    client.delete_model_version(registry.population, "2")
    wrong = registry.compare(VIEW)
    assert wrong[:2] == ["version 1: its run is deleted in MLflow", "version 2: MLflow does not have it"]
    assert wrong[2:] == [
        f"alias {name} is absent in MLflow, '2' by the log" for name in ("candidate", "staging")
    ]
    registry.show(VIEW)
    assert registry.compare(VIEW) == []
    assert aliases(client, registry) == {
        "champion": "1",
        "candidate": "3",
        "staging": "3",
    }  # MLflow's own numbers


def test_a_version_that_the_log_does_not_have_is_named_and_left_alone(registry, client):
    registry.show(VIEW)
    known = RegistryView((FIRST,), champion=1)
    wrong = registry.compare(known)
    assert "MLflow's version 2 says that it is version 2, and the log has no such version" in wrong
    assert 'alias candidate is "MLflow\'s version 2" in MLflow, absent by the log' in wrong
    registry.show(known)
    assert registry.compare(known) == [
        "MLflow's version 2 says that it is version 2, and the log has no such version"
    ]


def test_compare_of_nothing_makes_nothing(registry, client):
    assert registry.compare(RegistryView()) == []  # a fleet without a version has nothing to be shown
    assert registry.compare(VIEW) == [
        "MLflow has no registered model of this population",
        "version 1: MLflow does not have it",
        "version 2: MLflow does not have it",
        "alias champion is absent in MLflow, '1' by the log",
        "alias candidate is absent in MLflow, '2' by the log",
        "alias staging is absent in MLflow, '2' by the log",
    ]
    assert client.get_experiment_by_name(registry.population) is None


def test_a_server_that_is_down_is_a_line_for_people():
    with pytest.raises(UserError, match="MLflow cannot be shown to"):
        Registry("http://127.0.0.1:1", "p").compare(VIEW)


def test_a_store_that_cannot_be_opened_is_a_line_for_people(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="MLflow cannot be shown to"):
        Registry(default_uri(tmp_path / "file"), "p").show(VIEW)
