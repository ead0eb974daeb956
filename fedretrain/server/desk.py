"""An operator's desk: what can be read of a population, and what can be ordered, without the coordinator's process.

Rules of this file:
    * It reads the same log that the coordinator folds, and writes orders; it never writes the loop's own events.
    * An order that would be refused is not written: whoever gives it is told why.
"""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.artifacts.signed_order import public_half
from fedretrain.artifacts.trust.keys import load_key
from fedretrain.coordinator.cycle import Discard, Propose, Resubmit, Retrain, Withdraw
from fedretrain.coordinator.permission import refusal, unasked, unsteered
from fedretrain.coordinator.policy import read_policy
from fedretrain.coordinator.policy_book import current
from fedretrain.coordinator.roles import Right
from fedretrain.core.checks import not_negative, require
from fedretrain.core.errors import ConfigError, DataError
from fedretrain.core.frozen import thaw
from fedretrain.rollout.evidence import Answer, Approval, Command, Operator
from fedretrain.rollout.safety import SafetyCommand, SafetyOrder, Switch
from fedretrain.rollout.stops import RULES_BASELINE
from fedretrain.server import (
    fleet,
    intake,
    listing,
    memory,
    orders,
    policies,
    validations,
)
from fedretrain.server.account import account
from fedretrain.server.config import read_server
from fedretrain.server.database import open_database
from fedretrain.server.enrolment import make_tokens
from fedretrain.server.event_log import EventLog
from fedretrain.server.fleet import Standing
from fedretrain.server.keys import open_keys, open_stores
from fedretrain.server.models import Models
from fedretrain.server.orders import Signer
from fedretrain.server.overview import overview
from fedretrain.server.people import HOW_TO_SIGN
from fedretrain.server.pool import read_pool
from fedretrain.server.ranked import Ranked
from fedretrain.server.training_file import read_training, read_yaml
from fedretrain.server.verifying import verify

if TYPE_CHECKING:
    from fedretrain.coordinator.policy import Policy
    from fedretrain.coordinator.policy_book import PolicyBook
    from fedretrain.coordinator.roles import Roles
    from fedretrain.server.config import Population, Watching
    from fedretrain.server.keys import Keys
    from fedretrain.server.memory import Memory
    from fedretrain.server.people import Notary
    from fedretrain.server.validations import Validations


_SEE = "see `fedretrain rollout status`"


