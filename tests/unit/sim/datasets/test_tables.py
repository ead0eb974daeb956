"""Anybody's table: three formats read alike, and every mistake told in one line."""

import numpy as np
import pandas as pd
import pytest

from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.types import Objective
from sim.datasets.base import Timeline
from sim.datasets.columns import TableSpec, read_columns
from sim.datasets.table import load


def frame(rows=30):
    n = np.arange(rows)
    return pd.DataFrame(
        {
            "pump": np.array(["p1", "p2", "p3"])[n % 3],
            "state": np.array(["ok", "worn"])[(n // 3) % 2],
            "at": pd.to_datetime("2024-01-01") + pd.to_timedelta(n[::-1], unit="h"),
            "flow": n * 1.5,
            "temp": n % 7 + 0.25,
        }
    )


def spec(path, **changes):
    return TableSpec(**({"path": str(path), "device": "pump", "label": "state", "time": "at"} | changes))


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "pumps.csv"
    frame().to_csv(path, index=False)
    return path


def test_three_formats_are_read_alike(tmp_path, csv):
    table = frame()
    table.to_parquet(tmp_path / "pumps.parquet")
    np.savez(
        tmp_path / "pumps.npz",
        pump=table["pump"].to_numpy(dtype=str),
        state=table["state"].to_numpy(dtype=str),
        at=table["at"].to_numpy().astype("datetime64[s]"),
        signals=table[["flow", "temp"]].to_numpy(),
    )
    a, b = load(spec=spec(csv)), load(spec=spec(tmp_path / "pumps.parquet"))
    c = load(spec=spec(tmp_path / "pumps.npz", features=("signals",)))
    for other in (b, c):
        np.testing.assert_array_equal(a.x, other.x)
        np.testing.assert_array_equal(a.y, other.y)
        np.testing.assert_array_equal(a.event_at, other.event_at)
    assert a.class_names == ("ok", "worn")
    assert a.stream_names == ("p1", "p2", "p3")
    assert a.schema.names == ("flow", "temp")
    assert c.schema.names == ("signals[0]", "signals[1]")


def test_rows_are_put_in_time_order_and_the_last_are_scored(csv):
    data = load(spec=spec(csv), past_fraction=0.7)
    for stream in range(3):
        flow = data.x[data.rows_of(stream), 0]
        assert np.all(np.diff(flow) < 0)  # the file runs backwards in time
        assert data.future[data.rows_of(stream)].tolist() == [False] * 7 + [True] * 3
    at, future = data.event_at[data.rows_of(0)], data.future[data.rows_of(0)]
    assert np.diff(at[~future]) == pytest.approx(3 * 3600.0)
    assert np.diff(at[future]) == pytest.approx(3 * 3600.0)
    assert at[future][0] == Timeline().campaign_s


def test_a_past_shorter_than_the_campaign_lies_before_it_but_for_the_live_fraction(csv):
    data = load(spec=spec(csv), past_fraction=0.7, timeline=Timeline(live_fraction=0.25))
    past = data.event_at[~data.future].reshape(3, 7)
    assert np.all((past <= 0).sum(axis=1) == 5)  # else there was nothing to train on in most rounds
    longer = load(spec=spec(csv), past_fraction=0.7, timeline=Timeline(campaign_s=3600.0))
    assert np.diff(longer.event_at[longer.rows_of(0)]) == pytest.approx(3 * 3600.0)  # nothing was to be moved


def test_without_a_time_column_the_files_order_counts(csv):
    data = load(spec=spec(csv, time="", features=("flow",)))
    assert np.all(np.diff(data.x[data.rows_of(1), 0]) > 0)


def test_regressions_and_integer_labels(tmp_path):
    table = frame()
    table["wear"] = table["temp"] / 3
    table["grade"] = np.arange(30) // 3 % 2 * 5 + 2
    path = tmp_path / "t.csv"
    table.to_csv(path, index=False)
    data = load(spec=spec(path, label="wear", task="regression", features=("flow",)))
    assert data.objective is Objective.REGRESSION
    assert data.y.dtype == np.float32
    assert load(spec=spec(path, label="grade", features=("flow",))).class_names == ("2", "7")


def test_missing_values_may_be_imputed_when_asked(tmp_path):
    table = frame()
    table.loc[4, "temp"] = np.nan
    path = tmp_path / "t.csv"
    table.to_csv(path, index=False)
    with pytest.raises(DataError, match=r"'temp' has NaN in row 4.*table.missing=impute"):
        load(spec=spec(path))
    data = load(spec=spec(path, missing="impute"))
    inputs = data.pipeline.fit(data.x[~data.future], data.schema).apply(data.x)
    assert np.isfinite(inputs).all()


def edit(column, row, value):
    def change(table):
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
        return table

    return change


MISTAKES = [
    ({"label": "states"}, None, r"no column 'states' \(table.label\).*did you mean state or at"),
    ({"device": "engine"}, None, r"no column 'engine' \(table.device\).*the columns are pump"),
    ({"time": "att"}, None, "did you mean at"),
    ({"features": ("flow", "tmp")}, None, "did you mean temp"),
    ({"features": ("flow", "pump")}, None, "'pump' is a feature and the device"),
    ({"label": "flow", "features": ("temp",)}, None, "fractions such as 1.5.*table.task=regression"),
    ({"label": "state", "task": "regression"}, None, "holds text.*classification"),
    ({"features": ("flow", "note")}, lambda t: t.assign(note="x"), "'note' holds text or dates"),
    ({}, lambda t: t.assign(state="ok"), "every row has the same label, ok"),
    ({}, edit("state", 5, None), "row 5 has no label"),
    ({}, edit("pump", 7, None), "row 7 has no device"),
    ({}, edit("at", 8, None), "row 8 has no time"),
    ({}, edit("at", 8, "soon"), "neither seconds nor dates"),
    ({}, edit("flow", 3, np.inf), "'flow' has infinity in row 3"),
    ({}, edit("flow", 3, "broken"), "'flow' has the text 'broken' in row 3, among numbers; 1 such"),
    ({}, edit("flow", 3, 1e60), "'flow' has infinity in row 3"),
    ({}, edit("pump", 9, "p9"), r"device p9 has 1 row\(s\).*table.min_rows=1"),
    (
        {},
        lambda t: t.assign(state=np.where(t["pump"] == "p2", "ok", t["state"])),
        "p2 has one class only.*table.one_class",
    ),
    (
        {"features": ("pump2",), "time": ""},
        lambda t: t.assign(pump2=1)[["pump", "state"]],
        "no column 'pump2'",
    ),
    ({"time": ""}, lambda t: t[["pump", "state"]], "no numeric column left"),
    ({}, lambda t: t[:0], "no rows"),
]


@pytest.mark.parametrize(("changes", "change", "says"), MISTAKES, ids=[m[2][:30] for m in MISTAKES])
def test_each_mistake_is_one_line(tmp_path, changes, change, says):
    path = tmp_path / "pumps.csv"
    (frame() if change is None else change(frame())).to_csv(path, index=False)
    with pytest.raises((DataError, ConfigError), match=says) as caught:
        load(spec=spec(path, **changes))
    assert "\n" not in str(caught.value)


def test_allowances_are_allowances(tmp_path):
    table = edit("pump", 9, "p9")(frame())
    path = tmp_path / "pumps.csv"
    table.to_csv(path, index=False)
    data = load(spec=spec(path, min_rows=1, one_class=True))
    assert data.num_streams == 4


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.csv", None, "does not exist"),
        ("pumps.xlsx", b"PK", "type .xlsx cannot be read"),
        ("pumps.parquet", b"not parquet", "cannot be read"),
        ("pumps.csv", b"", "cannot be read"),
        ("pumps.csv", b'a,b\n1,2\n3,"4\n', "cannot be read"),
        ("pumps.npz", b"PK\x03\x04", "damaged"),
        ("pumps.npz", b"what", "no npz file"),
        ("pumps.csv", b"a,b,a\n1,2,3\n", "two columns are named 'a'"),
        ("pumps.tsv", b"a\tb\ta\n1\t2\t3\n", "two columns are named 'a'"),
        (".", None, "the table is no file"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_columns(path)
    assert "\n" not in str(caught.value)


def test_a_near_file_name_is_offered(csv):
    with pytest.raises(DataError, match=r"did you mean pumps\.csv"):
        read_columns(csv.with_name("pump.csv"))


def test_relative_paths_are_looked_for_in_the_data_folder(csv):
    assert len(load(csv.parent, spec=spec("pumps.csv"))) == 30


def test_windows_and_ragged_arrays_are_refused(tmp_path):
    n = np.arange(12)
    np.savez(tmp_path / "t.npz", pump=n % 2, state=n // 2 % 2, cube=np.zeros((12, 3, 4)), short=np.zeros(5))
    for name in ("cube", "short"):
        with pytest.raises(DataError, match=f"'{name}' has the shape.*task new"):
            load(spec=spec(tmp_path / "t.npz", time="", features=(name,)))


@pytest.mark.parametrize(
    "changes",
    [
        {"device": ""},
        {"label": ""},
        {"task": "ranking"},
        {"missing": "guess"},
        {"scaler": "fixed"},
        {"scaler": "z"},
    ],
)
def test_impossible_specs_are_refused(changes):
    with pytest.raises(ConfigError, match=r"table\."):
        load(spec=spec("x.csv", **changes))


def test_regression_targets_are_standardised_and_their_scale_is_kept(tmp_path):
    rows = [f"d{i % 4},{i},{1000 + 50 * (i % 7)}" for i in range(80)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["device,x,target", *rows]))
    data = load(spec=TableSpec(str(path), "device", "target", task="regression"))
    past = data.y[~data.future]
    assert past.mean() == pytest.approx(0.0, abs=1e-5)
    assert past.std() == pytest.approx(1.0, abs=1e-5)
    assert 50 < data.target_scale < 150
