"""`fedretrain verify`: chains of the log, digests of files, and that the signed list, the versions, the store and MLflow agree.

Rules of this file:
    * Everything is recomputed, and all that is wrong is said, not only the first.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.artifacts.package import read_package
from fedretrain.core.errors import DataError, PrivacyError, UserError
from fedretrain.server import memory, policies, validations, versions
from fedretrain.server.database import DatabaseDamagedError, check_pages
from fedretrain.server.keys import open_stores
from fedretrain.server.registry import Registry, default_uri
from fedretrain.server.showing import view_of
from fedretrain.server.signed_records import check_signatures
from fedretrain.server.witnesses import check_ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedretrain.artifacts.trust.repository import TrustRepository
    from fedretrain.server.config import ServerConfig
    from fedretrain.server.event_log import EventLog
    from fedretrain.server.memory import Memory
    from fedretrain.server.models import Models

_LOOKS, _LOOK_S = 4, 5.0


def verify(
    config: ServerConfig,
    population: str,
    trust: TrustRepository,
    log: EventLog,
    opened: Callable[[], Models],
    recalled: Callable[[], Memory],
) -> dict[str, Any]:
    """What was checked of a population, and what is wrong.

    Args:
        config: ``server.toml``.
        population: Which.
        trust: The signed list.
        log: The event log.
        opened: Its models; they cannot be opened where the record of versions is damaged.
        recalled: Where its loop stands.
    """
    checked, damaged = _streams(log, population)
    wrong = list(damaged.values())
    stores = open_stores(config)
    for store in (stores.packages, stores.campaigns):
        wrong += [f"the file {digest} is damaged" for digest in store.verify()]
    checked["states"] = f"{len(stores.campaigns.digests())} files"
    if damaged.keys() & {versions.stream(population), policies.stream(population)}:
        return {
            "checked": checked,
            "wrong": wrong,
        }  # nobody can say which packages there should be, or what decides
    try:
        check_ledger(log, population, Path(config.folder), trust, time.time, _kept(recalled))
    except PrivacyError as error:
        wrong.append(str(error))
    models = opened()
    packages, said = _packages(models)
    offered = {d for d, t in trust.installable().items() if t.population == population}
    wrong += said
    wrong += [
        f"the signed list offers {digest}, which no version is" for digest in sorted(offered - packages)
    ]
    if not damaged:
        checked["signatures"], bad = check_signatures(log, population, config.notary_of(population))
        wrong += bad
    checked["packages"] = f"{len(packages)} packages"
    checked["signed list"] = f"{len(offered)} packages"
    shown = (memory.stream(population), validations.stream(population))
    if config.mlflow != "off" and not damaged.keys() & set(shown):
        wrong += [f"MLflow: {one}" for one in _shown_otherwise(config, models, log, recalled)]
        checked["MLflow"] = f"{len(models.versions.by_number)} versions"
    return {"checked": checked, "wrong": wrong}


def _streams(log: EventLog, population: str) -> tuple[dict[str, Any], dict[str, str]]:
    """How many records each stream has, and what is wrong with those that are damaged."""
    checked: dict[str, Any] = {}
    damaged: dict[str, str] = {}
    try:
        check_pages(log.engine)
        for stream in log.streams():
            try:
                checked[stream] = f"{sum(1 for _ in log.read(stream))} records"
            except DataError as error:
                damaged[stream] = f"{stream}: {error.what}"
    except DatabaseDamagedError as error:  # of no record can be said whether it is whole
        damaged[versions.stream(population)] = error.what
    return checked, damaged


def _kept(recalled: Callable[[], Memory]) -> frozenset[int]:
    """Devices that are kept out; where nobody can say which, the damage is said, and every device's word counts."""
    try:
        state = recalled().state
    except UserError:
        return frozenset()
    return frozenset() if state is None else state.kept_devices


def _packages(models: Models) -> tuple[set[str], list[str]]:
    """The packages of every version, and what is wrong with them."""
    wrong = []
    for number, one in models.versions.by_number.items():
        try:
            package = read_package(models.stores.packages, one.package)
        except UserError as error:
            wrong.append(f"version {number}: {error.what}")
            continue
        if package.manifest.weights.digest != one.weights or package.manifest.version != number:
            wrong.append(f"version {number}: its package says otherwise than the log")
    return {one.package for one in models.versions.by_number.values()}, wrong


def _shown_otherwise(
    config: ServerConfig, models: Models, log: EventLog, recalled: Callable[[], Memory]
) -> list[str]:
    """What MLflow says otherwise than the log; a running coordinator has a moment to show what is new."""
    registry = Registry(config.mlflow or default_uri(Path(config.folder)), models.population)
    wrong: list[str] = []
    for _ in range(_LOOKS):
        known = validations.recall(log.read(validations.stream(models.population)))
        wrong = registry.compare(view_of(models, recalled(), known))
        if not wrong:
            break
        time.sleep(_LOOK_S)
    return wrong
