"""Shows a population in MLflow, beside the coordinator and never in its way.

Rules of this file:
    * A queue of one: a newer view replaces one that nobody has shown yet.
    * A registry that is down stops nobody: what it says is told once, and again only after it has worked in between; the newest view is tried
      again until it is shown.
    * A view that was shown is shown again after `again_s`: what somebody overwrote by hand in between is mended.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedretrain.core.errors import UserError
from fedretrain.server.registry import Registry, default_uri

if TYPE_CHECKING:
    from fedretrain.server.config import ServerConfig
    from fedretrain.server.registry_view import RegistryView

_log = logging.getLogger(__name__)


class Shows(Protocol):
    """What shows a view: `Registry`."""

    def show(self, view: RegistryView) -> list[str]:
        """Make it so; what was otherwise before.

        Raises:
            UserError: And nothing else, if it cannot.
        """
        ...


class RegistryThread:
    """One thread that shows the newest view.

    Args:
        registry: Where.
        retry_s: After a failure it is tried again so much later.
        again_s: After a success likewise.
    """

    def __init__(self, registry: Shows, *, retry_s: float = 30.0, again_s: float = 3600.0) -> None:
        self._registry, self._retry_s, self._again_s = registry, retry_s, again_s
        self._changed = threading.Condition()
        self._offered: RegistryView | None = None
        self._shown: RegistryView | None = None
        self._error, self._is_closed = "", False
        self._thread = threading.Thread(target=self._run, name="registry", daemon=True)
        self._thread.start()

    def offer(self, view: RegistryView) -> None:
        """Show this, soon; never waits."""
        with self._changed:
            self._offered = view
            self._changed.notify_all()

    @property
    def error(self) -> str:
        """Why the last attempt failed; empty: it did not."""
        return self._error

    def wait_shown(self, view: RegistryView, timeout_s: float) -> bool:
        """Whether a view is what was shown last, within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._shown == view, timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """End after what is being shown; wait for that at most so long."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (view := self._next()) is not None:
            try:
                mended = self._registry.show(view)
            except UserError as error:
                self._tell(str(error))
            else:
                self._done(view, mended)

    def _next(self) -> RegistryView | None:
        """The view to show now; None when closed."""
        with self._changed:
            before = self._offered if self._error or self._offered == self._shown else None
            if (
                before is not None
            ):  # it failed, or it is shown: wait for a newer one, or until it is time again
                wait_s = self._retry_s if self._error else self._again_s
                self._changed.wait_for(lambda: self._is_closed or self._offered != before, wait_s)
            self._changed.wait_for(lambda: self._is_closed or self._offered is not None)
            return None if self._is_closed else self._offered

    def _tell(self, what: str) -> None:
        if not self._error:
            _log.warning("%s; told once until it works again", what)
        self._error = what

    def _done(self, view: RegistryView, mended: list[str]) -> None:
        if self._error:
            _log.warning("MLflow works again")
        if view == self._shown:
            for what in mended:
                _log.warning("mended in MLflow: %s", what)
        with self._changed:
            self._error, self._shown = "", view
            self._changed.notify_all()


def registries_of(config: ServerConfig) -> dict[str, RegistryThread]:
    """What shows each population in MLflow; none where that is off."""
    if config.mlflow == "off":
        return {}
    uri = config.mlflow or default_uri(Path(config.folder))
    return {name: RegistryThread(Registry(uri, name)) for name in config.populations}
