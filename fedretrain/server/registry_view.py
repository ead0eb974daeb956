"""What MLflow is to show of a population, and where it says otherwise. Pure: `registry` reads and writes.

Rules of this file:
    * The event log is what counts. MLflow's tags, metrics, aliases and artifacts can be overwritten by anybody who reaches it, so
      every difference is a value that names what the log says and what MLflow says.
    * A version is recognised by the parameters ``version`` and ``package`` of its run: MLflow never changes a parameter.
    * What people added (other tags, other aliases, other versions) is theirs: it is never a difference, except a version that looks
      like one of the log's and is none.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from fedretrain.artifacts.manifest import TrainingRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CHAMPION, CANDIDATE, STAGING = "champion", "candidate", "staging"
DRIFTED, QUARANTINED = "drifted", "quarantined"
MANIFEST = "manifest.json"
_MAX_VALUE = 5_000  # characters of a tag or parameter; MLflow refuses more than 6,000
_RUN_TAGS = ("version", "package", "base", "origin")
_NOT_LOGS = -1  # an alias that points at none of the log's versions


@dataclass(frozen=True)
class VersionView:
    """A version.

    Attributes:
        version: Its number.
        package: Digest of its manifest.
        weights: Digest of its weights.
        origin: How it came about, for people.
        at: When.
        base: The version that it was trained from; 0: none.
        campaign: The campaign that made it; empty: none.
        policy: Digest of the policy that it was made under.
        training: Where the weights come from.
        epsilon: What the population had spent when it was released, or what training spent; None without differential privacy.
        scope: What epsilon covers and what it does not.
        verdict: Of its evaluation; empty: not evaluated.
        simulation: What the simulation gate said; empty: it was not asked.
        metrics: Numbers of its evaluation, by name.
        manifest: The manifest's JSON text; empty: not at hand.
    """

    version: int
    package: str
    weights: str
    origin: str
    at: float
    base: int = 0
    campaign: str = ""
    policy: str = ""
    training: TrainingRecord = field(default_factory=TrainingRecord)
    epsilon: float | None = None
    scope: str = ""
    verdict: str = ""
    simulation: str = ""
    metrics: tuple[tuple[str, float], ...] = ()
    manifest: str = ""


@dataclass(frozen=True)
class RegistryView:
    """A population as its log has it.

    Attributes:
        versions: Every version.
        champion: The version that serves; 0: the rules baseline, which has no entry.
        candidate: The version on its way; 0: none.
        staging: The version that was made and awaits its rollout; 0: none.
        quarantined: Versions that may not be installed.
        drifted: Versions whose devices see data that they were not made for.
    """

    versions: tuple[VersionView, ...] = ()
    champion: int = 0
    candidate: int = 0
    staging: int = 0
    quarantined: frozenset[int] = frozenset()
    drifted: frozenset[int] = frozenset()

    @property
    def aliases(self) -> dict[str, int]:
        """The version of each alias; 0: none."""
        return {CHAMPION: self.champion, CANDIDATE: self.candidate, STAGING: self.staging}

    def tags(self, one: VersionView) -> dict[str, str]:
        """A version's tags; an empty value is no tag."""
        return {
            "version": str(one.version),
            "package": one.package,
            "weights": one.weights,
            "origin": one.origin[:_MAX_VALUE],
            "base": str(one.base or ""),
            "campaign": one.campaign,
            "policy": one.policy,
            "epsilon": "" if one.epsilon is None else f"{one.epsilon:.6g}",
            "scope": one.scope[:_MAX_VALUE],
            "verdict": one.verdict,
            "simulation": one.simulation,
            DRIFTED: "true" if one.version in self.drifted else "",
            QUARANTINED: "true" if one.version in self.quarantined else "",
        }


def run_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Those of a version's tags that its run has too."""
    return {key: tags[key] for key in _RUN_TAGS if tags[key]}


def params(one: VersionView) -> dict[str, str]:
    """The parameters of a version's run: where it comes from."""
    record = one.training
    found = {
        "version": one.version,
        "package": one.package,
        "base": one.base or "",
        "strategy": record.strategy.value,
        "recipe": record.recipe,
        "snapshot": record.snapshot,
        "features": record.features,
        "data_from_at": record.data_from_at,
        "data_until_at": record.data_until_at,
        "cohort": record.cohort,
        "rounds": record.rounds,
        "epsilon": "" if record.epsilon is None else record.epsilon,
        "delta": "" if record.delta is None else record.delta,
        "code_version": record.code_version,
        **{f"hyperparameters.{name}": value for name, value in record.hyperparameters},
    }
    return {_key(name): str(value)[:_MAX_VALUE] for name, value in found.items() if value != ""}


def metrics(one: VersionView) -> dict[str, float]:
    """The finite metrics of a version's run."""
    found = {**dict(one.metrics), **({} if one.epsilon is None else {"epsilon": one.epsilon})}
    return {_key(name): float(value) for name, value in found.items() if math.isfinite(value)}


def _key(name: str) -> str:
    """A name that MLflow takes: letters, digits and ``_-./``; at most 250 characters."""
    return re.sub(r"[^\w\-./ ]", "_", name)[:250]


