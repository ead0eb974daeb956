"""The smartwatch recordings: 20 streams, 1,149 windows, nothing scored that was trained on."""

import importlib.util
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError, DataError
from sim.datasets import watch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("seglearn") is None, reason="the package seglearn is not installed"
)


@pytest.fixture(scope="module")
def data():
    return watch.load()


def test_counts_are_those_of_the_study(data):
    assert len(data) == 1149
    assert data.num_streams == 20
    assert data.x.shape == (1149, 200, 6)
    pairs = {(int(s), int(c)) for s, c in zip(data.stream, data.y, strict=True)}
    assert len(pairs) == 140  # every person and arm does every exercise


def test_values_lie_in_the_declared_ranges(data):
    data.schema.validate(data.x, ranges=True)
    for c, channel in enumerate(data.schema.channels):
        assert channel.low <= data.x[..., c].min() < data.x[..., c].max() <= channel.high


def test_arms_are_device_types_and_people_are_sites(data):
    assert data.stream_names[:2] == ("person 1 left", "person 1 right")
    assert data.device_type.tolist() == [0, 1] * 10
    assert np.bincount(data.site).tolist() == [2] * 10


def test_every_stream_has_every_exercise_on_both_sides(data):
    for stream in range(20):
        for future in (False, True):
            assert set(data.y[data.rows_of(stream, future=future)]) == set(range(7))


def _samples(rows):
    """Each sample as bytes, to find it again."""
    return {sample.tobytes() for window in rows for sample in window}


@pytest.mark.parametrize("stride", [25, 77, 200])
def test_no_sample_is_both_trained_on_and_scored(data, stride):
    overlapping = watch.load(train_stride=stride)
    np.testing.assert_array_equal(
        np.sort(overlapping.x[overlapping.future].sum(axis=(1, 2))),
        np.sort(data.x[data.future].sum(axis=(1, 2))),
    )
    shared = _samples(overlapping.x[~overlapping.future]) & _samples(overlapping.x[overlapping.future])
    assert not shared
    assert (~overlapping.future).sum() >= (~data.future).sum()


def test_the_default_pipeline_may_be_used_under_differential_privacy(data):
    data.pipeline.require_private()
    watch.signal_pipeline().require_private()
    assert watch.signal_pipeline().output_shape(data.schema) == (6, 200)


def test_random_splits_are_named_in_the_caveats():
    assert any("optimistic" in caveat for caveat in watch.load(split="random").caveats)


@pytest.mark.parametrize(
    "bad",
    [
        {"train_stride": 0},
        {"train_stride": 201},
        {"pipeline": "wavelets"},
        {"split": "random", "train_stride": 50},
        {"past_fraction": 1.0},
    ],
)
def test_impossible_options_are_refused(bad):
    with pytest.raises(ConfigError):
        watch.load(**bad)


def test_another_file_is_never_opened(tmp_path):
    changed = tmp_path / "watch_dataset.npy"
    shutil.copy(watch.locate(), changed)
    with changed.open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="it was not opened"):
        watch.load(path=changed)
    with pytest.raises(DataError, match="is missing"):
        watch.load(path=tmp_path / "nothing.npy")


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="pip install"):
        watch.locate()


def test_seglearn_is_not_imported():
    code = "import sys; from sim.datasets import watch; watch.load(); print('seglearn' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
