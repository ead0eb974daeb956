"""A durable training campaign: a stream of the event log, its states in the content store, and the loop that goes on.

Rules of this file:
    * The stream ``campaign/ID`` is the campaign: its definition, each committed round, its end. `read_campaign` folds it.
    * A round is committed by one record, after its state is in the store. What was charged and not committed counts as
      participation when the campaign goes on, and the round is another attempt.
    * Every append checks the fence in its own transaction: a process that was replaced commits nothing.
    * The rounds are `coordinator.round`'s; the runner is given; noise is the operating system's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from fedretrain.artifacts.weights import decode_params, encode_params
from fedretrain.coordinator.charging import Purse, SystemNoises, can_pay
from fedretrain.coordinator.round import recover, run_round
from fedretrain.coordinator.state import Outcome, ServerState
from fedretrain.core.build import build, plain
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.params import Layout
from fedretrain.privacy.event import Sampling
from fedretrain.server.campaign_rules import CampaignRules, members
from fedretrain.server.database_ledger import DatabaseLedger
from fedretrain.training.plan import TrainingPlan  # noqa: TC001 - `core.build` reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fedretrain.artifacts.store import ContentStore
    from fedretrain.coordinator.charging import Noises
    from fedretrain.coordinator.ports import CohortRunner
    from fedretrain.coordinator.sampling import Cohort
    from fedretrain.coordinator.state import RoundResult
    from fedretrain.privacy.ledger import Witness
    from fedretrain.server.event_log import EventLog, Fence


class CampaignKind(StrEnum):
    """What a campaign does."""

    TRAINING = "training"


@dataclass(frozen=True)
class CampaignDefinition:
    """All that a campaign is, as plain data.

    Attributes:
        campaign: Its name.
        population: Task, device set and ledger.
        num_devices: Devices have numbers from 0 to below this.
        base: Digest of the shared parameters that it begins with, in the content store.
        num_rounds: Rounds, released or not.
        plan: How devices train.
        rules: How rounds are run.
        kind: What it does.
        seed: Of cohorts and local training; not of noise.
        interval_s: From a round's beginning to the next one's, at least.
        min_online: Connected devices that a round waits for; 0: as many as it asks.
        patience_s: How long it waits for them before it begins all the same.
        bundle: SHA-256 of the app bundle that devices accept.
        units: The ledger's unit of each device, under the unit `person`; empty: each device is one.
        outside: Devices that are asked in no round: they are only watched, or retired. Fixed when it is defined, like the number of devices.

    Raises:
        DataError: If there are units, and not one for each device.
    """

    campaign: str
    population: str
    num_devices: int
    base: str
    num_rounds: int
    plan: TrainingPlan
    rules: CampaignRules = field(default_factory=CampaignRules)
    kind: CampaignKind = CampaignKind.TRAINING
    seed: int = 0
    interval_s: float = 0.0
    min_online: int = 0
    patience_s: float = 3600.0
    bundle: str = ""
    units: tuple[int, ...] = ()
    outside: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.units and len(self.units) != self.num_devices:
            raise DataError(
                f"{len(self.units)} units of {self.num_devices} devices", where=f"campaign {self.campaign}"
            )

    @property
    def num_units(self) -> int:
        """Whom the ledger tells apart."""
        return len(set(self.units)) or self.num_devices

    @property
    def members(self) -> NDArray[np.bool_]:
        """``[N]`` who may be asked."""
        return members(self.num_devices, self.outside)

    @property
    def wanted_online(self) -> int:
        """How many connected devices a round waits for."""
        sampling = self.rules.sampling
        return self.min_online or int(np.ceil(sampling.cohort_size * sampling.over_select))


@dataclass(frozen=True)
class CommittedRound:
    """A round of the stream.

    Attributes:
        round: Its index.
        outcome: How it ended.
        state: Digest of the state after it, in the content store.
        version: How many releases made that state's parameters.
        summary: What is known of the round, JSON-ready.
    """

    round: int
    outcome: Outcome
    state: str
    version: int
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CampaignRecord:
    """A campaign as its stream tells it.

    Attributes:
        definition: What it is.
        rounds: The committed rounds, in order.
        end: Why it ended; empty while it goes on.
        weights: Digest of the final shared parameters, once it has ended; empty where it was given up.
        number: Of the last record that was read.
    """

    definition: CampaignDefinition
    rounds: tuple[CommittedRound, ...] = ()
    end: str = ""
    weights: str = ""
    number: int = 0

    @property
    def next_round(self) -> int:
        """The first round that is not committed."""
        return self.rounds[-1].round + 1 if self.rounds else 0


def campaign_stream(campaign: str) -> str:
    """The name of a campaign's stream."""
    return f"campaign/{campaign}"


