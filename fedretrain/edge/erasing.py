"""What a logical device forgets when it is retired, or given to somebody else.

Rules of this file:
    * Erased is everything that was made of the device's samples: examples, labels, lineage, personal parameters, what waits to be
      sent, databases that were set aside as damaged, and what a campaign that was cut left behind.
    * What training has cost the examples stays too (`example_ledger`): the noised updates that it paid for are out.
    * Keys, the certificate and models stay: they say nothing of samples, and the server knows the device by them. What was sent stays
      where it was sent.
    * Files are overwritten before they are removed. What the storage underneath keeps of them (flash does) is beyond this.
    * May be called again after a failure; it then goes on.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from fedretrain.core.durable import sync_folder
from fedretrain.edge import lineage, past

if TYPE_CHECKING:
    from pathlib import Path

    from fedretrain.edge.store import Store

CAMPAIGN = "campaign"
"""The agent's folder for a campaign: examples of its devices, as long as it runs."""


def erase_store(store: Store, folder: Path, personal_folder: Path) -> None:
    """Erase what lies in a device's database and beside it; the device may go on.

    Args:
        store: The open database.
        folder: The device's.
        personal_folder: Where its personal parameters are.

    Raises:
        DataError: If somebody reads the database, so that the old content is still in its log.
        OSError: If a file cannot be overwritten.
    """
    with store.database.mutex:
        store.outbox.forget(store.clock.instant())
        for stream in (store.stream, store.shadow_stream):
            lineage.erase(store.database.connection, stream, personal_folder)
    for path in sorted(folder.glob("agent.db.damaged-*")):
        _overwrite(path)
    past.erase(folder)


def erase_leftovers(agent_folder: Path) -> None:
    """Erase what a campaign left that was cut; no agent may be running.

    Raises:
        OSError: If a file cannot be overwritten.
    """
    left = agent_folder / CAMPAIGN
    for path in sorted(left.rglob("*")) if left.exists() else []:
        if path.is_file() and not path.is_symlink():
            _overwrite(path)
    shutil.rmtree(left, ignore_errors=True)


def _overwrite(path: Path) -> None:
    """Overwrite a file and remove it."""
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    sync_folder(path.parent)
