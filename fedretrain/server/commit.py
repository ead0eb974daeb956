"""Group commit: many small durable changes share one fsync.

Rules of this file:
    * A change is committed when its future has a result, never before.
    * A change that fails is undone alone (a savepoint); its neighbours in the transaction are not affected.
    * Changes of one kind are made together, in a few statements for all of them; where that fails each is made alone, so that one of
      them spoils no other. A statement costs far more than a row: each gives up the interpreter's lock and waits to have it back.
    * A change whose asker has gone before its turn is not made: a device that hangs up sends its records again.
    * One thread writes, and of several processes one at a time: records get their numbers in the order of their commits, so
      that who reads them by number misses none; and two that hear the same device do not count a record twice.
"""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from fedretrain.server.database import hold

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, Engine

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
MAX_GROUP = 500
MAX_ROWS = 5000
"""A group takes so many rows before it is closed, or one change more: a storm of long backlogs would hold the one write lock, which a lease needs too,
for longer than the lease lasts."""
GATHER_S = 0.1
"""So long a group that follows one of several waits for more: under load a transaction for each few changes costs more than the changes."""
_CROWD = 50
"""Where so many wait already, none is waited for."""
_WRITING = "group commit"


@dataclass
class _Asked:
    """A change that waits.

    Attributes:
        change: Makes it, and all that are of its kind: one result for each item.
        item: What of.
        together: Whether others of its kind may be made with it.
        num_rows: That it writes, about.
        future: Of its result.
    """

    change: Callable[[Connection, Sequence[Any]], Sequence[Any]]
    item: Any
    together: bool
    num_rows: int = 1
    future: Future[Any] = field(default_factory=Future)


class GroupCommit:
    """Takes changes from any thread and commits them in groups.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: queue.Queue[_Asked | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="group-commit", daemon=True)
        self._thread.start()

    def submit(self, change: Callable[[Connection], ResultT]) -> Future[ResultT]:
        """Make a change durable.

        Args:
            change: Called with the transaction's connection, in the writer's thread.

        Returns:
            Its result, once it is on the disk.
        """
        return self._put(_Asked(lambda connection, _: [change(connection)], None, together=False))

    def submit_one_of(
        self,
        change: Callable[[Connection, Sequence[ItemT]], Sequence[ResultT]],
        item: ItemT,
        num_rows: int = 1,
    ) -> Future[ResultT]:
        """Make a change durable that can be made together with others of its kind.

        Args:
            change: As in `submit`, for the items of all that wait; gives a result for each. The same function is the same kind.
            item: What of.
            num_rows: That it writes, about.
        """
        return self._put(_Asked(change, item, together=True, num_rows=num_rows))

    def _put(self, asked: _Asked) -> Future[Any]:
        self._waiting.put(asked)
        return asked.future

    def close(self) -> None:
        """Commit what waits, then end. May be called twice."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _run(self) -> None:
        ended, crowded = False, False
        while not ended:
            group, ended = self._group(GATHER_S if crowded else 0.0)
            crowded = len(group) > 1
            if group:
                self._commit(group)

    def _group(self, gather_s: float) -> tuple[list[_Asked], bool]:
        """What waits so long after the first came, at least that one; whether it is the end."""
        group: list[_Asked] = []
        num_rows = 0
        item = self._waiting.get()
        if item is not None and gather_s and self._waiting.qsize() < _CROWD:
            time.sleep(gather_s)
        while item is not None:
            group.append(item)
            num_rows += item.num_rows
            if len(group) == MAX_GROUP or num_rows >= MAX_ROWS:
                return group, False
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: list[_Asked]) -> None:
        # From here on none can be cancelled, so that each result finds its future waiting.
        group = [one for one in group if one.future.set_running_or_notify_cancel()]
        done: list[tuple[Future[Any], Any]] = []
        try:
            with self._engine.begin() as connection:
                hold(connection, _WRITING)
                for alike in _alike(group):
                    done += _make(connection, alike)
        except Exception as error:  # noqa: BLE001 - the commit failed: nothing of it happened
            for one in group:
                if not one.future.done():
                    one.future.set_exception(error)
            return
        for future, result in done:
            future.set_result(result)


def _alike(group: Sequence[_Asked]) -> list[list[_Asked]]:
    """The changes in their order, those of one kind at the place of the first."""
    found: list[list[_Asked]] = []
    kinds: dict[Any, list[_Asked]] = {}
    for one in group:
        if one.together and one.change in kinds:
            kinds[one.change].append(one)
            continue
        found.append([one])
        if one.together:
            kinds[one.change] = found[-1]
    return found


def _make(connection: Connection, alike: Sequence[_Asked]) -> list[tuple[Future[Any], Any]]:
    """Make changes of one kind; the results of those that did not fail."""
    try:
        with connection.begin_nested():
            results = alike[0].change(connection, [one.item for one in alike])
    except Exception as error:  # noqa: BLE001 - handed to who asked for the change
        if len(alike) > 1:  # whose fault it was is found out by making each alone
            return [made for one in alike for made in _make(connection, [one])]
        alike[0].future.set_exception(error)
        return []
    return [(one.future, result) for one, result in zip(alike, results, strict=True)]
