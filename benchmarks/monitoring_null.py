"""``python -m benchmarks.monitoring_null``: how often drift is announced where the world is as it always was.

Two rules on the same windows: ours (recipe A: PSI above 0.2 *and* beyond the empirical null, false-discovery rate
controlled over features, three non-overlapping windows in a row) and the published one (the same without the null).

Rows are hours of Beijing air (12 stations, 11 variables, NaN where a station was down), as they came (dependent: weather,
traffic, seasons) and in random order (independent). Protocols:
    itself: each window of the first year against the rest of that year, judged by the windows that do not overlap it.
    season: likewise, judged by windows of its own season (months DJF, MAM, JJA, SON) only.
    next_year: windows of the second year against the first one and its null; what is called false here includes
        whatever really changed between the years.
    next_year_season: likewise, judged by the windows of the same season.

Rules of this file:
    * One JSON line per case: alarms (three windows in a row, however long they go on) per feature-year, the share of the time
      in alarm, and the share of (feature, window) above each rule's threshold.
    * What a rule that is quiet would see is measured too: sensors of the second year off by some standard deviations.
    * Windows are judged from several starting points (every 6 hours or every day), so that no phase decides.
    * The chi-square null is shown beside, for rows declared independent: it is what "PSI > 0.2 and p < 0.001" uses.

It needs the folder with the public data sets: ``FEDRETRAIN_DATA``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results import append
from fedretrain.monitoring.bins import fit_bins
from fedretrain.monitoring.config import DriftRules
from fedretrain.monitoring.discovery import benjamini_hochberg
from fedretrain.monitoring.divergence import psi, psi_p_value
from fedretrain.monitoring.histogram import count_by
from fedretrain.monitoring.null import EmpiricalNull, fit_null
from fedretrain.monitoring.view import judge_psi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

RULES = DriftRules()
DAY, YEAR = 24, 365 * 24
STRIDE = {1: 1, 7: 24}  # slots between windows of the null, by the window's length in days
PHASE = {1: 6, 7: 24}  # slots between starting points
SHIFTS = (1.0, 2.0, 3.0)
_CHI_SQUARE = 0.001


def load(folder: Path) -> tuple[NDArray[np.float32], list[str], NDArray[np.int64]]:
    """Values ``[stations, hours, variables]``, names, and the season of each hour."""
    with np.load(folder / "beijing_air" / "beijing_air.npz", allow_pickle=False) as file:
        month = file["time"].astype("datetime64[h]").astype("datetime64[M]").astype(np.int64) % 12
        names = [str(name) for name in file["variables"]]
        return file["X"][:, : 2 * YEAR], names, ((month[: 2 * YEAR] + 1) % 12) // 3


def slot_counts(x_SHF: NDArray[np.float32], names: list[str]) -> NDArray[np.int64]:
    """``[hours, F, C]`` counts on bins of the first year."""
    stations, hours, features = x_SHF.shape
    bins = fit_bins(x_SHF[:, :YEAR].reshape(-1, features), names)
    owner = np.tile(np.arange(hours), stations)
    return count_by(bins, x_SHF.reshape(-1, features), owner, hours)


def windows_of(counts_SFC: NDArray[np.int64], starts_W: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """``[W, F, C]`` the counts of each window."""
    until = np.concatenate([np.zeros_like(counts_SFC[:1]), np.cumsum(counts_SFC, axis=0)])
    return until[starts_W + length] - until[starts_W]


def judge_itself(
    year_SFC: NDArray[np.int64], starts_W: NDArray[np.int64], days: int, season_S: NDArray[np.int64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """PSI, chi-square p-values and our verdicts ``[W, F]`` of windows of the baseline itself."""
    length, total = days * DAY, year_SFC.sum(axis=0)
    null_starts = np.arange(0, len(year_SFC) - length + 1, STRIDE[days])
    null_counts = windows_of(year_SFC, null_starts, length)
    null_psi = psi(total - null_counts, null_counts)
    counts = windows_of(year_SFC, starts_W, length)
    psi_WF = psi(total - counts, counts)
    chi_WF = psi_p_value(total - counts, counts)
    ours = np.zeros(psi_WF.shape, dtype=bool)
    for w, start in enumerate(starts_W):
        apart = np.abs(null_starts - start) >= length
        if season_S is not None:
            apart &= season_S[null_starts + length - 1] == season_S[start + length - 1]
        rest = np.sort(null_psi[apart], axis=0)
        null = EmpiricalNull(rest, np.zeros(len(rest), dtype=np.int64), length)
        p_F, _ = judge_psi(null, psi_WF[w], RULES)
        ours[w] = benjamini_hochberg(p_F, RULES.alpha)
    return psi_WF, chi_WF, ours & (psi_WF > RULES.psi)


def judge_next_year(
    counts_SFC: NDArray[np.int64], starts_W: NDArray[np.int64], days: int, season_S: NDArray[np.int64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Likewise for windows of the second year against the first."""
    length, first = days * DAY, counts_SFC[:YEAR]
    null = fit_null(first, length, STRIDE[days], None if season_S is None else season_S[:YEAR])
    counts = windows_of(counts_SFC[YEAR:], starts_W, length)
    psi_WF, chi_WF = psi(first.sum(axis=0), counts), psi_p_value(first.sum(axis=0), counts)
    ours = np.zeros(psi_WF.shape, dtype=bool)
    for w, start in enumerate(starts_W):
        season = None if season_S is None else int(season_S[YEAR + start + length - 1])
        p_F, _ = judge_psi(null, psi_WF[w], RULES, season)
        ours[w] = benjamini_hochberg(p_F, RULES.alpha)
    return psi_WF, chi_WF, ours & (psi_WF > RULES.psi)


