"""Small lives, whole: a drift is noticed, a retrain makes a candidate, gates judge it, accuracy comes back."""

from __future__ import annotations

import html
import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from fedretrain.coordinator import cycle
from sim.configure import configure
from sim.lifetime.jobs import LifeJob, run_jobs
from sim.lifetime.loop import Living
from sim.lifetime.policies import policies_of
from sim.lifetime.shelf import Shelf
from sim.lifetime.underway import live
from sim.outputs import RunFolder
from sim.schema import RunnerKind
from tests.run_cases import command

POLICY = {
    "format": 1,
    "name": "test",
    "monitoring": {
        "confidence": {"below": 0.6, "max_share": 0.6},
        "accuracy": {"window_s": 86400, "margin": 0.03, "min_completeness": 0.3},
    },
    "validation": {
        "label_margin": 0.3,
        "accuracy": {
            "overall": 0.05,
            "worst_decile": 0.2,
            "group": 0.3,
            "slice": 0.3,
            "late": 0.3,
            "gap": 0.5,
        },
        "brier_margin": 0.3,
        "calibration_margin": 0.3,
        "macro_f1_margin": 0.3,
    },
    "rollout": {
        "steps": [{"exposure_fraction": 0.5, "min_s": 43200, "max_s": 345600}],
        "installs": {"min_confirmed_fraction": 0.5, "min_failed": 20, "max_failed_fraction": 0.5},
        "metrics": [{"metric": "accuracy", "margin": 0.1, "min_devices": 5, "min_events": 20}],
    },
}
ONSET_S = 864_000.0
WORDS = (
    "experiment=lifetime_synthetic",
    "runner=local",
    "policies=[hybrid]",
    "fleet.num_devices=60",
    "fleet.num_sites=3",
    "campaign.cohort_size=20",
    "lifetime.duration_s=2419200",
    "fleet.generator.num_samples=1056",
    "fleet.generator.scored_fraction=0.63636",
    "drift.specs=[{kind: offset, magnitude: 4.0, channels: [s0, s1, s2, s3], onset_from_s: 864000, onset_to_s: 864000}]",
)
DAY_S = 86_400.0


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    file = tmp_path_factory.mktemp("policy") / "policy.yaml"
    file.write_text(yaml.safe_dump(POLICY))
    return (*WORDS, f"policy={file}")


def living(words, *more):
    config = configure([*words, *more])
    return Living(config, policies_of(config.lifetime)[0], 0)


@pytest.fixture(scope="module")
def life(words):
    config = configure(list(words))
    return live(config, policies_of(config.lifetime)[0], 0)


def test_a_drift_is_noticed_retrained_released_and_healed(life):
    kinds = [event.kind for event in life.events]
    (found,) = life.detections
    assert found.onset_at == ONSET_S
    assert 0 < found.detected_after_s < 4 * DAY_S
    assert found.restored_after_s < 10 * DAY_S
    first = kinds.index("champion")
    order = [kinds.index(k) for k in ("retrain", "candidate", "shadow_started", "canary_started")]
    assert order == sorted(order)
    assert order[-1] < first
    assert min(event.at for event in life.events if event.kind == "retrain") > ONSET_S
    assert life.summary.false_alarms == 0
    by_day = {round(step.at / DAY_S): step.accuracy for step in life.steps}
    assert by_day[11] < by_day[9] - 0.1, "the drift harms"
    assert np.mean([by_day[d] for d in range(22, 28)]) > by_day[11] + 0.1, "the loop heals"


def test_nothing_that_was_seen_of_the_last_champion_is_told_of_the_new_one(life):
    settle_s = 3 * DAY_S
    promoted = [event.at for event in life.events if event.kind == "champion"]
    before = [step for step in life.steps if promoted[0] - 2 * DAY_S < step.at < promoted[0]]
    after = [step for step in life.steps if promoted[0] <= step.at < promoted[0] + settle_s]
    assert after
    assert any(np.isfinite(step.low_confidence) for step in before)
    assert all(np.isnan(step.low_confidence) for step in after)


def test_a_champion_made_after_a_drift_is_held_against_the_inputs_since_it_and_soon(life):
    drifted = [event.at for event in life.events if event.kind == "drifted"]
    promoted = [event.at for event in life.events if event.kind == "champion"]
    assert len(drifted) == 1
    assert drifted[0] < promoted[0]
    psi = {step.at: step.psi_max for step in life.steps}
    assert min(psi[at] for at in psi if ONSET_S + DAY_S <= at < promoted[0]) > 1.0
    after = {at - promoted[0]: psi[at] for at in psi if at >= promoted[0]}
    assert all(
        np.isnan(value) for s, value in after.items() if s < DAY_S
    )  # a window of both would be held against itself
    assert all(value < 0.1 for s, value in after.items() if s >= DAY_S)
    assert any(value > 0 for s, value in after.items() if s < 3 * DAY_S)  # while it settles, too


def test_what_devices_say_of_their_personal_models_is_in_the_books(life):
    gains = [step.personal_gain for step in life.steps if np.isfinite(step.personal_gain)]
    refused = [step.refused_fraction for step in life.steps if np.isfinite(step.refused_fraction)]
    assert gains
    assert all(-0.5 < gain < 0.5 for gain in gains)
    assert any(0 < share < 1 for share in refused)


def test_without_retraining_nothing_heals(words, life):
    config = configure([*words, "policies=[never]"])
    found = live(config, policies_of(config.lifetime)[0], 0)
    assert found.summary.retrains == 0
    assert {event.kind for event in found.events} >= {"drifted", "accuracy_fell"}
    assert np.isnan(found.detections[0].restored_after_s)
    assert found.detections[0].cost > life.detections[0].cost + 0.03, "what healing was worth"


