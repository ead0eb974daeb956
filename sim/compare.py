"""Two runs side by side: paired differences with intervals.

Rules of this file:
    * What is paired is the same device of the same data with the same seed. Runs that cannot be paired are refused,
      with the reason; what lowers the worth of a pairing is said in a note.
    * A difference is always B minus A. Better or worse is said in words, since an error improves downwards.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.core.errors import UserError
from sim.results import DeviceScore, Estimate, Metric, Population, RoundRecord, Run
from sim.statistics import over_seeds, paired
from sim.summarise import by_seed, population_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Value = Callable[[DeviceScore], float | None]


@dataclass(frozen=True)
class Difference:
    """One line of a comparison.

    Attributes:
        arm: Arm of run A, and of run B where the keys differ.
        metric: What is compared.
        a: Mean of run A over the pairs.
        b: Mean of run B over the pairs.
        difference: Mean of B - A, paired.
        higher_is_better: Which way is better; None where neither is.
        num_pairs: Devices in the pairs, mean over seeds; 0 for a figure of a whole run.
    """

    arm: str
    metric: str
    a: float
    b: float
    difference: Estimate
    higher_is_better: bool | None
    num_pairs: int

    @property
    def verdict(self) -> str:
        """What the interval says: `better`, `worse`, `different`, `same` or `unclear`."""
        d = self.difference
        if d.value == 0.0 and (d.low, d.high) in {(None, None), (0.0, 0.0)}:
            return "same"
        if d.low is None or d.high is None or d.low <= 0.0 <= d.high:
            return "unclear"
        if self.higher_is_better is None:
            return "different"
        return "better" if (d.value > 0.0) is self.higher_is_better else "worse"


@dataclass(frozen=True)
class Comparison:
    """Run B against run A.

    Attributes:
        title_a: Run A in a few words.
        title_b: Run B in a few words.
        seeds: Seeds that both have.
        differences: The lines.
        notes: What a reader must know before trusting them.
    """

    title_a: str
    title_b: str
    seeds: tuple[int, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


def compare(run_a: Run, run_b: Run) -> Comparison:
    """Compare two runs, arm by arm: arms of the same key, or the only arm of each.

    Raises:
        UserError: If they cannot be paired: another metric, other data, another fleet, or no seed, arm or device
            in common.
    """
    _refuse_unlike(run_a, run_b)
    seeds = tuple(s for s in run_a.summary.seeds if s in run_b.summary.seeds)
    arms = _paired_arms(run_a, run_b)
    lines: list[Difference] = []
    for arm_a, arm_b in arms:
        name = arm_a if arm_a == arm_b else f"{arm_a} -> {arm_b}"
        a = [d for d in run_a.devices if d.arm == arm_a and d.seed in seeds]
        b = [d for d in run_b.devices if d.arm == arm_b and d.seed in seeds]
        lines += _score_lines(name, a, b, run_a.summary.metric)
        lines += _run_lines(
            name,
            [r for r in run_a.rounds if r.arm == arm_a and r.seed in seeds],
            [r for r in run_b.rounds if r.arm == arm_b and r.seed in seeds],
            _epsilon_label(_claim(run_a, arm_a), _claim(run_b, arm_b)),
        )
    if not any(line.num_pairs for line in lines):
        raise _unpaired("they scored no device in common", "compare runs of the same fleet")
    return Comparison(_title(run_a), _title(run_b), seeds, tuple(lines), _notes(run_a, run_b, seeds))


def pair_scores(
    a: Iterable[DeviceScore], b: Iterable[DeviceScore], value_a: Value, value_b: Value
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Scores of the devices that both hold: for each seed in common an array ``[D]`` of each, in the same order."""
    groups_a, groups_b = by_seed(a), by_seed(b)
    left, right = [], []
    for seed in sorted(groups_a.keys() & groups_b.keys()):
        x = {s.device: v for s in groups_a[seed] if (v := value_a(s)) is not None}
        y = {s.device: v for s in groups_b[seed] if (v := value_b(s)) is not None}
        both = sorted(x.keys() & y.keys())
        if both:
            left.append(np.array([x[d] for d in both], dtype=np.float64))
            right.append(np.array([y[d] for d in both], dtype=np.float64))
    return left, right


def served(score: DeviceScore) -> float | None:
    """The score of the model that the device would serve: personalized where there is one, else global."""
    return score.global_score if score.personalized_score is None else score.personalized_score


