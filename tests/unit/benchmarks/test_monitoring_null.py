"""The counting of the false-alarm benchmark, on cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.monitoring_null import DAY, YEAR, found_in_time, judge_itself, main, measure, streaks


def test_streaks_start_again_after_a_gap() -> None:
    bad = np.array([[1, 0], [1, 1], [0, 1], [1, 1], [1, 1]], dtype=bool)
    assert streaks(bad).T.tolist() == [[1, 2, 0, 1, 2], [0, 1, 2, 3, 4]]


def uniform_years(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(20, np.full(5, 0.2), (2 * YEAR, 2)).astype(np.int64)


def test_independent_rows_raise_nothing_and_a_moved_feature_is_found() -> None:
    counts = uniform_years(0)
    line = measure(counts, np.zeros(2 * YEAR, np.int64), 7, "next_year")
    assert line["alarms_per_feature_year"] == {"ours": 0.0, "published": 0.0, "published_and_chi_square": 0.0}
    assert line["feature_years"] == pytest.approx(2 * 7 * 52 * 7 / 365, abs=0.3)
    moved = np.roll(counts, 1, axis=2)
    moved[:, :, 0] = moved[:, :, 1]
    moved[:, :, 1] = 0
    assert found_in_time(counts, moved, 7)["found_within_four_windows"] == 1.0
    assert found_in_time(counts, counts, 7)["found_within_four_windows"] == 0.0


def test_a_window_is_never_judged_by_itself() -> None:
    year = uniform_years(0)[:YEAR]
    year[100 * DAY : 107 * DAY, 0] = [100, 0, 0, 0, 0]
    starts = np.arange(2 * DAY, YEAR - 7 * DAY, 7 * DAY)  # one window is the odd week
    _, _, ours = judge_itself(year, starts, 7, None)
    assert ours[:, 0].tolist() == [start == 100 * DAY for start in starts]
    assert not ours[:, 1].any()


def test_without_the_data_there_is_one_line_of_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FEDRETRAIN_DATA", raising=False)
    assert main() == 2
    assert "FEDRETRAIN_DATA" in capsys.readouterr().err
