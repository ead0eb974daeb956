"""A population's models: its versions, their packages, the campaigns that make them, and what may be installed.

Rules of this file:
    * A version is in the event log before anything names it, and its package is in the store before that.
    * A campaign is named by the version that it makes, so that a restart finds it again.
    * What the signed list offers follows from the log at every tick: nothing is added or removed by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.artifacts.manifest import Strategy, TrainingRecord
from fedretrain.artifacts.package import read_manifest, read_package
from fedretrain.artifacts.trust.words import TargetInfo
from fedretrain.artifacts.weights import decode_params, encode_params
from fedretrain.coordinator.cycle import Trained, UnderWay
from fedretrain.coordinator.state import Outcome
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.frozen import thaw
from fedretrain.core.types import MethodKind, Objective
from fedretrain.monitoring.bins import Bins
from fedretrain.retraining.config import Where
from fedretrain.server import versions as table
from fedretrain.server.campaign import CampaignDefinition, campaign_stream, define_campaign, read_campaign
from fedretrain.server.central import (
    CentralDefinition,
    CentralRecord,
    central_lineage,
    define_central,
    read_central,
    seed_lineage,
)
from fedretrain.server.database_ledger import DatabaseLedger
from fedretrain.server.fleet import outside
from fedretrain.server.persons import check_persons, units_of
from fedretrain.server.pool import Pool, read_pool
from fedretrain.server.releasing import release_version, shared_of
from fedretrain.server.simulations import SimulationBook
from fedretrain.server.spending import BudgetLeft, budget_left, spent_text
from fedretrain.server.versions import Versions
from fedretrain.wire.control import ReportShape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fedretrain.artifacts.package import Package
    from fedretrain.artifacts.store import ContentStore
    from fedretrain.artifacts.trust.repository import TrustRepository
    from fedretrain.coordinator.cycle import Candidate, CycleState
    from fedretrain.coordinator.policy import Policy
    from fedretrain.core.params import Params
    from fedretrain.privacy.ledger import Head
    from fedretrain.retraining.decision import Decision
    from fedretrain.server.campaign import CampaignRecord
    from fedretrain.server.event_log import EventLog, Fence
    from fedretrain.server.fleet import Device
    from fedretrain.server.training_file import TrainingFile


@dataclass(frozen=True)
class Stores:
    """Where files are.

    Attributes:
        packages: Packages: what devices may fetch.
        campaigns: Weights and states of campaigns: what no device may fetch.
    """

    packages: ContentStore
    campaigns: ContentStore


class Models:
    """The models of one population. Mutable.

    Args:
        population: Its name.
        policy: Its policy.
        training: Its training file; None where it cannot retrain in a campaign.
        pool: Folder of labelled data; empty for none.
        log: The event log.
        stores: Where files are.
        fence: The lease of whoever runs the population.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        population: str,
        policy: Policy,
        training: TrainingFile | None,
        pool: str,
        log: EventLog,
        stores: Stores,
        fence: Fence | None,
        clock: Callable[[], float],
    ) -> None:
        self.population, self.policy, self.training = population, policy, training
        self._log, self.stores, self._fence, self._clock = log, stores, fence, clock
        self.pool: Pool | None = read_pool(Path(pool)) if pool else None
        self.simulations = SimulationBook(population, log, stores.campaigns, fence, clock)
        self.versions = Versions()
        self._read = -1
        self._package = lru_cache(maxsize=8)(lambda digest: read_package(stores.packages, digest))
        self.refresh()

    def refresh(self) -> None:
        """Read the versions again, where there are new ones."""
        stream = table.stream(self.population)
        end = self._log.head(stream).counter
        if end != self._read:
            self.versions, self._read = Versions.of(self._log.read(stream)), end

    def package(self, version: int) -> Package:
        """The package of a version, every file verified.

        Raises:
            DataError: If there is none, or it is damaged.
        """
        return self._package(self.versions.package_of(version))

    def bins(self, version: int) -> Bins | None:
        """The bins that devices count on while a version serves; None where its package has none."""
        if version not in self.versions.by_number:
            return None
        content = self.package(version).baseline
        return thaw(Bins, content) if content else None

    def shape(self, version: int, bins: Bins) -> ReportShape:
        """What the reports of a version look like."""
        manifest = self.package(version).manifest
        classification = manifest.objective is Objective.CLASSIFICATION
        return ReportShape(bins.num_features, bins.num_cells, len(manifest.outputs), classification)

    def can_personalize(self, version: int) -> bool:
        """Whether devices keep a personal state for a version."""
        method = self.package(version).manifest.personalization.method
        return method is not MethodKind.FEDAVG

    def deciding_otherwise(self, champion: int, waiting: Iterable[Candidate]) -> frozenset[int]:
        """The waiting versions whose calibration, thresholds or class weights are not the champion's.

        What cannot be compared (the rules baseline, a damaged package) counts as another decision: four eyes look at it.
        """
        return frozenset(one.version for one in waiting if not self._decides_as(champion, one.version))

    def _decides_as(self, champion: int, version: int) -> bool:
        try:
            ours, theirs = self.package(version).manifest, self.package(champion).manifest
        except DataError:
            return False
        return (ours.calibration, ours.decision) == (theirs.calibration, theirs.decision)

    @property
    def num_pool_rows(self) -> int:
        """Labelled rows of the pool."""
        return 0 if self.pool is None else len(self.pool)

    # ---- campaigns

    def campaign_of(self, version: int) -> str:
        """The name of the campaign that makes a version."""
        return f"{self.population}-{version}"

    def start_campaign(
        self, decision: Decision | None, state: CycleState, devices: Sequence[Device], bundle: bytes
    ) -> str:
        """See to it that the campaign of the version in training is defined; its name.

        Args:
            decision: What was decided.
            state: Of the loop; something is in training.
            devices: Of the population, by number.
            bundle: The app bundle: devices accept no other.

        Raises:
            ConfigError: If the population has no training file, or its rules are impossible for so many devices.
            PrivacyError: If the privacy unit is the person, and some device's is not known.
        """
        assert state.training is not None
        name = self.campaign_of(state.training.version)
        if self._log.head(campaign_stream(name)).counter:
            return name
        training, central = self._wanted_training(), read_central(self._log, name)
        if central is not None and central.seeds:
            made = decode_params(self.stores.campaigns.get(central.weights))
            base: Params = {leaf: made[leaf] for leaf in training.plan.make().task.shared.names}
        elif decision is not None and decision.from_scratch:
            base = training.plan.make().first_shared()
        else:
            where = f"populations.{self.population}.training"
            base = shared_of(self.package(state.champion), training.plan, where)
        check_persons(devices, training.rules.privacy)
        definition = CampaignDefinition(
            campaign=name,
            population=self.population,
            num_devices=len(devices),
            base=self.stores.campaigns.put(encode_params(base)),
            num_rounds=training.num_rounds,
            plan=training.plan,
            rules=training.rules,
            seed=state.training.version,
            interval_s=training.interval_s,
            patience_s=training.patience_s,
            bundle=self.stores.campaigns.put(bundle),
            units=units_of(devices, training.rules.privacy),
            outside=outside(devices),
        )
        define_campaign(self._log, definition, at=self._clock(), fence=self._fence)
        return name

    def central(self, decision: Decision | None, state: CycleState) -> CentralRecord | None:
        """The central retrain of the version in training, defined where it is due; None: it is trained on devices alone.

        Raises:
            ConfigError: If the population has no training file.
            DataError: If it has no pool.
        """
        assert state.training is not None
        name = self.campaign_of(state.training.version)
        known = read_central(self._log, name)
        if known is not None or decision is None or decision.where is not Where.POOL:
            return known
        if self.pool is None:
            raise DataError("a retrain on a pool was decided, and there is none", where=self.population)
        training, package = self._wanted_training(), self.package(state.champion)
        blobs = self.stores.campaigns
        definition = CentralDefinition(
            campaign=name,
            plan=training.plan,
            rules=training.pool,
            pool=self.pool.digest,
            pipeline=blobs.put(package.pipeline.to_json().encode()),
            base="" if decision.from_scratch else blobs.put(encode_params(package.weights)),
            then_federated=decision.then_federated,
        )
        define_central(self._log, definition, at=self._clock(), fence=self._fence)
        return read_central(self._log, name)

    def _wanted_training(self) -> TrainingFile:
        if self.training is None:
            raise ConfigError(
                "a retrain was decided, and there is no training file",
                where=f"populations.{self.population}.training",
                fix="name one, or set the policy's retraining to never",
            )
        return self.training

    def campaign(self, version: int) -> CampaignRecord | None:
        """The campaign that makes a version; None before it is defined."""
        name = self.campaign_of(version)
        return read_campaign(self._log, name) if self._log.head(campaign_stream(name)).counter else None

    def under_way(self, version: int) -> UnderWay | None:
        """The campaign that makes a version, since it was defined; None before (attempts on the pool have a limit of their own)."""
        first = next(iter(self._log.read(campaign_stream(self.campaign_of(version)))), None)
        return UnderWay(version, first.at, self._wanted_training().max_s) if first is not None else None

    def trained(self, version: int, champion: int) -> Trained | None:
        """How the campaign of a version ended; its package is made here, once. None while it goes on."""
        central = read_central(self._log, self.campaign_of(version))
        if central is not None and not central.seeds:
            return self._trained_centrally(version, champion, central)
        record = self.campaign(version)
        if record is None or not record.end:
            return None
        released = [one for one in record.rounds if one.outcome is Outcome.RELEASED]
        if not released:
            return Trained(version, made=False, reason=f"no round was released: {record.end}")
        return self._made(
            version,
            f"{len(released)} rounds",
            lambda: self._release(version, champion, record, len(released), central),
        )

    def _made(self, version: int, reason: str, release: Callable[[], None]) -> Trained:
        """A version whose package is there, or is made now."""
        if version not in self.versions.by_number:
            try:
                release()
            except DataError as error:
                return Trained(version, made=False, reason=error.what)
        return Trained(version, made=True, reason=reason)

    def _trained_centrally(self, version: int, champion: int, central: CentralRecord) -> Trained | None:
        """How a central retrain ended from which no campaign goes on."""
        if not central.end:
            return None
        if not central.weights:
            return Trained(version, made=False, reason=central.end)
        about, origin = (
            central_lineage(central, self.policy.digest),
            f"central retrain, {central.definition.recipe}",
        )
        return self._made(
            version, origin, lambda: self._write(version, champion, central.weights, about, origin)
        )

    def _write(self, version: int, base: int, weights: str, about: TrainingRecord, origin: str) -> None:
        """Make the package of a version, and write it down."""
        made = decode_params(self.stores.campaigns.get(weights))
        created_at, packages = self._clock(), self.stores.packages
        digest = release_version(
            packages, self.package(base), made, version=version, created_at=created_at, training=about
        )
        self.add(version, digest, origin)

    def _release(
        self,
        version: int,
        champion: int,
        record: CampaignRecord,
        num_rounds: int,
        central: CentralRecord | None,
    ) -> None:
        """The version that a campaign made."""
        definition, privacy = record.definition, record.definition.rules.privacy
        epsilon, scope = self._spent(definition)
        about = TrainingRecord(
            strategy=Strategy.FEDERATED,
            recipe=str(definition.kind),
            snapshot=f"campaign/{definition.campaign}",  # the devices keep which examples that was
            cohort=definition.rules.sampling.cohort_size,
            rounds=num_rounds,
            epsilon=epsilon,
            delta=None if privacy is None else privacy.delta,
            scope=scope,
            hyperparameters=() if central is None else seed_lineage(central),
            code_version=version_of("fedretrain"),
            policy=self.policy.digest,
        )
        self._write(version, champion, record.weights, about, f"campaign {definition.campaign}")

    def add(self, version: int, package: str, origin: str) -> None:
        """Write a version down.

        Raises:
            DataError: If its number is taken.
        """
        self.refresh()
        if version in self.versions.by_number:
            raise DataError(
                f"there is a version {version}", where=self.population, fix="take the next number"
            )
        weights = read_manifest(self.stores.packages, package).weights.digest
        record = table.record(version, package, weights, origin)
        stream = table.stream(self.population)
        self._log.append(stream, [record], at=self._clock(), fence=self._fence, after=max(self._read, 0))
        self.refresh()

    # ---- privacy

    def ledger(self) -> DatabaseLedger:
        """The population's privacy ledger, to read."""
        return DatabaseLedger(self._log, self.population, clock=self._clock)

    def budget(self, devices: Sequence[Device]) -> BudgetLeft:
        """What may still be spent, and what a campaign with these devices would."""
        return budget_left(self.population, self.ledger().events(), self.training, devices)

    def _spent(self, definition: CampaignDefinition) -> tuple[float | None, str]:
        """What the ledger says beside a package: epsilon and its scope."""
        privacy = definition.rules.privacy
        return (None, "") if privacy is None else spent_text(self.ledger().events(), privacy.delta)

    # ---- what may be installed

    def publish(self, trust: TrustRepository, quarantined: frozenset[int], now: float) -> None:
        """Let the signed list offer what exists and is not quarantined.

        Args:
            trust: The repository.
            quarantined: Versions that may not be installed.
            now: Instant, seconds since the epoch.
        """
        offered = trust.installable()
        wanted = {
            one.package: one for number, one in self.versions.by_number.items() if number not in quarantined
        }
        new = [one for digest, one in wanted.items() if digest not in offered]
        if new:
            head = self.ledger().head()
            trust.publish([self._target(one, head) for one in new], now)
        known = {one.package for one in self.versions.by_number.values()}
        for digest in sorted(set(offered) & known - set(wanted)):
            trust.quarantine(digest, now)

    def _target(self, version: table.Version, head: Head) -> TargetInfo:
        length, counter = len(self.stores.packages.get(version.package)), head.counter
        return TargetInfo(
            version.package, length, self.population, version.version, counter, head.hash if counter else ""
        )