def _refuse_unlike(run_a: Run, run_b: Run) -> None:
    a, b = run_a.summary, run_b.summary
    if a.metric is not b.metric:
        raise _unpaired(
            f"one reports {a.metric.value}, the other {b.metric.value}", "compare runs of one task"
        )
    if a.data_digest != b.data_digest:
        what = f"their data differ ({a.dataset} {a.data_digest[:12]}, {b.dataset} {b.data_digest[:12]})"
        raise _unpaired(what, "compare runs on the same data")
    if (a.num_devices, a.num_virtual_devices) != (b.num_devices, b.num_virtual_devices):
        what = (
            f"their fleets differ ({a.num_devices} and {b.num_devices} devices, {a.num_virtual_devices} and "
        )
        raise _unpaired(f"{what}{b.num_virtual_devices} of them virtual)", "use the same fleet in both")
    if not set(a.seeds) & set(b.seeds):
        what = f"they have no seed in common ({list(a.seeds)} and {list(b.seeds)})"
        raise _unpaired(what, "run both with the same seeds")


def _unpaired(why: str, fix: str) -> UserError:
    return UserError(f"these runs cannot be paired: {why}", fix=fix)


def _paired_arms(run_a: Run, run_b: Run) -> list[tuple[str, str]]:
    keys_a = [arm.arm for arm in run_a.summary.arms]
    keys_b = [arm.arm for arm in run_b.summary.arms]
    both = [(key, key) for key in keys_a if key in keys_b]
    if not both and len(keys_a) == len(keys_b) == 1:
        return [(keys_a[0], keys_b[0])]
    if not both:
        raise _unpaired(f"they have no arm in common ({keys_a} and {keys_b})", "name the arms alike")
    return both


_LABELS = {
    Population.REAL: "",
    Population.VIRTUAL: ", virtual devices",
    Population.COLD_START_REAL: ", cold start",
    Population.COLD_START_VIRTUAL: ", cold start, virtual devices",
}


def _score_lines(
    arm: str, a: Sequence[DeviceScore], b: Sequence[DeviceScore], metric: Metric
) -> list[Difference]:
    """Score differences, by the population that the device had in both runs."""
    up = metric.higher_is_better
    names: list[tuple[str, str, bool]] = [
        ("global_score", f"{metric.value} (global)", up),
        ("personalized_score", f"{metric.value} (personalized)", up),
        ("global_macro_f1", "macro-F1 (global)", True),
        ("personalized_macro_f1", "macro-F1 (personalized)", True),
        ("global_mae", "MAE (global)", False),
        ("personalized_mae", "MAE (personalized)", False),
    ]
    lines = []
    for population in Population:
        own_a = [s for s in a if population_of(s) is population]
        own_b = [s for s in b if population_of(s) is population]
        for field, label, higher in names:
            left, right = pair_scores(own_a, own_b, *2 * (lambda s, f=field: getattr(s, f),))
            if left:
                num = round(sum(map(len, left)) / len(left))
                mean_a, mean_b = (float(np.mean([v.mean() for v in side])) for side in (left, right))
                name = f"{label}{_LABELS[population]}"
                lines.append(Difference(arm, name, mean_a, mean_b, paired(left, right), higher, num))
    return lines


def _run_lines(
    arm: str, a: Sequence[RoundRecord], b: Sequence[RoundRecord], epsilon: str
) -> list[Difference]:
    """Differences of what a whole run cost, paired by seed; of epsilon where it has a label."""
    kinds: list[tuple[str, Callable[[list[RoundRecord]], float | None], bool | None]] = [
        *([(epsilon, _last_epsilon, False)] if epsilon else []),
        ("dropouts per round", lambda rs: sum(sum(r.failures.values()) for r in rs) / len(rs), False),
        ("bytes up", lambda rs: float(sum(r.bytes_up for r in rs)), False),
        ("bytes down", lambda rs: float(sum(r.bytes_down for r in rs)), False),
        ("seconds", lambda rs: sum(r.seconds for r in rs), False),
    ]
    groups_a, groups_b = _rounds_by_seed(a), _rounds_by_seed(b)
    seeds = sorted(groups_a.keys() & groups_b.keys())
    lines = []
    for name, total, higher in kinds:
        pairs = [(total(groups_a[s]), total(groups_b[s])) for s in seeds]
        both = np.array([(x, y) for x, y in pairs if x is not None and y is not None], dtype=np.float64)
        if len(both):
            means = both.mean(axis=0)
            difference = over_seeds(both[:, 1] - both[:, 0])
            lines.append(Difference(arm, name, float(means[0]), float(means[1]), difference, higher, 0))
    return lines


