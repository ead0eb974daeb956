"""What the leader looks after: each population's loop, and the world that follows from it.

Rules of this file:
    * Order of a turn: decide, offer packages, tell all devices what is urgent, see to campaigns, tell each its own; the last whether
      campaigns can be run or not.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.artifacts.assignment import CampaignInvite
from fedretrain.core.errors import FedretrainError, PrivacyError
from fedretrain.server import alerts, presence
from fedretrain.server.campaign_process import CampaignFiles, CampaignProcess
from fedretrain.server.central import CentralProcess
from fedretrain.server.database import DatabaseDamagedError, reading
from fedretrain.server.event_log import FencedError, check_fence
from fedretrain.server.fleet import Standing
from fedretrain.server.giving_up import end_given_up
from fedretrain.server.keys import store_places
from fedretrain.server.memory import describe
from fedretrain.server.models import Models
from fedretrain.server.nodes_file import write_nodes
from fedretrain.server.policies import Policies
from fedretrain.server.population import Population
from fedretrain.server.registry_thread import registries_of
from fedretrain.server.showing import view_of
from fedretrain.server.simulating import check_pool, simulating_of, to_simulate
from fedretrain.server.sources.champion import binners_of
from fedretrain.server.superlink import SuperLink, campaign_bundle, config_of
from fedretrain.server.telling import Telling
from fedretrain.server.training_file import read_training
from fedretrain.server.troubles import Troubles
from fedretrain.server.witnesses import Witnesses, witness_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedretrain.server.config import ServerConfig
    from fedretrain.server.event_log import EventLog, Fence
    from fedretrain.server.keys import Keys
    from fedretrain.server.models import Stores
    from fedretrain.server.simulating import Simulating
    from fedretrain.server.sources.binning import Binner

TRUST_RENEWAL_S = 3600.0
_log = logging.getLogger(__name__)


class Steward:
    """Runs every population. One leader has one.

    Args:
        config: ``server.toml``.
        log: The event log.
        keys: What it signs with.
        stores: Where files are.
        fence: The leader's lease.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        config: ServerConfig,
        log: EventLog,
        keys: Keys,
        stores: Stores,
        fence: Fence,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._log, self._keys, self._clock = config, log, keys, clock
        self._stores, self._fence = stores, fence
        self._notaries = {name: config.notary_of(name) for name in config.populations}
        self._policies = Policies(log, self._notaries)
        self._populations = {name: self._open(name, stores, fence) for name in sorted(config.populations)}
        self._telling = {name: self._tell(name) for name in self._populations}
        self._registries = registries_of(config)
        self._witnesses = Witnesses(log, Path(config.folder), keys.trust, clock, config.listen.heartbeat_s)
        self._superlink: SuperLink | None = None
        self._campaigns: dict[str, CampaignProcess] = {}
        self._simulations: dict[str, Simulating] = {}
        self._central: dict[str, CentralProcess] = {}
        self._renewed_at = 0.0
        self._nodes: dict[str, frozenset[str]] = {}
        self._admitted: tuple[int, frozenset[str]] = (0, frozenset())
        self._due: dict[str, float] = {}
        self._troubles = Troubles(log, fence)
        self._binners: dict[str, Binner] = {}

    def _open(self, name: str, stores: Stores, fence: Fence) -> Population:
        config, roles = self._config.populations[name], self._config.roles_of(name)
        notary = self._notaries[name]
        policy = self._policies.open(name, config.policy, roles, fence, self._clock())
        check_pool(policy, config.pool, f"populations.{name}.pool")
        training = read_training(Path(config.training)) if config.training else None
        models = Models(name, policy, training, config.pool, self._log, stores, fence, self._clock)
        return Population(name, config, policy, self._log, stores.campaigns, models, fence, roles, notary)

    def _tell(self, name: str) -> Telling:
        valid_s = self._config.populations[name].assignment_valid_s
        return Telling(name, self._log, self._keys, self._fence, valid_s, self._clock)

    def turn(self, now: float) -> None:
        """Everything that is due.

        Args:
            now: Instant, seconds since the epoch.

        Raises:
            FencedError: If somebody else decides now.
            DatabaseDamagedError: If nobody may decide on it.
        """
        for name in sorted(self._config.populations):
            try:
                if self._see_to(name, now):
                    self._troubles.ended(name)
            except (FencedError, DatabaseDamagedError):
                raise
            except FedretrainError as error:
                self._troubles.tell(name, str(error))
            except Exception as error:  # noqa: BLE001 - of the disk, the database, or ours: it stops no other population
                self._troubles.tell(name, f"{type(error).__name__}: {error}", error)
                # What it remembers may be half of a turn: the log has the whole.
                self._populations.pop(name, None)
            self._troubles.write(name, now)
        if not 0 <= now - self._renewed_at < TRUST_RENEWAL_S:
            self._renewed_at = now
            self._keys.trust.refresh_timestamp(now)

    def _see_to(self, name: str, now: float) -> bool:
        """What is due of one population; whether that was a whole tick."""
        taken = self._policies.is_taken(name, self._config.roles_of(name), self._fence, now)
        population = None if taken else self._populations.get(name)
        if population is None:
            population = self._populations[name] = self._open(name, self._stores, self._fence)
            self._telling[name] = self._tell(name)
        self._see_to_simulation(name, population)
        tick_s = self._config.populations[name].watching.tick_s
        # A clock that was set back brings the next turn forward; so does an order: a rollback waits for no tick.
        if 0 < self._due.get(name, 0.0) - now <= tick_s and not population.is_waiting():
            self._see_to_campaign(name, population)
            return False
        self._due[name] = now + tick_s
        self._one(name, population, now)
        return True

    def binners(self) -> dict[str, Binner]:
        """How raw samples are counted now, of the populations to which brokers bring some and that have a model."""
        self._binners = binners_of(self._config, self._populations, self._binners, self._troubles.tell)
        return self._binners

    def close(self) -> None:
        """End campaigns' processes; the campaigns go on where another leader takes them up."""
        for process in self._campaigns.values():
            process.stop()
        self._campaigns.clear()
        for job in self._simulations.values():
            job.stop()
        for central in self._central.values():
            central.stop()
        if self._superlink is not None:
            self._superlink.stop()
            self._superlink = None
        for registry in self._registries.values():
            registry.close()

    def _one(self, name: str, population: Population, now: float) -> None:
        for event in population.tick(now):
            _log.info("%s: %s", name, describe(event.to_record()))
        if population.telemetry is not None:
            told = (self._log, name, population.telemetry, population.devices, population.fence, now)
            for alert in alerts.keep(*told):
                _log.warning("%s: %s: %s %s", name, alert["device"], alert["alert"], alert["detail"])
        slot_s = self._config.populations[name].watching.slot_s
        presence.note(self._log.engine, self._fence, name, population.devices, slot_s, now)
        self._publish(population, now)
        try:
            self._telling[name].announce(population, now)
            self._see_to_campaign(name, population)
            given_up = population.memory.given_up
            if given_up is not None:
                campaign = population.models.campaign_of(given_up.version)
                end_given_up(self._log, campaign, given_up.reason, at=now, fence=self._fence)
        finally:  # a campaign that cannot be run keeps no device from hearing of safe mode, or of what is withdrawn
            self._telling[name].assign(population, self._invites(name, population), now)
        if name in self._registries:
            self._registries[name].offer(
                view_of(population.models, population.memory, population.examiner.known)
            )
        if population.trouble is not None:
            raise population.trouble

    def _publish(self, population: Population, now: float) -> None:
        state = population.memory.state
        gone = frozenset[int]() if state is None else state.quarantined
        with reading(self._log.engine) as connection:  # a tick without an event has not asked
            check_fence(connection, self._fence, keep=False)
        population.models.publish(self._keys.trust, gone, now)

    # ---- who is asked to train

    def _invites(self, name: str, population: Population) -> dict[int, CampaignInvite]:
        """Who is asked to train now: devices that can, and are not kept out."""
        state = population.memory.state
        if state is None or state.training is None or name not in self._campaigns:
            return {}
        record = population.models.campaign(state.training.version)
        under_way = population.models.under_way(state.training.version)
        if record is None or record.end or under_way is None:
            return {}
        flower = self._config.flower
        address = flower.public or f"{self._config.listen.hosts[0]}:{flower.fleet.rsplit(':', 1)[1]}"
        invite = CampaignInvite(
            campaign=record.definition.campaign,
            bundle=record.definition.bundle,
            server=address,
            begins_at=under_way.begun_at,
            ends_at=under_way.begun_at + under_way.max_s,
            num_rounds=record.definition.num_rounds,
            round_s=record.definition.rules.deadline_s,
        )
        kept = state.kept_devices
        return {
            one.number: invite
            for one in population.devices
            if one.standing is Standing.ACTIVE and one.traits.trains and one.number not in kept
        }

    # ---- the simulation gate

    def _see_to_simulation(self, name: str, population: Population) -> None:
        """Start, watch and end the job that is due."""
        state = population.memory.state
        if state is None:
            return
        version = to_simulate(state, population.examiner.known)
        job = self._simulations.get(name)
        if job is None or job.book is not population.models.simulations:
            if job is not None:
                job.stop()  # of a population that was opened anew
            job = self._simulations[name] = simulating_of(self._config, name, population, self._clock)
        job.ensure(version, time.monotonic(), "" if state.rollout is None else state.rollout.rollout)

    # ---- campaigns

    def _see_to_campaign(self, name: str, population: Population) -> None:
        """Start, watch and end the processes of a campaign."""
        state, process = population.memory.state, self._campaigns.get(name)
        if self._see_to_central(name, population):
            return
        if state is None or state.training is None:
            self._end_campaign(name)
            return
        try:  # a ledger of an earlier day spends nothing
            if not self._witnesses.agree(population, state.kept_devices, starts=process is None):
                return
        except PrivacyError:
            self._end_campaign(name)
            raise
        wanted_name = population.models.start_campaign(
            population.memory.decision, state, population.devices, campaign_bundle().content
        )
        if process is None or process.campaign != wanted_name:
            if process is not None:
                process.stop()
            self._campaigns[name] = process = self._new_process(wanted_name, name)
        if not self._config.flower.development:
            nodes_file = self._nodes_file(name)
            self._nodes[name] = write_nodes(nodes_file, population.devices, state.kept_devices)
        process.ensure(time.monotonic())
        self._admit()

    def _see_to_central(self, name: str, population: Population) -> bool:
        """Start, watch and end a central retrain; whether one goes on."""
        state, process = population.memory.state, self._central.get(name)
        record = None
        if state is not None and state.training is not None:
            record = population.models.central(population.memory.decision, state)
        if process is not None and (record is None or process.campaign != record.definition.campaign):
            process.stop()
            del self._central[name]
        if record is None or (record.end and name not in self._central):
            return record is not None and not record.seeds
        if name not in self._central:
            self._central[name] = CentralProcess(
                record.definition.campaign,
                self._log,
                self._fence,
                store_places(self._config)[1],
                self._config.populations[name].pool,
                Path(self._config.folder) / "logs",
                self._clock,
            )
        return self._central[name].ensure(time.monotonic()) or not record.seeds

    def _end_campaign(self, name: str) -> None:
        """End a campaign's processes, if they run. No campaign: no SuperLink."""
        if name not in self._campaigns:
            return
        self._campaigns.pop(name).stop()
        self._nodes.pop(name, None)
        if not self._campaigns and self._superlink is not None:
            self._superlink.stop()
            self._superlink = None

    def _new_process(self, campaign: str, population: str) -> CampaignProcess:
        folder = Path(self._config.folder)
        if self._superlink is None:
            self._superlink = SuperLink(config_of(self._config.flower, self._keys), folder / "flower")
        files = CampaignFiles(
            database=self._config.database_url,
            store=store_places(self._config)[1],
            folder=folder / "logs",
            nodes=None if self._config.flower.development else self._nodes_file(population),
            witness=witness_file(folder, population),
        )
        return CampaignProcess(campaign, self._log, self._superlink, files, clock=self._clock)

    def _nodes_file(self, population: str) -> Path:
        """Numbers are a population's own: two that train at once have a file each."""
        return Path(self._config.folder) / "flower" / f"nodes-{population}.json"

    def _admit(self) -> None:
        """Let the SuperNodes of all that train in, whenever they change or the SuperLink was started anew."""
        if self._superlink is None or self._config.flower.development:
            return
        pid, nodes = self._superlink.child.pid, frozenset[str]().union(*self._nodes.values())
        if pid is not None and (pid, nodes) != self._admitted:
            self._superlink.wait_until_healthy()
            self._superlink.admit(key.encode() for key in sorted(nodes))
            self._admitted = (pid, nodes)
