"""wisdm, gas_drift and beijing_air: the real copies where they are, and the publishers' formats made up."""

import numpy as np
import pytest

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.types import Objective
from sim.datasets import beijing_air, gas_drift, wisdm
from sim.datasets.base import Timeline

# wisdm -----------------------------------------------------------------------------------------------------------


def wisdm_rows(n=24, users=3, seed=0):
    gen = np.random.default_rng(seed)
    x = np.round(gen.uniform(0, 1, (n, 43)), 2).astype(np.float32)
    x[0, 33] = np.nan
    return x, np.arange(n) % 2, np.arange(n) % users + 1


def write_npz(folder, **changes):
    x, y, user = wisdm_rows()
    content = {
        "X": x,
        "y": y.astype(np.int8),
        "user": user.astype(np.int8),
        "feature_names": np.array(wisdm.FEATURES),
        "activity_names": np.array(wisdm.CLASS_NAMES),
    }
    np.savez(folder / "wisdm_v1.npz", **(content | changes))


def write_arff(folder, change=lambda text: text):
    x, y, user = wisdm_rows()
    lines = [
        "@relation person_activity_recognition",
        '@attribute "UNIQUE_ID" numeric',
        '@attribute "user" numeric',
    ]
    lines += [f'@attribute "{name}" numeric' for name in wisdm.FEATURES]
    lines += ['@attribute "class" { "Walking" , "Jogging" }', "@data"]
    for i in range(len(y)):
        cells = ["?" if np.isnan(v) else f"{v:.2f}" for v in x[i]]
        lines.append(",".join([str(i), str(user[i]), *cells, wisdm.CLASS_NAMES[y[i]]]))
    (folder / "WISDM_ar_v1.1_transformed.arff").write_text(change("\n".join(lines)))


def test_wisdm_reads_both_formats_alike(tmp_path):
    (tmp_path / "a" / "wisdm_v1").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    write_npz(tmp_path / "a" / "wisdm_v1")
    write_arff(tmp_path / "b")
    ours, theirs = wisdm.load(tmp_path / "a"), wisdm.load(tmp_path / "b")
    np.testing.assert_array_equal(ours.x, theirs.x)
    np.testing.assert_array_equal(ours.y, theirs.y)
    assert ours.digest == theirs.digest
    assert ours.stream_names == ("user 1", "user 2", "user 3")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.replace('"X3"', '"Q3"'), "attribute 'X3'"),
        (lambda t: t.replace("@data", ""), "no @data"),
        (lambda t: t + "\n1,2,3", "data row 24 has 3 values"),
        (lambda t: t.replace("Jogging\n", "Flying\n", 1), "activity of row 1 is 'Flying'"),
        (lambda t: t.replace("?", "none"), "not a number"),
        (lambda _: "", "empty"),
    ],
)
def test_wisdm_refuses_a_damaged_arff(tmp_path, change, says):
    write_arff(tmp_path, change)
    with pytest.raises(DataError, match=says):
        wisdm.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"X": np.zeros((24, 40))}, r"shape \(24, 40\), expected \[any, 43\]"),
        ({"user": np.zeros(3)}, "'user' has the shape"),
        ({"feature_names": np.array(["a"] * 43)}, "not those of WISDM"),
        ({"y": np.full(24, 9)}, "activity of row 0 is '9'"),
        ({"X": np.full((24, 43), np.inf)}, "infinity"),
        ({"activity_names": np.array([{}], dtype=object)}, "Python objects"),
    ],
)
def test_wisdm_refuses_a_damaged_npz(tmp_path, changes, says):
    write_npz(tmp_path, **changes)
    with pytest.raises(DataError, match=says):
        wisdm.load(tmp_path)


