"""What MLflow shows of a population: its versions and roles, as the log and the packages have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedretrain.artifacts.manifest import Strategy
from fedretrain.artifacts.package import read_manifest
from fedretrain.server.registry_view import RegistryView, VersionView

if TYPE_CHECKING:
    from fedretrain.server.memory import Memory
    from fedretrain.server.models import Models
    from fedretrain.server.validations import Judged, Validations
    from fedretrain.server.versions import Version


def view_of(models: Models, memory: Memory, validations: Validations) -> RegistryView:
    """A population as its log has it.

    Args:
        models: Its versions and packages.
        memory: Where its loop stands.
        validations: What its offline validations said.
    """
    known = models.versions.by_number
    by_weights = {one.weights: number for number, one in known.items()}
    versions = tuple(
        _version(models, one, by_weights, validations.judged.get(number))
        for number, one in sorted(known.items())
    )
    state = memory.state
    if state is None:
        return RegistryView(versions)
    rollout = state.rollout
    candidate = rollout.plan.candidate if rollout is not None and state.rollout_open else 0
    waiting = [one.version for one in state.waiting if one.version in known]
    return RegistryView(
        versions,
        champion=state.champion if state.champion in known else 0,
        candidate=candidate if candidate in known else 0,
        staging=waiting[0] if waiting else 0,
        quarantined=frozenset(state.quarantined & known.keys()),
        drifted=frozenset({state.champion} & known.keys()) if state.monitor.drifted else frozenset(),
    )


def _version(models: Models, one: Version, by_weights: dict[str, int], judged: Judged | None) -> VersionView:
    manifest = read_manifest(models.stores.packages, one.package)
    made = manifest.training
    return VersionView(
        one.version,
        one.package,
        one.weights,
        one.origin,
        one.at,
        base=by_weights.get(manifest.base, 0),
        campaign=models.campaign_of(one.version) if made.strategy is Strategy.FEDERATED else "",
        policy=made.policy,
        training=made,
        epsilon=made.epsilon,
        scope=made.scope,
        verdict="" if judged is None else judged.verdict,
        simulation=models.simulations.of(one.version).said,
        metrics=() if judged is None else tuple(sorted(judged.figures.items())),
        manifest=manifest.to_bytes().decode(),
    )
