"""When devices are connected: a daily curve for each cluster, a Markov chain, or a curve with a memory.

Rules of this file:
    * Every candidate is one family: in each slot the state is drawn anew with probability ``1 - keep`` by the cluster's probability
      ``p`` at that hour, else kept. A daily curve has ``keep = 0``; a Markov chain has one ``p`` for all hours and clusters.
    * Which one holds is decided on time that was held out: the second half's log likelihood, one heartbeat ahead.
    * The share ``m`` of devices online obeys ``m_h = keep m_(h-1) + (1 - keep) p_h``: `p` follows from the shares and `keep`.

Shape letters: D devices, S slots, Q clusters, H = 24 hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.core.clock import DAY_S, HOUR_S
from sim.fleetlog.log import cluster_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.fleetlog.log import FleetLog

    Floats = NDArray[np.float64]

_KEEPS = np.concatenate([[0.0], np.linspace(0.02, 0.98, 97)])
_PRIOR = 24.0  # device slots of the whole fleet's share by which a small cluster's hour is steadied
_SURE = 1e-4  # no state is impossible: one odd heartbeat must not decide between models
_WORTH = 1e-3  # log likelihood per heartbeat that the model with both is taken for
DIURNAL, MARKOV, CLUSTERS = "diurnal", "markov", "clusters"


@dataclass(frozen=True)
class Presence:
    """A fitted model.

    Attributes:
        kind: `DIURNAL` (memory-less), `MARKOV` (no hours) or `CLUSTERS` (both).
        cluster: Site and type of each cluster.
        hourly_QH: Probability that a drawn state is online.
        keep: Probability that a slot keeps the state.
        slot_s: Seconds of a slot.
        held_out: Log likelihood of each kind on the time held out, per device and heartbeat.
    """

    kind: str
    cluster: tuple[tuple[int, int], ...]
    hourly_QH: Floats
    keep: float
    slot_s: float
    held_out: dict[str, float]

    @property
    def share(self) -> float:
        """The mean probability of being online."""
        return float(self.hourly_QH.mean())

    @property
    def mean_on_s(self) -> float:
        """Mean time online of the chain (`MARKOV`)."""
        return self._mean_s(1.0 - self.share)

    @property
    def mean_off_s(self) -> float:
        """Mean time offline of the chain."""
        return self._mean_s(self.share)

    def _mean_s(self, other: float) -> float:
        """A chain that renews at rate r leaves a state at r times the other state's share."""
        rate = -np.log(max(self.keep, 1e-3)) / self.slot_s
        return float(1.0 / (rate * max(other, 1e-6)))

    def config(self) -> dict[str, Any]:
        """The keys of `availability`, without drop-outs."""
        if self.kind == MARKOV:
            chain = {"mean_on_s": round(self.mean_on_s, 3), "mean_off_s": round(self.mean_off_s, 3)}
            return {"models": ["markov"], "markov": chain | {"slot_s": min(900.0, self.slot_s)}}
        hours = [[round(float(p), 6) for p in row] for row in self.hourly_QH]
        if self.kind == DIURNAL and len(hours) == 1:
            return {
                "models": ["diurnal"],
                "diurnal": {"hourly": hours[0], "spread_h": 0.0, "slot_s": self.slot_s},
            }
        clusters = [
            {"site": site, "device_type": kind, "hourly": row}
            for (site, kind), row in zip(self.cluster, hours, strict=True)
        ]
        options = {"clusters": clusters, "keep": round(self.keep, 6), "slot_s": self.slot_s}
        return {
            "models": ["custom"],
            "custom": {"path": "sim.fit.clusters:cluster_hours", "options": options},
        }


@dataclass(frozen=True)
class _Seen:
    """Heartbeats to fit to.

    Attributes:
        online_DS: States.
        hour_S: Hour of the day of each slot.
        of_D: Cluster of each device.
        num_clusters: Q.
    """

    online_DS: NDArray[np.bool_]
    hour_S: NDArray[np.int64]
    of_D: NDArray[np.int64]
    num_clusters: int

    def part(self, slots: slice) -> _Seen:
        return _Seen(self.online_DS[:, slots], self.hour_S[slots], self.of_D, self.num_clusters)

    def shares(self) -> Floats:
        """``[Q, H]`` share online, small cells steadied by the whole fleet's hour."""
        shape, cell = (self.num_clusters, 24), (self.of_D[:, None] * 24 + self.hour_S[None, :]).ravel()
        size = self.num_clusters * 24
        on = np.bincount(cell, self.online_DS.ravel(), minlength=size).reshape(shape)
        count = np.bincount(cell, minlength=size).reshape(shape)
        overall = self.online_DS.mean() if self.online_DS.size else 0.5
        hour = (on.sum(axis=0) + _PRIOR * overall) / (count.sum(axis=0) + _PRIOR)
        shares: Floats = (on + _PRIOR * hour) / (count + _PRIOR)
        return shares


def fit_presence(log: FleetLog) -> Presence:
    """The model that predicts held-out time best, fitted to all of the log."""
    of, cluster = cluster_of(log.header)
    slots = log.slots()
    hour = np.floor(slots % DAY_S / HOUR_S).astype(np.int64)
    seen = _Seen(log.online(), hour, of, len(cluster))
    half = len(slots) // 2
    early, late = seen.part(slice(0, half)), seen.part(slice(half, None))
    held_out = {}
    for kind in (DIURNAL, MARKOV, CLUSTERS):
        hourly, keep = _fit(kind, early)
        held_out[kind] = _score(late, hourly, keep)
    best = max(held_out, key=lambda kind: held_out[kind])
    if held_out[CLUSTERS] - max(held_out[DIURNAL], held_out[MARKOV]) < _WORTH:
        best = max((DIURNAL, MARKOV), key=lambda kind: held_out[kind])
    hourly, keep = _fit(best, seen)
    return Presence(best, tuple(cluster), hourly, keep, log.header.heartbeat_s, held_out)


def _fit(kind: str, seen: _Seen) -> tuple[Floats, float]:
    shares = seen.shares()
    if kind == MARKOV:
        shares = np.full_like(shares, seen.online_DS.mean() if seen.online_DS.size else 0.5)
    if kind == DIURNAL or seen.online_DS.shape[1] < 3:
        return shares, 0.0
    scores = [_score(seen, _drawn(shares, keep), float(keep)) for keep in _KEEPS]
    keep = float(_KEEPS[int(np.argmax(scores))])
    return _drawn(shares, keep), keep


def _drawn(shares_QH: Floats, keep: float) -> Floats:
    """``[Q, H]`` the probability of a drawn state that gives these shares."""
    drawn = (shares_QH - keep * np.roll(shares_QH, 1, axis=1)) / (1.0 - keep)
    clipped: Floats = np.clip(drawn, 0.0, 1.0)
    return clipped


def _score(seen: _Seen, hourly_QH: Floats, keep: float) -> float:
    """Mean log likelihood of each heartbeat given the one before."""
    before, after = seen.online_DS[:, :-1], seen.online_DS[:, 1:]
    if not after.size:
        return 0.0
    drawn = hourly_QH[seen.of_D[:, None], seen.hour_S[None, 1:]]
    online = np.clip(keep * before + (1.0 - keep) * drawn, _SURE, 1.0 - _SURE)
    return float(np.log(np.where(after, online, 1.0 - online)).mean())
