"""Ctrl-C, held back for as long as a few assignments belong together."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def held() -> Iterator[None]:
    """Let the block end before Ctrl-C takes effect. Outside the main thread, where none arrives, nothing happens.

    Raises:
        KeyboardInterrupt: After the block, if Ctrl-C came during it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *_: caught.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
    if caught:
        raise KeyboardInterrupt
