"""What MLflow is to show, as log and packages have it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedretrain.artifacts.manifest import Strategy, TrainingRecord
from fedretrain.artifacts.package import read_package, write_package
from fedretrain.artifacts.store import ContentStore
from fedretrain.coordinator.cycle import Candidate
from fedretrain.coordinator.policy import Policy
from fedretrain.rollout.causes import Phase
from fedretrain.rollout.verdict import Verdict
from fedretrain.server.event_log import EventLog
from fedretrain.server.listing import versions
from fedretrain.server.memory import Memory
from fedretrain.server.models import Models, Stores
from fedretrain.server.releasing import release_version
from fedretrain.server.showing import view_of
from fedretrain.server.validations import Judged, Validations
from tests import package_cases as cases
from tests.cycle_cases import Drive

ABOUT = TrainingRecord(
    strategy=Strategy.FEDERATED,
    recipe="r",
    cohort=4,
    rounds=2,
    epsilon=1.5,
    delta=1e-5,
    scope="s",
    policy="d" * 64,
)


@pytest.fixture
def models(tmp_path, engine):
    """Version 1 was imported, and 2 trained from it in a campaign."""
    stores = Stores(ContentStore(tmp_path / "packages"), ContentStore(tmp_path / "campaigns"))
    made = Models("greenhouse", Policy(), None, "", EventLog(engine), stores, None, lambda: 4.0)
    first = write_package(
        stores.packages, cases.contents(graph=cases.graph()), **{**cases.ABOUT, "version": 1}
    )
    made.add(1, first, "imported")
    shared = {"head.bias": np.array([1.0, 0.0, 0.0], np.float32)}
    base = read_package(stores.packages, first)
    second = release_version(stores.packages, base, shared, version=2, created_at=4.0, training=ABOUT)
    made.add(2, second, "campaign greenhouse-2")
    return made


def _memory(**changes):
    return Memory(state=replace(Drive().state, **changes))


def test_versions_are_shown_as_their_packages_say(models):
    first, second = view_of(models, Memory(), Validations()).versions
    assert (first.version, first.origin, first.campaign, first.at) == (1, "imported", "", 4.0)
    assert first.package == models.versions.package_of(1)
    assert first.manifest == models.package(1).manifest.to_bytes().decode()
    assert (second.campaign, second.epsilon, second.scope, second.policy) == (
        "greenhouse-2",
        1.5,
        "s",
        "d" * 64,
    )
    assert second.training == ABOUT
    assert second.weights == models.package(2).manifest.weights.digest


def test_before_the_loop_began_nothing_has_a_role(models):
    found = view_of(models, Memory(), Validations())
    assert (found.champion, found.candidate, found.staging) == (0, 0, 0)
    assert (found.quarantined, found.drifted) == (frozenset(), frozenset())


def test_the_champion_is_shown_and_whether_it_has_drifted(models):
    found = view_of(models, _memory(), Validations())
    assert (found.champion, found.candidate, found.drifted) == (1, 0, frozenset())
    drive = Drive()
    drive.watch(psi=0.9)
    monitor = drive.state.monitor
    assert monitor.drifted
    assert view_of(models, _memory(monitor=monitor), Validations()).drifted == {1}
    assert view_of(models, _memory(champion=0, monitor=monitor), Validations()).drifted == frozenset()


def test_a_version_on_its_way_is_the_candidate_until_its_rollout_is_over(models):
    drive = Drive()
    assert drive.retrained() == 2
    drive.to(Phase.CANARY)
    found = view_of(models, Memory(state=drive.state), Validations())
    assert (found.champion, found.candidate) == (1, 2)
    drive.to(Phase.CHAMPION)
    found = view_of(models, Memory(state=drive.state), Validations())
    assert (found.champion, found.candidate) == (2, 0)


def test_a_version_that_waits_is_in_staging_if_it_was_made(models):
    waiting = tuple(Candidate(version) for version in (9, 2))
    assert view_of(models, _memory(waiting=waiting), Validations()).staging == 2
    assert view_of(models, _memory(waiting=waiting[:1]), Validations()).staging == 0


def test_what_the_validation_said_is_shown_with_its_figures(models):
    judged = Judged(2, 1, "FAIL", "devices", "d" * 64, "e" * 64, figures={"rows": 12.0, "overall.low": -0.2})
    first, second = view_of(models, Memory(), Validations(judged={2: judged})).versions
    assert (first.verdict, first.metrics) == ("", ())
    assert (second.verdict, dict(second.metrics)) == ("FAIL", judged.figures)


def test_what_the_simulation_said_is_shown_once_it_has_ended(models):
    models.simulations.begin(2, "r1")
    (_, second), (_, tags) = _shown(models)
    assert (second.simulation, tags["simulation"]) == ("", "")
    models.simulations.end(2, Verdict.FAIL, "accuracy")
    (first, second), (_, tags) = _shown(models)
    assert (first.simulation, second.simulation, tags["simulation"]) == ("", "FAIL", "FAIL")
    listed = {one["version"]: one["simulation"] for one in versions(models, None, Validations())}
    assert listed == {1: "", 2: "FAIL"}
    models.simulations.begin(2, "r2")  # tried again: nothing is known yet
    (_, second), _ = _shown(models)
    assert second.simulation == ""


def _shown(models):
    view = view_of(models, Memory(), Validations())
    return view.versions, [view.tags(one) for one in view.versions]
