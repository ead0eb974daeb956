"""`fedretrain config check`: a configuration with every file that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.coordinator.policy import read_policy
from fedretrain.server.config import read_server
from fedretrain.server.database import check_url
from fedretrain.server.example_rules import check_whole
from fedretrain.server.pool import read_pool
from fedretrain.server.simulating import check_pool
from fedretrain.server.sources.config import check_source
from fedretrain.server.training_file import read_training, read_yaml
from fedretrain.server.watched import clockwork_of, counts_bytes

if TYPE_CHECKING:
    from fedretrain.coordinator.policy import Policy
    from fedretrain.server.config import ServerConfig, Watching

_SAMPLED = 10_000  # devices
_CELLS = 13  # of a numeric feature: ten bins, under, over and missing


def check_config(path: Path) -> dict[str, str]:
    """Read a configuration with every file that it names.

    Args:
        path: ``server.toml``.

    Returns:
        What was found, by key.

    Raises:
        UserError: At the first mistake.
    """
    from fedretrain.server.importing import read_features

    config = read_server(path)
    database = check_url(config.database_url).render_as_string()  # without a password
    found = {"folder": config.folder, "database": database, "devices": config.listen.control}
    found["at rest"] = config.at_rest.says
    found["orders"] = _signed(config)
    found |= {f"source {one.name}": check_source(one) for one in config.sources}
    for name, one in config.populations.items():
        policy = read_policy(read_yaml(Path(one.policy)), where=one.policy)
        check_pool(policy, one.pool, f"populations.{name}.pool")
        found[f"populations.{name}.policy"] = f"{policy.name}, digest {policy.digest[:12]}"
        pipeline = read_features(Path(one.features)) if one.features else None
        if one.training:
            training = read_training(Path(one.training))
            check_whole(training.plan, pipeline)
            found[f"populations.{name}.training"] = f"{training.plan.model}, {training.num_rounds} rounds"
        if pipeline is not None:
            schema = pipeline.schema
            assert schema is not None
            found[f"populations.{name}.features"] = f"{len(schema.channels)} channels"
            cells = len(pipeline.feature_names(schema)) * _CELLS
            found[f"populations.{name}.watching.memory_gib"] = _memory(policy, one.watching, cells)
        if one.pool:
            found[f"populations.{name}.pool"] = f"{len(read_pool(Path(one.pool)))} rows"
    return found


def _signed(config: ServerConfig) -> str:
    """Whose orders are signed, and who is believed by name."""
    having = sorted(name for name, person in config.people.items() if person.key)
    if config.orders.require_keys:
        return f"signed by {', '.join(having)}; nobody else is followed"
    if not having:
        return "not signed: --by is a convention, and whoever may run fedretrain here can order in any name"
    return f"signed by {', '.join(having)}; any other name is believed (orders.require_keys = true ends that)"


def _memory(policy: Policy, watching: Watching, num_cells: int) -> str:
    """How many devices the counts of a fleet have room for."""
    clockwork = clockwork_of(watching, policy)

    def gib(num_devices: int) -> float:
        return counts_bytes(policy.monitoring, clockwork, num_devices, num_cells) / 2**30

    most = int(_SAMPLED * watching.memory_gib / gib(_SAMPLED))
    slots = clockwork.keep_slots(policy.monitoring)
    return f"{watching.memory_gib:g}, for about {most:,} devices in {slots} slots; {_SAMPLED:,} take {gib(_SAMPLED):.2f}"
