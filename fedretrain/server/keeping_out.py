"""Keeping a device out by hand, and letting it in again: orders about a device that a person names.

Rules of this file:
    * A device in quarantine goes on serving, and stays enrolled: its evidence and its updates do not count. Who does not trust its key
      revokes it instead.
    * Letting in again ends a monitor's quarantine too: a person overrules both (`coordinator.cycle_state`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.coordinator.cycle import Quarantine
from fedretrain.core.checks import require
from fedretrain.core.errors import DataError
from fedretrain.rollout.quarantine import Release, Subject
from fedretrain.server import fleet, orders
from fedretrain.server.database import reading
from fedretrain.server.fleet import Standing

if TYPE_CHECKING:
    from fedretrain.coordinator.cycle import CycleState
    from fedretrain.server.desk import Desk

_BY_MONITOR = "its inputs are unlike the other devices'"


def keep_out(desk: Desk, device: str, by: str, reason: str) -> None:
    """Order that a device is kept out.

    Raises:
        ConfigError: If this person may not order it, or gives no reason.
        DataError: If there is no such device, or it is retired.
    """
    _check_reason(reason)
    known = _found(desk, device)
    if known.standing is Standing.RETIRED:
        raise DataError(f"the device {device} was retired", where=desk.population, fix="nothing of it counts")
    desk.give(Quarantine(known.number, by, reason))


def let_in(desk: Desk, device: str, by: str, reason: str) -> None:
    """Order that a device that is kept out, by whomever, counts again.

    Raises:
        ConfigError: If this person may not order it, or gives no reason.
        DataError: If there is no such device, or nobody keeps it out.
    """
    _check_reason(reason)
    number = _found(desk, device).number
    known = desk.memory()
    kept = known.state is not None and number in known.state.kept_devices
    ordered = (
        orders.read(one.record) for one in desk.log.read(orders.stream(desk.population), after=known.orders)
    )
    if not kept and not any(isinstance(one, Quarantine) and one.device == number for one in ordered):
        raise DataError(
            f"the device {device} is not in quarantine",
            where=desk.population,
            fix="see `fedretrain devices list`",
        )
    desk.give(Release(Subject.DEVICE, number, by, reason))


def why(state: CycleState | None, number: int) -> str:
    """Why a device is kept out; empty where it is not."""
    if state is None or number not in state.kept_devices:
        return ""
    kept = state.quarantine.find(Subject.DEVICE, number)
    return _BY_MONITOR if kept is None else kept.reason


def _found(desk: Desk, device: str) -> fleet.Device:
    with reading(desk.log.engine) as connection:
        known = fleet.find(connection, desk.population, device)
    if known is None:
        raise DataError(
            f"there is no device {device}", where=desk.population, fix="see `fedretrain devices list`"
        )
    return known


def _check_reason(reason: str) -> None:
    require(
        bool(reason.strip()), "it needs a reason", key="--reason", fix="say why: it goes into the audit log"
    )
