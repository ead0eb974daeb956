"""What an operator does with labels that came later: bring them, and read what they say of the heuristics."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

from fedretrain.coordinator.roles import Right
from fedretrain.core.errors import DataError
from fedretrain.core.types import Objective
from fedretrain.server import annotation_store
from fedretrain.server.annotation_file import read_annotations
from fedretrain.server.database import reading

if TYPE_CHECKING:
    from fedretrain.server.desk import Desk


def stream(population: str) -> str:
    """Where it is written down who brought which file."""
    return f"population/{population}/labels"


def import_labels(desk: Desk, content: bytes, name: str, by: str, reason: str) -> dict[str, int]:
    """Keep the annotations of a file, each once; how many are what.

    Raises:
        ConfigError: If this person may not.
        DataError: If the file is not what it should be, or there is no classifying champion.
    """
    desk.require(by, Right.OPERATE)
    state = desk.memory().state
    if state is None or state.champion not in desk.models.versions.by_number:
        raise DataError("there is no champion yet", where=desk.population, fix="fedretrain models import")
    manifest = desk.models.package(state.champion).manifest
    if manifest.objective is not Objective.CLASSIFICATION:
        raise DataError("the champion is a regression", where=desk.population, fix="label classes")
    given = read_annotations(content, name, manifest.outputs)
    now = time.time()
    with desk.log.engine.begin() as connection:
        found = annotation_store.keep(connection, desk.population, given, now)
    body = {"by": by.strip(), "reason": reason, "file": hashlib.sha256(content).hexdigest()}
    desk.write_down(stream(desk.population), "labels", body, {"found": found})
    return found


def report_labels(desk: Desk) -> dict[str, Any]:
    """How far annotations have come, and the error of heuristic labels by source."""
    with reading(desk.log.engine) as connection:
        return annotation_store.summary(connection, desk.population)