@dataclass(frozen=True)
class FoundVersion:
    """A version as MLflow has it.

    Attributes:
        number: MLflow's own number of it.
        run: MLflow's id of its run.
        tags: Of the version.
        params: Of the run.
        metrics: Of the run: the last values.
        manifest: SHA-256 of the artifact; empty: there is none.
        is_run_deleted: Whether the run is in MLflow's bin.
    """

    number: str
    run: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    manifest: str
    is_run_deleted: bool = False


@dataclass(frozen=True)
class Found:
    """A population as MLflow has it.

    Attributes:
        exists: Whether there is a registered model of its name.
        versions: Those with a run of ours, in MLflow's order.
        aliases: MLflow's version number of each alias.
    """

    exists: bool = False
    versions: tuple[FoundVersion, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)


class Kind(StrEnum):
    """What differs."""

    MODEL = "model"
    VERSION = "version"
    RUN = "run"
    TAG = "tag"
    METRIC = "metric"
    PARAM = "parameter"
    ARTIFACT = "artifact"
    ALIAS = "alias"
    STRANGER = "stranger"


@dataclass(frozen=True)
class Difference:
    """Something that MLflow says otherwise than the log.

    Attributes:
        kind: What.
        version: The log's number; 0 where no version of the log is meant.
        key: Name of the tag, metric, parameter, artifact or alias; MLflow's own number of a stranger.
        wanted: What the log says; empty: nothing.
        found: What MLflow says; empty: nothing.
    """

    kind: Kind
    version: int = 0
    key: str = ""
    wanted: str = ""
    found: str = ""

    def __str__(self) -> str:
        if self.kind is Kind.MODEL:
            return "MLflow has no registered model of this population"
        if self.kind is Kind.VERSION:
            return f"version {self.version}: MLflow does not have it"
        if self.kind is Kind.RUN:
            return f"version {self.version}: its run is deleted in MLflow"
        if self.kind is Kind.STRANGER:
            return f"MLflow's version {self.key} says that it is version {self.found}, and the log has no such version"
        whose = f"version {self.version}: " if self.version else ""
        return (
            f"{whose}{self.kind} {self.key} is {_said(self.found)} in MLflow, {_said(self.wanted)} by the log"
        )


def _said(value: str) -> str:
    return repr(value) if value else "absent"


def match(view: RegistryView, found: Found) -> dict[int, FoundVersion]:
    """MLflow's entry of each version of the log that has one: the first."""
    known = {(str(one.version), one.package): one.version for one in view.versions}
    matched: dict[int, FoundVersion] = {}
    for one in found.versions:
        version = known.get((one.params.get("version", ""), one.params.get("package", "")))
        if version is not None:
            matched.setdefault(version, one)
    return matched


def differences(view: RegistryView, found: Found) -> list[Difference]:
    """Everything that MLflow says otherwise."""
    matched = match(view, found)
    return [
        *(() if found.exists or not view.versions else (Difference(Kind.MODEL),)),
        *(
            one
            for version in view.versions
            for one in _of_version(view, version, matched.get(version.version))
        ),
        *_of_aliases(view, found, matched),
        *_strangers(found, matched),
    ]


def _of_version(view: RegistryView, one: VersionView, found: FoundVersion | None) -> Iterator[Difference]:
    number = one.version
    if found is None:
        yield Difference(Kind.VERSION, number)
        return
    if found.is_run_deleted:
        yield Difference(Kind.RUN, number)
    for kind, wanted, has in (
        (Kind.TAG, view.tags(one), found.tags),
        (Kind.PARAM, params(one), found.params),
        (Kind.METRIC, _texts(metrics(one)), _texts(found.metrics)),
    ):
        for key, value in wanted.items():
            if has.get(key, "") != value:
                yield Difference(kind, number, key, value, has.get(key, ""))
    digest = hashlib.sha256(one.manifest.encode()).hexdigest() if one.manifest else ""
    if digest and digest != found.manifest:
        yield Difference(Kind.ARTIFACT, number, MANIFEST, digest, found.manifest)


def _texts(values: Mapping[str, float]) -> dict[str, str]:
    return {key: repr(float(value)) for key, value in values.items()}


def _of_aliases(
    view: RegistryView, found: Found, matched: Mapping[int, FoundVersion]
) -> Iterator[Difference]:
    ours = {one.number: version for version, one in matched.items()}
    for alias, version in view.aliases.items():
        at = found.aliases.get(alias)
        points_at = 0 if at is None else ours.get(at, _NOT_LOGS)
        if points_at != version:
            said = f"MLflow's version {at}" if points_at == _NOT_LOGS else str(points_at or "")
            yield Difference(Kind.ALIAS, 0, alias, str(version or ""), said)


def _strangers(found: Found, matched: Mapping[int, FoundVersion]) -> Iterator[Difference]:
    ours = {one.number for one in matched.values()}
    for one in found.versions:
        if one.number not in ours:
            yield Difference(
                Kind.STRANGER, 0, one.number, "", one.tags.get("version") or one.params.get("version", "")
            )
