"""One-time tokens with which a device enrols.

Rules of this file:
    * A token is 256 random bits, shown once to the person who carries it to the device. Kept is its SHA-256 alone.
    * A token says which population and device it is for; a device cannot choose another name.
    * It is used up by the first key that redeems it. The same key may ask again until the token expires: its answer may have been lost.
    * Secrets are compared in constant time, and whatever is wrong, a stranger is told the same.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, replace
from enum import StrEnum

from fedretrain.artifacts.store import check_digest
from fedretrain.core.errors import DataError
from fedretrain.core.ids import is_name

TOKEN_LIFETIME_S = 24 * 3_600.0


class TokenRefusal(StrEnum):
    """Why a token does not count; for the server's log."""

    UNKNOWN = "unknown"
    EXPIRED = "expired"
    USED = "used"


class EnrolmentError(DataError):
    """A token that does not count. Its text is the same for every reason: it goes to whoever asked.

    Args:
        refusal: Why; for the log.
    """

    def __init__(self, refusal: TokenRefusal) -> None:
        super().__init__(
            "the enrolment token does not count", where="token", fix="ask an operator for a new one"
        )
        self.refusal = refusal


@dataclass(frozen=True)
class EnrolmentToken:
    """What the server keeps of a token.

    Attributes:
        hash: SHA-256 of the token.
        population: The fleet that it lets into.
        device: The id that its device will have.
        expires_at: From when it does not count any more.
        used_by: `identity.request_key_fingerprint` of the key that redeemed it; "" before.

    Raises:
        DataError: If a field is not what it should be.
    """

    hash: str
    population: str
    device: str
    expires_at: float
    used_by: str = ""

    def __post_init__(self) -> None:
        check_digest(self.hash)
        for key in ("population", "device"):
            if not is_name(getattr(self, key)):
                raise DataError(
                    f"{getattr(self, key)!r:.200} is no name", where=key, fix="give letters, digits, . _ -"
                )
        if self.used_by:
            check_digest(self.used_by)

    def redeem(self, secret: str, key_fingerprint: str, now: float) -> EnrolmentToken:
        """The token as it is after a device with this key has used it; store it before the certificate is sent.

        Raises:
            EnrolmentError: If it does not count.
        """
        if not hmac.compare_digest(hash_token(secret), self.hash):
            raise EnrolmentError(TokenRefusal.UNKNOWN)
        if now >= self.expires_at:
            raise EnrolmentError(TokenRefusal.EXPIRED)
        if self.used_by and not hmac.compare_digest(self.used_by, key_fingerprint):
            raise EnrolmentError(TokenRefusal.USED)
        return replace(self, used_by=key_fingerprint)


def new_token(
    population: str, device: str, *, now: float, lifetime_s: float = TOKEN_LIFETIME_S
) -> tuple[str, EnrolmentToken]:
    """A new token: the secret to show once, and what to keep.

    Raises:
        DataError: If a name cannot be one.
    """
    secret = secrets.token_urlsafe(32)
    return secret, EnrolmentToken(hash_token(secret), population, device, now + lifetime_s)


def hash_token(secret: str) -> str:
    """What a token is found by. 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
