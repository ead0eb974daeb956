"""What the leader looks after, with populations that fail."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from fedretrain.coordinator.cycle import Trained
from fedretrain.core.errors import ConfigError, PrivacyError
from fedretrain.server import troubles
from fedretrain.server.config import Population, ServerConfig, Watching
from fedretrain.server.database import DatabaseDamagedError
from fedretrain.server.event_log import EventLog, FencedError
from fedretrain.server.fleet import Standing, Traits
from fedretrain.server.nodes_file import write_nodes
from fedretrain.server.steward import Steward
from fedretrain.server.telling import Telling


class _Silent:
    """A population without a model, whose work is counted."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.turns = fault, 0
        self.memory = SimpleNamespace(state=None, is_exposed=False, given_up=None)
        self.trouble, self.telemetry = None, None
        self.examiner = SimpleNamespace(question=None)
        self.devices = ()
        self.is_asked = False

    def is_waiting(self) -> bool:
        return self.is_asked

    def tick(self, now: float) -> tuple[()]:
        self.turns += 1
        if self.fault is not None:
            raise self.fault
        return ()


@pytest.fixture
def steward(engine, tmp_path, monkeypatch):
    """Of two populations, the first of which is looked at seldom."""
    log = EventLog(engine)
    fence = log.acquire("coordinator", "me", now=0.0, ttl_s=1e9)
    seldom, often = Watching(tick_s=1000.0), Watching(tick_s=1.0)
    config = ServerConfig(
        str(tmp_path),
        {"a": Population("-", watching=seldom), "b": Population("-", watching=often)},
        mlflow="off",
    )
    monkeypatch.setattr(Steward, "_open", lambda self, name, stores, fence: _Silent())
    monkeypatch.setattr(Steward, "_publish", lambda *_: None)
    made = Steward(
        config,
        log,
        SimpleNamespace(
            trust=SimpleNamespace(refresh_timestamp=lambda now: None),
            online=SimpleNamespace(assignment=None, public=lambda: {"assignment": b""}),
        ),
        None,
        fence,
        lambda: 0.0,
    )
    yield made
    made.close()


def _turns(steward):
    return {name: one.turns for name, one in steward._populations.items()}


def test_a_population_whose_campaign_fails_between_its_turns_stops_no_other(steward, monkeypatch):
    steward.turn(0.0)

    def campaign(self, name, population):
        if name == "a":
            raise ConfigError("no training file")

    monkeypatch.setattr(Steward, "_see_to_campaign", campaign)
    steward.turn(10.0)
    assert _turns(steward) == {"a": 1, "b": 2}


def test_an_order_brings_the_next_turn_forward(steward):
    steward.turn(0.0)
    steward.turn(2.0)
    assert _turns(steward) == {"a": 1, "b": 2}
    steward._populations["a"].is_asked = True
    steward.turn(2.5)
    assert _turns(steward) == {"a": 2, "b": 2}


def test_a_clock_that_was_set_back_keeps_nobody_waiting(steward):
    steward.turn(5000.0)
    steward.turn(100.0)
    assert _turns(steward) == {"a": 2, "b": 2}


@pytest.mark.parametrize("fault", [OSError("the disk is full"), ValueError("what nobody foresaw")])
def test_a_population_that_fails_unforeseen_stops_no_other_and_begins_anew_from_the_log(steward, fault):
    old = steward._populations["a"]
    old.fault = fault
    steward.turn(0.0)
    assert old.turns == 1
    assert _turns(steward) == {"b": 1}
    steward.turn(2000.0)
    assert steward._populations["a"] is not old
    assert _turns(steward) == {"a": 1, "b": 2}


def test_what_is_wrong_is_told_and_written_once_until_it_changes_and_so_is_its_end(steward, engine, caplog):
    fault = ConfigError("no training file")
    log, written = EventLog(engine), []
    for at, now in (
        (0.0, fault),
        (1.0, fault),
        (1.5, fault),
        (3.0, None),
        (5.0, OSError("the disk is full")),
    ):
        steward._populations["b"].fault = now
        steward.turn(at)
        written.append(troubles.last(log, "b"))
    said = ["no training file", "", "OSError: the disk is full"]
    assert written == [said[0]] * 3 + said[1:]
    assert [entry.record["what"] for entry in log.read(troubles.stream("b"))] == said
    assert sum("no training file" in record.message for record in caplog.records) == 1
    assert troubles.last(log, "a") == ""


def test_the_last_word_of_an_earlier_leader_is_taken_back_when_nothing_is_wrong(steward, engine):
    log = EventLog(engine)
    log.append(troubles.stream("b"), [{"what": "the disk is full"}], at=0.0)
    steward.turn(1.0)
    assert troubles.last(log, "b") == ""


def test_a_training_that_was_given_up_is_ended_under_the_leaders_lease(steward, monkeypatch):
    told = []
    monkeypatch.setattr(
        "fedretrain.server.steward.end_given_up",
        lambda log, campaign, reason, *, at, fence: told.append((campaign, reason, at, fence)),
    )
    steward.turn(0.0)
    population = steward._populations["a"]
    population.memory.given_up = Trained(2, made=False, reason="it took longer than 8 s")
    population.models = SimpleNamespace(campaign_of=lambda version: f"a-{version}")
    steward.turn(1000.0)
    assert told == [("a-2", "it took longer than 8 s", 1000.0, steward._fence)]


