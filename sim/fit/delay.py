"""When labels arrive, by likelihood: the distribution of the delay and the share that never comes.

Rules of this file:
    * A label that has not arrived by the end of the log is censored, not lost: it counts ``1 - (1 - loss) F(time waited)``.
    * A device that is offline gets its labels once it is back. What arrived at a reconnection was ready at some time while the
      device was away: its delay is an interval. A device that is offline at the end was last heard when it left.
    * Every candidate is scored by the probability of the same cells of delay, so that distributions with a density
      and those that happen at fixed times can be compared.

Shape letters: N labels, B edges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.clock import DAY_S, HOUR_S
from sim.labels import DelayKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.fleetlog.log import FleetLog

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float64]

_EDGES = np.concatenate([[0.0], np.geomspace(1.0, 400 * DAY_S, 400)])
_SAME_S = 1.0  # instants closer than this are one
_CLOCK_BINS = 288  # five minutes each: the batch hour is looked for among them
_TOLERANCE_S = 2.0  # how far a fixed time may be missed
_LEAST = 1e-9
_HEAP = 0.1  # of the largest heap: what arrives alone is no end of a period


@dataclass(frozen=True)
class Waits:
    """What is known of delays.

    Attributes:
        predicted_at: ``[N]`` of the labels that came.
        low_s: ``[N]`` the delay is above this ...
        high_s: ``[N]`` ... and at most this; equal where it is known.
        waiting_s: ``[M]`` how long labels have been waited for in vain ...
        num_waiting: ``[M]`` ... and how many each.
    """

    predicted_at: Floats
    low_s: Floats
    high_s: Floats
    waiting_s: Floats
    num_waiting: Floats


@dataclass(frozen=True)
class Delay:
    """A fitted delay.

    Attributes:
        kind: The distribution.
        delay_s: As `LabelsConfig.delay_s`.
        sigma: As `LabelsConfig.sigma`.
        batch_hour: As `LabelsConfig.batch_hour`.
        cutoff_s: As `LabelsConfig.cutoff_s`.
        loss_fraction: Share of labels that never arrive.
        scores: Log likelihood per label of each candidate.
        num_labels: Labels that came.
        num_waiting: Predictions without one.
    """

    kind: DelayKind
    delay_s: float
    sigma: float
    batch_hour: float
    cutoff_s: float
    loss_fraction: float
    scores: dict[str, float]
    num_labels: int
    num_waiting: int

    def config(self) -> dict[str, Any]:
        """The keys of `labels`."""
        return {
            "delay": str(self.kind),
            "delay_s": float(f"{self.delay_s:.6g}"),
            "sigma": float(f"{self.sigma:.6g}"),
            "batch_hour": float(f"{self.batch_hour:.6g}"),
            "cutoff_s": float(f"{self.cutoff_s:.6g}"),
            "loss_fraction": float(f"{self.loss_fraction:.6g}"),
            "bias": 0.0,
            "class_rate": [],
            "replay_offline": True,
        }


def waits(log: FleetLog) -> Waits:
    """Delays and waits of a log."""
    arrivals, moves = log.arrivals, log.connections
    change = _last_change(log, arrivals.device, arrivals.at - _SAME_S)
    offline = np.array([i >= 0 and not moves.online[i] for i in change.tolist()], dtype=np.bool_)
    left_at = np.where(change >= 0, moves.at[np.maximum(change, 0)] if len(moves) else 0.0, -np.inf)
    high = np.maximum(arrivals.at - arrivals.predicted_at, 0.0)
    low = np.where(offline, np.maximum(left_at - arrivals.predicted_at, 0.0), high)
    served = log.predictions
    came = _came(log)
    return Waits(
        arrivals.predicted_at,
        np.minimum(low, high),
        high,
        heard_for(log)[1],
        np.maximum(served.count - came, 0).astype(np.float64),
    )


def heard_for(log: FleetLog) -> tuple[Floats, Floats]:
    """``[E]`` the middle of each stretch of predictions, and for how long labels of it could come: while the device was heard."""
    served, away_D = log.predictions, _away_since(log)
    middle = 0.5 * (served.from_at + served.at)
    heard_D = np.where(np.isfinite(away_D), away_D, log.header.end_at)
    return middle, np.maximum(heard_D[served.device] - middle, 0.0)


def _away_since(log: FleetLog) -> Floats:
    """``[D]`` since when each device is offline at the end of the log; inf where it is not."""
    moves = log.connections
    since = np.full(log.header.num_devices, np.inf)
    since[moves.device] = np.where(moves.online, np.inf, moves.at)  # in order of time: the last one counts
    return since


def _last_change(log: FleetLog, device_N: Ids, at_N: Floats) -> Ids:
    """``[N]`` index of each device's last change of connection at or before an instant; -1 for none."""
    moves = log.connections
    order = np.lexsort((moves.at, moves.device))
    span = max(float(np.ptp(np.concatenate([moves.at, at_N]))) if len(at_N) else 0.0, 1.0) * 2.0
    base = float(min(moves.at.min(initial=0.0), at_N.min(initial=0.0)))
    keys = moves.device[order] * span + (moves.at[order] - base)
    place = np.searchsorted(keys, device_N * span + (at_N - base), side="right") - 1
    index = np.where(place >= 0, order[np.maximum(place, 0)] if len(order) else -1, -1)
    if not len(moves):
        return index.astype(np.int64)
    same = (index >= 0) & (moves.device[np.maximum(index, 0)] == device_N)
    return np.where(same, index, -1).astype(np.int64)


