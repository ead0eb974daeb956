"""The agent: several logical devices in one process, each visited in its own time, until it is told to end.

Rules of this file:
    * A device that cannot reach its coordinator is tried again with growing patience and jitter: a thousand devices that come
      back together do not come at once.
    * A device that was never enrolled is tried again in the same way, in its own thread, while those that were serve: no network, and
      no token that is refused, keeps them from it.
    * What a person has to mend ends the agent only where it serves nothing: beside others it is a line of the log, and in the status.
    * What is due without a network is never behind a slow network: it has a thread of its own.
    * A start asks the coordinator once, for a short time, before the local API answers: a device that was away hears of a
      rollback before it predicts with what was withdrawn. Nobody there: it serves what it has.
    * SIGTERM ends it in order: what was predicted is on the disk.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fedretrain.core.ending import end_on_signals
from fedretrain.core.errors import DataError, FedretrainError
from fedretrain.edge.campaign import Campaigns
from fedretrain.edge.control import ControlError
from fedretrain.edge.device import DeviceRuntime
from fedretrain.edge.joining import read_joined
from fedretrain.edge.watch import own_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedretrain.edge.config import DeviceConfig, EdgeConfig

TICK_S = 1.0
FIRST_VISIT_S = 3.0
"""How long a start waits for the coordinator."""
LONGEST_S = 600.0
JOIN_S = 2.0
"""About how long the first wait for an enrolment is: a server on the same machine may begin a little later."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long to wait until the next visit.

    Attributes:
        num_failed: Visits since the last one that was answered.
    """

    num_failed: int = 0

    def after(self, *, answered: bool) -> Patience:
        """After a visit."""
        return Patience(0 if answered else self.num_failed + 1)

    def wait_s(self, next_s: float, draw: float) -> float:
        """Seconds to wait.

        Args:
            next_s: What the coordinator wishes.
            draw: 0 to 1, at random: half of a wait is left to chance once a visit has failed, a tenth otherwise.
        """
        if not self.num_failed:
            return next_s * (0.95 + 0.1 * draw)
        return min(next_s * 2.0 ** min(self.num_failed - 1, 10), LONGEST_S) * (0.5 + 0.5 * draw)


class Agent:
    """Hosts the devices of a configuration. Start it, or use it as a context manager.

    Args:
        config: Which devices.
        draw: Numbers from 0 to 1, for the jitter.

    Attributes:
        devices: Those that run, by name; one that enrols late comes in from its own thread.
        mistakes: Why a device does not enrol until a person has mended something, by name.

    Raises:
        UserError: If no device was enrolled before and one has no token that counts, or a folder cannot be used.
    """

    def __init__(self, config: EdgeConfig, *, draw: Callable[[], float] = random.random) -> None:
        self.config, self._draw = config, draw
        self._ending = threading.Event()
        self._wakes = {device.name: threading.Event() for device in config.devices}
        self._mistake: FedretrainError | None = None
        self.devices: dict[str, DeviceRuntime] = {}
        self.mistakes: dict[str, FedretrainError] = {}
        self._is_silent = False
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        self.campaigns = Campaigns(config, self.devices)
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waiting(self) -> tuple[str, ...]:
        """Devices that have no place in their fleet yet."""
        return tuple(name for name in self._wakes if name not in self.devices)

    def device(self, name: str = "") -> DeviceRuntime:
        """A device by its name, or the only one.

        Raises:
            DataError: If there is no such device, or none is named and there are several.
            ControlError: If it is not enrolled yet.
        """
        if not name and len(self._wakes) == 1:
            (name,) = self._wakes
        if name not in self._wakes:
            raise DataError(
                f"there is no device {name!r}" if name else "which device?",
                where="device",
                fix=f"name one of {', '.join(sorted(self._wakes))}",
            )
        found = self.devices.get(name)
        if found is None and name in self.mistakes:
            raise ControlError(f"the device {name} is not enrolled: {self.mistakes[name]}")
        if found is None:
            raise ControlError(
                f"the device {name} is not enrolled yet: the agent's log says what {self.config.enrol} answers"
            )
        return found

    def start(self) -> None:
        """Ask the coordinator once, then go on by itself."""
        first = [threading.Thread(target=self._visit, args=(one, FIRST_VISIT_S)) for one in self.devices]
        for thread in first:
            thread.start()
        for thread in first:
            thread.join(FIRST_VISIT_S * 2)
        self._threads = [threading.Thread(target=self._tick, name="tick")]
        self._threads += [
            threading.Thread(target=self._visits, args=(one,), name=one.name) for one in self.config.devices
        ]
        for thread in self._threads:
            thread.start()

    def run(self, serve: Callable[[], None] = lambda: None) -> None:
        """Start, and go on until SIGTERM or SIGINT.

        Args:
            serve: Called once the devices may answer.

        Raises:
            UserError: If no device serves, and one has no token that counts.
        """
        end_on_signals(self._ending)
        try:
            self.start()
            serve()
            while not self._ending.wait(TICK_S):
                pass
        finally:
            self.close()
        if self._mistake is not None:
            raise self._mistake

    def close(self) -> None:
        """End everything in order; may be called again."""
        self._ending.set()
        for wake in self._wakes.values():
            wake.set()
        for thread in getattr(self, "_threads", []):
            thread.join(60.0)
        if hasattr(self, "campaigns"):
            self.campaigns.stop()
        for device in self.devices.values():
            device.close()

    def _tick(self) -> None:
        while not self._ending.wait(TICK_S):
            for name, device in list(self.devices.items()):
                try:
                    device.tick()
                except FedretrainError as error:
                    _log.warning("%s: %s", name, error)
            self.campaigns.ensure(time.monotonic())

    def _begin(self) -> None:
        """Host every device that has a place in its fleet; where none has, every one that gets one now.

        The others enrol in their own threads: who asks for their places may wait long for an answer. Once nobody answers no other is
        asked for.
        """
        folder = Path(self.config.folder)
        placed = [device for device in self.config.devices if read_joined(folder / device.name) is not None]
        try:
            for device in placed or self.config.devices:
                self._host(device)
        except ControlError as silence:
            self._say_silence(silence)

    def _host(self, device: DeviceConfig) -> None:
        memory = own_bytes if len(self.config.devices) == 1 else None
        wake = self._wakes[device.name].set
        self.devices[device.name] = DeviceRuntime(
            self.config, device, memory=memory, wake=wake, ending=self._ending
        )

    def _say_silence(self, silence: ControlError) -> None:
        """Nobody enrols: a line of the log the first time."""
        if not self._is_silent and not self._ending.is_set():
            _log.warning(
                "nobody enrols at %s yet, it goes on trying for %s (%s)",
                self.config.enrol,
                ", ".join(self.waiting),
                silence,
            )
        self._is_silent = True

    def _joins(self, device: DeviceConfig) -> bool:
        """Host a device that nobody enrolled yet; whether it came to that before the agent ended."""
        patience = Patience(1)
        wait_s = patience.wait_s(JOIN_S, self._draw()) if self._is_silent else 0.0
        while not self._ending.wait(wait_s):
            try:
                self._host(device)
            except ControlError as error:
                self._say_silence(error)
                _log.debug("%s: %s", device.name, error)
                wait_s = patience.wait_s(JOIN_S, self._draw())
                patience = patience.after(answered=False)
            except FedretrainError as error:
                self._give_up(device.name, error)
                return False
            else:
                _log.info("%s: enrolled", device.name)
                self._visit(device.name)
                return True
        return False

    def _give_up(self, name: str, mistake: FedretrainError) -> None:
        """A person has to mend something: devices that serve go on."""
        self.mistakes[name] = mistake
        if self.devices:
            _log.error("%s: %s", name, mistake)
            return
        self._mistake = mistake
        self._ending.set()

    def _visits(self, device: DeviceConfig) -> None:
        name = device.name
        if name not in self.devices and not self._joins(device):
            return
        patience = Patience(int(not self.devices[name].visit.heard_at))
        next_s = self.config.heartbeat_s
        while not self._ending.is_set():
            woken = self._wakes[name].wait(patience.wait_s(next_s, self._draw()))
            self._wakes[name].clear()
            if self._ending.is_set():
                return
            found = self._visit(name)
            patience = patience.after(answered=found is not None)
            next_s = next_s if found is None else found
            if woken and found is None:
                self._ending.wait(1.0)

    def _visit(self, name: str, timeout_s: float | None = None) -> float | None:
        """Seconds until the next one; None if nobody answered."""
        try:
            return self.devices[name].sync(timeout_s=timeout_s)
        except ControlError as error:
            _log.info("%s: %s", name, error)
        except FedretrainError as error:
            _log.warning("%s: %s", name, error)
        return None
