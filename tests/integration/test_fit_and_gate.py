"""A log written, a fleet fitted to it, candidates judged in it: each by its command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
import yaml

from fedretrain.core.types import FailureKind
from sim.arm import Arms
from sim.configure import configure
from sim.fit.fidelity import fidelity
from sim.fit.fitted import fit
from sim.fleetlog.reader import read_log
from tests.run_cases import command, only_run

WORLD = (
    "experiment=scale",
    "runner=local",
    "fleet.num_devices=150",
    "fleet.num_sites=2",
    "fleet.num_types=2",
    "fleet.generator.num_samples=300",
    "fleet.generator.num_features=4",
    "fleet.generator.label_skew=0.4",
    "fleet.generator.scored_fraction=0.1",
    "dataset.live_fraction=0.5",
    "campaign.num_rounds=240",
    "campaign.cohort_size=20",
    "availability=diurnal",
    "availability.diurnal.site_offset_h=[0,8]",
    "availability.dropout_before=0.04",
    "labels=late",
    "network.type_speed=[1.0,0.4]",
)
RUN = (
    "experiment=scale",
    "runner=local",
    "tracking_uri=off",
    "fleet.num_devices=40",
    "fleet.generator.num_samples=40",
    "fleet.generator.num_features=8",
    "fleet.generator.label_skew=0.3",
    "fleet.generator.concept_shift=0.3",
    "model.mlp.hidden=[16]",
    "training.optimizer.lr=0.2",
    "campaign.cohort_size=10",
    "campaign.num_rounds=12",
    "campaign.evaluate_every=12",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def log_path(folder):
    path = folder / "fleet.jsonl"
    assert command(["log", str(path), *WORLD]) == 0
    return path


@pytest.fixture(scope="module")
def fleet(folder, log_path):
    path = folder / "fleet" / "fitted.yaml"
    assert command(["fit", str(log_path), str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def champion(folder):
    assert command([*RUN, f"output_dir={folder / 'champion'}"]) == 0
    return only_run(folder / "champion", "scale")


def test_the_log_holds_what_the_world_did_and_not_why(log_path):
    log = read_log(log_path)
    assert log.refused == {}
    world = Arms().get(configure(WORLD), 0).world
    devices, slots = np.arange(150), log.slots()
    np.testing.assert_array_equal(
        log.online(), np.stack([world.availability.online(devices, at) for at in slots], axis=1)
    )
    assert len(log.asked) == len(log.replies) + len(log.failures)
    replied = log.replies.round == 5
    expected = world.network.reply_after_s(
        log.replies.device[replied],
        round_=5,
        down_bytes=log.replies.bytes_down[replied],
        up_bytes=log.replies.bytes_up[replied],
        num_steps=log.replies.num_steps[replied],
    )
    np.testing.assert_allclose(log.replies.latency_s[replied], expected)
    parts = log.replies.download_s + log.replies.train_s + log.replies.upload_s
    assert (parts < log.replies.latency_s).all()
    gone = log.failures.reason == FailureKind.UNAVAILABLE
    assert world.availability.dropped_before(log.failures.device[gone][:1], int(log.failures.round[gone][0]))[
        0
    ]
    assert log.arrivals.at.max() < log.header.end_at
    assert "onset" not in log_path.read_text()


def test_help_writes_no_log(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    assert command(["log", "--help"]) == 0
    assert "python -m sim log OUT.jsonl" in capsys.readouterr().out
    assert command(["log", "--seeds"]) == 2
    assert "no file to write is named" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_the_same_words_write_the_same_log(folder, log_path):
    again = folder / "again.jsonl"
    assert command(["log", str(again), *WORLD]) == 0
    assert read_log(again).digest == read_log(log_path).digest


def test_a_known_configuration_is_recovered_within_the_fits_own_intervals(log_path):
    fitted = fit(read_log(log_path))
    found = fitted.estimates
    assert not fitted.label_rates.differ
    assert fitted.config()["labels"]["class_rate"] == []
    truth = {
        "availability.dropout_before": 0.04,
        "availability.dropout_mid": 0.05,
        "network.step_s": 0.02,
        "network.speed_sigma": 0.5,
        "network.down_bps": 10e6,
        "network.up_bps": 2e6,
        "network.bandwidth_sigma": 0.8,
        "network.latency_s": 0.1,
        "network.latency_sigma": 0.5,
        "network.jitter_sigma": 0.1,
        "network.type_speed[1]": 0.4,
        "labels.delay_s": 28_800.0,
        "labels.sigma": 1.0,
        "labels.loss_fraction": 0.05,
        "fleet.generator.label_skew": 0.4,
    }
    # A jackknife's 95 % interval is 2.262 errors to either side: all fifteen within 4.5 errors is a bound that fails one
    # time in a hundred by Student's t with nine degrees of freedom, and each mistake of scale breaks it.
    off = {
        name: abs(found[name].value - value) / ((found[name].high - found[name].low) / 2 / 2.262)
        for name, value in truth.items()
    }
    assert max(off.values()) < 4.5, off
    assert all(found[name].value == pytest.approx(value, rel=0.35) for name, value in truth.items())


def test_half_a_log_predicts_the_other_half(log_path):
    log = read_log(log_path)
    rows = fidelity(log, 0.5 * log.header.end_at)
    by_name = {row.measure: row for row in rows}
    assert by_name["share online by hour, mean absolute error"].predicted < 0.03
    outside = [row.measure for row in rows if not row.inside]
    # Three or more of so few independent 95 % intervals miss by chance with a probability of 0.05.
    num_classes = sum("labels that come" in name for name in by_name)
    assert num_classes == len(log.header.class_names)
    assert len(rows) == 11 + num_classes, "no row of a drift: this world has none"
    assert len(outside) <= 2, outside
    assert {"share online", "class mix by cluster, total variation"} <= by_name.keys()
    assert sum("label delay" in name for name in by_name) == 3
    assert sum("reply latency" in name for name in by_name) == 3


BIASED = (
    *WORLD,
    "fleet.num_devices=100",
    "labels=periodic",
    "labels.delay_s=21600",
    "labels.loss_fraction=0.1",
    "labels.class_rate=[0.4,1.0,1.0,0.7]",
    "fleet.generator.num_classes=4",
)


def test_labels_in_rounds_and_fewer_of_some_classes_are_recovered_and_predicted(tmp_path):
    path = tmp_path / "biased.jsonl"
    assert command(["log", str(path), *BIASED]) == 0
    log = read_log(path)
    assert log.refused == {}
    found = fit(log, intervals=False)
    assert (str(found.delay.kind), found.delay.delay_s) == ("periodic", 21_600.0)
    assert found.label_rates.differ
    wanted = 0.9 * np.array([0.4, 1.0, 1.0, 0.7])
    np.testing.assert_allclose(found.label_rates.rate_M, wanted, atol=0.08)
    labels = found.config()["labels"]
    assert labels["delay"] == "periodic"
    np.testing.assert_allclose(labels["class_rate"], [0.4, 1.0, 1.0, 0.7], atol=0.1)
    rows = [one for one in fidelity(log, 0.5 * log.header.end_at) if "label" in one.measure]
    assert sum("labels that come" in one.measure for one in rows) == 4
    assert sum(not one.inside for one in rows) <= 1, rows
    config = configure([*BIASED[:1], *(f"labels.{key}={labels[key]}" for key in ("delay", "class_rate"))])
    assert config.labels.class_rate == tuple(labels["class_rate"])


def test_the_fitted_fleet_composes_and_names_its_log(fleet, log_path):
    text = fleet.read_text()
    digest = read_log(log_path).digest
    assert digest in text
    config = configure(["experiment=scale", "+fleet=fitted"], folder=str(fleet.parent.parent))
    values = yaml.safe_load(text)
    assert config.labels.delay_s == values["labels"]["delay_s"]
    assert config.network.type_speed == tuple(values["network"]["type_speed"])
    assert config.availability.models == tuple(values["availability"]["models"])
    evidence = json.loads(fleet.with_suffix(".json").read_text())
    assert evidence["log_sha256"] == digest
    assert evidence["estimates"]["labels.delay_s"]["low"] < evidence["estimates"]["labels.delay_s"]["high"]
    assert evidence["fidelity"]


def test_a_fit_until_an_instant_knows_nothing_later(folder, log_path, capsys):
    path = folder / "until.yaml"
    assert command(["fit", str(log_path), str(path), "--until", "432000"]) == 0
    assert "known at 432000 s" in capsys.readouterr().out
    assert json.loads(path.with_suffix(".json").read_text())["fitted_until_s"] == 432_000.0
    assert command(["fit", str(log_path), str(path), "--until", "soon"]) == 2


def test_the_command_that_a_fit_names_finds_the_fleet(folder, log_path, capsys, monkeypatch):
    (folder / "conf").mkdir()
    monkeypatch.chdir(folder / "conf")
    assert command(["fit", str(log_path), "beside.yaml", "--until", "432000"]) == 0
    assert f"--config-dir {folder} +conf=beside " in capsys.readouterr().out


def gate(folder, *words):
    out = folder / "gate.json"
    out.unlink(missing_ok=True)
    status = command(["gate", *words, f"out={out}"])
    return status, json.loads(out.read_text()) if out.exists() else None


def test_the_champion_itself_passes_and_the_data_is_named(folder, fleet, champion, log_path, capsys):
    status, found = gate(folder, f"candidate={champion}", f"fleet={fleet}", f"champion={champion}")
    assert (status, found["verdict"]) == (0, "pass")
    assert found["sha256"]["fleet's log"] == read_log(log_path).digest
    assert len(found["seeds"]) == 5
    assert len(found["simulated_fleets"]) == 10, "five seeds as observed, five under stress"
    assert {check["condition"] for check in found["checks"]} == {
        "observed",
        "2 x drop-outs and delay",
        "as it was run",
    }
    said = capsys.readouterr().out
    assert "simulation gate: PASS" in said
    assert found["sha256"]["fleet"] in said


@pytest.mark.parametrize(
    "words",
    [
        ("aggregation.server.lr=20",),
        ("aggregation.kind=custom", "aggregation.path=tests.integration.test_fit_and_gate:Reversed"),
        ("training.optimizer.lr=0.001",),
    ],
)
def test_broken_aggregation_fails(folder, fleet, champion, tmp_path, words):
    assert command([*RUN, *words, f"output_dir={tmp_path}"]) == 0
    candidate = only_run(tmp_path, "scale")
    status, found = gate(folder, f"candidate={candidate}", f"fleet={fleet}", f"champion={champion}")
    assert (status, found["verdict"]) == (1, "fail")


def test_weights_that_were_tampered_with_fail_though_their_configuration_is_innocent(
    folder, fleet, champion, tmp_path
):
    weights = safetensors.numpy.load_file(next((champion / "weights").iterdir()))
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    safetensors.numpy.save_file(weights, good)
    safetensors.numpy.save_file({name: -leaf for name, leaf in weights.items()}, bad)
    for path, expected in ((good, 0), (bad, 1)):
        status, _ = gate(folder, f"candidate={path}", f"fleet={fleet}", f"champion={champion}")
        assert status == expected
    other = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, other)
    assert gate(folder, f"candidate={other}", f"fleet={fleet}", f"champion={champion}") == (2, None)


def test_a_candidate_that_drops_its_privacy_fails(folder, fleet, champion, tmp_path):
    private = ("privacy=central", "privacy.clip_norm=1", "privacy.target_epsilon=50")
    assert command([*RUN, *private, f"output_dir={tmp_path}"]) == 0
    status, found = gate(
        folder, f"candidate={champion}", f"fleet={fleet}", f"champion={only_run(tmp_path, 'scale')}"
    )
    assert status == 1
    assert {check["name"] for check in found["checks"] if check["verdict"] == "fail"} == {"epsilon"}


def test_margins_too_narrow_for_the_seeds_are_inconclusive(folder, fleet, champion, tmp_path):
    assert command([*RUN, "campaign.cohort_size=11", f"output_dir={tmp_path}"]) == 0
    status, found = gate(
        folder,
        f"candidate={only_run(tmp_path, 'scale')}",
        f"fleet={fleet}",
        f"champion={champion}",
        "accuracy_margin=0",
        "worst_margin=1",
        "most_seeds=5",
    )
    assert (status, found["verdict"]) == (3, "inconclusive")


class Reversed:
    """An aggregator that goes uphill."""

    def __new__(cls):
        from fedretrain.aggregation.aggregator import FixedDenominatorMean

        class Uphill(FixedDenominatorMean):
            def release(self, state):
                return -super().release(state)

        return Uphill(10.0)
