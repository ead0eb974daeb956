"""Plays a simulated campaign's fleet and writes down what its coordinator would see.

Rules of this file:
    * Availability, reply times, arrivals and drift are the world's own (`sim.world`); nothing is drawn here.
    * No campaign trains: a log needs times, not weights. What is predicted is the nearest class mean of the fleet's own past.
    * Injected drift is never written. Telemetry is computed from what the drifted sensors report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedretrain.coordinator.ports import RoundSpec
from fedretrain.coordinator.state import ServerState
from fedretrain.core.clock import HOUR_S
from fedretrain.core.errors import ConfigError
from fedretrain.core.types import FailureKind
from fedretrain.training.data import num_steps
from fedretrain.wire.fleet_log import (
    AskedInRound,
    Event,
    Failed,
    Header,
    Labelled,
    Offline,
    Online,
    Predicted,
    Replied,
)
from sim.fleetlog.sensors import telemetered
from sim.worker import BYTES_PER_PARAMETER, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from sim.arm import Arm

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float64]

HEARTBEAT_S = HOUR_S
_AT_ONCE = 256  # devices whose samples are held at once


def header_of(arm: Arm) -> Header:
    """The header of an arm's log: from the campaign's start to its end.

    Raises:
        ConfigError: If the campaign is shorter than two heartbeats.
    """
    campaign, fleet = arm.config.campaign, arm.world.fleet
    end_at = campaign.num_rounds * campaign.round_interval_s
    if end_at < 2 * HEARTBEAT_S:
        raise ConfigError(
            f"a campaign of {end_at:g} s makes no log",
            where="campaign.num_rounds",
            fix=f"make it last {2 * HEARTBEAT_S:g} s or more; days are worth having",
        )
    traits = fleet.traits(np.arange(fleet.num_devices))
    return Header(
        num_devices=fleet.num_devices,
        site=tuple(traits.site.tolist()),
        device_type=tuple(traits.device_type.tolist()),
        class_names=tuple(fleet.class_names),
        channels=tuple(fleet.schema.names),
        begin_at=0.0,
        end_at=end_at,
        heartbeat_s=HEARTBEAT_S,
        deadline_s=campaign.deadline_s,
    )


def play(arm: Arm) -> Iterator[Event]:
    """Every event of an arm's campaign, kind by kind (a log is sorted when it is written).

    Args:
        arm: World, model and method; its rounds are asked, and nothing is trained.
    """
    header = header_of(arm)
    yield from _connections(arm, header)
    yield from _Rounds(arm).play()
    means = _class_means(arm, header)
    for first in range(0, header.num_devices, _AT_ONCE):
        devices = np.arange(first, min(first + _AT_ONCE, header.num_devices))
        yield from _samples(arm, header, devices, means)
        yield from telemetered(arm, header, devices)


def _connections(arm: Arm, header: Header) -> Iterator[Event]:
    """Each device's state at the first heartbeat, then its changes."""
    devices = np.arange(header.num_devices)
    before: NDArray[np.bool_] | None = None
    for at in np.arange(header.begin_at, header.end_at, header.heartbeat_s).tolist():
        online = arm.world.availability.online(devices, at)
        changed = devices if before is None else np.flatnonzero(online != before)
        yield from ((Online if online[d] else Offline)(d, at) for d in changed.tolist())
        before = online


def _class_means(arm: Arm, header: Header) -> Floats | None:
    """``[M, F]`` the mean inputs of each class before the log, over the first devices; None where a class was not seen."""
    devices = np.arange(min(_AT_ONCE, header.num_devices))
    streams = arm.world.fleet.streams(devices)
    past = [stream.event_at < header.begin_at for stream in streams]
    y = np.concatenate([one.y[mine] for one, mine in zip(streams, past, strict=True)])
    if not header.class_names or len(np.unique(y)) < len(header.class_names):
        return None
    x = np.concatenate([one.x[mine] for one, mine in zip(streams, past, strict=True)])
    flat = x.reshape(len(y), -1).astype(np.float64)
    return np.stack([flat[y == label].mean(axis=0) for label in range(len(header.class_names))])


