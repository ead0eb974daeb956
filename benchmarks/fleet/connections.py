"""Ten thousand devices that heart-beat and report, and a rollback that reaches all of them.

Rules of this file:
    * `connections`: the heartbeat's p99 while every device reports each minute; every report that was made is in the store, once.
    * `rollback`: from one order of a person, two heartbeats after a step has exposed nine in ten at once, to every connected device on the
      champion again. It is counted in the heartbeats of a fleet at rest; while a candidate serves somewhere, devices come sooner, as the agent
      does.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.fleet.driving import Drivers, Shares, balance, failures, percentiles, together
from benchmarks.fleet.office import OPERATOR, POPULATION, Office
from benchmarks.fleet.reports import payloads
from fedretrain.artifacts.weights import encode_params
from fedretrain.server import fleet
from fedretrain.server.database import reading

if TYPE_CHECKING:
    from benchmarks.fleet.sizes import Size

MOST_P99_MS = 250.0
MOST_HEARTBEATS = 1
_WARM_S = 20.0


def measure(size: Size) -> list[dict[str, Any]]:
    """Both lines."""
    with tempfile.TemporaryDirectory() as made:
        office = Office(Path(made), size.heartbeat_s, size.slot_s, size.tick_s)
        try:
            return _measure(office, size)
        finally:
            office.stop()


def _measure(office: Office, size: Size) -> list[dict[str, Any]]:
    office.write()
    devices = office.enrol(size.num_connected)
    office.start()
    package = office.desk.models.package(1)
    office.wait(lambda: num_told(office) == len(devices), "every device has an assignment", 300.0)
    report, labels = payloads(package)
    common = {
        "control": office.control,
        "authority": office.authority.decode(),
        "report": report.hex(),
        "labels": labels.hex(),
        "heartbeat_s": size.heartbeat_s,
        "report_s": size.slot_s,
        "slot_s": size.slot_s,
        "connect_s": size.connect_s,
    }
    with Drivers(office.folder, common, devices, size.num_drivers) as drivers:
        drivers.hear("connected")
        time.sleep(min(_WARM_S, 2 * size.heartbeat_s))
        begun, shares = time.time(), Shares(office.cpu_s(), drivers.cpu_s())
        time.sleep(size.steady_s)
        ended, used = time.time(), shares.until(office.cpu_s(), drivers.cpu_s())
        memory = {"coordinator_mib": round(office.rss_mib()), "load_mib": round(drivers.rss_mib())}
        order = _exposed(office, size)
        back_by = time.monotonic() + 12 * size.heartbeat_s + 60.0
        while _num_serving(office, package.digest) < len(devices) and time.monotonic() < back_by:
            time.sleep(0.5)
        figures = drivers.stop()
    return [
        _connections(office, size, figures, (begun, ended)) | used | memory,
        _rollback(size, figures, order, package.digest),
    ]


def _connections(
    office: Office, size: Size, figures: list[dict[str, Any]], when: tuple[float, float]
) -> dict[str, Any]:
    made = sum(part["num_made"] for part in figures)
    stored, settled = office.num_stored(), office.num_settled()
    kept = balance(figures, settled, stored)
    every = percentiles(together(figures, "heartbeats"), *when)
    probed = percentiles(figures[0]["heartbeats"], *when)
    return {
        "case": "connections",
        "p99_over_limit": round(every.get("p99_ms", 1e9) / MOST_P99_MS, 3),
        "probe_p99_over_limit": round(probed.get("p99_ms", 1e9) / MOST_P99_MS, 3),
        **kept,
        "met": bool(not any(kept.values()) and every.get("p99_ms", 1e9) <= MOST_P99_MS),
        "heartbeat": every,
        "probe": probed,
        "report": percentiles(together(figures, "sends"), *when),
        "reports_made": made,
        "reports_stored": stored,
        "failed_calls": failures(figures),
        "num_devices": size.num_connected,
        "connections": "gRPC over mutual TLS, a key and a certificate for each device",
        "heartbeat_s": size.heartbeat_s,
        "report_s": size.slot_s,
        "steady_s": size.steady_s,
    }


def _exposed(office: Office, size: Size) -> float:
    """Bring a candidate, wait until it is served, and order it back; when."""
    desk = office.desk
    weights = encode_params(desk.models.package(1).weights)
    version = desk.propose(weights, OPERATOR, "the same once more")
    desk.models.refresh()
    digest = desk.models.versions.package_of(version)
    most = round(0.85 * size.num_connected)
    office.wait(lambda: _num_serving(office, digest) >= most, "nine in ten serve the candidate", 600.0)
    # Who has just been exposed calls twice, and a gateway that is behind asks all to come more rarely: that is the step's load, not the fleet's.
    time.sleep(2 * size.heartbeat_s)
    ordered_at = time.time()
    desk.order("roll_back", OPERATOR, "measured")
    return ordered_at


def _rollback(size: Size, figures: list[dict[str, Any]], ordered_at: float, champion: str) -> dict[str, Any]:
    served = sorted(together(figures, "served"), key=lambda one: one[1])
    before = {number: serves for number, at, serves, _ in served if at < ordered_at}
    exposed = {number for number, serves in before.items() if serves != champion}
    back = {
        number: at - ordered_at for number, at, serves, _ in served if at >= ordered_at and serves == champion
    }
    waited = np.array([back.get(number, np.inf) for number in sorted(exposed)])
    if not np.isfinite(waited).all():
        return {"case": "rollback", "met": False, "exposed": len(exposed), "back": len(back)}
    return {
        "case": "rollback",
        "heartbeats_until_all_are_back": round(float(waited.max()) / size.heartbeat_s, 2),
        "heartbeats_median": round(float(np.median(waited)) / size.heartbeat_s, 2),
        "met": bool(waited.max() <= MOST_HEARTBEATS * size.heartbeat_s),
        "first_s": round(float(waited.min()), 2),
        "median_s": round(float(np.median(waited)), 2),
        "last_s": round(float(waited.max()), 2),
        "exposed": len(exposed),
        "heartbeat_s": size.heartbeat_s,
    }


def num_told(office: Office) -> int:
    """How many devices have an assignment."""
    with reading(office.engine) as connection:
        return sum(one.counter > 0 for one in fleet.everybody(connection, POPULATION))


def _num_serving(office: Office, digest: str) -> int:
    with reading(office.engine) as connection:
        return sum(one.heartbeat.get("serves") == digest for one in fleet.everybody(connection, POPULATION))
