"""A coordinator on a database of an earlier day: what was spent since stays spent, and a person is told what to do."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import time
from contextlib import closing

import pytest

from fedretrain.artifacts.weights import encode_params
from fedretrain.privacy.event import PrivacyEvent, Relation, Sampling, encode_units
from fedretrain.privacy.file_ledger import WitnessFile
from fedretrain.privacy.mechanism import Unit
from fedretrain.server import fleet
from fedretrain.server.campaign import campaign_stream
from fedretrain.server.database_ledger import DatabaseLedger, ledger_stream
from fedretrain.server.witnesses import witness_file
from tests.plant_cases import DEVICES, OPERATOR, POPULATION
from tests.server_cases import TRAINING

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
OPTIONS = {
    "parts": {"retraining": {"mode": "metric", "triggers": [], "default_strategy": "federated"}},
    "training": {
        **TRAINING,
        "rules": {
            "sampling": {"cohort_size": len(DEVICES)},
            "quorum": 3,
            "privacy": {"noise_multiplier": 1.0, "clip_norm": 1.0},
        },
    },
}


def charge(plant, round_):
    """What a round of a campaign charges, as a server app does it."""
    witness = WitnessFile(witness_file(plant.folder / "state", POPULATION))
    ledger = DatabaseLedger(plant.desk.log, POPULATION, clock=time.time, witness=witness)
    ledger.append(
        PrivacyEvent(
            population=POPULATION,
            campaign="before",
            round=round_,
            noise_multiplier=1.0,
            clip_norm=1.0,
            relation=Relation.ZERO_OUT,
            sampling=Sampling.FIXED_SIZE,
            units=encode_units(range(len(DEVICES))),
            unit=Unit.DEVICE,
        )
    )


def said(plant):
    """Every line of a coordinator that says that its ledger is old."""
    logs = [(plant.folder / f"{name}.log").read_text() for name in ("first", "second")]
    return sorted(line for log in logs for line in log.splitlines() if "an old copy" in line)


def stop(plant):
    for name in ("first", "second"):
        plant.processes[name].end(signal.SIGTERM)
    plant.desk.log.engine.dispose()
    del plant.__dict__["_desk"]


def start(plant):
    for name in ("first", "second"):
        plant.processes[name].start()
    plant.until(lambda: plant.leader() != "", "somebody leads")


def keep(database, copy):
    """A back-up of a database that nobody has open."""
    with closing(sqlite3.connect(database)) as live, closing(sqlite3.connect(copy)) as kept:
        live.backup(kept)


def restore(database, copy):
    for old in database.parent.glob("fedretrain.db*"):
        old.unlink()
    keep(copy, database)


def keep_whole(database, copy):
    """A back-up of all that a coordinator has: database, witness file, signed list, keys, stores."""
    shutil.copytree(database.parent, copy)


def restore_whole(database, copy):
    shutil.rmtree(database.parent)
    keep_whole(copy / database.name, database.parent)


def seen(plant):
    """How many events of the ledger each device says that it has seen."""
    with plant.desk.log.engine.connect() as connection:
        return [one.heartbeat["ledger"][0] for one in fleet.everybody(connection, POPULATION)]


@pytest.mark.parametrize("by", ["witness", "signed list", "devices"])
def test_a_database_that_is_older_than_what_was_spent_trains_nobody(plant, by):
    backup, bring_back = (keep_whole, restore_whole) if by == "devices" else (keep, restore)
    plant.reach("idle")
    database = plant.folder / "state" / "fedretrain.db"
    stop(plant)
    backup(database, plant.folder / f"older by {by}")
    spent = plant.desk.log.head(ledger_stream(POPULATION)).counter
    start(plant)
    for round_ in range(3):
        charge(plant, round_)
    if by != "witness":  # a version that was released since bears the ledger's head
        plant.desk.propose(encode_params(plant.desk.models.package(1).weights), OPERATOR, "once more")
        plant.until(lambda: plant.phase() == "shadow", "shadow")
        plant.reach("idle")
        plant.until(lambda: set(seen(plant)) == {spent + 3}, "every device has seen the ledger")
    stop(plant)
    backup(database, plant.folder / f"newest by {by}")
    bring_back(database, plant.folder / f"older by {by}")
    witness, away = witness_file(plant.folder / "state", POPULATION), plant.folder / "witness.json"
    if by == "signed list":
        witness.rename(away)
    before = len(said(plant))
    start(plant)
    if by == "devices":  # who else would know
        plant.until(lambda: set(seen(plant)) == {spent + 3}, "every device says what it has seen")
    plant.desk.retrain(OPERATOR, "on an old database")
    plant.until(lambda: len(said(plant)) > before, "it is said why nobody is trained")
    line = said(plant)[-1]
    assert f"has {spent} events" in line
    assert f"saw {spent + 3}" in line
    assert by in line
    assert "restore the newest copy" in line
    assert any("an old copy" in one for one in plant.desk.verify()["wrong"])
    version = plant.desk.memory().begun.training.version
    assert plant.desk.log.head(campaign_stream(plant.desk.models.campaign_of(version))).counter == 0
    assert plant.desk.log.head(ledger_stream(POPULATION)).counter == spent
    assert plant.serving() == {1: len(DEVICES)}
    stop(plant)
    bring_back(database, plant.folder / f"newest by {by}")
    if by == "signed list":
        away.rename(witness)
    start(plant)
    assert plant.desk.verify()["wrong"] == []
    plant.until(lambda: plant.serving() == {1: len(DEVICES)}, "every device serves the champion")
    bare, plant.watcher.bare = plant.watcher.bare, []
    assert bare == []