def _came(log: FleetLog) -> Ids:
    """``[E]`` labels that came of the predictions of each stretch."""
    served, arrivals = log.predictions, log.arrivals
    if not len(served):
        return np.zeros(0, dtype=np.int64)
    span = 2.0 * (float(served.at.max()) - float(served.from_at.min()) + 1.0)
    base = float(served.from_at.min())
    order = np.argsort(served.device * span + (served.from_at - base), kind="stable")
    keys = (served.device * span + (served.from_at - base))[order]
    place = np.searchsorted(keys, arrivals.device * span + (arrivals.predicted_at - base), side="right") - 1
    came = np.zeros(len(served), dtype=np.int64)
    np.add.at(came, order[place[place >= 0]], 1)
    return came


def fit_delay(log: FleetLog) -> Delay | None:
    """The likeliest of none, constant, nightly, periodic, exponential and lognormal; None without a label."""
    known = waits(log)
    if not len(known.high_s):
        return None
    cells = _Cells.of(known)
    found = [
        _fixed(known, DelayKind.NONE),
        _fixed(known, DelayKind.CONSTANT),
        _fixed(known, DelayKind.NIGHTLY),
        _fixed(known, DelayKind.PERIODIC),
        _smooth(cells, known, DelayKind.EXPONENTIAL),
        _smooth(cells, known, DelayKind.LOGNORMAL),
    ]
    scores = {str(one.kind): one.scores[str(one.kind)] for one in found}
    # A simpler distribution is taken unless the next one is clearly likelier: one parameter more, a unit of log likelihood.
    margin = 1.0 / len(known.high_s)
    best = found[0]
    for one in found[1:]:
        if scores[str(one.kind)] > scores[str(best.kind)] + margin:
            best = one
    return replace(best, scores=scores)


@dataclass(frozen=True)
class _Cells:
    """Delays counted on `_EDGES`.

    Attributes:
        low: ``[U]`` first edge of each distinct interval.
        high: ``[U]`` last edge.
        count: ``[U]`` labels.
        wait: ``[V]`` edge of each distinct wait.
        waiting: ``[V]`` how many.
    """

    low: Ids
    high: Ids
    count: Floats
    wait: Ids
    waiting: Floats

    @classmethod
    def of(cls, known: Waits) -> _Cells:
        high = np.clip(np.searchsorted(_EDGES, known.high_s, side="left"), 1, len(_EDGES) - 1)
        low = np.clip(np.searchsorted(_EDGES, known.low_s, side="right") - 1, 0, high - 1)
        pairs, count = np.unique(low * len(_EDGES) + high, return_counts=True)
        wait = np.searchsorted(_EDGES, known.waiting_s, side="right") - 1
        waiting = np.bincount(wait, known.num_waiting, minlength=len(_EDGES))
        used = np.flatnonzero(waiting).astype(np.int64)
        size = np.asarray(waiting[used], dtype=np.float64)
        return cls(pairs // len(_EDGES), pairs % len(_EDGES), count.astype(np.float64), used, size)

    def score(self, below_B: Floats, loss: float) -> float:
        """Log likelihood given the distribution function at the edges and the share lost."""
        inside = np.maximum(below_B[self.high] - below_B[self.low], _LEAST)
        waits = np.maximum(1.0 - (1.0 - loss) * below_B[self.wait], _LEAST)
        kept = np.log(max(1.0 - loss, _LEAST))
        return float((self.count * (np.log(inside) + kept)).sum() + (self.waiting * np.log(waits)).sum())


def _smooth(cells: _Cells, known: Waits, kind: DelayKind) -> Delay:
    """Exponential or lognormal, its parameters and the loss by maximum likelihood."""
    from scipy.optimize import minimize
    from scipy.special import expit, logit, ndtr

    middle = np.maximum(0.5 * (known.low_s + known.high_s), 1.0)
    waited = float(known.num_waiting.sum())
    lost = waited / max(waited + len(middle), 1.0)

    def below(theta: Floats) -> Floats:
        with np.errstate(divide="ignore"):
            if kind is DelayKind.EXPONENTIAL:
                return np.asarray(-np.expm1(-_EDGES / np.exp(theta[0])))
            return np.asarray(ndtr((np.log(_EDGES) - theta[0]) / np.exp(theta[1])))

    def cost(theta: Floats) -> float:
        return -cells.score(below(theta), float(expit(theta[-1])))

    start = [np.log(middle.mean()) if kind is DelayKind.EXPONENTIAL else np.log(np.median(middle))]
    start += [] if kind is DelayKind.EXPONENTIAL else [np.log(max(float(np.log(middle).std()), 0.05))]
    start += [float(logit(np.clip(0.5 * lost, 1e-3, 0.9)))]
    done = minimize(cost, start, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-2, "maxiter": 600})
    theta = np.asarray(done.x)
    sigma = 1.0 if kind is DelayKind.EXPONENTIAL else float(np.exp(theta[1]))
    loss = float(expit(theta[-1]))
    loss = loss if loss > 1e-4 else 0.0  # what a logit can only approach
    score = -float(done.fun)
    return _delay(kind, known, score, delay_s=float(np.exp(theta[0])), sigma=sigma, loss=loss)