def test_a_lost_lease_ends_the_turn(steward):
    steward._populations["a"].fault = FencedError("somebody else acts")
    with pytest.raises(FencedError):
        steward.turn(0.0)
    assert _turns(steward) == {"a": 1, "b": 0}


@pytest.mark.parametrize(("of", "name"), [(Steward, "_see_to_campaign"), (Telling, "announce")])
def test_what_cannot_be_run_or_announced_keeps_no_device_from_its_assignment(steward, monkeypatch, of, name):
    told = []

    def fails(*_):
        raise ConfigError("no training file")

    monkeypatch.setattr(of, name, fails)
    monkeypatch.setattr(Telling, "assign", lambda self, population, invites, now: told.append(now))
    steward.turn(3.0)
    assert told == [3.0, 3.0]


def test_two_populations_that_train_at_once_have_nodes_of_their_own_and_both_are_let_in(steward, tmp_path):
    let_in = []
    steward._superlink = SimpleNamespace(
        child=SimpleNamespace(pid=7),
        wait_until_healthy=lambda: None,
        admit=lambda keys: let_in.append(sorted(keys)),
        stop=lambda: None,
    )

    def device(number, key):
        return SimpleNamespace(
            number=number, standing=Standing.ACTIVE, traits=Traits(node_key=key), population="-"
        )

    fleets = {"a": [device(0, "one"), device(1, "one")], "b": [device(0, "two")]}
    for name, devices in fleets.items():
        steward._nodes[name] = write_nodes(steward._nodes_file(name), devices, frozenset())
        steward._admit()
    steward._admit()
    written = {name: json.loads((tmp_path / "flower" / f"nodes-{name}.json").read_text()) for name in fleets}
    assert written == {"a": {"one": [0, 1]}, "b": {"two": [0]}}
    assert let_in == [[b"one"], [b"one", b"two"]]


def test_a_central_retrain_keeps_the_campaign_waiting_until_it_has_a_seed_for_it(steward, monkeypatch):
    seen = []

    class Process:
        def __init__(self, campaign, *_):
            self.campaign = campaign
            seen.append(f"begun {campaign}")

        def ensure(self, now):
            return not steward_record[0].end

        def stop(self):
            seen.append("stopped")

    def record(end="", *, seeds=False):
        return SimpleNamespace(end=end, seeds=seeds, definition=SimpleNamespace(campaign="a-2"))

    steward_record = [record()]
    monkeypatch.setattr("fedretrain.server.steward.CentralProcess", Process)
    monkeypatch.setattr("fedretrain.server.steward.store_places", lambda config: (None, None))
    state = SimpleNamespace(training=SimpleNamespace(version=2))
    models = SimpleNamespace(central=lambda decision, state: steward_record[0])
    population = SimpleNamespace(memory=SimpleNamespace(state=state, decision=None), models=models)
    assert steward._see_to_central("a", population)
    assert steward._see_to_central("a", population)
    assert seen == ["begun a-2"]
    steward_record[0] = record("complete", seeds=True)
    assert not steward._see_to_central("a", population), "its turn is the campaign's"
    steward_record[0] = record("complete")
    assert steward._see_to_central("a", population), "nothing follows: the loop takes the version up"
    state.training = None
    assert not steward._see_to_central("a", population)
    assert seen == ["begun a-2", "stopped"]


class _Running:
    """A campaign's process, and the SuperLink that it needs."""

    campaign = "p-2"

    def __init__(self):
        self.seen = []

    def ensure(self, now):
        self.seen.append("ensured")

    def stop(self):
        self.seen.append("stopped")


def test_a_ledger_that_a_witness_contradicts_ends_the_campaign_and_stays_without(steward, monkeypatch):
    said, process = [False, True, True, PrivacyError("an old copy"), PrivacyError("an old copy")], _Running()
    asked = []

    def agree(population, kept, *, starts):
        asked.append((kept, starts))
        word = said.pop(0)
        if isinstance(word, PrivacyError):
            raise word
        return word

    state = SimpleNamespace(training=SimpleNamespace(version=2), kept_devices=frozenset({3}))
    models = SimpleNamespace(start_campaign=lambda *_: "p-2", central=lambda *_: None)
    memory = SimpleNamespace(state=state, decision=None)
    population = SimpleNamespace(memory=memory, models=models, devices=())
    monkeypatch.setattr(steward._witnesses, "agree", agree)
    monkeypatch.setattr(steward, "_new_process", lambda campaign, name: process)
    monkeypatch.setattr(steward, "_admit", lambda: None)
    monkeypatch.setattr("fedretrain.server.steward.campaign_bundle", lambda: SimpleNamespace(content=b""))
    for _ in range(3):
        steward._see_to_campaign("a", population)
    assert process.seen == ["ensured", "ensured"]  # the first time devices had not spoken yet
    for _ in range(2):
        with pytest.raises(PrivacyError, match="an old copy"):
            steward._see_to_campaign("a", population)
    assert process.seen == ["ensured", "ensured", "stopped"]
    assert [starts for _, starts in asked] == [True, True, False, False, True]
    assert {kept for kept, _ in asked} == {frozenset({3})}
    assert not steward._nodes


def test_on_a_damaged_database_nobody_decides(steward):
    steward._populations["a"].fault = DatabaseDamagedError("a page", "file")
    with pytest.raises(DatabaseDamagedError):
        steward.turn(1.0)
