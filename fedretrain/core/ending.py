"""SIGTERM and SIGINT, for a process that runs until it is told to end."""

from __future__ import annotations

import asyncio
import queue
import signal
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

ResultT = TypeVar("ResultT")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_until_signals(run: Callable[[], Coroutine[Any, Any, ResultT]], stop: Callable[[], None]) -> ResultT:
    """Run a coroutine in a loop of its own, in which SIGTERM and SIGINT call `stop`.

    Args:
        run: Makes the coroutine, in the loop.
        stop: Ends it, in order.

    Returns:
        Its result.
    """

    async def work() -> ResultT:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, stop)
        return await run()

    return asyncio.run(work())


async def pause(ending: asyncio.Event, seconds: float) -> bool:
    """Wait for the end, so long at most; whether it has come."""
    try:
        await asyncio.wait_for(ending.wait(), seconds)
    except TimeoutError:
        return False
    return True


def end_on_signals(ending: threading.Event) -> None:
    """Let SIGTERM and SIGINT set an event. Called in the main thread.

    A handler runs between any two instructions of the main thread, also where that thread holds the lock of the very event as it begins or ends
    to wait: to set it there is to wait for oneself, and the process never ends. The handler therefore only puts a word into a queue that may
    be entered again (`queue.SimpleQueue.put` is documented to be reentrant), and a thread sets the event.

    Args:
        ending: Set when a signal has come.
    """
    caught: queue.SimpleQueue[int] = queue.SimpleQueue()

    def follow() -> None:
        caught.get()
        ending.set()

    threading.Thread(target=follow, name="signals", daemon=True).start()
    for number in _SIGNALS:
        signal.signal(number, lambda number, _: caught.put(number))
