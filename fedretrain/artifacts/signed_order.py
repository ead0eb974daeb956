"""A person's signature under what they order: what is signed, with which key, and whether it holds.

Rules of this file:
    * What is signed has one form in bytes: the format's name, then canonical JSON. Whatever counts of an order is in it: fleet and
      population, kind and body (what, who and why), account, instant, and a nonce that no second order has.
    * A signature names its key, so that a record can be checked after the key was replaced. Whose key it is, the caller knows.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedretrain.core.checks import require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MAGIC = b"fedretrain order 1\n"
_KEY = re.compile(r"[0-9a-f]{64}")
_NONCE = re.compile(r"[0-9a-f]{32}")
_VALUE = re.compile(r"[0-9a-f]{128}")


@dataclass(frozen=True)
class Signature:
    """Who signed an order, and when; as it lies beside the order in the log.

    Attributes:
        fleet: For which fleet: the fingerprint of its authority's certificate.
        at: When, seconds since the epoch, by the clock of whoever signed.
        nonce: 128 bits in hexadecimal, drawn for this order.
        key: Public key (Ed25519, hexadecimal) under which it was signed.
        value: The signature, hexadecimal.

    Raises:
        ConfigError: If a field is not what it should be.
    """

    fleet: str
    at: float
    nonce: str
    key: str
    value: str

    def __post_init__(self) -> None:
        for name, pattern in (("fleet", _KEY), ("nonce", _NONCE), ("key", _KEY), ("value", _VALUE)):
            is_hex = pattern.fullmatch(getattr(self, name)) is not None
            require(is_hex, "not a signature's", key=f"signed.{name}", fix="sign the order anew")
        require(math.isfinite(self.at), "no instant", key="signed.at", fix="sign the order anew")


def is_public_key(text: str) -> bool:
    """Whether a text can be a public key: 32 bytes in hexadecimal, small letters."""
    return _KEY.fullmatch(text) is not None


def public_half(key: Ed25519PrivateKey) -> str:
    """The public key, hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


def sign(
    key: Ed25519PrivateKey, record: Mapping[str, Any], *, population: str, fleet: str, at: float, nonce: str
) -> Signature:
    """Sign an order.

    Args:
        key: Of whoever orders.
        record: As it is written to the log: its kind, body and account are signed.
        population: To which it is given.
        fleet: See `Signature`.
        at: Instant, seconds since the epoch.
        nonce: See `Signature`.
    """
    public = public_half(key)
    value = key.sign(_content(record, population, fleet, at, nonce, public))
    return Signature(fleet, at, nonce, public, value.hex())


def holds(record: Mapping[str, Any], population: str, signature: Signature) -> bool:
    """Whether this is the record that was signed, for this population."""
    said = signature
    try:
        content = _content(record, population, said.fleet, said.at, said.nonce, said.key)
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(said.key)).verify(bytes.fromhex(said.value), content)
    except (InvalidSignature, ValueError):  # ValueError: a number that is none, or bytes that are no point
        return False
    return True


def _content(
    record: Mapping[str, Any], population: str, fleet: str, at: float, nonce: str, key: str
) -> bytes:
    signed = {name: record.get(name) for name in ("kind", "body", "account")}
    signed |= {"population": population, "fleet": fleet, "at": at, "nonce": nonce, "key": key}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return _MAGIC + text.encode("ascii")