def define_campaign(log: EventLog, definition: CampaignDefinition, *, at: float, fence: Fence | None) -> None:
    """Begin a campaign's stream. Defining the same campaign again does nothing.

    Raises:
        ConfigError: If there is another campaign of that name, or its rules are impossible.
        PrivacyError: If its claim would be false.
    """
    fleet = definition.num_devices, definition.units, definition.outside
    definition.rules.make_rounds(definition.population, definition.campaign, *fleet)
    stream, record = campaign_stream(definition.campaign), plain(definition)
    for entry in log.read(stream):
        if entry.record["definition"] == record:
            return
        raise ConfigError(f"there is another campaign {definition.campaign}", where="campaign")
    log.append(stream, [{"type": "defined", "definition": record}], at=at, fence=fence, after=0)


def read_campaign(log: EventLog, campaign: str) -> CampaignRecord:
    """Fold a campaign's stream.

    Raises:
        DataError: If there is none, or it cannot be understood.
    """
    stream = campaign_stream(campaign)
    found: CampaignRecord | None = None
    for entry in log.read(stream):
        record, kind = entry.record, entry.record.get("type")
        if found is None:
            found = CampaignRecord(build(CampaignDefinition, record["definition"]))
        elif kind == "round":
            values = {name: value for name, value in record.items() if name != "type"}
            found = replace(found, rounds=(*found.rounds, build(CommittedRound, values)))
        elif kind == "ended":
            found = replace(found, end=record["reason"], weights=record["weights"])
        else:
            raise DataError(f"a record of kind {kind!r}", where=stream, fix="use the release that wrote it")
        found = replace(found, number=entry.number)
    if found is None:
        raise DataError(f"there is no campaign {campaign}", where=stream, fix="define it first")
    return found


class CampaignRun:
    """A campaign on its way, from wherever its stream stands.

    Args:
        log: The event log.
        store: Where weights and states are.
        campaign: Which.
        fence: The lease under which this process acts.
        clock: Seconds since the epoch.
        noises: Where noise comes from.
        witness: Of the population's ledger.
    """

    def __init__(
        self,
        log: EventLog,
        store: ContentStore,
        campaign: str,
        fence: Fence | None,
        *,
        clock: Callable[[], float],
        noises: Noises | None = None,
        witness: Witness | None = None,
    ) -> None:
        self._log, self._store, self._fence, self._clock = log, store, fence, clock
        self.record = read_campaign(log, campaign)
        definition = self.definition
        base = decode_params(store.get(definition.base))
        self._layout = Layout.of(base)
        rules = definition.rules
        fleet = definition.num_devices, definition.units, definition.outside
        self.rules = rules.make_rounds(definition.population, campaign, *fleet)
        self.sampler, self._expected = rules.make_sampler(*fleet), rules.expected(*fleet)
        self._budget = rules.make_budget(definition.num_units)
        self.purse: Purse | None = None
        self.state = ServerState.first(
            self._layout, base, self.rules.server_optimizer, definition.num_devices, rules.first_clip_norm
        )
        if self.record.rounds:
            self.state = self._load(self.record.rounds[-1].state)
        if self.rules.dp is not None:
            ledger = DatabaseLedger(log, definition.population, clock=clock, fence=fence, witness=witness)
            self.purse = Purse(ledger, noises or SystemNoises(), self._budget)
            self.state = recover(
                self.state, ledger.events(), campaign=campaign, next_round=self.record.next_round
            )

    @property
    def definition(self) -> CampaignDefinition:
        """What the campaign is."""
        return self.record.definition

    def step(self, runner: CohortRunner, online: NDArray[np.bool_] | None = None) -> RoundResult | None:
        """Run and commit the next round, or the end; None where the campaign had ended.

        Args:
            runner: Trains cohorts.
            online: ``[N]`` who may be asked now; None: everybody.

        Raises:
            FencedError: If somebody else acts now. Nothing was committed.
        """
        record, definition = self.record, self.definition
        if record.end:
            return None
        if record.next_round >= definition.num_rounds:
            self._end("complete")
            return None
        at, cohort = self._clock(), self._cohort(online)
        state, result = run_round(
            self.state,
            self.rules,
            cohort,
            runner,
            round_=record.next_round,
            seed=definition.seed,
            at=at,
            purse=self.purse,
        )
        self._commit(state, result, {"at": at, "asked": np.sort(cohort.clients).tolist()})
        if result.outcome is Outcome.BUDGET_SPENT:
            self._end("budget_spent")
        elif record.next_round + 1 == definition.num_rounds:
            self._end("complete")
        return result

    def _cohort(self, online: NDArray[np.bool_] | None) -> Cohort:
        """Who is asked. Under Poisson sampling the coin is tossed for everybody: who is offline is a failure."""
        definition = self.definition
        members_N = definition.members
        eligible = members_N if online is None else online & members_N
        if definition.rules.sampling.kind is Sampling.POISSON:
            eligible = members_N
        elif self._budget is not None and self.purse is not None and self.rules.dp is not None:
            assert self.state.clip_norm is not None
            payers = can_pay(
                self.rules.dp,
                self._budget,
                self.purse.spent,
                sampling=str(definition.rules.sampling.kind),
                expected=self._expected,
                clip_norm=self.state.clip_norm,
                num_devices=definition.num_devices,
            )
            # Where too few can pay for a quorum, none ever will: one who cannot is drawn, the round is refused, and that ends the campaign.
            eligible = eligible & payers if self._is_quorum(payers & members_N) else members_N & ~payers
        drawn = self.sampler.cohort(definition.seed, self.record.next_round, self.state.history, eligible)
        return replace(drawn, expected=self._expected)

    def _is_quorum(self, payer_N: NDArray[np.bool_]) -> bool:
        """Whether so many can still make a release."""
        unit_N = np.array(self.definition.units or range(len(payer_N)))
        return len(np.unique(unit_N[payer_N])) >= max(1, self.definition.rules.quorum)

    def _commit(self, state: ServerState, result: RoundResult, asked: dict[str, Any]) -> None:
        digest = self._store.put(encode_state(state))
        done = CommittedRound(
            result.round, result.outcome, digest, state.version, {**summary_of(result), **asked}
        )
        self._append({"type": "round", **plain(done)})
        self.state = state
        self.record = replace(self.record, rounds=(*self.record.rounds, done))

    def _end(self, reason: str) -> None:
        weights = self._store.put(encode_params(self.state.tree))
        self._append({"type": "ended", "reason": reason, "weights": weights})
        self.record = replace(self.record, end=reason, weights=weights)

    def _append(self, record: dict[str, Any]) -> None:
        stream, number = campaign_stream(self.definition.campaign), self.record.number
        self._log.append(stream, [record], at=self._clock(), fence=self._fence, after=number)
        self.record = replace(self.record, number=number + 1)

    def _load(self, digest: str) -> ServerState:
        return decode_state(self._layout, self._store.get(digest))


