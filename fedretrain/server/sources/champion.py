"""How a population's raw samples are counted while its champion serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.coordinator.policy import TelemetryMode
from fedretrain.core.errors import FedretrainError
from fedretrain.server.sources.binning import Binner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fedretrain.server.config import ServerConfig
    from fedretrain.server.population import Population


def binner_of(population: Population, slot_s: float, known: Binner | None = None) -> Binner | None:
    """The champion's pipeline and bins; None where its package has none, or the policy takes no telemetry.

    Args:
        population: Its loop has begun.
        slot_s: Length of a slot.
        known: What was found before: read again only for another champion.

    Raises:
        DataError: If the package is damaged.
    """
    champion, models = population.memory.begun.champion, population.models
    if champion not in models.versions.by_number or population.policy.telemetry is TelemetryMode.OFF:
        return None
    digest = models.versions.package_of(champion)
    if known is not None and known.package == digest:
        return known
    bins = models.bins(champion)
    if bins is None:
        return None
    package = models.package(champion)
    tolerance_s = population.policy.monitoring.clock_tolerance_s
    return Binner(digest, package.pipeline, bins, len(package.manifest.outputs), slot_s, tolerance_s)


def binners_of(
    config: ServerConfig,
    populations: Mapping[str, Population],
    known: Mapping[str, Binner],
    tell: Callable[[str, str], None],
) -> dict[str, Binner]:
    """As `binner_of`, of the populations to which brokers bring samples and whose loop has begun.

    Args:
        config: ``server.toml``.
        populations: Those that are open.
        known: What was found before.
        tell: Told of what is damaged.
    """
    found = {}
    for name in {one.population for one in config.sources}:
        population = populations.get(name)
        if population is None or population.memory.state is None:
            continue
        try:
            binner = binner_of(population, config.populations[name].watching.slot_s, known.get(name))
        except FedretrainError as error:
            tell(f"{name}, samples", str(error))
            binner = known.get(name)  # what came before a package was damaged still counts
        if binner is not None:
            found[name] = binner
    return found
