"""Whose word an order is: the keys of people, and what an order lacks to be theirs.

Rules of this file:
    * Who has a key signs every order with it; who has none is believed by name, unless everybody must have one.
    * One function for whoever asks: the command line before it writes an order down, the coordinator before it follows one, `verify`
      ever after. It sees no clock and no database.
    * A key that was replaced signs nothing new, and what it signed stays good.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedretrain.artifacts.identity import fingerprint
from fedretrain.artifacts.signed_order import Signature, holds, is_public_key
from fedretrain.core.build import build
from fedretrain.core.checks import as_tuples, positive, require
from fedretrain.core.clock import DAY_S, HOUR_S
from fedretrain.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

_MAKE = "add [people.NAME] with the line that `fedretrain people key NAME --out FILE` prints"
HOW_TO_SIGN = "give --key FILE, or name the file in FEDRETRAIN_KEY; `fedretrain people key` makes one"


@dataclass(frozen=True)
class Person:
    """Somebody who orders.

    Attributes:
        key: Their public key (Ed25519, hexadecimal); empty: none.
        former: Keys that they had before: these sign nothing new, and what they signed stays good.
    """

    key: str = ""
    former: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        as_tuples(self, ["former"])
        fix = "give 64 hexadecimal digits, as `fedretrain people key` prints them"
        for name, keys in (("key", [self.key] if self.key else []), ("former", self.former)):
            require(all(map(is_public_key, keys)), "no public key", key=name, fix=fix)

    @property
    def keys(self) -> tuple[str, ...]:
        """All that ever were theirs."""
        return (self.key, *self.former) if self.key else self.former


@dataclass(frozen=True)
class OrderRules:
    """What an order needs.

    Attributes:
        require_keys: Whether every order must be signed; otherwise those of people who have a key.
        valid_s: A signed order counts for so long: until then the coordinator must have taken it.
    """

    require_keys: bool = False
    valid_s: float = DAY_S

    def __post_init__(self) -> None:
        positive("orders.valid_s", self.valid_s)


def check_people(people: Mapping[str, Person], rules: OrderRules, ordering: Collection[str]) -> None:
    """Refuse keys that do not tell people apart, or that somebody lacks.

    Args:
        people: By name.
        rules: What an order needs.
        ordering: Everybody whom a role names.

    Raises:
        ConfigError: Then.
    """
    owner: dict[str, str] = {}
    for name, person in people.items():
        is_name = name.strip() == name and name != ""
        require(is_name, f"{name!r} is no name", key="people", fix="name people as in --by")
        for key in person.keys:
            other = owner.setdefault(key, name)
            same = f"{name} and {other} have one key"
            require(other == name, same, key=f"people.{name}", fix="make each their own")
    if rules.require_keys:
        without = sorted(name for name in {*ordering, *people} if not people.get(name, Person()).keys)
        able = any(person.key for person in people.values())
        require(able and not without, f"no key of {', '.join(without) or 'anybody'}", key="people", fix=_MAKE)


@dataclass(frozen=True)
class Notary:
    """Says what an order to one population lacks to be the word of whom it names.

    Attributes:
        population: Which.
        fleet: Fingerprint of the fleet's authority; empty where it has none yet, and nothing signed counts.
        people: By name.
        rules: What an order needs.
    """

    population: str = ""
    fleet: str = ""
    people: Mapping[str, Person] = field(default_factory=dict)
    rules: OrderRules = field(default_factory=OrderRules)

    def lacks(self, by: str, key: str = "") -> str:
        """Why nobody can order in a name with a key; empty where that key is the person's.

        Args:
            by: Who.
            key: Public key that signs; empty: none does.
        """
        person = self.people.get(by, Person())
        if key:
            if key == person.key:
                return ""
            if key in person.former:
                return f"{by} has another key now"
            return (
                f"it is signed with a key that is not {by}'s"
                if person.keys
                else f"it is signed, and server.toml has no key of {by}"
            )
        if person.key:
            return f"what {by} orders must be signed"
        if person.former:
            return f"{by} has no key any more"
        return (
            f"an order must be signed, and server.toml has no key of {by}" if self.rules.require_keys else ""
        )

    def refusal(self, record: Mapping[str, Any], now: float, taken: Collection[str] = ()) -> str:
        """Why an order may not be followed; empty where it is the word of whom it names.

        Args:
            record: Of the log.
            now: Instant, seconds since the epoch.
            taken: Nonces of the orders that were taken before.
        """
        by = giver(record)
        if by != by.strip():
            return f"{by!r} is no name"
        try:
            signature = signature_of(record)
        except ConfigError as error:
            return f"its signature cannot be read: {error.where}"
        lacking = self.lacks(by, "" if signature is None else signature.key)
        if lacking or signature is None:
            return lacking
        if signature.fleet != self.fleet:
            return f"it was signed for another fleet ({signature.fleet[:12]})"
        if not holds(record, self.population, signature):
            return f"it is not what {by} signed"
        if abs(now - signature.at) > self.rules.valid_s:
            hours, limit = (now - signature.at) / HOUR_S, self.rules.valid_s / HOUR_S
            return f"it was signed {abs(hours):.1f} h {'ago' if hours > 0 else 'ahead'}, and counts for {limit:g} h"
        return "it was given before" if signature.nonce in taken else ""

    def damage(self, record: Mapping[str, Any]) -> str:
        """What is wrong with the signature of an old record; empty where it has none, or a good one of a key that was its giver's."""
        by = giver(record)
        try:
            signature = signature_of(record)
        except ConfigError as error:
            return f"its signature cannot be read: {error.where}"
        if signature is None:
            return ""
        if signature.key not in self.people.get(by, Person()).keys:
            return f"server.toml says of no key {signature.key} that it is or was {by}'s: former keys stay in people.{by}.former"
        if signature.fleet != self.fleet:
            return f"it was signed for another fleet ({signature.fleet[:12]})"
        return "" if holds(record, self.population, signature) else f"it is not what {by} signed"


OPEN = Notary()
"""Believes every name."""


def signature_of(record: Mapping[str, Any]) -> Signature | None:
    """The signature beside an order; None where it has none.

    Raises:
        ConfigError: If there is one that cannot be read.
    """
    signed = record.get("signed")
    return None if signed is None else build(Signature, signed, where="signed")


def nonce_of(record: Mapping[str, Any]) -> str:
    """The nonce beside an order, be the signature good or not; empty where there is none."""
    signed = record.get("signed")
    return str(signed.get("nonce", "")) if isinstance(signed, dict) else ""


def fleet_of(folder: Path) -> str:
    """The fingerprint of a fleet's authority; empty where it has none yet.

    Args:
        folder: The coordinator's.

    Raises:
        DataError: If the certificate cannot be read.
    """
    path = folder / "authority" / "ca.pem"
    try:
        return fingerprint(path.read_bytes())
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise DataError(
            f"it cannot be read: {error.strerror}", where=str(path), fix="run as the coordinator's account"
        ) from error


def giver(record: Mapping[str, Any]) -> str:
    """Who is said to have ordered what is in a record; empty for a record of the coordinator's own."""
    body = record.get("body")
    return by if isinstance(body, dict) and isinstance(by := body.get("by", ""), str) else ""
