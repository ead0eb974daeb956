"""SIGTERM and SIGINT, for a process whose threads wait on an event until it ends."""

from __future__ import annotations

import queue
import signal
import threading


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
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: caught.put(number))