def test_a_life_is_a_pure_function_whatever_the_span(words, life):
    config = configure([*words, "lifetime.span_ticks=5"])
    again = live(config, policies_of(config.lifetime)[0], 0)
    assert again.summary.digest == life.summary.digest
    assert replace(again.summary, wall_s=0.0) == replace(life.summary, wall_s=0.0)


@pytest.mark.slow
def test_lives_in_ray_are_the_lives_of_this_process(words, life, tmp_path):
    config = configure(list(words))
    config = replace(config, runner=replace(config.runner, kind=RunnerKind.RAY))
    (policy,) = policies_of(config.lifetime)
    told = []
    shelf = Shelf(RunFolder(tmp_path, tmp_path / "run"), {}, 2.0)
    found = run_jobs([LifeJob(config, policy, 0), LifeJob(config, policy, 1)], told.append, shelf)
    assert found[0].summary.digest == life.summary.digest
    assert found[1].summary.digest != life.summary.digest
    assert len(told) == 2


def test_the_log_of_events_gives_the_same_state(words):
    lived = living(words, "lifetime.duration_s=1555200")
    lived.begin()
    events = []
    first = lived.state
    fold = cycle.apply

    def noted(policy, state, event):
        events.append(event)
        return fold(policy, state, event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.lifetime.loop.cycle.apply", noted)
        for tick in range(lived.life.num_ticks):
            lived.tick(tick)
    assert len(events) > 100
    state = first
    for event in events:
        state = fold(lived.policy, state, event)
    assert state == lived.state


def test_a_rollback_returns_devices_to_what_they_served(words):
    lived = living(words, "blend.tolerance=1.0")
    lived.begin()
    shared = {name: -leaf for name, leaf in lived.serving.versions.shared[1].items()}
    lived.serving.versions.add(2, shared, {})
    before = {d: row.copy() for d, row in lived.serving.versions.personal[1].items()}
    devices = np.arange(10)
    lived.serving.install(devices, 2, at=DAY_S)
    assert (lived.serving.version[:10] == 2).all()
    assert (lived.serving.version[10:] == 1).all()
    lived.serving.install(devices, 1, at=2 * DAY_S)
    assert (lived.serving.version == 1).all()
    assert all(np.array_equal(before[d], lived.serving.versions.personal[1][d]) for d in before)


def test_a_broken_version_is_refused_by_the_devices_own_check(words):
    lived = living(words)
    lived.begin()
    shared = {name: np.full_like(leaf, np.nan) for name, leaf in lived.serving.versions.shared[1].items()}
    lived.serving.versions.add(2, shared, {})
    found = lived.serving.install(np.arange(60), 2, at=DAY_S)
    assert found.refused.all()
    assert (lived.serving.version == 1).all()


def test_the_command_writes_a_folder_with_its_policies_and_reasons(words, tmp_path, capsys):
    more = ["lifetime.duration_s=1209600", "policies=[never,hybrid]", f"output_dir={tmp_path}"]
    assert command([*words, *more]) == 0
    (folder,) = (tmp_path / "lifetime_synthetic").iterdir()
    assert (tmp_path / "latest").resolve() == folder
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["kind"] == "lifetime"
    assert set(summary["files"]) == {
        "config.yaml",
        "steps.parquet",
        "features.parquet",
        "devices.parquet",
        "events.jsonl",
        "report.html",
        "policy/never.yaml",
        "policy/hybrid.yaml",
    }
    assert yaml.safe_load((folder / "policy/hybrid.yaml").read_text())["retraining"]["mode"] == "hybrid"
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert all(event["text"] for event in events if event["kind"] == "retrain")
    assert "hybrid" in capsys.readouterr().out


def test_every_epsilon_that_is_printed_says_delta_unit_and_relation(words, tmp_path, capsys):
    more = ["lifetime.duration_s=259200", "privacy=central", f"output_dir={tmp_path}"]
    assert command([*words, *more]) == 0
    (folder,) = (tmp_path / "lifetime_synthetic").iterdir()
    (one,) = json.loads((folder / "summary.json").read_text())["lives"]
    scope = one["summary"]["privacy_scope"]
    assert scope.startswith(f"epsilon {one['summary']['epsilon']:.3g} at delta 1e-05 for ")
    assert "contributing or not, membership and reply times being public" in scope
    assert f"hybrid: {scope}" in capsys.readouterr().out
    page = html.unescape((folder / "report.html").read_text())
    assert f'<p class="foot">hybrid: {scope}</p>' in page, "beside the table"
    caption = page.split('<figure id="epsilon">')[1].split("</figcaption>")[0]
    assert f"with the one seed: hybrid {one['summary']['epsilon']:.3g}" in caption
    assert f"hybrid: {scope}" in caption


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["policies=[hybird]"], "there is no policy 'hybird' [policy] - did you mean 'hybrid'?"),
        (["policy=nowhere.yaml"], "there is no policy 'nowhere.yaml'"),
        (["policies=[hybrid,hybrid]"], "a policy is named twice"),
        (["++arms.a.title=A"], "a lifetime compares policies, not arms"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_no_folder(words, tmp_path, capsys, more, said):
    assert command([*words, *more, f"output_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("lifetime_synthetic/*"))


def test_a_misspelt_key_of_a_policy_file_is_named(words, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("format: 1\nrollout: {shadoww: {}}\n")
    assert command([*WORDS, f"policy={file}", f"output_dir={tmp_path / 'out'}"]) == 2
    assert "shadow" in capsys.readouterr().err
