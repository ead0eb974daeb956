"""A durable campaign: folded from its stream, gone on with after any crash, committed by one process alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedretrain.artifacts.store import ContentStore
from fedretrain.artifacts.weights import decode_params, encode_params
from fedretrain.coordinator.charging import SeededNoises
from fedretrain.coordinator.state import Outcome
from fedretrain.core import params
from fedretrain.core.errors import ConfigError, DataError, PrivacyError
from fedretrain.core.types import FailureKind
from fedretrain.privacy.event import Sampling, decode_units
from fedretrain.privacy.file_ledger import WitnessFile
from fedretrain.privacy.ledger import Head
from fedretrain.privacy.mechanism import Relation
from fedretrain.server.campaign import (
    CampaignDefinition,
    CampaignRun,
    campaign_stream,
    decode_state,
    define_campaign,
    encode_state,
    read_campaign,
)
from fedretrain.server.campaign_rules import (
    AggregatorName,
    CampaignRules,
    OptimizerName,
    PrivacyRule,
    SamplingRule,
    ServerStep,
)
from fedretrain.server.database import open_database
from fedretrain.server.database_ledger import DatabaseLedger
from fedretrain.server.event_log import ConflictError, EventLog, FencedError
from fedretrain.training.plan import ModelName, TrainingPlan
from tests.fakes import FakeRunner

if TYPE_CHECKING:
    from pathlib import Path

    from fedretrain.coordinator.ports import ShardResult
    from fedretrain.privacy.event import PrivacyEvent
    from fedretrain.server.campaign import CampaignRecord
    from fedretrain.server.event_log import Fence

BASE = {"bias": np.zeros((), np.float32), "w": np.ones((3, 4), np.float32)}
PLAN = TrainingPlan(ModelName.MLP, (4,), 3)
PRIVATE = CampaignRules(
    SamplingRule(Sampling.MIN_SEPARATION, 4, separation=2),
    ServerStep(optimizer=OptimizerName.ADAM),
    quorum=2,
    privacy=PrivacyRule(1.0, 0.5, adaptive_quantile=0.5),
)
PLAIN = CampaignRules(SamplingRule(cohort_size=4), quorum=2)


class World:
    """A database and a store that outlive the processes."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.log = EventLog(open_database(url))
        self.store = ContentStore(folder / "store")

    def definition(self, rules: CampaignRules = PRIVATE, **changes: object) -> CampaignDefinition:
        base = self.store.put(encode_params(BASE))
        made = CampaignDefinition("c", "p", 12, base, 4, PLAN, rules, seed=3)
        return replace(made, **changes)  # type: ignore[arg-type]

    def define(self, definition: CampaignDefinition) -> None:
        define_campaign(self.log, definition, at=1.0, fence=None)

    def run(self, fence: Fence | None = None, **more: object) -> CampaignRun:
        return CampaignRun(
            self.log,
            self.store,
            "c",
            fence,
            clock=lambda: 5.0,
            noises=SeededNoises(3),
            **more,  # type: ignore[arg-type]
        )

    def record(self) -> CampaignRecord:
        return read_campaign(self.log, "c")

    def ledger(self) -> DatabaseLedger:
        return DatabaseLedger(self.log, "p", clock=lambda: 5.0)


@pytest.fixture
def world(tmp_path: Path, database_url: str) -> World:
    return World(tmp_path, database_url)


def to_the_end(run: CampaignRun, runner: FakeRunner | None = None) -> CampaignRecord:
    while run.step(runner or FakeRunner()) is not None:
        pass
    return run.record


def test_a_definition_comes_back_from_the_log(world: World) -> None:
    wanted = world.definition()
    world.define(wanted)
    world.define(wanted)  # again: nothing happens
    assert world.record().definition == wanted
    assert world.record().number == 1
    with pytest.raises(ConfigError, match="another campaign"):
        world.define(world.definition(num_rounds=5))


def test_a_round_keeps_the_times_of_its_replies_and_nothing_released_depends_on_them(tmp_path: Path) -> None:
    def timed(shards: list[ShardResult]) -> list[ShardResult]:
        return [replace(s, reply_s={c: 0.12345 * (c + 1) for c in s.clients.tolist()}) for s in shards]

    def told(folder: str, runner: FakeRunner) -> tuple[CampaignRecord, list[PrivacyEvent]]:
        world = World(tmp_path / folder, f"sqlite:///{tmp_path}/{folder}.db")
        world.define(world.definition())
        return to_the_end(world.run(), runner), world.ledger().events()

    (with_times, charged), (without, as_charged) = (
        told("a", FakeRunner(tamper=timed)),
        told("b", FakeRunner()),
    )
    for one, other in zip(with_times.rounds, without.rounds, strict=True):
        failed = {client for clients in one.summary["failed"].values() for client in clients}
        wanted = {str(c): round(0.12345 * (c + 1), 3) for c in one.summary["asked"] if c not in failed}
        assert one.summary["reply_s"] == wanted
        assert replace(one, summary={**one.summary, "reply_s": {}}) == other
    assert (with_times.weights, charged) == (without.weights, as_charged)