def test_absent_folders_files_and_zips_are_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDRETRAIN_DATA", raising=False)
    with pytest.raises(DataError, match=r"FEDRETRAIN_DATA.*WISDM Lab"):
        wisdm.load()
    with pytest.raises(DataError, match="does not exist"):
        wisdm.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"none of wisdm_v1\.npz.*WISDM Lab.*data_dir"):
        wisdm.load(tmp_path)
    (tmp_path / "wisdm_v1.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match="damaged"):
        wisdm.load(tmp_path)
    monkeypatch.setenv("FEDRETRAIN_DATA", str(tmp_path))
    with pytest.raises(DataError, match="damaged"):
        wisdm.load()


@pytest.mark.dataset("wisdm")
def test_wisdm_has_the_published_counts(data_dir):
    data = wisdm.load(data_dir)
    assert np.bincount(data.y).tolist() == [528, 1625, 306, 246, 632, 2081]
    assert data.num_streams == 36
    data.schema.validate(data.x, ranges=True)
    data.pipeline.require_private()
    pairs = 6 * data.stream.astype(np.int64) + data.y
    for pair in np.unique(pairs):  # the first half of each class of each user, to half a window
        assert abs((~data.future[pairs == pair]).sum() - (pairs == pair).sum() / 2) <= 0.5


# gas_drift -------------------------------------------------------------------------------------------------------


def gas_lines(batch, form):
    gen = np.random.default_rng(batch)
    x = np.round(gen.normal(0, 1000, (12, 128)), 4)
    cells = [" ".join(f"{i + 1}:{v}" for i, v in enumerate(row)) for row in x]
    heads = [f"{r % 6 + 1};{10.0 * r:.6f}" if form == 270 else str(r % 6 + 1) for r in range(12)]
    return x, "\n".join(f"{head} {row} " for head, row in zip(heads, cells, strict=True)) + "\n"


@pytest.mark.parametrize("form", [224, 270])
def test_gas_reads_both_of_the_publishers_forms(tmp_path, form):
    folder = tmp_path / "Dataset"
    folder.mkdir()
    raw = {}
    for batch in (1, 2, 10):
        raw[batch], text = gas_lines(batch, form)
        (folder / f"batch{batch}.dat").write_text(text)
    data = gas_drift.load(tmp_path, first_future_batch=10)
    assert len(data) == 4 * 36
    assert data.y[:6].tolist() == [0, 1, 2, 3, 4, 5]
    first = data.rows_of(1)[0]
    np.testing.assert_allclose(data.x[first].reshape(4, 8), raw[1][0].reshape(16, 8)[[1, 3, 5, 7]], rtol=1e-6)
    last = data.rows_of(3)[-1]
    np.testing.assert_allclose(
        data.x[last].reshape(4, 8), raw[10][-1].reshape(16, 8)[[9, 11, 13, 15]], rtol=1e-6
    )
    assert any("3 of 10 batches" in caveat for caveat in data.caveats)


def test_gas_months_keep_their_real_gaps(tmp_path):
    for batch in (1, 2, 10):
        (tmp_path / f"batch{batch}.dat").write_text(gas_lines(batch, 224)[1])
    data = gas_drift.load(tmp_path, first_future_batch=10, timeline=Timeline(campaign_s=1000.0))
    when = data.event_at[data.rows_of(0)]
    assert when[data.future[data.rows_of(0)]].min() == pytest.approx(1000.0)
    assert np.diff(when).max() > 25 * gas_drift._MONTH_S  # months 11 to 35 are silent


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1;10 1:2 2:x\n", "line 1 is not"),
        ("1;10 1:2 3:4\n", "line 1 has 2 features"),
        ("gas 1:2\n", "line 1 is not"),
        ("\n", "empty"),
    ],
)
def test_gas_refuses_damaged_lines(tmp_path, text, says):
    (tmp_path / "batch1.dat").write_text(text)
    with pytest.raises(DataError, match=says):
        gas_drift.load(tmp_path)


def test_gas_refuses_unknown_batches_gases_and_splits(tmp_path):
    (tmp_path / "batch1.dat").write_text(gas_lines(1, 224)[1])
    with pytest.raises(ConfigError, match="first_future_batch is 8"):
        gas_drift.load(tmp_path)
    (tmp_path / "batch12.dat").write_text(gas_lines(2, 224)[1])
    with pytest.raises(DataError, match="no batch 12"):
        gas_drift.load(tmp_path)
    (tmp_path / "batch12.dat").unlink()
    (tmp_path / "batch8.dat").write_text(gas_lines(2, 224)[1].replace("\n6 ", "\n7 "))
    with pytest.raises(DataError, match=r"label of row \d+ is 6, outside 0 \.\. 5"):
        gas_drift.load(tmp_path)


@pytest.mark.dataset("gas_drift")
def test_gas_copies_say_which_batches_are_missing(data_dir):
    data = gas_drift.load(data_dir)
    assert len(data) == 4 * 6697
    assert "8 of 10 batches" in data.caveats[0]
    assert "missing 7, 10" in data.caveats[0]
    assert data.future.sum() == 4 * (294 + 470)
    data.schema.validate(data.x, ranges=True)
    data.pipeline.require_private()


def test_gas_nodes_use_each_sensor_once():
    sensors = sorted(s for node in gas_drift.NODES.values() for s in node)
    assert sensors == list(range(16))


