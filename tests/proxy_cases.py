"""A TCP proxy on the loopback interface that does to connections what networks do."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from enum import StrEnum


class Fault(StrEnum):
    """What happens to connections, old and new."""

    NONE = "none"
    DROP = "drop"  # closed, and every new one at once
    DELAY = "delay"  # each piece comes a second later
    TRUNCATE = "truncate"  # cut in the middle of what a device sends, again and again
    DUPLICATE = "duplicate"  # all that a device sends goes to a second connection too
    HALF_OPEN = "half_open"  # nothing is passed on any more, and nobody is told


DELAY_S = 1.0
CUT_BYTES = 3_000  # beyond a handshake, in the middle of a batch


class Proxy:
    """Listens at `port`, and passes on to `target`. Runs in a thread of its own."""

    def __init__(self) -> None:
        self.target, self.fault, self.num_faults = 0, Fault.NONE, 0
        self.sent_bytes = 0
        """What devices have sent, of whatever protocol."""
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(30)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    def set(self, fault: Fault) -> None:
        """From now on; what was made half-open stays so, as it does in a network."""
        self._loop.call_soon_threadsafe(self._set, fault)

    def _set(self, fault: Fault) -> None:
        if self.fault is Fault.HALF_OPEN:
            self._open.clear()  # nobody hears of these again
        self.fault = fault
        if fault in (Fault.DROP, Fault.TRUNCATE, Fault.DUPLICATE):
            for writer in self._open:
                self.num_faults += 1
                writer.transport.abort()
            self._open.clear()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fault is Fault.DROP:
            self.num_faults += 1
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        copy = None
        if self.fault is Fault.DUPLICATE:
            self.num_faults += 1
            _, copy = await asyncio.open_connection("127.0.0.1", self.target)
        self._open |= {writer, back}
        await asyncio.gather(
            self._pass(reader, back, copy, is_from_device=True),
            self._pass(there, writer, None, is_from_device=False),
        )
        for one in (writer, back, *([copy] if copy else [])):
            self._open.discard(one)
            one.transport.abort()

    async def _pass(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        copy: asyncio.StreamWriter | None,
        *,
        is_from_device: bool,
    ) -> None:
        """Until one end closes, or the network does."""
        passed, is_dead = 0, False
        with contextlib.suppress(OSError):
            while piece := await source.read(1 << 16):
                is_dead = is_dead or self.fault is Fault.HALF_OPEN
                if is_dead:
                    self.num_faults += 1
                    continue
                if self.fault is Fault.DELAY:
                    self.num_faults += 1
                    await asyncio.sleep(DELAY_S)
                passed += len(piece)
                self.sent_bytes += len(piece) if is_from_device else 0
                if self.fault is Fault.TRUNCATE and is_from_device and passed > CUT_BYTES:
                    self.num_faults += 1
                    sink.write(piece[: max(1, len(piece) // 2)])
                    await sink.drain()
                    sink.transport.abort()
                    return
                for one in (sink, copy):
                    if one is not None and not one.transport.is_closing():
                        one.write(piece)
                        await one.drain()
        sink.transport.abort()
