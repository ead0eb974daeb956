"""`baseline collect`: the bins of a champion that came without data, from what the fleet counted in its first week.

Rules of this file:
    * Nothing but counts is used: they are what devices sent anyway.
    * Bins are part of a package, so new ones are a new version of the same model. It passes every gate like any other; its record of
      what is normal is made once it serves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import select

from fedretrain.artifacts.delta import release
from fedretrain.artifacts.manifest import Strategy, TrainingRecord
from fedretrain.artifacts.package import Contents, write_package
from fedretrain.coordinator.cycle import Propose
from fedretrain.coordinator.roles import Right
from fedretrain.core.clock import DAY_S
from fedretrain.core.errors import DataError
from fedretrain.core.frozen import freeze
from fedretrain.monitoring.rebin import quantile_bins
from fedretrain.monitoring.reports import Reports
from fedretrain.server import fleet
from fedretrain.server.database import reading
from fedretrain.server.tables import telemetry
from fedretrain.wire.control import SHADOW, MalformedError, decode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedretrain.artifacts.package import Package
    from fedretrain.monitoring.bins import Bins
    from fedretrain.server.desk import Desk


@dataclass(frozen=True, eq=False)
class Counted:
    """What a fleet counted of one version on its bins.

    Attributes:
        counts_FC: ``[F, C]`` of all devices and slots.
        num_devices: That sent any.
        span_s: From the first slot's beginning to the last one's end.
    """

    counts_FC: NDArray[np.int64]
    num_devices: int
    span_s: float


def collect_baseline(desk: Desk, by: str, reason: str, least_s: float) -> dict[str, Any]:
    """Propose the champion again with bins of what its fleet counted.

    Args:
        desk: The population's.
        by: Who orders it.
        reason: Why.
        least_s: Telemetry must span so long.

    Raises:
        ConfigError: If this person may not.
        DataError: If there is no champion with bins, or too little was counted.
    """
    desk.require(by, Right.OPERATE)
    state = desk.memory().state
    bins = None if state is None else desk.models.bins(state.champion)
    if state is None or bins is None:
        raise DataError(
            "there is no champion with bins", where=desk.population, fix="fedretrain models import"
        )
    found = count(desk, state.champion, bins)
    if found.span_s < least_s:
        raise DataError(
            f"{found.span_s / DAY_S:.1f} days of telemetry are kept, {least_s / DAY_S:.1f} are asked for",
            where=desk.population,
            fix="wait, or give --days; the policy's windows say how long telemetry is kept",
        )
    models = desk.models
    version = max(models.versions.next_number, state.next_version)
    better = quantile_bins(bins, found.counts_FC)
    digest = _again(desk, models.package(state.champion), better, version)
    models.add(version, digest, f"version {state.champion} with bins of its fleet, by {by}")
    desk.give(Propose(version, by, reason))
    return {
        "version": version,
        "package": digest,
        "num_devices": found.num_devices,
        "days": found.span_s / DAY_S,
        "num_rows": int(found.counts_FC[0].sum()),
    }


def count(desk: Desk, version: int, bins: Bins) -> Counted:
    """What is kept of the counts of a version on its bins, each device's row once."""
    shape = desk.models.shape(version, bins)
    numbers = {digest: number for number, digest in desk.models.versions.digests.items()}
    total = np.zeros((bins.num_features, bins.num_cells), dtype=np.int64)
    devices: set[int] = set()
    slots: list[int] = []
    with reading(desk.log.engine) as connection:
        known = {one.device: one.number for one in fleet.everybody(connection, desk.population)}
        query = select(telemetry.c.device, telemetry.c.received_at, telemetry.c.payload)
        for row in connection.execute(query.where(telemetry.c.population == desk.population)):
            try:
                said = decode(row.payload, known.get(row.device, -1), row.received_at, shape, numbers.get)
            except (
                MalformedError
            ):  # of another version's shape, or nonsense: the coordinator counts those by name
                continue
            mine = isinstance(said, Reports) and said.bins == bins.digest and row.device in known
            if not isinstance(said, Reports) or not mine or said.version_K[0] != version or version >= SHADOW:
                continue
            total += said.features_KFC[0]
            devices.add(int(said.device_K[0]))
            slots.append(int(said.slot_K[0]))
    slot_s = desk.watching.slot_s
    span_s = (max(slots) - min(slots) + 1) * slot_s if slots else 0.0
    return Counted(total, len(devices), span_s)


def _again(desk: Desk, package: Package, bins: Bins, version: int) -> str:
    """The same model with other bins."""
    manifest = package.manifest
    contents = Contents(
        release(None, package.weights), package.graph, package.pipeline, package.sanity, freeze(bins)
    )
    return write_package(
        desk.models.stores.packages,
        contents,
        population=desk.population,
        version=version,
        created_at=time.time(),
        outputs=manifest.outputs,
        objective=manifest.objective,
        calibration=manifest.calibration,
        decision=manifest.decision,
        personalization=manifest.personalization,
        training=TrainingRecord(strategy=Strategy.IMPORTED, recipe="bins of the fleet's telemetry"),
    )
