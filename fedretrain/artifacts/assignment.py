"""Who runs what: one device's assignment, signed by an online key.

Rules of this file:
    * An assignment has one form in bytes. What is not written exactly so is malformed, whoever signed it.
    * The signature is checked before anything is parsed, over the bytes and the name of this format: a signature made for something else is none here.
    * A counter must rise. The same counter is accepted for the same bytes only, and changes nothing.
    * An assignment names digests and never makes one installable: the trust repository alone does.
    * What is refused is refused by name (`Refusal`); the device goes on with what it has.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedretrain.artifacts.envelope import MAX_ENVELOPE_BYTES, EnvelopeError, Refusal, opened, seal
from fedretrain.core.errors import DataError
from fedretrain.core.ids import is_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_WITHDRAWN = 256

_MAGIC = b"fedretrain assignment 1\n"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9][A-Za-z0-9.-]{0,252}):([0-9]{1,5})")
_MAX_COUNTER = 2**63 - 1
_MAX_TIME = 1e300  # a whole number above the largest float would overflow in the conversion


class AssignmentError(EnvelopeError):
    """An envelope that a device does not follow."""

    kind = "assignment"
    fix = "the device keeps the assignment that it has"


@dataclass(frozen=True)
class CampaignInvite:
    """A training campaign that a device may take part in.

    Attributes:
        campaign: Its id.
        bundle: SHA-256 of the Flower app bundle; the device starts no other.
        server: ``host:port`` of the SuperLink's fleet API.
        begins_at: From when the device may start its training child.
        ends_at: When the device stops it at the latest.
        num_rounds: How many rounds the campaign plans.
        round_s: How long a round is expected to take.

    Raises:
        DataError: If a field is not what it should be.
    """

    campaign: str
    bundle: str
    server: str
    begins_at: float
    ends_at: float
    num_rounds: int
    round_s: float

    def __post_init__(self) -> None:
        _need(is_name(self.campaign), "campaign", self.campaign)
        _need(_is_digest(self.bundle), "bundle", self.bundle)
        _need(_is_address(self.server), "server", self.server)
        _need(_is_time(self.begins_at), "begins_at", self.begins_at)
        _need(_is_time(self.ends_at) and self.begins_at < self.ends_at, "ends_at", self.ends_at)
        _need(_is_count(self.num_rounds) and self.num_rounds > 0, "num_rounds", self.num_rounds)
        _need(_is_time(self.round_s) and self.round_s > 0, "round_s", self.round_s)
        _as_floats(self, "begins_at", "ends_at", "round_s")


@dataclass(frozen=True)
class Assignment:
    """What one device shall run.

    Attributes:
        population: The fleet that the device belongs to.
        device: Its id.
        serve: Digest of the model package to serve; "" is the rules baseline.
        shadow: Digest of the package to score beside it; "" is none.
        counter: Rises with every assignment of the device, from 1.
        issued_at: When it was signed.
        expires_at: From when it is no longer accepted.
        withdrawn: Digests that the device may no longer serve, sorted.
        safe_mode: Whether the device serves the rules baseline whatever `serve` says.
        invite: The campaign that it may train in; None is none.
        refresh: Number of the refresh of its personal state that it shall have done, once; 0 is none.

    Raises:
        DataError: If a field is not what it should be, or a withdrawn digest shall be run.
    """

    population: str
    device: str
    serve: str
    shadow: str
    counter: int
    issued_at: float
    expires_at: float
    withdrawn: tuple[str, ...] = ()
    safe_mode: bool = False
    invite: CampaignInvite | None = None
    refresh: int = 0

    def __post_init__(self) -> None:
        _need(is_name(self.population), "population", self.population)
        _need(is_name(self.device), "device", self.device)
        for key in ("serve", "shadow"):
            value = getattr(self, key)
            _need(value == "" or _is_digest(value), key, value)
        _need(_is_count(self.counter) and self.counter > 0, "counter", self.counter)
        _need(_is_time(self.issued_at), "issued_at", self.issued_at)
        _need(_is_time(self.expires_at) and self.issued_at < self.expires_at, "expires_at", self.expires_at)
        _need(_is_withdrawn(self.withdrawn), "withdrawn", self.withdrawn)
        _need(isinstance(self.safe_mode, bool), "safe_mode", self.safe_mode)
        _need(self.invite is None or isinstance(self.invite, CampaignInvite), "invite", self.invite)
        _need(_is_count(self.refresh), "refresh", self.refresh)
        _need(
            not {self.serve, self.shadow} & set(self.withdrawn), "withdrawn", "a digest to run is among them:"
        )
        _as_floats(self, "issued_at", "expires_at")

    def to_bytes(self) -> bytes:
        """The one form in bytes: JSON with sorted keys, in ASCII, without spaces."""
        invite = None if self.invite is None else vars(self.invite)
        return _canonical(
            {**vars(self), "invite": invite}
        )  # `asdict` copies: half of the time, for ten thousand devices

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes: what a device remembers, to know the same assignment when it comes again."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, content: bytes) -> Assignment:
        """Read what `to_bytes` wrote.

        Raises:
            AssignmentError: If the bytes are anything else, by name.
        """
        try:
            fields = json.loads(content.decode("ascii"))
            fields["withdrawn"] = tuple(fields["withdrawn"])
            if fields["invite"] is not None:
                fields["invite"] = CampaignInvite(**fields["invite"])
            found = cls(**fields)
            same = found.to_bytes() == content
        # Whatever a signer wrote, the device goes on: these are all the ways in which JSON of another shape fails.
        except (ValueError, TypeError, KeyError, IndexError, RecursionError, DataError) as error:
            raise AssignmentError(Refusal.MALFORMED, f"not an assignment: {type(error).__name__}") from error
        if not same:
            raise AssignmentError(Refusal.MALFORMED, "not an assignment in its one form")
        return found


def sign(assignment: Assignment, key: Ed25519PrivateKey) -> bytes:
    """The envelope that is sent: format's name, signature, assignment. The same assignment and key give the same bytes.

    Raises:
        DataError: If it is longer than a device accepts.
    """
    content = assignment.to_bytes()
    envelope = seal(_MAGIC, content, key)
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise DataError(
            f"an assignment of {len(envelope)} bytes", where=assignment.device, fix="withdraw fewer digests"
        )
    return envelope


def verify(
    envelope: bytes,
    keys: Iterable[bytes],
    *,
    device: str,
    population: str,
    now: float,
    last_counter: int = 0,
    last_digest: str = "",
) -> Assignment:
    """The assignment in an envelope, if this device may follow it.

    Args:
        envelope: What arrived.
        keys: Raw Ed25519 public keys (32 bytes each) of the online role; one of them must have signed.
        device: Who reads.
        population: Its fleet.
        now: Instant, by the device's trusted clock.
        last_counter: Counter of the last accepted assignment; 0 before the first.
        last_digest: Its `Assignment.digest`; with it the same assignment is accepted again, as a no-op.

    Raises:
        AssignmentError: If it may not, by name.
    """
    found = Assignment.from_bytes(opened(_MAGIC, envelope, keys, AssignmentError))
    if found.population != population:
        raise AssignmentError(
            Refusal.OTHER_POPULATION, f"it is for population {found.population}, not {population}"
        )
    if found.device != device:
        raise AssignmentError(Refusal.OTHER_DEVICE, f"it is for device {found.device}, not {device}")
    if found.counter < last_counter:
        raise AssignmentError(Refusal.OLD_COUNTER, f"counter {found.counter} after {last_counter}")
    if found.counter == last_counter and found.digest != last_digest:
        raise AssignmentError(Refusal.SAME_COUNTER, f"another assignment under counter {found.counter}")
    if now >= found.expires_at:
        raise AssignmentError(Refusal.EXPIRED, f"it expired at {found.expires_at}; it is {now}")
    return found


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _need(ok: bool, key: str, value: object) -> None:
    if not ok:
        raise DataError(
            f"{value!r:.200} cannot stand in an assignment",
            where=key,
            fix="see what the field says of itself",
        )


def _as_floats(config: object, *names: str) -> None:
    for name in names:  # one form: 1 and 1.0 are the same instant
        object.__setattr__(config, name, float(getattr(config, name)))


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_address(value: object) -> bool:
    found = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    return found is not None and 0 < int(found[2]) < 2**16


def _is_time(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= _MAX_TIME  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNTER


def _is_withdrawn(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_WITHDRAWN
        and all(_is_digest(digest) for digest in value)
        and list(value) == sorted(set(value))
    )
