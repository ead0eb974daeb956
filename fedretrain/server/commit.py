"""Group commit: many small durable changes share one fsync.

Rules of this file:
    * A change is committed when its future has a result, never before.
    * A change that fails is undone alone (a savepoint); its neighbours in the transaction are not affected.
    * A change whose asker has gone before its turn is not made: a device that hangs up sends its records again.
    * One thread writes, and of several processes one at a time: records get their numbers in the order of their commits, so
      that who reads them by number misses none; and two that hear the same device do not count a record twice.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from fedretrain.server.database import hold

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

ResultT = TypeVar("ResultT")
MAX_GROUP = 500
_WRITING = "group commit"


class GroupCommit:
    """Takes changes from any thread and commits them in groups.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: queue.Queue[tuple[Callable[[Connection], Any], Future[Any]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="group-commit", daemon=True)
        self._thread.start()

    def submit(self, change: Callable[[Connection], ResultT]) -> Future[ResultT]:
        """Make a change durable.

        Args:
            change: Called with the transaction's connection, in the writer's thread.

        Returns:
            Its result, once it is on the disk.
        """
        future: Future[ResultT] = Future()
        self._waiting.put((change, future))
        return future

    def close(self) -> None:
        """Commit what waits, then end. May be called twice."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            group, ended = self._group()
            if group:
                self._commit(group)

    def _group(self) -> tuple[list[tuple[Callable[[Connection], Any], Future[Any]]], bool]:
        """What waits now, at least one; whether it is the end."""
        group = []
        item = self._waiting.get()
        while item is not None:
            group.append(item)
            if len(group) == MAX_GROUP:
                return group, False
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: list[tuple[Callable[[Connection], Any], Future[Any]]]) -> None:
        # From here on none can be cancelled, so that each result finds its future waiting.
        group = [one for one in group if one[1].set_running_or_notify_cancel()]
        done: list[tuple[Future[Any], Any]] = []
        try:
            with self._engine.begin() as connection:
                hold(connection, _WRITING)
                for change, future in group:
                    try:
                        with connection.begin_nested():
                            done.append((future, change(connection)))
                    except Exception as error:  # noqa: BLE001 - handed to who asked for the change
                        future.set_exception(error)
        except Exception as error:  # noqa: BLE001 - the commit failed: nothing of it happened
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        for future, result in done:
            future.set_result(result)