def encode_state(state: ServerState) -> bytes:
    """A server state as safetensors bytes; the same state gives the same bytes."""
    arrays = {name: np.ascontiguousarray(array) for name, array in sorted(state.to_arrays().items())}
    return bytes(safetensors.numpy.save(arrays))


def decode_state(layout: Layout, content: bytes) -> ServerState:
    """The state of `encode_state`.

    Raises:
        DataError: If it is none, or of another model.
    """
    try:
        arrays = safetensors.numpy.load(content)
    except (SafetensorError, ValueError) as error:
        raise DataError(
            f"no readable server state: {error}", where="server state", fix="restore the store"
        ) from error
    return ServerState.from_arrays(layout, arrays)


def summary_of(result: RoundResult) -> dict[str, Any]:
    """What the log keeps of a round; for the operator alone (see `coordinator.state`)."""
    return {
        "reason": result.reason,
        "num_asked": result.num_asked,
        "num_contributed": result.num_contributed,
        "failed": _by_kind(result),
        "failures": {str(kind): count for kind, count in sorted(result.failure_counts.items())},
        "num_duplicates": result.num_duplicates,
        "clip_norm": result.clip_norm,
        "next_clip_norm": result.next_clip_norm,
        "noise_multiplier": result.noise_multiplier,
        "noise_stddev": result.noise_stddev,
        "epsilon": result.epsilon if result.epsilon is None or np.isfinite(result.epsilon) else None,
        "update_norm": result.update_norm if np.isfinite(result.update_norm) else None,
        "bytes_down": result.bytes_down,
        "bytes_up": result.bytes_up,
        "busy_s": result.busy_s,
        "reply_s": {str(client): round(seconds, 3) for client, seconds in result.reply_s.items()},
    }


def _by_kind(result: RoundResult) -> dict[str, list[int]]:
    """Who contributed nothing, by the reason: who is asked and who answers is the coordinator's schedule, no device's data."""
    found: dict[str, list[int]] = {}
    for failure in result.failures:
        found.setdefault(str(failure.kind), []).append(int(failure.client))
    return {kind: sorted(clients) for kind, clients in sorted(found.items())}
