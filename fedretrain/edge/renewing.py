"""What serves, again, once the device has learnt more: by the day, with its own past, or because a refresh was ordered.

Rules of this file:
    * A refresh is ordered by number in a signed assignment, and done once: what became of it is durable in the outbox before
      the device remembers that it has done it. A kill between the two makes it do it again, and the server counts it once.
    * It waits while the rules answer, and while the disk is full; nothing that serves is worse for having tried.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from fedretrain.core.errors import UserError
from fedretrain.training.keep import Verdict
from fedretrain.wire.control import encode_refreshed
from fedretrain.wire.sequence import Priority

if TYPE_CHECKING:
    from threading import RLock

    from fedretrain.edge.device import DeviceRuntime
    from fedretrain.edge.preparing import Preparing
    from fedretrain.edge.refit import Outcome
    from fedretrain.edge.serving import Served

AGAIN_S = 600.0
"""After so long a refresh that the disk would not have is tried again."""


class Renewing:
    """For one device.

    Args:
        runtime: The device.
        preparing: Makes versions its own.
        lock: Held while what serves is changed.
    """

    def __init__(self, runtime: DeviceRuntime, preparing: Preparing, lock: RLock) -> None:
        self._runtime, self._preparing, self._lock = runtime, preparing, lock
        self._due_s = 0.0

    def renew(self, model: Served, *, refit: bool) -> None:
        """Serve with what the device has learnt meanwhile.

        Args:
            model: What serves.
            refit: Whether personal layers may be tried again, where there are none beside this version.
        """
        with self._lock, contextlib.suppress(UserError):
            found = self._preparing.renewed(self._runtime.store, model, refit=refit)
            if found is not None and self._takes(model, found[0]):
                self.tell(model.digest, found[1])

    def refresh(self) -> None:
        """Fit the personal layers again, if that was ordered and is not done."""
        runtime = self._runtime
        told, model = runtime.remembered.value, runtime.answering.serving.model
        if told.refresh <= told.refreshed or model is None or not runtime.serves:
            return
        if runtime.now_s < self._due_s:
            return
        self._due_s = runtime.now_s + AGAIN_S
        with self._lock, contextlib.suppress(OSError, UserError):
            served, found = self._preparing.refreshed(runtime.store, model)
            if self._takes(model, served):
                self._done(told.refresh, model.digest, found)

    def tell(self, version: str, why: str) -> None:
        """Tell people of a re-fit, scores and all: where there is telemetry."""
        if why and self._runtime.remembered.value.slot_s > 0:
            self._runtime.alert("personal_refit", version, why)

    def _takes(self, model: Served, renewed: Served) -> bool:
        """Serve the renewed version; False if something else serves by now."""
        answering = self._runtime.answering
        if answering.serving.model is not model:
            return False
        answering.flush()
        answering.serve(replace(answering.serving, model=renewed), answering.watch)
        return True

    def _done(self, refresh: int, version: str, found: Outcome) -> None:
        runtime = self._runtime
        verdict = found.verdict or Verdict.NOT_POSSIBLE
        if runtime.remembered.value.slot_s > 0:  # the policy wants telemetry
            self._report(refresh, version, verdict)
        runtime.remembered.note(lambda told: replace(told, refreshed=refresh))
        self._due_s = 0.0

    def _report(self, refresh: int, version: str, verdict: Verdict) -> None:
        runtime = self._runtime
        with runtime.mending():
            outbox, instant = runtime.store.outbox, runtime.store.clock.instant()
            outbox.add(Priority.KPIS, encode_refreshed(refresh, version, verdict), instant)
            outbox.flush(instant)
