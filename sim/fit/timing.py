"""How long devices take to answer, and how often they do not.

Rules of this file:
    * Everything is lognormal: a device's median by its type, a spread between devices, a jitter from round to round
      (`sim.network`). Spreads come from a one-way random-effects decomposition: what varies within a device is jitter.
    * The fixed part of training is told from the part by step by the marginal likelihood over their ratio.
    * Where devices' own measurements are not in the log (`Replied.train_s` is 0), a reply's whole time is told as the fixed part of training:
      it depends on the device and its type, not on steps or bytes, and transfers beside it cost nothing. Not split, it is not made up.
    * Replies that nobody waited for have no times: the network is that of the replies in time, `Dropouts.timeout_fraction` says of how many.
    * A drop-out is a coin only where the device was still connected at the next heartbeat: else its availability ended.

Shape letters: E replies, D devices, T types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.types import FailureKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.fleetlog.log import FleetLog

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float64]

_RATIOS = np.concatenate([[0.0], np.geomspace(1e-2, 1e4, 181)])  # start_s over step_s
_LEAST_VARIANCE = 1e-12
_FREE_BPS = 1e15  # a gigabyte in 8 microseconds: what transfers cost is in the whole time already
_ALIKE = 0.01  # coefficient of variation of steps below which start and step cannot be told apart


@dataclass(frozen=True)
class Timing:
    """A fitted network: the keys of `NetworkConfig`, how many replies they rest on, and whether their parts were measured."""

    step_s: float
    start_s: float
    speed_sigma: float
    type_speed: tuple[float, ...]
    down_bps: float
    up_bps: float
    bandwidth_sigma: float
    latency_s: float
    latency_sigma: float
    jitter_sigma: float
    num_replies: int
    in_parts: bool = True

    def config(self) -> dict[str, Any]:
        """The keys of `network`."""
        values = {name: value for name, value in vars(self).items() if name not in _BESIDE}
        return {
            name: [float(f"{one:.6g}") for one in value]
            if isinstance(value, tuple)
            else float(f"{value:.6g}")
            for name, value in values.items()
        }

    def estimates(self) -> dict[str, float]:
        """The numbers that were fitted, by key; what stands for nothing beside a whole time is no estimate."""
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, float)}
        return numbers if self.in_parts else {name: numbers[name] for name in _WHOLE}


_BESIDE = ("num_replies", "in_parts")
_WHOLE = ("start_s", "speed_sigma", "jitter_sigma")


@dataclass(frozen=True)
class Dropouts:
    """How often devices that are asked do not answer.

    Attributes:
        before: Probability of no answer at all.
        mid: Probability of going away in mid-round, availability apart.
        num_asked: Requests that `before` rests on.
        num_begun: Those that `mid` rests on.
        timeout_fraction: Share of the requests whose reply came too late: their times are not in `Timing`.
    """

    before: float
    mid: float
    num_asked: int
    num_begun: int
    timeout_fraction: float


@dataclass(frozen=True)
class _Parts:
    """A random-effects decomposition.

    Attributes:
        centre_T: Mean of the devices' means, by type.
        between: Variance of a device's effect.
        within: Variance inside a device.
        score: Marginal log likelihood.
    """

    centre_T: Floats
    between: float
    within: float
    score: float


def fit_timing(log: FleetLog) -> Timing | None:
    """The network, or None where fewer than two devices replied."""
    replies = log.replies
    good = (replies.train_s > 0) & (replies.download_s > 0) & (replies.upload_s > 0) & (replies.num_steps > 0)
    device = replies.device[good]
    if len(np.unique(device)) < 2:
        return _whole(log)
    types = np.asarray(log.header.device_type, dtype=np.int64)
    steps, train = replies.num_steps[good].astype(np.float64), np.log(replies.train_s[good])
    ratio = _ratio(device, types, steps, train)
    compute = _parts(train - np.log(ratio + steps), device, types)
    step_s = float(np.exp(compute.centre_T[0]))
    one = np.zeros_like(types)
    down = _parts(np.log(8.0 * replies.bytes_down[good] / replies.download_s[good]), device, one)
    up = _parts(np.log(8.0 * replies.bytes_up[good] / replies.upload_s[good]), device, one)
    rest = replies.latency_s - replies.download_s - replies.train_s - replies.upload_s
    least = 1e-9  # a latency of nothing is what rounding leaves
    trip = _parts(np.log(np.maximum(rest[good], least)), device, one)
    return Timing(
        step_s=step_s,
        start_s=ratio * step_s,
        speed_sigma=float(np.sqrt(compute.between)),
        type_speed=tuple(np.exp(compute.centre_T[0] - compute.centre_T).tolist()),
        down_bps=float(np.exp(down.centre_T[0])),
        up_bps=float(np.exp(up.centre_T[0])),
        bandwidth_sigma=float(np.sqrt(0.5 * (down.between + up.between))),
        latency_s=float(np.exp(trip.centre_T[0])),
        latency_sigma=float(np.sqrt(trip.between)),
        jitter_sigma=float(np.sqrt(compute.within)),
        num_replies=int(good.sum()),
    )


def _whole(log: FleetLog) -> Timing | None:
    """The network of replies whose parts nobody measured."""
    replies = log.replies
    good = replies.latency_s > 0
    device = replies.device[good]
    if len(np.unique(device)) < 2:
        return None
    types = np.asarray(log.header.device_type, dtype=np.int64)
    whole = _parts(np.log(replies.latency_s[good]), device, types)
    return Timing(
        step_s=0.0,
        start_s=float(np.exp(whole.centre_T[0])),
        speed_sigma=float(np.sqrt(whole.between)),
        type_speed=tuple(np.exp(whole.centre_T[0] - whole.centre_T).tolist()),
        down_bps=_FREE_BPS,
        up_bps=_FREE_BPS,
        bandwidth_sigma=0.0,
        latency_s=0.0,
        latency_sigma=0.0,
        jitter_sigma=float(np.sqrt(whole.within)),
        num_replies=int(good.sum()),
        in_parts=False,
    )


def _ratio(device: Ids, types: Ids, steps: Floats, train: Floats) -> float:
    """The fixed cost of a training, in steps: where the marginal likelihood is largest."""
    if steps.std() <= _ALIKE * steps.mean():
        return 0.0
    scores = [_parts(train - np.log(ratio + steps), device, types).score for ratio in _RATIOS]
    return float(_RATIOS[int(np.argmax(scores))])


def _parts(values_E: Floats, device_E: Ids, type_D: Ids) -> _Parts:
    """Mean by type, variance between devices and within them.

    Source: Searle, Casella and McCulloch 1992, "Variance Components", chapter 3 (the analysis-of-variance estimators of
    the unbalanced one-way layout).
    """
    count = np.bincount(device_E, minlength=len(type_D)).astype(np.float64)
    has = count > 0
    mean = np.zeros(len(type_D))
    mean[has] = np.bincount(device_E, values_E, minlength=len(type_D))[has] / count[has]
    squares = np.bincount(device_E, (values_E - mean[device_E]) ** 2, minlength=len(type_D))
    spare = float((count[has] - 1.0).sum())
    within = max(float(squares.sum()) / spare if spare else 0.0, _LEAST_VARIANCE)
    num_types = int(type_D.max()) + 1
    centre = np.full(num_types, float(mean[has].mean()))
    for kind in np.unique(type_D[has]):
        centre[kind] = mean[has & (type_D == kind)].mean()
    groups = len(np.unique(type_D[has]))
    scatter = float(((mean - centre[type_D])[has] ** 2).sum()) / max(int(has.sum()) - groups, 1)
    between = max(scatter - within * float((1.0 / count[has]).mean()), 0.0)
    whole = within + count[has] * between
    deviation = count[has] * ((mean - centre[type_D])[has]) ** 2
    score = -0.5 * float(
        (spare * np.log(within) + squares.sum() / within) + (np.log(whole) + deviation / whole).sum()
    )
    return _Parts(centre, between, within, score)


def fit_dropouts(log: FleetLog) -> Dropouts:
    """The two coins of `AvailabilityConfig`."""
    asked, failures = log.asked, log.failures
    key = _keys(asked.device, asked.round)
    reason = np.full(len(key), "", dtype=object)
    order = np.argsort(key)
    failed = _keys(failures.device, failures.round)
    place = np.searchsorted(key, failed, sorter=order)
    found = (
        (place < len(key)) & (key[order[np.minimum(place, max(len(key) - 1, 0))]] == failed)
        if len(key)
        else np.zeros(0, bool)
    )
    reason[order[place[found]]] = failures.reason[found]
    known = reason != FailureKind.LOST
    gone = reason == FailureKind.UNAVAILABLE
    begun = known & ~gone & (reason != FailureKind.NO_DATA)
    stays = begun & ~_leaves(log)
    dropped = stays & (reason == FailureKind.DROPPED)
    late = float((reason == FailureKind.TIMEOUT).mean()) if len(key) else 0.0
    return Dropouts(_share(gone, known), _share(dropped, stays), int(known.sum()), int(stays.sum()), late)


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float:
    return float(part.sum() / whole.sum()) if whole.any() else 0.0


def _keys(device: Ids, round_: Ids) -> Ids:
    return device * (1 << 32) + round_


def _leaves(log: FleetLog) -> NDArray[np.bool_]:
    """``[E]`` whether each asked device was seen to disconnect before the round's deadline or the next heartbeat."""
    moves, header = log.connections, log.header
    off = ~moves.online
    span = header.end_at - min(header.begin_at, float(moves.at.min(initial=header.begin_at))) + 1.0
    base = float(min(header.begin_at, moves.at.min(initial=header.begin_at)))
    # One sorted key for (device, instant): a search finds each device's next disconnection.
    keys = np.sort(moves.device[off] * 2.0 * span + (moves.at[off] - base))
    reach = max(header.deadline_s, header.heartbeat_s) + 1.0
    start = log.asked.device * 2.0 * span + (log.asked.at - base)
    after = np.searchsorted(keys, start, side="right")
    until = np.searchsorted(keys, start + reach, side="right")
    leaves: NDArray[np.bool_] = until > after
    return leaves