def test_a_campaign_that_nobody_defined(world: World) -> None:
    with pytest.raises(DataError, match="no campaign c"):
        world.record()


AMPLIFIED = PrivacyRule(1.0, 0.5, relation=Relation.ADD_REMOVE, amplified=True)
FALSE = {
    "a median's sensitivity is not known": replace(
        PRIVATE, step=ServerStep(aggregator=AggregatorName.MEDIAN)
    ),
    "a quorum reveals a small cohort": replace(
        PRIVATE, sampling=SamplingRule(Sampling.POISSON, 4), privacy=AMPLIFIED
    ),
    "amplification needs the coin": replace(PRIVATE, privacy=AMPLIFIED, quorum=0),
}


@pytest.mark.parametrize("case", FALSE)
def test_a_false_claim_is_refused_before_anybody_is_asked(world: World, case: str) -> None:
    with pytest.raises(PrivacyError):
        world.define(world.definition(FALSE[case]))
    assert world.log.streams() == ()


@pytest.mark.parametrize("rules", [PRIVATE, PLAIN])
def test_it_runs_to_its_end(world: World, rules: CampaignRules) -> None:
    world.define(world.definition(rules))
    record = to_the_end(world.run())
    assert record.end == "complete"
    assert [(done.round, done.outcome, done.version) for done in record.rounds] == [
        (n, Outcome.RELEASED, n + 1) for n in range(4)
    ]
    assert world.record() == record  # as the stream tells it
    assert len(world.ledger().events()) == (4 if rules is PRIVATE else 0)
    final = decode_params(world.store.get(record.weights))
    assert params.digest(final) != params.digest(BASE)
    assert world.run().step(FakeRunner()) is None  # and nothing more


@pytest.mark.parametrize("rules", [PRIVATE, PLAIN])
@pytest.mark.parametrize("stops", [(1,), (2, 3), (1, 2, 3)])
def test_processes_that_come_and_go_release_what_one_does(
    tmp_path: Path, database_url: str, rules: CampaignRules, stops: tuple[int, ...]
) -> None:
    """Killed between rounds: not one bit differs."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = World(tmp_path / "a", f"sqlite:///{tmp_path}/a/log.db")
    parts = World(tmp_path / "b", database_url)
    for world in (whole, parts):
        world.define(world.definition(rules))
    reference = to_the_end(whole.run())
    for stop in stops:
        run = parts.run()
        while run.record.next_round < stop:
            run.step(FakeRunner())
    assert to_the_end(parts.run()) == reference
    assert list(parts.ledger().events()) == list(whole.ledger().events())


def test_a_round_that_was_charged_and_not_committed_stays_charged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the charge and the commit."""
    world.define(world.definition())
    run = world.run()
    run.step(FakeRunner())

    def full(_content: bytes) -> str:
        raise OSError("killed")

    monkeypatch.setattr(world.store, "put", full)
    with pytest.raises(OSError, match="killed"):
        run.step(FakeRunner())
    monkeypatch.undo()
    assert world.record().next_round == 1
    assert [event.round for event in world.ledger().events()] == [0, 1]
    spent = set(decode_units(world.ledger().events()[1].units).tolist())
    record = to_the_end(world.run())
    events = world.ledger().events()
    assert [(event.round, event.attempt) for event in events] == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)]
    assert not spent & set(decode_units(events[2].units).tolist())  # they rest: their participation counts
    assert [done.round for done in record.rounds] == [0, 1, 2, 3]
    assert [done.version for done in record.rounds] == [1, 2, 3, 4]


def test_a_process_that_was_replaced_commits_and_charges_nothing(world: World) -> None:
    world.define(world.definition())
    old = world.log.acquire("campaign/c", "one", now=0.0, ttl_s=10.0)
    run = world.run(old)
    run.step(FakeRunner())
    new = world.log.acquire("campaign/c", "other", now=20.0, ttl_s=10.0)
    with pytest.raises(FencedError):
        run.step(FakeRunner())
    assert world.record().next_round == 1
    assert len(world.ledger().events()) == 1
    assert to_the_end(world.run(new)).end == "complete"


def test_without_privacy_the_fence_stops_the_commit(world: World) -> None:
    world.define(world.definition(PLAIN))
    run = world.run(world.log.acquire("campaign/c", "one", now=0.0, ttl_s=10.0))
    world.log.acquire("campaign/c", "other", now=20.0, ttl_s=10.0)
    with pytest.raises(FencedError):
        run.step(FakeRunner())
    assert world.record().rounds == ()


