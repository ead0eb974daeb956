"""A model version made this device's own: local numbers of its pipeline, personal layers, and whom it came of.

Rules of this file:
    * Nothing is decided here about what serves; a version that cannot be made ready is an error to its caller.
    * A version that is only scored in shadow is prepared in the same way, and leaves nothing on the disk.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

from fedretrain.core.errors import DataError
from fedretrain.core.types import MethodKind
from fedretrain.edge import personal
from fedretrain.edge.refit import Outcome, personal_for
from fedretrain.edge.serving import Served

if TYPE_CHECKING:
    from pathlib import Path

    from fedretrain.artifacts.package import Package
    from fedretrain.edge.config import RefitConfig
    from fedretrain.edge.memory import MemoryFile
    from fedretrain.edge.past import Past
    from fedretrain.edge.store import Store

CAMPAIGN = "campaign/"
"""Before a campaign's id, where a manifest says which data a version comes from."""


class Preparing:
    """For one device.

    Args:
        folder: Where personal parameters are.
        past: The device's raw samples.
        remembered: Which versions served here.
        config: How personal layers are re-fitted.
    """

    def __init__(self, folder: Path, past: Past, remembered: MemoryFile, config: RefitConfig) -> None:
        self.folder, self._past = folder, past
        self._remembered, self._config = remembered, config

    def served(self, store: Store, package: Package) -> tuple[Served, str]:
        """A version to serve, and what became of its personal layers (for people; empty if there is nothing to say).

        Raises:
            UserError: If it cannot be made ready.
        """
        bases = self._remembered.value.bases
        if package.pipeline.has_local and (not bases or bases[-1] != package.digest):
            self._renew_past(package)
        served, found = self._with_personal(store, package)
        return served, found.news

    def shadow(self, store: Store, package: Package) -> Served:
        """A version to score beside the served one.

        Raises:
            UserError: If it cannot be made ready.
        """
        return self._with_personal(store, package, keep=False)[0]

    def renewed(self, store: Store, model: Served, *, refit: bool) -> tuple[Served, str] | None:
        """The served version again, once the device knows more: None if it does not.

        Args:
            store: The device's.
            model: What serves.
            refit: Whether personal layers may be tried again.
        """
        package = model.package
        if package.pipeline.has_local and self._past.is_worth_using:
            self._renew_past(package)
            served, found = self._with_personal(store, package)
            return served, found.news
        if not refit or package.manifest.personalization.method is MethodKind.FEDAVG:
            return None
        with contextlib.suppress(DataError):
            held = personal.load(self.folder, store.stream)
            if held is not None and held.base == package.digest:
                return None
        served, found = self._with_personal(store, package)
        return served, found.news

    def refreshed(self, store: Store, model: Served) -> tuple[Served, Outcome]:
        """The served version with its personal layers fitted again, and what became of that.

        Raises:
            OSError: If the disk would not have the result; nothing has changed.
            UserError: If it cannot be made ready.
        """
        return self._with_personal(store, model.package, again=True)

    def note_lineage(self, store: Store, package: Package) -> None:
        """Remember which campaign made a version, where its manifest names one that this device took part in."""
        named = package.manifest.training.snapshot
        if named.startswith(CAMPAIGN):
            with store.database.mutex, contextlib.suppress(DataError, sqlite3.DatabaseError):
                store.lineage.came_of(named.removeprefix(CAMPAIGN), package.digest)

    def _renew_past(self, package: Package) -> None:
        schema = package.pipeline.schema
        assert schema is not None  # a package's pipeline is fitted
        self._past.use(schema.row_shape)

    def _with_personal(
        self, store: Store, package: Package, *, keep: bool = True, again: bool = False
    ) -> tuple[Served, Outcome]:
        past = self._past.used if package.pipeline.has_local else None
        plain = Served.of(package, past=past)
        if package.manifest.personalization.method is MethodKind.FEDAVG:
            return plain, Outcome({})
        bases = self._remembered.value.serving(package.digest).bases
        with store.database.mutex:
            now = store.clock.look().guess_at
            _, data = store.served.labelled(now, plain.preprocessing)
        found = personal_for(
            package, self.folder, store.stream, bases, data, self._config, now, keep=keep, again=again
        )
        if not found.params:
            return plain, found
        return Served.of(package, found.params, past), found