def _claim(run: Run, arm: str) -> tuple[str, float, str] | None:
    """What an arm's epsilon claims: (unit, delta, relation)."""
    p = next((a.privacy for a in run.summary.arms if a.arm == arm), None)
    return None if p is None else (p.unit, p.delta, p.relation)


def _epsilon_label(a: tuple[str, float, str] | None, b: tuple[str, float, str] | None) -> str:
    """Two epsilons compare only where they claim the same; empty otherwise."""
    return f"epsilon per {a[0]} at delta {a[1]:g}" if a is not None and a == b else ""


def _rounds_by_seed(records: Iterable[RoundRecord]) -> dict[int, list[RoundRecord]]:
    groups: dict[int, list[RoundRecord]] = defaultdict(list)
    for record in records:
        groups[record.seed].append(record)
    return groups


def _last_epsilon(records: list[RoundRecord]) -> float | None:
    return max((r.epsilon for r in records if r.epsilon is not None), default=None)


def _title(run: Run) -> str:
    s = run.summary
    return f"{s.experiment}, {s.started_at}, code {s.environment.code_version}, config {s.config_digest[:12]}"


def _notes(run_a: Run, run_b: Run, seeds: tuple[int, ...]) -> tuple[str, ...]:
    notes = []
    if len(seeds) == 1:
        notes.append(
            "One seed in common: intervals are over devices and say nothing about another run's luck."
        )
    a = {(s.seed, s.device): s.num_scored for s in run_a.devices}
    b = {(s.seed, s.device): s.num_scored for s in run_b.devices}
    unlike = sum(a[k] != b[k] for k in a.keys() & b.keys())
    if unlike:
        notes.append(
            f"{unlike} devices were scored on another number of rows: the runs score different data."
        )
    started_cold = {(d.arm, d.seed, d.device): d.cold_start for d in run_a.devices}
    changed = sum(
        started_cold.get((d.arm, d.seed, d.device), d.cold_start) != d.cold_start for d in run_b.devices
    )
    if changed:
        notes.append(f"{changed} devices took part in one run only and are in no line.")
    left = len({k[1] for k in a.keys() ^ b.keys() if k[0] in seeds})
    if left:
        notes.append(f"{left} devices are in one run only and were left out.")
    for arm_a, arm_b in _paired_arms(run_a, run_b):
        a_claim, b_claim = _claim(run_a, arm_a), _claim(run_b, arm_b)
        if a_claim != b_claim:
            notes.append(
                f"{arm_b}: the epsilons claim different things ({a_claim} and {b_claim}) and are not compared."
            )
    if run_a.summary.environment.code_version != run_b.summary.environment.code_version:
        notes.append("The runs were made by different versions of the code.")
    if run_a.summary.environment.cores != run_b.summary.environment.cores:
        notes.append("The runs had different numbers of cores: seconds do not compare.")
    return tuple(notes)


def render(comparison: Comparison) -> str:
    """The comparison as a table for a terminal."""
    rows = [("arm", "metric", "A", "B", "B - A", "95 % interval", "over", "")]
    for d in comparison.differences:
        e = d.difference
        interval = (
            "" if e.low is None or e.high is None else f"[{number(e.low, True)}, {number(e.high, True)}]"
        )
        over = "" if e.low is None else f"{e.num} {e.over.value}"
        rows.append(
            (d.arm, d.metric, number(d.a), number(d.b), number(e.value, True), interval, over, d.verdict)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = {2, 3, 4, 5}
    lines = [
        "  ".join(
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "  ".join("-" * w for w in widths)
    head = [
        f"A: {comparison.title_a}",
        f"B: {comparison.title_b}",
        f"seeds: {', '.join(map(str, comparison.seeds))}",
    ]
    text = [*head, "", lines[0], rule, *lines[1:], "", *comparison.notes]
    return "\n".join(line.rstrip() for line in text).rstrip()


def number(value: float, signed: bool = False) -> str:
    """A number in four significant digits, thousands as such."""
    if not np.isfinite(value):
        return "n/a"
    sign = "+" if signed and value != 0 else ""
    if abs(value) >= 10_000:
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.4g}" if abs(value) >= 1 else f"{value:{sign}.4f}"