def test_two_processes_without_leases_do_not_both_commit(world: World) -> None:
    world.define(world.definition(PLAIN))
    one, other = world.run(), world.run()
    one.step(FakeRunner())
    with pytest.raises(ConflictError):
        other.step(FakeRunner())
    assert [done.round for done in world.record().rounds] == [0]


def test_an_abandoned_round_charges_nothing_and_is_committed(world: World) -> None:
    world.define(world.definition())
    run = world.run()
    gone = dict.fromkeys(range(12), FailureKind.TIMEOUT)
    result = run.step(FakeRunner(fails=gone))
    assert result is not None
    assert result.outcome is Outcome.ABANDONED
    (done,) = world.record().rounds
    assert (done.version, done.summary["failures"]) == (0, {"timeout": 4})
    assert len(world.ledger().events()) == 0


def test_a_spent_budget_ends_the_campaign(world: World) -> None:
    privacy = replace(PRIVATE.privacy or PrivacyRule(1.0, 1.0), epsilon=12.0, delta=1e-5)
    rules = replace(PRIVATE, sampling=SamplingRule(cohort_size=12), privacy=privacy)
    world.define(world.definition(rules, num_rounds=50))
    record = to_the_end(world.run())
    assert record.end == "budget_spent"
    assert 0 < len(world.ledger().events()) < 50
    assert record.rounds[-1].outcome is Outcome.BUDGET_SPENT
    assert all((done.summary["epsilon"] or 0.0) <= 12.0 for done in record.rounds)


def test_a_campaign_ends_when_too_few_can_pay_for_a_quorum(world: World) -> None:
    privacy = replace(PRIVATE.privacy or PrivacyRule(1.0, 1.0), epsilon=12.0, delta=1e-5)
    rules = replace(PRIVATE, sampling=SamplingRule(cohort_size=5), quorum=5, privacy=privacy)
    world.define(world.definition(rules, num_rounds=50))
    record = to_the_end(world.run())
    assert record.end == "budget_spent"
    outcomes = [done.outcome for done in record.rounds]
    assert outcomes[-1] is Outcome.BUDGET_SPENT
    assert set(outcomes[:-1]) == {Outcome.RELEASED}  # none was begun that could not be ended
    paid = [len(done.summary["asked"]) for done in record.rounds[:-1]]
    assert set(paid) == {5}
    assert sum(paid) % 12  # some could have paid for another round, and were too few


def test_only_who_is_online_is_asked(world: World) -> None:
    world.define(world.definition(PLAIN))
    online = np.zeros(12, dtype=np.bool_)
    online[[2, 5, 7]] = True
    result = world.run().step(FakeRunner(), online)
    assert result is not None
    assert (result.num_asked, result.num_contributed) == (3, 3)


def test_a_database_from_an_old_back_up_spends_nothing(world: World) -> None:
    world.define(world.definition())
    witness = WitnessFile(world.folder / "witness")
    world.run(witness=witness).step(FakeRunner())
    witness.save(Head(2, "f" * 64))
    with pytest.raises(PrivacyError, match="an old copy"):
        world.run(witness=witness)


def test_a_state_comes_back_with_every_bit(world: World) -> None:
    world.define(world.definition())
    run = world.run()
    run.step(FakeRunner())
    again = decode_state(run.state.layout, encode_state(run.state))
    assert encode_state(again) == encode_state(run.state)
    with pytest.raises(DataError, match="no readable server state"):
        decode_state(run.state.layout, b"nothing")


def test_a_record_of_a_later_release_is_refused(world: World) -> None:
    world.define(world.definition())
    world.log.append(campaign_stream("c"), [{"type": "paused"}], at=2.0)
    with pytest.raises(DataError, match="a record of kind 'paused'"):
        world.record()


@pytest.mark.parametrize("kind", [Sampling.POISSON, Sampling.FIXED_SIZE, Sampling.MIN_SEPARATION])
def test_a_cohort_larger_than_the_population_is_refused(kind: Sampling) -> None:
    with pytest.raises(ConfigError, match="a cohort of 10"):
        SamplingRule(kind, 10).make(9)
    assert SamplingRule(kind, 9).make(9).expected(9) == 9


@pytest.mark.parametrize("optimizer", list(OptimizerName))
@pytest.mark.parametrize("aggregator", list(AggregatorName))
def test_every_step_makes_a_release(
    world: World, aggregator: AggregatorName, optimizer: OptimizerName
) -> None:
    step = ServerStep(aggregator, optimizer=optimizer, lr=0.5)
    world.define(world.definition(replace(PLAIN, step=step), num_rounds=1))
    assert to_the_end(world.run()).rounds[0].version == 1
