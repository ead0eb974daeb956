"""A signal ends a process that waits on an event."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import pytest

from fedretrain.core.ending import end_on_signals

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_event(number: signal.Signals) -> None:
    ending = threading.Event()
    end_on_signals(ending)
    assert not ending.is_set()
    signal.raise_signal(number)
    assert ending.wait(10.0)


def test_a_signal_while_the_main_thread_holds_the_event_s_own_lock_does_not_wait_for_it() -> None:
    """As when it comes between a wait's last instructions: an agent was seen to hang there for good."""
    ending = threading.Event()
    end_on_signals(ending)
    with ending._cond:  # type: ignore[attr-defined]
        signal.raise_signal(signal.SIGTERM)  # a handler that set the event would not come back
        assert not ending.is_set()
    assert ending.wait(10.0)