@pytest.mark.dataset("gas_drift")
def test_a_random_split_of_the_gases_never_tears_an_exposure_apart(data_dir):
    data = gas_drift.load(data_dir, split="random")
    sides = data.future.reshape(4, -1)
    assert (sides == sides[0]).all()


# beijing_air -----------------------------------------------------------------------------------------------------

HEADER = "No,year,month,day,hour,PM2.5,PM10,SO2,NO2,CO,O3,TEMP,PRES,DEWP,RAIN,wd,WSPM,station"


def station_file(folder, name, hours=48, change=lambda text: text):
    lines = [HEADER]
    for h in range(hours):
        pm = "NA" if 10 <= h < 14 else str(50 + h)
        lines.append(
            f"{h + 1},2013,3,{1 + h // 24},{h % 24},{pm},60,5,20,500,30,{h % 7},1010,-5,0,NNE,2.5,{name}"
        )
    (folder / f"PRSA_Data_{name}_20130301-20170228.csv").write_text(change("\n".join(lines)))


def test_beijing_reads_the_publishers_folder_and_keeps_outages(tmp_path):
    for name in ("Aotizhongxin", "Huairou"):
        station_file(tmp_path, name)
    data = beijing_air.load(tmp_path, every_hours=1)
    assert data.stream_names == ("Aotizhongxin", "Huairou")
    assert data.site.tolist() == [0, 1]
    assert len(data) == 2 * 44
    assert np.diff(data.event_at[data.rows_of(0)]).max() == 5 * 3600.0
    assert data.y[0] == pytest.approx(0.5)
    assert "PM10" not in data.schema.names


def test_beijing_forecasts_look_ahead(tmp_path):
    station_file(tmp_path, "Dongsi")
    data = beijing_air.load(tmp_path, task="forecast", horizon_hours=3, every_hours=1)
    pm, target = data.x[:, data.schema.names.index("PM2.5")], data.y * 100
    np.testing.assert_allclose(target[20:], pm[20:] + 3, rtol=1e-5)


def test_a_forecast_is_complete_when_what_it_foretells_was_measured(tmp_path):
    """So that no row is trained on, or counted as past, before its target exists."""
    station_file(tmp_path, "Dongsi")
    now = beijing_air.load(tmp_path, every_hours=1)
    later = beijing_air.load(tmp_path, task="forecast", horizon_hours=3, every_hours=1)
    measured = dict(zip(now.event_at.tolist(), now.y.tolist(), strict=True))
    scored = dict(zip(now.event_at.tolist(), now.future.tolist(), strict=True))
    assert [measured[at] for at in later.event_at.tolist()] == later.y.tolist()
    assert [scored[at] for at in later.event_at.tolist()] == later.future.tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.replace("SO2", "S02"), "column 'SO2'"),
        (lambda t: t.replace(",60,", ",sixty,"), "not a number"),
        (lambda t: t.replace("2013,3,1,0,", "2013,13,1,0,"), "not a number or date"),
        (lambda _: "", "not a table"),
    ],
)
def test_beijing_refuses_damaged_files(tmp_path, change, says):
    station_file(tmp_path, "Dongsi", change=change)
    with pytest.raises(DataError, match=says):
        beijing_air.load(tmp_path)


def test_beijing_refuses_stations_of_other_hours(tmp_path):
    station_file(tmp_path, "Dongsi")
    station_file(tmp_path, "Gucheng", hours=40)
    with pytest.raises(DataError, match="hours differ"):
        beijing_air.load(tmp_path)
    with pytest.raises(ConfigError, match="no task"):
        beijing_air.load(tmp_path, task="ozone")
    with pytest.raises(ConfigError, match="whole hours"):
        beijing_air.load(tmp_path, every_hours=0)


@pytest.mark.dataset("beijing_air")
@pytest.mark.parametrize("task", beijing_air.TASKS)
def test_beijing_copies_load_for_every_task(data_dir, task):
    data = beijing_air.load(data_dir, task=task, every_hours=24)
    assert data.num_streams == 12
    assert data.objective is (Objective.CLASSIFICATION if task == "exceeds" else Objective.REGRESSION)
    data.schema.validate(data.x, ranges=True)
    data.pipeline.require_private()
    inputs = data.pipeline.fit(data.x[~data.future], data.schema).apply(data.x)
    assert np.abs(inputs).max() <= 6.0
    assert data.event_at[data.future].min() >= Timeline().campaign_s
