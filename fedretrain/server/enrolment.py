"""Enrolment: a one-time token and a device's own key become a certificate and a row of the fleet.

Rules of this file:
    * The token is used up in the transaction that makes the device: a crash leaves both or neither.
    * A device that lost the answer asks again with the same key, and gets one. So it is with renewal: the key says who it is, and any
      certificate for it that has not expired counts.
    * A stranger is told the same whatever is wrong with a token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sqlalchemy import insert, select, update

from fedretrain.artifacts.encryption import seal
from fedretrain.artifacts.enrolment import (
    EnrolmentError,
    EnrolmentToken,
    TokenRefusal,
    hash_token,
    new_token,
)
from fedretrain.artifacts.identity import (
    checked_public_key,
    request_key_fingerprint,
    requested_public_key,
)
from fedretrain.core.errors import DataError
from fedretrain.server import fleet
from fedretrain.server.fleet import Traits
from fedretrain.server.tables import tokens
from fedretrain.wire.control import PROTOCOL
from fedretrain.wire.v1 import fleet_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection, Engine

    from fedretrain.artifacts.identity import FleetAuthority
    from fedretrain.server.fleet import Device
    from fedretrain.server.peers import Peers

_MAX_TEXT = 100
_MAX_METHODS = 16


def make_tokens(
    engine: Engine, population: str, names: Iterable[str], *, now: float, lifetime_s: float
) -> list[tuple[str, str]]:
    """A token for each device; the secrets are shown now and never again.

    Returns:
        Device and secret, in order.
    """
    made = [(name, *new_token(population, name, now=now, lifetime_s=lifetime_s)) for name in names]
    rows = [
        {
            "hash": token.hash,
            "population": population,
            "device": name,
            "expires_at": token.expires_at,
            "used_by": "",
        }
        for name, _, token in made
    ]
    if rows:
        with engine.begin() as connection:
            connection.execute(insert(tokens), rows)
    return [(name, secret) for name, secret, _ in made]


@dataclass(frozen=True)
class Told:
    """What every enrolled device is told.

    Attributes:
        root: The first root of the trust metadata.
        control_address: ``host:port`` of the device API.
    """

    root: bytes
    control_address: str


class Enrolling:
    """Answers enrolment requests.

    Args:
        engine: The database.
        authority: Signs certificates.
        peers: Learns of new devices.
        told: What each device is told.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        engine: Engine,
        authority: FleetAuthority,
        peers: Peers,
        told: Told,
        clock: Callable[[], float],
    ) -> None:
        self._engine, self._authority, self._peers = engine, authority, peers
        self._told, self._clock = told, clock

    def enrol(self, request: pb.EnrolRequest) -> pb.EnrolReply:
        """A device of a request.

        Raises:
            DataError: If the token does not count, or the request cannot be read.
        """
        now = self._clock()
        key = request_key_fingerprint(request.certificate_request)
        with self._engine.begin() as connection:
            token = _redeem(connection, request.token, key, now)
            certificate = self._authority.issue_device(
                request.certificate_request, token.population, token.device, now=now
            )
            device = fleet.enrol(
                connection,
                token.population,
                token.device,
                key,
                _traits(request),
                now,
            )
        self._peers.know(device)
        return pb.EnrolReply(
            protocol=PROTOCOL,
            population=device.population,
            device=device.device,
            certificate=certificate,
            authority=self._authority.certificate,
            root_metadata=self._told.root,
            control_address=self._told.control_address,
            number=device.number,
        )

    def renew(self, device: Device, request: pb.RenewRequest) -> pb.RenewReply:
        """The next certificate of a device, for the key that it has; it is the same device, with the same number.

        Args:
            device: Who asks, by its present certificate.
            request: What it sent.

        Raises:
            DataError: If the request cannot be read, or is for another key: that needs a token.
        """
        now, asked = self._clock(), request.certificate_request
        if request_key_fingerprint(asked) != device.fingerprint:
            raise DataError(
                "the request is for another key than the device's", where="renew", fix="enrol with a token"
            )
        certificate = self._authority.issue_device(asked, device.population, device.device, now=now)
        sealing = _sealing_key(request.sealing_key) or device.traits.sealing_key
        if sealing != device.traits.sealing_key:
            traits = replace(device.traits, sealing_key=sealing)
            with self._engine.begin() as connection:
                fleet.keep_traits(connection, device.population, device.device, traits, now)
            self._peers.know(replace(device, traits=traits))
        return pb.RenewReply(protocol=PROTOCOL, certificate=certificate)


def _sealing_key(content: bytes) -> str:
    """A device's public key for sealing, checked, in hexadecimal; empty where it has none."""
    if content:
        seal(b"", content, b"")  # raises where it is none
    return content.hex()


def _redeem(connection: Connection, secret: str, key: str, now: float) -> EnrolmentToken:
    # FOR UPDATE: of two that show it at once, on PostgreSQL too, the second one finds it used.
    query = select(tokens).where(tokens.c.hash == hash_token(secret)).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        raise EnrolmentError(TokenRefusal.UNKNOWN)
    token = EnrolmentToken(row.hash, row.population, row.device, row.expires_at, row.used_by)
    token = token.redeem(secret, key, now)
    connection.execute(update(tokens).where(tokens.c.hash == token.hash).values(used_by=token.used_by))
    return token


def _traits(request: pb.EnrolRequest) -> Traits:
    said = request.traits
    for text in (said.device_type, said.site, said.person, *said.methods):
        if len(text) > _MAX_TEXT or not text.isprintable():
            raise DataError("a trait that is no short text", where="traits", fix="use printable names")
    if len(said.methods) > _MAX_METHODS:
        raise DataError(f"more than {_MAX_METHODS} methods", where="traits.methods")
    own = requested_public_key(request.certificate_request)
    node = checked_public_key(said.node_key) if said.node_key else own
    sealing = _sealing_key(said.sealing_key)
    return Traits(said.device_type, said.site, said.person, said.trains, tuple(said.methods), node, sealing)