def _nearest(x: NDArray[np.float32], means_MF: Floats) -> Ids:
    """``[n]`` the class whose mean is nearest to each row."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    scores = flat @ means_MF.T - 0.5 * (means_MF**2).sum(axis=1)
    return np.argmax(np.nan_to_num(scores), axis=1).astype(np.int64)


def _samples(arm: Arm, header: Header, devices: Ids, means_MF: Floats | None) -> Iterator[Event]:
    """Predictions by heartbeat, and the labels that arrive before the end."""
    num = len(header.class_names)
    for device, stream in zip(devices.tolist(), arm.world.fleet.streams(devices), strict=True):
        live = (stream.event_at >= header.begin_at) & (stream.event_at < header.end_at)
        told = np.full(len(live), -1) if means_MF is None else _nearest(stream.x, means_MF)
        slots, of = np.unique(np.floor(stream.event_at[live] / header.heartbeat_s), return_inverse=True)
        count = np.bincount(of, minlength=len(slots)).tolist()
        by_class = np.zeros((len(slots), num), dtype=np.int64)
        if means_MF is not None:
            np.add.at(by_class, (of, told[live]), 1)
        for start, served, counts in zip(
            (slots * header.heartbeat_s).tolist(), count, by_class.tolist(), strict=True
        ):
            end = min(start + header.heartbeat_s, header.end_at)
            yield Predicted(device, end, start, served, tuple(counts) if means_MF is not None else ())
        for row in np.flatnonzero(live & (stream.label_at < header.end_at)).tolist():
            label, taken_at = int(stream.y[row]) if num else -1, float(stream.event_at[row])
            yield Labelled(device, float(stream.label_at[row]), taken_at, label, int(told[row]))


@dataclass
class _Rounds:
    """Asks the campaign's cohorts and notes when their replies come."""

    arm: Arm

    def play(self) -> Iterator[Event]:
        """All rounds."""
        arm, campaign = self.arm, self.arm.config.campaign
        everybody = np.arange(arm.world.fleet.num_devices)
        rules = arm.rules
        state = ServerState.first(
            arm.task.shared,
            arm.first_shared(),
            rules.rounds.server_optimizer,
            len(everybody),
            rules.clip_norm,
        )
        for round_ in range(campaign.num_rounds):
            at = round_ * campaign.round_interval_s
            online = arm.world.availability.online(everybody, at)
            cohort = rules.sampler.cohort(arm.seed, round_, state.history, online)
            state = state.with_participants(cohort.clients, round_)
            if len(cohort):
                yield from self._round(round_, at, state, np.sort(cohort.clients))

    def _round(self, round_: int, at: float, state: ServerState, devices: Ids) -> Iterator[Event]:
        arm, deadline_s = self.arm, self.arm.config.campaign.deadline_s
        spec = RoundSpec(
            round_,
            state.tree,
            state.version,
            arm.seed,
            at,
            arm.rules.rounds.aggregator,
            deadline_s=deadline_s,
        )
        lasts = Worker(arm).reply_times(spec, devices)
        begins = ~arm.world.availability.dropped_before(devices, round_)
        sizes = np.fromiter(map(len, arm.world.fleet.trainable(devices, at)), np.int64, len(devices))
        steps = self._steps(sizes)
        phases = self._phases(devices, round_, steps)
        for k, device in enumerate(devices.tolist()):
            yield AskedInRound(device, at, round_)
            if lasts[k] <= deadline_s:
                payload, replied_at = self._payload, at + float(lasts[k])
                down, train, up = (float(phase[k]) for phase in phases)
                taken = int(steps[k])
                yield Replied(
                    device, replied_at, round_, float(lasts[k]), down, train, up, payload, payload, taken
                )
                continue
            if not begins[k]:
                reason = FailureKind.UNAVAILABLE
            elif not sizes[k]:
                reason = FailureKind.NO_DATA
            else:
                reason = FailureKind.TIMEOUT if np.isfinite(lasts[k]) else FailureKind.DROPPED
            yield Failed(device, at + deadline_s, round_, reason)

    @property
    def _payload(self) -> int:
        return self.arm.task.shared.size * BYTES_PER_PARAMETER

    def _steps(self, sizes: Ids) -> Ids:
        """``[K]`` training steps of devices that hold so many samples."""
        local = self.arm.config.training
        steps = [
            num_steps(sizes, local.batch_size, phase.epochs, phase.max_steps)
            for phase in self.arm.task.phases()
        ]
        return np.sum(steps, axis=0, dtype=np.int64)

    def _phases(self, devices: Ids, round_: int, steps: Ids) -> tuple[Floats, Floats, Floats]:
        """``[K]`` seconds of receiving, training and sending, as devices would measure them."""
        network, payload = self.arm.world.network, self._payload

        def lasts(down: int, up: int) -> Floats:
            return network.reply_after_s(
                devices, round_=round_, down_bytes=down, up_bytes=up, num_steps=steps
            )

        # A round's jitter is one factor on all phases, so differences of whole times are the phases.
        none, links = lasts(0, 0), network.links(devices)
        calm = (network.config.start_s + network.config.step_s * steps) / links.compute_speed
        train = none * calm / np.maximum(links.latency_s + calm, 1e-12)
        return lasts(payload, 0) - none, train, lasts(0, payload) - none
