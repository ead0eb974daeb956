"""A campaign's progress on disk: bit for bit, or refused in one line."""

from __future__ import annotations

import errno
from dataclasses import fields, replace
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest

from fedretrain.core.errors import DataError, UserError
from sim import checkpoint, outputs
from sim.campaign import Campaign
from sim.local_runner import LocalRunner
from sim.outputs import RunFolder
from tests.run_cases import HARD, quick_arm

STARTED = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def campaign():
    arm = quick_arm(*HARD, "aggregation.server.momentum=0.5", "privacy.adaptive_clip=true")
    made = Campaign("one", arm)
    made.run(LocalRunner(arm, made.progress.store), lambda record: None)
    return made


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path, "scale", STARTED)


def file_of(folder):
    (file,) = (folder.path / checkpoint.FOLDER).iterdir()
    return file


def test_everything_comes_back_bit_for_bit(campaign, folder):
    progress, arm = campaign.progress, campaign.arm
    scores = campaign.finish(LocalRunner(arm, progress.store))
    assert len(progress.store)
    assert progress.events
    assert scores
    checkpoint.save(folder, "one", arm, progress, scores)
    found, read = checkpoint.restore(folder.path, "one", arm)
    assert read == scores
    for name in ("next_round", "events", "records", "over"):
        assert getattr(found, name) == getattr(progress, name), name
    for name in ("contributed", "sent"):
        np.testing.assert_array_equal(getattr(found, name), getattr(progress, name))
        assert getattr(found, name).dtype == getattr(progress, name).dtype
    for mine, theirs in ((found.state, progress.state), (found.store, progress.store)):
        arrays = theirs.to_arrays()
        assert set(mine.to_arrays()) == set(arrays)
        for key, value in mine.to_arrays().items():
            np.testing.assert_array_equal(value, arrays[key], err_msg=key)
            assert value.dtype == arrays[key].dtype
    assert found.state.clip_norm == progress.state.clip_norm
    assert found.state.version == progress.state.version


def test_no_field_of_progress_is_forgotten(campaign):
    stored = {"state", "store", "contributed", "sent", "next_round", "events", "records", "over"}
    assert {field.name for field in fields(campaign.progress)} == stored


def test_what_had_not_begun_is_none(campaign, folder):
    assert checkpoint.restore(folder.path, "one", campaign.arm) is None
    assert not checkpoint.begun(folder.path)


def test_it_is_removed_when_the_run_is_finished(campaign, folder):
    checkpoint.save(folder, "one", campaign.arm, campaign.progress)
    assert checkpoint.begun(folder.path)
    checkpoint.remove(folder)
    assert not checkpoint.begun(folder.path)
    checkpoint.remove(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99], ids=str)
def test_a_truncated_one_is_refused(campaign, folder, keep):
    checkpoint.save(folder, "one", campaign.arm, campaign.progress)
    data = file_of(folder).read_bytes()
    file_of(folder).write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(DataError, match=r"the checkpoint is damaged.*one-0.*start the run again") as refused:
        checkpoint.restore(folder.path, "one", campaign.arm)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"next_round":', b'"next_rount":'), (b'\\"outcome\\"', b'\\"outcame\\"'), (b'"over":', b'"ovar":')],
)
def test_a_header_that_lacks_something_is_refused(campaign, folder, old, new):
    checkpoint.save(folder, "one", campaign.arm, campaign.progress)
    data = file_of(folder).read_bytes()
    assert old in data
    file_of(folder).write_bytes(data.replace(old, new))
    with pytest.raises(DataError, match="damaged"):
        checkpoint.restore(folder.path, "one", campaign.arm)


def test_another_configuration_is_refused(campaign, folder):
    checkpoint.save(folder, "one", campaign.arm, campaign.progress)
    other = replace(campaign.arm, config=replace(campaign.arm.config, name="other"))
    with pytest.raises(DataError, match="another configuration"):
        checkpoint.restore(folder.path, "one", other)


def test_where_a_run_is_computed_and_written_is_no_part_of_it(campaign):
    config = campaign.arm.config
    moved = replace(
        config, output_dir="elsewhere", tracking_uri="x", runner=replace(config.runner, num_workers=3)
    )
    assert checkpoint.config_digest(moved) == checkpoint.config_digest(config)
    for change in ({"seed": 9}, {"training": replace(config.training, epochs=7)}):
        assert checkpoint.config_digest(replace(config, **change)) != checkpoint.config_digest(config)


def test_other_data_are_refused(campaign, folder):
    checkpoint.save(folder, "one", campaign.arm, campaign.progress)
    arm = campaign.arm
    fleet = SimpleNamespace(digest="another")
    world = SimpleNamespace(fleet=fleet)
    changed = SimpleNamespace(config=arm.config, seed=arm.seed, world=world, task=arm.task)
    with pytest.raises(DataError, match="the data are not those"):
        checkpoint.restore(folder.path, "one", changed)


def test_a_full_disk_keeps_the_last_checkpoint(campaign, folder, monkeypatch):
    checkpoint.save(folder, "one", campaign.arm, campaign.progress)
    before = file_of(folder).read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs.os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*output_dir=PATH"):
        checkpoint.save(folder, "one", campaign.arm, campaign.progress, ())
    assert file_of(folder).read_bytes() == before, "and no half-written file lies beside it"
