"""Five thousand devices come back after two days, each with its backlog, and with a version that was withdrawn meanwhile.

Rules of this file:
    * Every record that was made is in the store, once, when the last device has nothing left; the time until then is the drain.
    * A device hears that it must go back with its first heartbeat, before a batch of its backlog is taken; it is counted how many did.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.fleet.connections import num_told
from benchmarks.fleet.driving import Drivers, Shares, balance, failures, percentiles, together
from benchmarks.fleet.office import OPERATOR, Office
from benchmarks.fleet.reports import payloads
from fedretrain.artifacts.weights import encode_params

if TYPE_CHECKING:
    from benchmarks.fleet.sizes import Size

MOST_DRAIN_S = 900.0


def measure(size: Size) -> list[dict[str, Any]]:
    """One line."""
    with tempfile.TemporaryDirectory() as made:
        office = Office(Path(made), size.heartbeat_s, size.offline_slot_s, size.tick_s)
        try:
            return [_measure(office, size)]
        finally:
            office.stop()


def _measure(office: Office, size: Size) -> dict[str, Any]:
    office.write()
    devices = office.enrol(size.num_stormy)
    office.start()
    withdrawn = _withdrawn(office)
    first = office.desk.models.package(1)
    office.wait(lambda: num_told(office) == len(devices), "every device has an assignment", 300.0)
    report, labels = payloads(first)
    backlog = round(size.offline_s / size.offline_slot_s)
    common = {
        "control": office.control,
        "authority": office.authority.decode(),
        "report": report.hex(),
        "labels": labels.hex(),
        "heartbeat_s": size.heartbeat_s,
        "report_s": 0.0,
        "slot_s": size.offline_slot_s,
        "connect_s": size.storm_s,
        "backlog": backlog,
    }
    away = [one | {"serves": withdrawn} for one in devices]
    begun = time.time()
    with Drivers(office.folder, common, away, size.num_drivers) as drivers:
        shares = Shares(office.cpu_s(), drivers.cpu_s())
        made = 2 * backlog * len(devices)
        until = begun + 2 * MOST_DRAIN_S
        while office.num_settled() < made and time.time() < until:
            time.sleep(2.0)
        used = shares.until(office.cpu_s(), drivers.cpu_s())
        memory = {"coordinator_mib": round(office.rss_mib()), "load_mib": round(drivers.rss_mib())}
        figures = drivers.stop()
    return _line(office, size, figures, begun, first.digest) | used | memory


def _withdrawn(office: Office) -> str:
    """A version that everybody has, and that was withdrawn; its digest."""
    desk = office.desk
    office.wait(lambda: desk.memory().state is not None, "the coordinator's first turn")
    version = desk.propose(encode_params(desk.models.package(1).weights), OPERATOR, "the same once more")
    desk.withdraw(version, OPERATOR, "while they were away")
    office.wait(lambda: version in desk.memory().begun.quarantined, "it is withdrawn")
    desk.models.refresh()
    return desk.models.versions.package_of(version)


def _line(
    office: Office, size: Size, figures: list[dict[str, Any]], begun: float, champion: str
) -> dict[str, Any]:
    made = sum(part["num_made"] for part in figures)
    stored, settled = office.num_stored(), office.num_settled()
    kept = balance(figures, settled, stored)
    drained = {int(number): at for part in figures for number, at in part["drained"].items()}
    sent = {int(number): at for part in figures for number, at in part["first_batches"].items()}
    back = {number: at for number, at, serves, _ in together(figures, "served") if serves == champion}
    first_heard = sum(back.get(number, np.inf) <= at for number, at in sent.items())
    drain_s = max(drained.values(), default=np.inf) - begun
    whole = not any(kept.values()) and len(drained) == size.num_stormy == first_heard
    return {
        "case": "storm",
        "drain_over_limit": round(float(drain_s) / MOST_DRAIN_S, 3),
        **kept,
        "back_before_their_backlog": round(first_heard / size.num_stormy, 4),
        "met": bool(whole and drain_s <= MOST_DRAIN_S),
        "drain_s": round(float(drain_s), 1),
        "records_per_s": round(stored / float(drain_s)),
        "records": made,
        "heartbeat": percentiles(together(figures, "heartbeats"), begun, np.inf),
        "batch": percentiles(together(figures, "sends"), begun, np.inf),
        "failed_calls": failures(figures),
        "num_devices": size.num_stormy,
        "offline_s": size.offline_s,
        "slot_s": size.offline_slot_s,
        "come_back_within_s": size.storm_s,
    }
