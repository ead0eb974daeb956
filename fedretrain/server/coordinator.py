"""The coordinator: one process that decides for every population, and watches the gateways that speak with devices.

Rules of this file:
    * One leader by lease. Who holds it decides, signs and starts campaigns; who does not only lets its gateways serve.
    * A gateway that dies is started again; one that says why it cannot run ends the coordinator.
    * The reconciler is level-triggered: each turn compares what should be with what is, so nothing is lost with a crash.
    * A turn that fails for one population is told and does not stop the others; a lost lease ends all of them.
    * A database or a disk that fails for a while ends nothing: it is told, and tried again. A damaged database ends the process,
      by name: nothing is decided on what can no longer be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
import time
import uuid
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from fedretrain.core.ending import pause
from fedretrain.core.errors import FedretrainError
from fedretrain.server import orders
from fedretrain.server.commit import GroupCommit
from fedretrain.server.database import DatabaseDamagedError
from fedretrain.server.event_log import FencedError
from fedretrain.server.gateway_process import TOLD
from fedretrain.server.sources.running import Sources
from fedretrain.server.steward import Steward

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fedretrain.core.child import Child
    from fedretrain.server.config import ServerConfig
    from fedretrain.server.event_log import EventLog, Fence
    from fedretrain.server.keys import Keys
    from fedretrain.server.models import Stores

LEASE = "coordinator"
LEASE_S = 15.0
LOOK_S = 1.0
"""Between turns, each of which looks what is due, and prolongs the lease."""
_ORDERS_S = 0.2
"""So long an order waits at most for the turn that takes it, where none is under way."""
_MOST_PROLONGED = 360
"""A turn that takes longer than so many thirds of a lease hangs: somebody else may decide."""
_KEEP_S = 0.25
_FOR_A_WHILE = (SQLAlchemyError, OSError)
_log = logging.getLogger(__name__)


class Coordinator:
    """See the module.

    Args:
        config: ``server.toml``.
        log: The event log.
        keys: What it signs with.
        stores: Where files are.
        clock: Seconds since the epoch.
        gateways: What speaks with devices.
    """

    def __init__(
        self,
        config: ServerConfig,
        log: EventLog,
        keys: Keys,
        stores: Stores,
        clock: Callable[[], float] = time.time,
        gateways: Sequence[Child] = (),
    ) -> None:
        self._config, self._log, self._keys, self._stores, self._clock = config, log, keys, stores, clock
        self._writer = GroupCommit(log.engine)
        self._gateways, self._status = gateways, 0
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._fence: Fence | None = None
        self._steward: Steward | None = None
        slot_s = {name: one.watching.slot_s for name, one in config.populations.items()}
        self._sources = Sources(config.sources, log.engine, self._writer, slot_s, clock)
        self._num_modules = self._num_orders = 0
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Decide, and keep the gateways running, until `stop`.

        Returns:
            The exit status: 0, or that of a gateway that cannot run and has said why.
        """
        try:
            await asyncio.gather(self._keep_gateways(), self._lead())
        finally:
            await self._close()
        return self._status

    def stop(self) -> None:
        """End `run`; from its own thread, or a signal handler of the loop."""
        self._stop.set()

    async def _keep_gateways(self) -> None:
        """Start what does not run, until it cannot."""
        while True:
            for gateway in self._gateways:
                if gateway.exit_status == TOLD:
                    self._status = TOLD
                    self.stop()
                    return
                gateway.ensure(time.monotonic())
            if await pause(self._stop, _KEEP_S):
                return

    async def _lead(self) -> None:
        """Decide while this process holds the lease."""
        turn_s = min(one.watching.tick_s for one in self._config.populations.values())
        while not await self._rest(min(turn_s, LOOK_S)):
            turn = asyncio.create_task(asyncio.to_thread(self._turn))
            try:
                for _ in range(_MOST_PROLONGED):
                    if (await asyncio.wait({turn}, timeout=LEASE_S / 3))[0]:
                        break
                    await asyncio.to_thread(self._prolong)
            except _FOR_A_WHILE as error:
                _log.error("%s", error)
            try:
                await turn
                binners = {} if self._steward is None else self._steward.binners()
                await self._sources.follow(self._fence, binners)
            except _FOR_A_WHILE as error:
                _log.error("%s", error)

    async def _rest(self, seconds: float) -> bool:
        """Wait for the next turn, or for who decides until somebody has ordered something; whether the end has come."""
        until = time.monotonic() + seconds
        while not self._stop.is_set() and (left_s := until - time.monotonic()) > 0:
            await pause(self._stop, min(left_s, _ORDERS_S))
            if self._fence is not None and await asyncio.to_thread(self._is_ordered):
                break
        return self._stop.is_set()

    def _is_ordered(self) -> bool:
        """Whether people have ordered something since this was asked last."""
        before = self._num_orders
        with contextlib.suppress(*_FOR_A_WHILE):  # a turn tells it
            self._num_orders = self._log.num_records(map(orders.stream, self._config.populations))
        return self._num_orders != before

    def _prolong(self) -> None:
        """Hold the lease through a long turn: counting a backlog, or validating a large candidate."""
        if self._fence is not None:
            self._log.acquire(LEASE, self._holder, now=self._clock(), ttl_s=LEASE_S)

    def _turn(self) -> None:
        now = self._clock()
        fence = self._log.acquire(LEASE, self._holder, now=now, ttl_s=LEASE_S)
        if fence != self._fence:
            self._resign()
            self._fence = fence
            if fence is not None:
                _log.info("this process decides now (token %d)", fence.token)
                self._steward = Steward(self._config, self._log, self._keys, self._stores, fence, self._clock)
        if self._steward is None:
            return
        try:
            self._steward.turn(now)
        except FencedError as error:
            _log.warning("%s", error)
            self._resign()
        except DatabaseDamagedError:
            raise
        except FedretrainError as error:
            _log.error("%s", error)
        self._set_aside()

    def _set_aside(self) -> None:
        """What was imported stays: the collector of cycles, which stops every thread, need not look through it again and again.

        It is a million objects where the rest is tens of thousands: 0.1 to 0.3 s every few seconds.
        """
        if len(sys.modules) != self._num_modules:
            self._num_modules = len(sys.modules)
            gc.collect()
            gc.freeze()

    def _resign(self) -> None:
        if self._steward is not None:
            self._steward.close()
        self._steward, self._fence = None, None

    async def _close(self) -> None:
        for gateway in self._gateways:
            await asyncio.to_thread(gateway.stop)
        await self._sources.close()
        fence = self._fence
        # A database that is damaged or away must not hide why the process ends: the lease runs out.
        with contextlib.suppress(DatabaseDamagedError, *_FOR_A_WHILE):
            await asyncio.to_thread(self._resign)
            if fence is not None:
                self._log.release(fence)
        self._writer.close()
