"""The process of one simulation job: it writes what the gate needs, and becomes ``python -m sim gate``.

Rules of this file:
    * The simulator is started by its name and never imported: this process is replaced by it, so that limits, leash and exit status are
      the gate's own.
    * What it reads is the log and the stores; it writes into its own folder alone.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.artifacts.at_rest import StorePlace  # noqa: TC001 - read by `build` at run time
from fedretrain.artifacts.package import read_package
from fedretrain.artifacts.weights import encode_params
from fedretrain.core.build import build, plain
from fedretrain.core.durable import write_whole
from fedretrain.core.errors import FedretrainError, UserError
from fedretrain.core.types import Objective
from fedretrain.privacy.accountant import Spending
from fedretrain.privacy.event import Sampling
from fedretrain.privacy.mechanism import Unit
from fedretrain.rollout.simulation import SimulationRules  # noqa: TC001 - `core.build` reads the annotations
from fedretrain.server import fleet, versions
from fedretrain.server.campaign import campaign_stream, read_campaign
from fedretrain.server.database import open_database, reading
from fedretrain.server.database_ledger import DatabaseLedger
from fedretrain.server.event_log import EventLog
from fedretrain.server.fleet_journal import Fleet, journal
from fedretrain.server.pool import read_pool, write_pool
from fedretrain.server.replay_order import ReplayOrder
from fedretrain.server.versions import Versions
from fedretrain.wire.control import ReportShape
from fedretrain.wire.fleet_log import write_log

if TYPE_CHECKING:
    from fedretrain.artifacts.package import Package
    from fedretrain.server.campaign import CampaignDefinition
    from fedretrain.wire.fleet_log import Header

ORDERS = "FEDRETRAIN_SIMULATION"
"""Environment variable: the JSON of `SimulationOrders`."""
CAMPAIGN, LOG, REPORT = "campaign.json", "fleet.jsonl", "report.json"
_LEAST_INTERVAL_S = 1.0


@dataclass(frozen=True)
class SimulationOrders:
    """What the coordinator tells the process.

    Attributes:
        database: URL.
        packages: Where packages are.
        campaigns: Where campaigns' weights are.
        population: Whose campaign.
        campaign: Its name.
        champion: Version that it is compared with.
        pool: Folder of labelled rows.
        folder: For the job's files.
        rules: Of the gate.
        address: Of a Ray cluster; empty: on this machine.
        bins_features: Features of the champion's bins.
        bins_cells: Cells of each.
    """

    database: str
    packages: StorePlace
    campaigns: StorePlace
    population: str
    campaign: str
    champion: int
    pool: str
    folder: str
    rules: SimulationRules
    bins_features: int
    bins_cells: int
    address: str = ""

    def to_env(self) -> dict[str, str]:
        """For the process's environment."""
        return {ORDERS: json.dumps(plain(self))}


def prepare(orders: SimulationOrders) -> list[str]:
    """Write the job's files; the words of the gate.

    Raises:
        DataError: If the fleet was not watched long enough, or something that is needed is missing.
    """
    log, folder = EventLog(open_database(orders.database)), Path(orders.folder)
    known = Versions.of(log.read(versions.stream(orders.population)))
    package = read_package(orders.packages.open(), known.package_of(orders.champion))
    definition = read_campaign(log, orders.campaign).definition
    with reading(log.engine) as connection:
        everybody = fleet.everybody(connection, orders.population)
    manifest = package.manifest
    classes = manifest.outputs if manifest.objective is Objective.CLASSIFICATION else ()
    shape = ReportShape(orders.bins_features, orders.bins_cells, len(manifest.outputs), bool(classes))
    whose = Fleet(orders.population, everybody, classes, shape, known.digests, definition.rules.deadline_s)
    header, events = journal(log, whose)
    write_log(folder / LOG, header, events)
    _write_files(orders, package, definition.base, folder)
    order = _order(orders, log, definition, manifest.outputs, header)
    write_whole(folder / CAMPAIGN, order.to_text().encode())
    return _words(orders)