def _fixed(known: Waits, kind: DelayKind) -> Delay:
    """A delay that is known once the prediction's time is: none, constant, nightly or periodic."""
    exact = known.low_s >= known.high_s
    use = exact if exact.any() else np.ones_like(exact)
    delay_s, batch_s, cutoff_s = 0.0, 3.0 * HOUR_S, 0.0
    if kind is DelayKind.CONSTANT:
        delay_s = float(np.median(known.high_s[use]))
    if kind is DelayKind.NIGHTLY:
        batch_s, cutoff_s = _batch(known, use)
        nights = np.ceil((known.predicted_at + cutoff_s - batch_s) / DAY_S)
        ready = nights * DAY_S + batch_s - known.predicted_at
    elif kind is DelayKind.PERIODIC:
        delay_s = _period(known, use)
        ready = np.floor(known.predicted_at / delay_s + 1.0) * delay_s - known.predicted_at
    else:
        ready = np.full(len(known.high_s), delay_s)
    hit = (ready >= known.low_s - _TOLERANCE_S) & (ready <= known.high_s + _TOLERANCE_S)
    missed = float(np.clip(1.0 - hit.mean(), 1e-4, 1.0 - 1e-4))
    loss, waiting_score = _fixed_loss(known, kind, delay_s, batch_s, cutoff_s)
    score = float(np.sum(np.where(hit, np.log1p(-missed), np.log(missed / len(_EDGES)))))
    score += len(hit) * float(np.log(max(1.0 - loss, _LEAST))) + waiting_score
    return _delay(kind, known, score, delay_s=delay_s, batch_s=batch_s, cutoff_s=cutoff_s, loss=loss)


def _fixed_loss(
    known: Waits, kind: DelayKind, delay_s: float, batch_s: float, cutoff_s: float
) -> tuple[float, float]:
    """The share lost, and the log likelihood of the waits: who has waited long enough has lost the label."""
    longest = DAY_S + cutoff_s if kind is DelayKind.NIGHTLY else delay_s
    del batch_s
    lost = float(known.num_waiting[known.waiting_s > longest + _TOLERANCE_S].sum())
    came = float(len(known.high_s))
    loss = lost / (lost + came) if lost + came else 0.0
    return loss, lost * float(np.log(max(loss, _LEAST)))


def _batch(known: Waits, use: NDArray[np.bool_]) -> tuple[float, float]:
    """The time of day at which most labels arrive, and how old they have to be."""
    arrived = known.predicted_at[use] + known.high_s[use]
    clock = arrived % DAY_S
    cell = np.floor(clock / DAY_S * _CLOCK_BINS + 0.5).astype(np.int64) % _CLOCK_BINS
    top = int(np.argmax(np.bincount(cell, minlength=_CLOCK_BINS)))
    inside = cell == top
    # Measured from the cell's middle, so that midnight is no edge.
    middle = top * DAY_S / _CLOCK_BINS
    offset = (clock[inside] - middle + DAY_S / 2) % DAY_S - DAY_S / 2
    batch_s = float((middle + np.median(offset)) % DAY_S)
    age = known.high_s[use][inside]
    return batch_s, float(max(np.quantile(age, 0.001), 0.0))


def _period(known: Waits, use: NDArray[np.bool_]) -> float:
    """The length of the periods, counted from instant 0, at whose ends labels arrive in a heap.

    Heaps next to each other are a period apart, unless one is missing; then all of them together say how long it is.
    """
    arrived = np.round((known.predicted_at + known.high_s)[use] / _SAME_S) * _SAME_S
    at, size = np.unique(arrived, return_counts=True)
    at = at[size > _HEAP * size.max()]
    if len(at) < 2:
        return max(float(at[0]), _SAME_S)
    first = float(np.median(np.diff(at)))
    number = np.round(at / first)
    sum_squares = float((number * number).sum())
    return float((at * number).sum()) / sum_squares if sum_squares else first


def _delay(
    kind: DelayKind,
    known: Waits,
    score: float,
    *,
    delay_s: float,
    loss: float,
    sigma: float = 1.0,
    batch_s: float = 3.0 * HOUR_S,
    cutoff_s: float = 0.0,
) -> Delay:
    count = len(known.high_s)
    return Delay(
        kind,
        delay_s,
        sigma,
        batch_s / HOUR_S % 24.0,
        cutoff_s,
        loss,
        {str(kind): score / count},
        count,
        int(known.num_waiting.sum()),
    )
