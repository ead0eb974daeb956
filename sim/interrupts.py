"""Ctrl-C, held back for as long as a few assignments belong together; SIGTERM, taken as Ctrl-C.

Outside the main thread, where no signal arrives, nothing happens.
"""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def held() -> Iterator[None]:
    """Let the block end before Ctrl-C or SIGTERM takes effect.

    Raises:
        KeyboardInterrupt: After the block, if one of them came during it.
    """
    caught: list[int] = []
    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.enter_context(_handled(number, caught.append))
        yield
    if caught:
        raise KeyboardInterrupt


@contextmanager
def terminate_is_ctrl_c() -> Iterator[None]:
    """Take SIGTERM (a container that is stopped, a time limit) as Ctrl-C inside the block: it leaves a checkpoint too."""

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with _handled(signal.SIGTERM, stop):
        yield


@contextmanager
def _handled(number: int, handle: Callable[[int], None]) -> Iterator[None]:
    """`handle` instead of what a signal does, inside the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def called(caught: int, _: Any) -> None:
        handle(caught)

    before = signal.signal(number, called)
    try:
        yield
    finally:
        signal.signal(number, before if before is not None else signal.SIG_DFL)