def _write_files(orders: SimulationOrders, package: Package, base: str, folder: Path) -> None:
    pool = read_pool(Path(orders.pool))
    rows = pool.labelled
    write_pool(
        folder / "pool.safetensors", pool.x, rows.label_N, rows.at_N, device=rows.device_N, group=rows.group_N
    )
    write_whole(folder / "champion.safetensors", encode_params(package.weights))
    write_whole(folder / "base.safetensors", orders.campaigns.open().get(base))
    write_whole(folder / "features.json", package.pipeline.to_json().encode())


def _order(
    orders: SimulationOrders,
    log: EventLog,
    definition: CampaignDefinition,
    outputs: tuple[str, ...],
    header: Header,
) -> ReplayOrder:
    sampling, rules = definition.rules.sampling, orders.rules
    privacy = definition.rules.privacy
    num_devices = int(definition.members.sum())
    units = np.array(definition.units)[definition.members] if definition.units else np.arange(num_devices)
    each = math.ceil(num_devices / len(np.unique(units)))  # devices of a unit
    asked = math.ceil(sampling.cohort_size * sampling.over_select) * each
    most = num_devices if sampling.kind is Sampling.POISSON else max(rules.num_devices, asked)
    return ReplayOrder(
        campaign=definition.campaign,
        plan=definition.plan,
        rules=definition.rules,
        num_rounds=definition.num_rounds,
        interval_s=max(_interval_s(log, definition), _LEAST_INTERVAL_S),
        seed=definition.seed,
        num_devices=min(num_devices, most),
        num_sites=len(set(header.site)),
        num_types=len(set(header.device_type)),
        outputs=outputs,
        devices_per_person=each if privacy is not None and privacy.unit is Unit.PERSON else 0,
        epsilon=_epsilon(log, definition),
    )


def _interval_s(log: EventLog, definition: CampaignDefinition) -> float:
    """From one round to the next, as the campaign ran; as it was defined where it had one round."""
    at = [e.record["summary"].get("at", e.at) for e in _committed(log, definition.campaign)]
    return float(np.diff(at).mean()) if len(at) > 1 else definition.interval_s


def _committed(log: EventLog, campaign: str) -> list[Any]:
    return [entry for entry in log.read(campaign_stream(campaign)) if entry.record.get("type") == "round"]


def _epsilon(log: EventLog, definition: CampaignDefinition) -> float | None:
    """What the campaign spent by itself."""
    privacy = definition.rules.privacy
    if privacy is None:
        return None
    ledger = DatabaseLedger(log, definition.population, clock=lambda: 0.0)
    mine = [event for event in ledger.events() if event.campaign == definition.campaign]
    return Spending.of(mine).epsilon(privacy.delta)


def _words(orders: SimulationOrders) -> list[str]:
    rules, folder = orders.rules, Path(orders.folder)
    words = {
        "candidate": folder / CAMPAIGN,
        "log": folder / LOG,
        "out": folder / REPORT,
        "seeds": rules.seeds,
        "most_seeds": rules.most_seeds,
        "accuracy_margin": rules.accuracy_margin,
        "worst_margin": rules.worst_margin,
        "stress": rules.stress,
    }
    there = {"address": orders.address, "memory_bytes": rules.memory_bytes} if orders.address else {}
    return [f"{key}={value}" for key, value in {**words, **there}.items()]


def main() -> None:
    """Prepare, then become the gate; exit status 2 where that cannot be."""
    logging.basicConfig(level=logging.WARNING)
    parent = os.getppid()
    try:
        words = prepare(build(SimulationOrders, json.loads(os.environ[ORDERS])))
    except (UserError, FedretrainError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - its log, whose last line the coordinator reads
        sys.exit(2)
    gate = ("-m", "sim", "gate", *words)
    os.execv(sys.executable, [sys.executable, "-m", "fedretrain.core.leash", str(parent), *gate])  # noqa: S606


if __name__ == "__main__":
    main()