def streaks(bad_WF: NDArray[np.bool_]) -> NDArray[np.int64]:
    """``[W, F]`` how many windows in a row were bad, up to each."""
    run_WF, run_F = np.zeros(bad_WF.shape, dtype=np.int64), np.zeros(bad_WF.shape[1], dtype=np.int64)
    for w, bad_F in enumerate(bad_WF):
        run_F = np.where(bad_F, run_F + 1, 0)
        run_WF[w] = run_F
    return run_WF


def measure(
    counts_SFC: NDArray[np.int64], season_S: NDArray[np.int64], days: int, protocol: str
) -> dict[str, Any]:
    """Both rules on every starting point of one case."""
    length, seasons = days * DAY, season_S if protocol.endswith("season") else None
    bad: dict[str, list[NDArray[np.bool_]]] = {"ours": [], "published": [], "published_and_chi_square": []}
    for phase in range(0, length, PHASE[days]):
        starts_W = np.arange(phase, YEAR - length + 1, length)
        if protocol.startswith("next_year"):
            psi_WF, chi_WF, ours = judge_next_year(counts_SFC, starts_W, days, seasons)
        else:
            psi_WF, chi_WF, ours = judge_itself(counts_SFC[:YEAR], starts_W, days, seasons)
        published = psi_WF > RULES.psi
        bad["ours"].append(ours)
        bad["published"].append(published)
        bad["published_and_chi_square"].append(published & (chi_WF < _CHI_SQUARE))
    return {
        "alarms_per_feature_year": summary(
            bad, lambda run: float((run == RULES.num_windows).sum()) * YEAR / length
        ),
        "time_in_alarm": summary(bad, lambda run: float((run >= RULES.num_windows).sum())),
        "share_of_windows": summary(bad, lambda run: float((run > 0).sum())),
        "feature_years": round(sum(part.size for part in bad["ours"]) * length / YEAR, 1),
    }


def summary(
    bad: dict[str, list[NDArray[np.bool_]]], value: Callable[[NDArray[np.int64]], float]
) -> dict[str, float]:
    """The mean over all windows of something about their streaks, by rule."""
    return {
        name: round(sum(value(streaks(part)) for part in parts) / sum(part.size for part in parts), 4)
        for name, parts in bad.items()
    }


def found_in_time(
    counts_SFC: NDArray[np.int64], moved_SFC: NDArray[np.int64], days: int
) -> dict[str, float | int]:
    """The share of onsets, at each window of the second year and for one variable at a time, found within four windows."""
    length, found, onsets = days * DAY, 0, 0
    starts_W = np.arange(0, YEAR - length + 1, length)
    for feature in range(counts_SFC.shape[1]):
        mixed_SFC = counts_SFC.copy()
        mixed_SFC[YEAR:, feature] = moved_SFC[YEAR:, feature]
        bad_W = judge_next_year(mixed_SFC, starts_W, days, None)[2][:, feature]
        three_W = bad_W[:-2] & bad_W[1:-1] & bad_W[2:]
        found += int((three_W[:-1] | three_W[1:]).sum())
        onsets += len(three_W) - 1
    return {"found_within_four_windows": round(found / onsets, 4), "onsets": onsets}


def shuffled(x_SHF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each station's hours in random order: the same values, independent in time."""
    rng = np.random.default_rng(0)
    return np.stack([station[rng.permutation(len(station))] for station in x_SHF])


def power(x_SHF: NDArray[np.float32], names: list[str]) -> Iterator[dict[str, Any]]:
    """What the same rule sees when every station's sensor is off by so many standard deviations."""
    counts_SFC = slot_counts(x_SHF, names)
    std_F = np.nanstd(x_SHF[:, :YEAR].reshape(-1, len(names)), axis=0)
    bins = fit_bins(x_SHF[:, :YEAR].reshape(-1, len(names)), names)
    owner = np.tile(np.arange(x_SHF.shape[1]), len(x_SHF))
    for size in SHIFTS:
        moved = (x_SHF + np.float32(size) * std_F).reshape(-1, len(names))
        moved_SFC = count_by(bins, moved, owner, x_SHF.shape[1])
        for days in (1, 7):
            case = f"dependent_fleet_{days}d_offset_{size:g}_std"
            yield {"case": case, **found_in_time(counts_SFC, moved_SFC, days)}


def main() -> int:
    """Print one JSON line per case."""
    given = os.environ.get("FEDRETRAIN_DATA")
    if not given or not (Path(given) / "beijing_air" / "beijing_air.npz").is_file():
        print("error: beijing_air is not there - set FEDRETRAIN_DATA to the data folder", file=sys.stderr)
        return 2
    x_SHF, names, season_S = load(Path(given))
    for rows, values in (("dependent", x_SHF), ("independent", shuffled(x_SHF))):
        for who, part in (("fleet", values), ("station", values[:1])):
            counts_SFC = slot_counts(part, names)
            for days in (1, 7):
                protocols = ("itself", "season", "next_year", "next_year_season")
                for protocol in protocols if rows == "dependent" else ("itself", "next_year"):
                    case = f"{rows}_{who}_{days}d_{protocol}"
                    tell({"case": case, **measure(counts_SFC, season_S, days, protocol)})
    for line in power(x_SHF, names):
        tell(line)
    return 0


def tell(line: dict[str, Any]) -> None:
    """Print a measurement and keep it."""
    print(json.dumps(line), flush=True)
    append("monitoring_null", line)


if __name__ == "__main__":
    raise SystemExit(main())
