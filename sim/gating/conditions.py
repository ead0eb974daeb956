"""The fitted fleet's conditions on a campaign's configuration, as observed and under stress.

Rules of this file:
    * The fleet's sections replace the campaign's: what the log did not show (`unknown` of the fit) stays the campaign's own.
    * Devices and their data stay the campaign's own: a log holds no data. The class mix goes by the kind of its fleet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedretrain.core.build import build
from fedretrain.core.clock import DAY_S
from sim.availability import AvailabilityConfig
from sim.fleet import FleetKind
from sim.labels import DelayKind, LabelsConfig
from sim.network import NetworkConfig
from sim.sensors.config import DriftConfig

if TYPE_CHECKING:
    from sim.fit.files import FleetFile
    from sim.fleet import FleetConfig
    from sim.schema import Config


@dataclass(frozen=True)
class Condition:
    """One way in which the fleet may behave.

    Attributes:
        name: For people.
        stress: Drop-outs and label delay are so many times the observed.
    """

    name: str
    stress: float = 1.0


def under(config: Config, fleet: FleetFile, condition: Condition) -> Config:
    """A campaign's configuration in the fitted fleet.

    Raises:
        ConfigError: If the fleet's file sets a key that does not exist.
    """
    values = fleet.values
    availability, network = config.availability, config.network
    labels, drift = config.labels, config.drift
    if "availability" in values:
        availability = build(AvailabilityConfig, values["availability"], where="availability")
    if "network" in values:
        network = build(NetworkConfig, values["network"], where="network")
    if "labels" in values:
        labels = build(LabelsConfig, values["labels"], where="labels")
    if "drift" in values:
        drift = build(DriftConfig, values["drift"], where="drift")
    return replace(
        config,
        availability=_dropping(availability, condition.stress),
        network=network,
        labels=_later(labels, condition.stress),
        drift=drift,
        fleet=_mixed(config.fleet, fleet),
    )


def _dropping(config: AvailabilityConfig, stress: float) -> AvailabilityConfig:
    """With so many times the drop-outs."""
    return replace(
        config,
        dropout_before=min(stress * config.dropout_before, 1.0),
        dropout_mid=min(stress * config.dropout_mid, 1.0),
    )


def _later(config: LabelsConfig, stress: float) -> LabelsConfig:
    """With so many times the delay: of a nightly batch, so many nights more."""
    if config.delay is DelayKind.NIGHTLY:
        return replace(config, cutoff_s=config.cutoff_s + (stress - 1.0) * DAY_S)
    return replace(config, delay_s=stress * config.delay_s)


def _mixed(config: FleetConfig, fleet: FleetFile) -> FleetConfig:
    """With the fitted class mix, where this kind of fleet takes one."""
    if config.kind is FleetKind.GENERATED:
        skew = fleet.values.get("fleet", {}).get("generator", {}).get("label_skew")
        return (
            config if skew is None else replace(config, generator=replace(config.generator, label_skew=skew))
        )
    if config.kind is FleetKind.NATURAL or fleet.label_alpha is None:
        return config
    return replace(config, label_alpha=fleet.label_alpha)
