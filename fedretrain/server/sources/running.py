"""The brokers of a coordinator, watched: one task each, begun again with growing patience.

Rules of this file:
    * Only who decides reads brokers, under the lease's fence: another process that takes the lease over reads on from where
      the database stands.
    * A source that cannot be reached is counted as broken, apart from what its messages say, and keeps no other waiting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fedretrain.core.child import Backoff
from fedretrain.core.errors import FedretrainError
from fedretrain.server.database import reading
from fedretrain.server.event_log import FencedError, check_fence
from fedretrain.server.sources import keeping, tallies
from fedretrain.server.sources.config import Mqtt
from fedretrain.server.sources.keeping import Batch, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection, Engine

    from fedretrain.server.commit import GroupCommit
    from fedretrain.server.event_log import Fence
    from fedretrain.server.sources.binning import Binner
    from fedretrain.server.sources.config import Kafka

    Binners = Mapping[str, Binner]

T = TypeVar("T")
FLUSH_S = 5.0
_TOLD = 300
_log = logging.getLogger(__name__)


class Sources:
    """See the module. For one event loop.

    Args:
        sources: What to read.
        engine: The database.
        writer: Where messages go.
        slot_s: Of each population.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        sources: Sequence[Mqtt | Kafka],
        engine: Engine,
        writer: GroupCommit,
        slot_s: Mapping[str, float],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sources, self._engine, self._writer = sources, engine, writer
        self._slot_s, self._clock = slot_s, clock
        self._fence: Fence | None = None
        self._binners: Binners = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def follow(self, fence: Fence | None, binners: Binners) -> None:
        """Read under a lease; without one, do not.

        Args:
            fence: The lease; None where somebody else decides.
            binners: How the samples of each population are counted now.
        """
        self._binners = binners
        if fence == self._fence and all(not task.done() for task in self._tasks):
            return
        await self.close()
        self._fence = fence
        if fence is not None and self._sources:
            self._tasks = [asyncio.create_task(self._watch(one)) for one in self._sources]
            self._tasks.append(asyncio.create_task(self._flush()))

    async def close(self) -> None:
        """End all tasks; what was not acknowledged comes again."""
        tasks, self._tasks, self._fence = self._tasks, [], None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, source: Mqtt | Kafka) -> None:
        """Read a source, again and again; ends where the lease is lost."""
        backoff = Backoff()
        while True:
            await asyncio.sleep(backoff.wait_s(time.monotonic()))
            backoff.begun(time.monotonic())
            try:
                await self._consume(source)
            except FencedError as error:
                _log.warning("source %s: %s", source.name, error)
                return
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Nobody asked us to end: aiokafka raises it where it stops while its cluster is away.
                failure: BaseException = error.__context__ or error
            except Exception as error:  # noqa: BLE001 - whatever a broker, a network or a library does
                failure = error
            backoff.failed(time.monotonic())
            await self._away(source, failure)

    async def _consume(self, source: Mqtt | Kafka) -> None:
        keep, connected = partial(self._keep, source), partial(self._note, source, "connected")
        if isinstance(source, Mqtt):
            from fedretrain.server.sources import mqtt

            await mqtt.consume(source, keep, connected)
            return
        from fedretrain.server.sources import kafka

        places = kafka.Places(partial(self._places, source.name), partial(self._move, source))
        await kafka.consume(source, keep, connected, places)

    async def _keep(self, source: Mqtt | Kafka, messages: Sequence[Message]) -> None:
        binner = self._binners.get(source.population)
        batch = Batch(source, messages, binner, self._clock(), self._fence)
        await self._write(lambda connection: keeping.keep(connection, batch))

    async def _note(self, source: Mqtt | Kafka, standing: str, error: str = "") -> None:
        now, broken = self._clock(), bool(error)
        await self._write(
            lambda connection: keeping.note(connection, source, standing, now, error, broken=broken)
        )
        if not broken:
            _log.info("source %s: connected", source.name)

    async def _away(self, source: Mqtt | Kafka, error: BaseException) -> None:
        said = str(error) if isinstance(error, FedretrainError) else f"{type(error).__name__}: {error}"
        _log.error("source %s: %s", source.name, said[:_TOLD])
        try:
            await self._note(source, "away", said[:_TOLD])
        except Exception:  # noqa: BLE001 - the database is away, too: it says so elsewhere
            _log.debug("source %s: its standing cannot be written", source.name, exc_info=True)

    async def _places(self, name: str) -> dict[tuple[str, int], int]:
        def read() -> dict[tuple[str, int], int]:
            with reading(self._engine) as connection:
                return keeping.next_offsets(connection, name)

        return await asyncio.to_thread(read)

    async def _move(self, source: Kafka, place: keeping.Position, why: str, number: int) -> None:
        _log.warning("source %s: %s, partition %d: %s", source.name, place.topic, place.partition, why)
        await self._write(lambda connection: keeping.move(connection, source, place, why, number))

    async def _flush(self) -> None:
        """Make records of the slots that are over."""
        populations = sorted({one.population for one in self._sources})
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                for name in populations:
                    await self._write(partial(self._flushed, name, self._fence))
            except FencedError:
                return
            except Exception as error:  # noqa: BLE001 - of the database: tried again
                _log.error("sources: %s", error)

    def _flushed(self, population: str, fence: Fence | None, connection: Connection) -> None:
        check_fence(connection, fence)
        tallies.flush(connection, population, self._slot_s[population], self._clock())

    async def _write(self, change: Callable[[Connection], T]) -> T:
        """A change, durable when this returns."""
        future: Any = self._writer.submit(change)
        found: T = await asyncio.wrap_future(future)
        return found
