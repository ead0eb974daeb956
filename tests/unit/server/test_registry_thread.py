"""The thread that shows the newest view, with a registry that can be held and can be down."""

import logging
import threading

from fedretrain.core.errors import UserError
from fedretrain.server.registry_thread import RegistryThread
from fedretrain.server.registry_view import RegistryView


class FakeRegistry:
    """Keeps what it was shown; can be held, and can be down."""

    def __init__(self):
        self.shown, self.is_down, self.free, self.entered = (
            [],
            False,
            threading.Event(),
            threading.Semaphore(0),
        )
        self.free.set()

    def show(self, view):
        self.entered.release()
        assert self.free.wait(60.0)
        if self.is_down:
            raise UserError("down", where="mlflow", fix="wait")
        self.shown.append(view)
        return []


VIEWS = [RegistryView(champion=n) for n in range(1, 5)]


def test_the_newest_view_wins_and_offering_never_waits():
    registry = FakeRegistry()
    registry.free.clear()
    thread = RegistryThread(registry)
    thread.offer(VIEWS[0])
    assert registry.entered.acquire(timeout=60.0)
    for view in VIEWS[1:]:
        thread.offer(view)
    registry.free.set()
    assert thread.wait_shown(VIEWS[3], 60.0)
    thread.close()
    assert registry.shown == [VIEWS[0], VIEWS[3]]


def test_a_registry_that_is_down_is_told_of_once_and_shown_to_when_it_works(caplog):
    registry = FakeRegistry()
    registry.is_down = True
    with caplog.at_level(logging.WARNING, logger="fedretrain.server.registry_thread"):
        thread = RegistryThread(registry, retry_s=0.01)
        thread.offer(VIEWS[0])
        for _ in range(4):
            assert registry.entered.acquire(timeout=60.0)
        assert "down" in thread.error
        registry.is_down = False
        assert thread.wait_shown(VIEWS[0], 60.0)
        assert thread.error == ""
        thread.close()
    assert len([one for one in caplog.records if "told once" in one.message]) == 1
    assert registry.shown == [VIEWS[0]]


def test_what_was_shown_is_shown_again_later_and_nothing_after_close():
    registry = FakeRegistry()
    thread = RegistryThread(registry, again_s=0.01)
    thread.offer(VIEWS[0])
    for _ in range(3):
        assert registry.entered.acquire(timeout=60.0)
    thread.close(60.0)
    count_then = len(registry.shown)
    assert set(registry.shown) == {VIEWS[0]}
    thread.offer(VIEWS[1])
    assert len(registry.shown) == count_then