class Desk:
    """One population as an operator sees it.

    Args:
        path: ``server.toml``.
        population: Its name; may be empty where there is one.
        key: File of the private key with which what is ordered is signed; None: it is not.

    Raises:
        ConfigError: If there is no such population.
    """

    def __init__(self, path: Path, population: str, key: Path | None = None) -> None:
        self._config, self._key = read_server(path), key
        names = sorted(self._config.populations)
        if not population and len(names) == 1:
            population = names[0]
        if population not in names:
            raise ConfigError(
                f"there is no population {population!r}",
                where="--population",
                fix=f"name one of {', '.join(names)}",
            )
        self.population = population
        self._one: Population = self._config.populations[population]

    @cached_property
    def _keys(self) -> Keys:
        return open_keys(self._config, time.time())

    @cached_property
    def log(self) -> EventLog:
        """The event log."""
        Path(self._config.folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        return EventLog(open_database(self._config.database_url))

    @property
    def heartbeat_s(self) -> float:
        """How often devices shall be heard."""
        return self._config.listen.heartbeat_s

    @property
    def watching(self) -> Watching:
        """The population's clockwork."""
        return self._one.watching

    @property
    def roles(self) -> Roles:
        """Who may order and approve what."""
        return self._config.roles_of(self.population)

    @cached_property
    def notary(self) -> Notary:
        """Who says whether an order is the word of whom it names."""
        return self._config.notary_of(self.population)

    @cached_property
    def signer(self) -> Signer | None:
        """Signs what is ordered here; None where no key was given.

        Raises:
            ConfigError: If the fleet has no authority yet, for which a signature could be.
            DataError: If the key's file is missing, readable by others, or holds no such key.
        """
        if self._key is None:
            return None
        key = load_key(self._key)
        fix = "start the coordinator once"
        require(bool(self.notary.fleet), "the fleet has no authority yet", key=self._config.folder, fix=fix)
        return Signer(key, self.notary.fleet)

    @cached_property
    def policy_file(self) -> Policy:
        """What the policy file says."""
        return read_policy(read_yaml(Path(self._one.policy)), where=self._one.policy)

    @cached_property
    def policy(self) -> Policy:
        """What decides: the file's, unless it waits for two people's word."""
        return current(self.policy_book(), self.policy_file)

    def policy_book(self) -> PolicyBook:
        """The policy in force, what waits, and who has agreed to it."""
        return policies.recall(self.log, self.population, self.notary)

    @cached_property
    def models(self) -> Models:
        """Versions and packages."""
        training = read_training(Path(self._one.training)) if self._one.training else None
        stores = open_stores(self._config)
        return Models(
            self.population, self.policy, training, self._one.pool, self.log, stores, None, time.time
        )

    def memory(self) -> Memory:
        """Where the loop stands."""
        states = self.models.stores.campaigns
        entries = self.log.read(memory.stream(self.population))
        return memory.recall(self.policy, entries, lambda digest: thaw(Ranked, states.get(digest)).rank_D)

    # ---- reading

    def status(self) -> dict[str, Any]:
        """Where the population stands."""
        return overview(self)

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """What has happened."""
        from fedretrain.server.memory import describe

        not_negative("--after", after)
        stream = memory.stream(self.population)
        entries = self.log.read(stream, after=min(after, self.log.head(stream).counter))
        return [
            {"number": one.number, "at": one.at, "text": describe(one.record), "record": one.record}
            for one in entries
            if not str(one.record["kind"]).startswith("note_")
        ]

    def devices(self) -> list[dict[str, Any]]:
        """Every device."""
        return listing.devices(self.log, self.models, self.memory().state)

    def models_listed(self) -> list[dict[str, Any]]:
        """Every version, and what it is now."""
        return listing.versions(self.models, self.memory().state, self.validations())

    def ordered(self) -> list[dict[str, Any]]:
        """Who ordered what."""
        return listing.ordered(self.log, self.population)

    def validations(self) -> Validations:
        """What is known of offline validations."""
        return validations.recall(self.log.read(validations.stream(self.population)))

    def report(self, version: int) -> dict[str, Any]:
        """The last offline validation of a version; see `validations.report_of`."""
        return validations.report_of(self.validations(), version, self.models.stores.campaigns)

    def verify(self) -> dict[str, Any]:
        """Recompute every digest; what was checked, and what is wrong: all of it, not only the first."""
        return verify(
            self._config, self.population, self._keys.trust, self.log, lambda: self.models, self.memory
        )

    # ---- ordering

    def tokens(self, names: list[str], lifetime_s: float) -> list[tuple[str, str]]:
        """One-time tokens for devices."""
        return make_tokens(self.log.engine, self.population, names, now=time.time(), lifetime_s=lifetime_s)

    def judge(self, device: str, standing: str, by: str, reason: str) -> None:
        """Revoke a device, or retire it: then what it sent and is still kept is deleted too.

        Raises:
            ConfigError: If this person may not.
            DataError: If there is no such device, or it is retired.
        """
        self.require(by, Right.OPERATE)
        with self.log.engine.begin() as connection:
            fleet.set_standing(connection, self.population, device, Standing(standing), time.time())
            if standing == Standing.RETIRED:
                intake.forget(connection, self.population, device)
        body = {"device": device, "standing": standing, "by": by.strip(), "reason": reason}
        self.write_down(fleet.stream(self.population), "device", body)

    def answer(self, word: str, by: str, reason: str = "") -> None:
        """Answer what a rollout asks.

        Raises:
            ConfigError: If nothing is asked, or this person may not answer it.
        """
        self.recognize(by)
        nothing = unasked(self.memory().state)
        require(not nothing, nothing, key="rollout", fix=_SEE)
        self.give(Approval(Answer(word), by, reason=reason))

    def order(self, command: str, by: str, reason: str) -> None:
        """Order something of the rollout; a `ConfigError` where none is on, or this person may not."""
        nothing = unsteered(self.memory().state, Command(command))
        require(not nothing, nothing, key="rollout", fix=_SEE)
        self.give(Operator(Command(command), by, reason))

    def safety(self, command: str, switch: str | None, by: str, reason: str) -> None:
        """Safe mode and kill switches."""
        which = None if switch is None else Switch(switch)
        self.give(SafetyOrder(SafetyCommand(command), by, which, reason))

    def retrain(self, by: str, reason: str) -> None:
        """Want a retrain now."""
        self.give(Retrain(by, reason))

    def withdraw(self, version: int, by: str, reason: str) -> None:
        """Quarantine a version.

        Raises:
            DataError: If there is no such version, or it is the rules baseline.
        """
        if version == RULES_BASELINE:
            raise DataError(
                "version 0 is the rules baseline", where=self.population, fix="name a model's version"
            )
        self.models.versions.package_of(version)
        self.give(Withdraw(version, by, reason))

    def import_first(
        self, outputs: tuple[str, ...], num_rounds: int, *, weights: bytes = b"", onnx: bytes = b""
    ) -> dict[str, Any]:
        """Make the first champion: of an ONNX model, of weights, or trained on the pool.

        Raises:
            ConfigError: If the population names no features, no training file (an ONNX model needs none), or no pool to train on.
            DataError: If there is a version already, or the model cannot be taken.
        """
        from fedretrain.server.importing import FROM_ONNX, first_package, read_features

        needed = [*(["training"] if not onnx else []), "features", *([] if weights or onnx else ["pool"])]
        for key in needed:
            if not getattr(self._one, key):
                raise ConfigError(
                    "a first champion needs it", where=f"populations.{self.population}.{key}", fix="name it"
                )
        models = self.models
        if models.versions.by_number:
            raise DataError(
                "there is a version already", where=self.population, fix="use fedretrain models propose"
            )
        digest = first_package(
            models.stores.packages,
            models.training,
            read_features(Path(self._one.features)),
            read_pool(Path(self._one.pool)) if self._one.pool else None,
            population=self.population,
            version=1,
            created_at=time.time(),
            outputs=outputs,
            weights=weights,
            onnx=onnx,
            num_rounds=num_rounds,
        )
        models.add(1, digest, "imported" if weights or onnx else "trained on the pool")
        retrains = models.training is not None and models.package(1).manifest.training.recipe != FROM_ONNX
        return {"version": 1, "package": digest, "retrains": retrains}

    def propose(self, weights: bytes, by: str, reason: str) -> int:
        """Bring weights as a candidate; its number.

        Raises:
            ConfigError: If nobody proposes it.
            DataError: If there is no champion yet, or the weights are another model's.
        """
        from fedretrain.artifacts.manifest import Strategy, TrainingRecord
        from fedretrain.server.model_files import read_weights
        from fedretrain.server.releasing import release_version

        self.check(Propose(0, by, reason))
        state = self.memory().state
        if state is None:
            raise DataError("there is no champion yet", where=self.population, fix="fedretrain models import")
        models = self.models
        version = max(models.versions.next_number, state.next_version)
        digest = release_version(
            models.stores.packages,
            models.package(state.champion),
            read_weights(weights),
            version=version,
            created_at=time.time(),
            training=TrainingRecord(strategy=Strategy.IMPORTED, recipe=reason[:200]),
        )
        models.add(version, digest, f"proposed by {by}")
        self.give(Propose(version, by, reason))
        return version

    def recognize(self, by: str) -> None:
        """Raise a `ConfigError` unless somebody gives a name, and the key that is wanted of who has it."""
        orders.check_name(by)
        lacks = self.notary.lacks(by.strip(), "" if self.signer is None else public_half(self.signer.key))
        require(not lacks, lacks, key="--by", fix=HOW_TO_SIGN)

    def require(self, by: str, right: Right) -> None:
        """Raise a `ConfigError` unless somebody gives a name that has a right, as `recognize`."""
        self.recognize(by)
        lacks = self.roles.lacks(by, right, account())
        if lacks:
            raise ConfigError(lacks, where="--by", fix="roles are in server.toml")

    def give(self, said: orders.Said) -> None:
        """Write an order down, if whoever gives it may."""
        self.check(said)
        orders.give(self.log, self.population, said, time.time(), self.signer)

    def write_down(
        self, stream: str, kind: str, body: dict[str, Any], found: dict[str, Any] | None = None
    ) -> None:
        """Write down what was done here and now in somebody's name, signed where there is a key.

        Args:
            stream: Where.
            kind: What it was, in a word.
            body: What was ordered, by whom and why.
            found: What came of it.
        """
        now = time.time()
        record = orders.recorded(kind, body, self.population, now, self.signer)
        self.log.append(stream, [{**record, **(found or {})}], at=now)

    def check(self, said: orders.Said) -> None:
        """Raise a `ConfigError` where an order would be refused."""
        self.recognize(said.by)
        # Safe mode is ordered also where the log is damaged: only what depends on where the loop stands looks at it.
        depends = isinstance(said, (Approval, Propose, Resubmit, Discard))
        state = self.memory().state if depends else None
        refused = refusal(self.roles, state, said, time.time(), account())
        if refused:
            raise ConfigError(refused, where="--by", fix="roles are in server.toml, proposers in the log")
