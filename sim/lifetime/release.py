"""Orders carried out by simulated devices, and what the two arms of a trial measured.

Rules of this file:
    * An order reaches a device when it is online. The device installs after its own check, and says what became of it.
    * Whom no rollout exposes, and whom no holdback keeps, serves what the coordinator says (`cycle.served`): the champion, or
      a fallback. In safe mode that is everybody.
    * Arms are compared as they were ordered: a device that refused the candidate stays in the treated arm.
    * A device that is kept out is exposed by no rollout that begins meanwhile, and counts in no arm.
    * In shadow both models predict the same rows of the same devices: the comparison is paired.
    * A device's own record from before ends where the rollout begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.artifacts.decision import NOT_FINITE
from fedretrain.core.clock import DAY_S
from fedretrain.core.rng import seed_for
from fedretrain.rollout.evidence import Coverage, Exposure
from fedretrain.rollout.exposure import exposed, held_back, ranks
from fedretrain.rollout.metrics import DeviceMeans, MetricEvidence
from fedretrain.rollout.power import pre_period

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fedretrain.rollout.events import Order
    from fedretrain.rollout.power import PrePeriod
    from sim.lifetime.rows import LifeRows
    from sim.lifetime.serving import Serving

    Ids = NDArray[np.int64]

PRE_PERIOD_S = 14 * DAY_S
_LEAST_MEASURED = 3  # devices, below which a spread says nothing


@dataclass
class _Standing:
    """The present order, whom it is about, and who has answered it."""

    order: Order
    asked: NDArray[np.bool_]
    confirmed: NDArray[np.bool_]
    heard: NDArray[np.bool_]


class Release:
    """Orders on their way to devices.

    Args:
        serving: The devices' models.
        strata: ``[D]`` the stratum of each device.
        seed: Of the order in which devices are exposed; each rollout has its own.
    """

    def __init__(self, serving: Serving, strata: Ids, seed: int) -> None:
        self._serving, self._strata, self._seed = serving, strata, seed
        self._standing: _Standing | None = None
        self._rank = np.zeros(len(strata))
        self._ever = np.zeros(len(strata), dtype=np.bool_)
        self._failed = np.zeros(len(strata), dtype=np.bool_)
        self.treated = np.zeros(len(strata), dtype=np.bool_)
        self.shadowing = np.zeros(len(strata), dtype=np.bool_)

    def begin(self, rollout: int, counted: NDArray[np.bool_]) -> None:
        """A new rollout: the devices that count ``[D]`` queue in an order of its own, the others wait for the promotion."""
        salt = seed_for(self._seed, rollout, -1, "rollout")
        devices = np.flatnonzero(counted)
        self._rank = np.full(len(self._strata), np.nan)  # neither exposed nor held back at any share
        self._rank[devices] = ranks(devices, self._strata[devices], salt)
        self._ever[:] = False

    def order(self, order: Order) -> None:
        """A new order; `serve` says what follows for each device."""
        self.shadowing = self._rank < order.shadow_fraction
        self.treated = exposed(self._rank, order.fraction, order.holdback_fraction)
        self._ever |= self.treated
        asked = self.treated if order.fraction > 0 else self._ever.copy()
        none = np.zeros(len(asked), dtype=np.bool_)
        self._standing = _Standing(order, asked, none.copy(), none.copy())
        self._failed[:] = False

    def serve(self, version: int, *, exposing: bool, everybody: bool) -> None:
        """What each device shall serve from now on, once it is online.

        Args:
            version: For all whom no rollout exposes.
            exposing: Whether a rollout is open: its treated devices serve the candidate.
            everybody: Nobody is exposed or held back: safe mode.
        """
        target = np.full(len(self._strata), version, dtype=np.int64)
        standing = self._standing
        if standing is not None and not everybody:
            order = standing.order
            if exposing:
                target[self.treated] = order.candidate
            if order.holdback_fraction:
                target[held_back(self._rank, order.holdback_fraction)] = order.holdback_version
        self._failed &= target == self._serving.target
        self._serving.target = target

    def step(self, now: float, online: NDArray[np.bool_]) -> Ids:
        """Devices that are online do what they were told; which ones changed what they serve."""
        standing, serving = self._standing, self._serving
        behind = online & (serving.version != serving.target) & ~self._failed
        changed: list[Ids] = []
        for version in np.unique(serving.target[behind]).tolist():
            devices = np.flatnonzero(behind & (serving.target == version))
            installed = serving.install(devices, version, at=now)
            self._failed[devices[installed.refused]] = True
            changed.append(devices[~installed.refused])
        if standing is not None:
            standing.heard |= online
            standing.confirmed |= online & (serving.version == serving.target)
        return np.concatenate(changed) if changed else np.zeros(0, dtype=np.int64)

    def exposure(self, now: float) -> Exposure:
        """What the devices say of the present order."""
        standing = self._standing
        if standing is None:
            return Exposure()
        asked = standing.asked
        confirmed, failed = asked & standing.confirmed, asked & self._failed & ~standing.confirmed
        rest = asked & ~confirmed & ~failed
        late = rest & ~standing.heard & (now >= standing.order.expires_at)
        pending = rest & ~late
        return Exposure(
            num_targets=int(asked.sum()),
            num_confirmed=int(confirmed.sum()),
            num_expired=int(late.sum()),
            num_pending=int(pending.sum()),
            num_failed=int(failed.sum()),
            num_offline=int((pending & ~standing.heard).sum()),
            counter=standing.order.counter,
        )


@dataclass(frozen=True)
class Compared:
    """Who is compared with whom.

    Attributes:
        treated: ``[D]`` devices of the treated arm that count.
        control: ``[D]`` those of its concurrent control; in shadow the same.
        paired: Shadow: candidate and champion are compared on the same rows.
    """

    treated: NDArray[np.bool_]
    control: NDArray[np.bool_]
    paired: bool

    @classmethod
    def of(cls, treated: NDArray[np.bool_], counted: NDArray[np.bool_], *, shadow: bool) -> Compared:
        """The arms of an exposure, or of a shadow, without the devices that do not count."""
        mine = treated & counted
        return cls(mine, mine if shadow else ~treated & counted, shadow)


class Trial:
    """What two arms measured since a stage began.

    Args:
        rows: Every row of the life.
        serving: The devices' models.
        latency_of: Median latency in seconds of a version.
    """

    def __init__(self, rows: LifeRows, serving: Serving, latency_of: Callable[[int], float]) -> None:
        self._rows, self._serving, self._latency_of = rows, serving, latency_of

    def pre_period(self, span_s: float, now: float, counted: NDArray[np.bool_]) -> PrePeriod | None:
        """How accuracy spread between the devices that count ``[D]`` over the last `span_s`, by labels that have arrived by now.

        None where fewer than three of them were measured in that window and before it.
        """
        rows, right = self._rows, self._serving.outputs.label
        arm, start_at = np.flatnonzero(counted), now - span_s
        nothing = np.full(len(rows.starts) - 1, np.nan)
        means = []
        for first, last in ((start_at - PRE_PERIOD_S, start_at), (start_at, now)):
            taken = rows.between(first, last)
            which = np.arange(taken.start, taken.stop)[rows.label_at[taken] <= now]
            # What was taken before the life's baseline was never predicted.
            which = which[counted[rows.device[which]] & (right[which] != NOT_FINITE)]
            score = (right[which] == rows.y[which]).astype(np.float64)
            means.append(self._means(which, score, arm, nothing))
        earlier, window = means
        both = np.intersect1d(earlier.measured().device_K, window.measured().device_K)
        return pre_period(earlier, window, span_s) if len(both) >= _LEAST_MEASURED else None

    def covered(self, start_at: float, now: float, device_type: Ids, counted: NDArray[np.bool_]) -> Coverage:
        """Hours of the day and device types with scored rows since the stage began, of the devices that count ``[D]``."""
        taken = self._rows.between(start_at, now)
        which = np.arange(taken.start, taken.stop)
        which = which[counted[self._rows.device[which]]]
        hours = np.unique((self._rows.event_at[which] % DAY_S // 3600.0).astype(np.int64))
        types = np.unique(device_type[self._rows.device[which]])
        wanted = np.unique(device_type[counted])
        return Coverage(frozenset(hours.tolist()), frozenset(types.tolist()), frozenset(wanted.tolist()))

    def accuracy(self, start_at: float, created_at: float, now: float, compared: Compared) -> MetricEvidence:
        """Accuracy by the labels that have arrived.

        Args:
            start_at: When the stage began.
            created_at: When the rollout began.
            now: The instant.
            compared: The arms.
        """
        rows, serving = self._rows, self._serving
        taken = rows.between(start_at, now)
        which = np.arange(taken.start, taken.stop)[rows.label_at[taken] <= now]
        before = self._before(created_at, now)
        own, theirs = (
            (outputs.label[which] == rows.y[which]).astype(np.float64)
            for outputs in (serving.outputs, serving.candidate_outputs)
        )
        return self._evidence("accuracy", compared, which, own, theirs, before)

    def confidence(
        self, start_at: float, created_at: float, now: float, compared: Compared
    ) -> MetricEvidence:
        """Mean confidence: it needs no labels."""
        rows, serving = self._rows, self._serving
        taken = rows.between(start_at, now)
        which = np.arange(taken.start, taken.stop)
        before = self._before(created_at, now, confidence=True)
        own, theirs = (
            outputs.confidence[which].astype(np.float64)
            for outputs in (serving.outputs, serving.candidate_outputs)
        )
        return self._evidence("confidence", compared, which, own, theirs, before)

    def _evidence(
        self,
        metric: str,
        compared: Compared,
        which: Ids,
        own: NDArray[np.float64],
        theirs: NDArray[np.float64],
        before: NDArray[np.float64],
    ) -> MetricEvidence:
        """Both arms of scores ``[n]`` of rows: `own` of what is served, `theirs` of the candidate in shadow."""
        device = self._rows.device[which]
        arms = []
        for arm, score in (
            (compared.treated, theirs if compared.paired else own),
            (compared.control, own),
        ):
            mine = arm[device]
            arms.append(self._means(which[mine], score[mine], np.flatnonzero(arm), before))
        return MetricEvidence(metric, arms[0], arms[1], paired=compared.paired)

    def latency(self, compared: Compared, candidate: int, champion: int) -> MetricEvidence:
        """Median latency of each device's predictions, relative to the champion's."""
        arms = []
        for version, arm in ((candidate, compared.treated), (champion, compared.control)):
            devices = np.flatnonzero(arm)
            spread = 1.0 + 0.02 * np.cos(
                devices * 2.399963
            )  # devices differ a little, always in the same way
            value = self._latency_of(version) * spread
            known = self._latency_of(champion) * spread
            arms.append(DeviceMeans(devices, value, np.full(len(devices), 100.0), known))
        return MetricEvidence("latency", arms[0], arms[1], paired=compared.paired)

    def _before(self, created_at: float, now: float, *, confidence: bool = False) -> NDArray[np.float64]:
        """``[D]`` each device's mean in the time before the rollout, by labels that have arrived by now."""
        rows, serving = self._rows, self._serving
        taken = rows.between(created_at - PRE_PERIOD_S, created_at)
        which = np.arange(taken.start, taken.stop)
        if confidence:
            score = serving.outputs.confidence[which].astype(np.float64)
        else:
            which = which[rows.label_at[taken] <= now]
            score = (serving.outputs.label[which] == rows.y[which]).astype(np.float64)
        num = len(rows.starts) - 1
        count = np.bincount(rows.device[which], minlength=num)
        total = np.bincount(rows.device[which], weights=score, minlength=num)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def _means(
        self, which: Ids, score: NDArray[np.float64], arm: Ids, before: NDArray[np.float64]
    ) -> DeviceMeans:
        """One row for each device of an arm."""
        num = len(self._rows.starts) - 1
        device = self._rows.device[which]
        count = np.bincount(device, minlength=num)[arm]
        total = np.bincount(device, weights=score, minlength=num)[arm]
        value = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return DeviceMeans(arm, value, count.astype(np.float64), before[arm])
