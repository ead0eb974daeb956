"""A federated evaluation, as devices are asked: which two versions, on which of their own rows, in which cells.

Rules of this file:
    * One signed question for a whole population. Who is asked follows from it: a public coin of each device and evaluation,
      which the device tosses too, so nobody keeps a list.
    * It names digests and makes none of them installable: what is evaluated passes the signed list and the device's own checks,
      as what is installed does.
    * It has one form in bytes, and an end: an old question that is sent again asks nobody.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from fedretrain.artifacts.envelope import (
    MAX_ENVELOPE_BYTES,
    EnvelopeError,
    check_to_all,
    one_form,
    opened,
    read_one_form,
    seal,
)
from fedretrain.core.errors import DataError
from fedretrain.core.ids import is_name
from fedretrain.validation.answers import MAX_CELLS, num_cells
from fedretrain.validation.config import MAX_DEVICE_ROWS
from fedretrain.validation.rows import Layout  # noqa: TC001 - `core.build` reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MAGIC = b"fedretrain evaluation 1\n"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_EVALUATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_COIN = 2.0**64


class QuestionError(EnvelopeError):
    """A question that a device does not answer."""

    kind = "evaluation"
    fix = "the device answers nothing"


@dataclass(frozen=True)
class Question:
    """What devices are asked.

    Attributes:
        evaluation: Its name, never used twice.
        population: Whose devices.
        candidate: Digest of the package under trial.
        champion: Digest of the package that it is held against; "" is the rules baseline.
        layout: The cells that are counted.
        from_at: Rows of this instant and later.
        until_at: Rows of before this instant.
        types: Device types; a type's place is its group's number.
        share: Which fraction of the devices is asked.
        max_rows: Of one device, the newest.
        issued_at: When it was asked; rises with every question of a population.
        spread_s: A device begins at an instant of its own within so long.
        ends_at: From when on no answer counts.

    Raises:
        DataError: If a field is not what it should be.
    """

    evaluation: str
    population: str
    candidate: str
    champion: str
    layout: Layout
    from_at: float
    until_at: float
    types: tuple[str, ...]
    share: float
    max_rows: int
    issued_at: float
    spread_s: float
    ends_at: float

    def __post_init__(self) -> None:
        _need(_EVALUATION.fullmatch(self.evaluation) is not None, "evaluation")
        _need(is_name(self.population), "population")
        _need(_DIGEST.fullmatch(self.candidate) is not None, "candidate")
        _need(not self.champion or _DIGEST.fullmatch(self.champion) is not None, "champion")
        _need(self.candidate != self.champion, "champion")
        period = (self.from_at, *self.layout.cuts_at, self.until_at)
        _need(all(math.isfinite(at) for at in (*period, self.issued_at, self.ends_at)), "from_at")
        _need(all(a < b for a, b in pairwise(period)), "layout.cuts_at")
        _need(0.0 <= self.spread_s < self.ends_at - self.issued_at, "spread_s")
        _need(0.0 < self.share <= 1.0, "share")
        _need(0 < self.max_rows <= MAX_DEVICE_ROWS, "max_rows")
        _need(num_cells(self.layout) <= MAX_CELLS, "layout")
        _need(len(set(self.types)) == len(self.types), "types")

    def asks(self, device: str) -> bool:
        """Whether a device is asked, by its name."""
        return self._coin(device, "asked") < self.share

    def begins_at(self, device: str) -> float:
        """When a device begins."""
        return self.issued_at + self.spread_s * self._coin(device, "begins")

    def group_of(self, device_type: str) -> int:
        """The number of a device type's group; -1 for one that the question does not know."""
        return self.types.index(device_type) if device_type in self.types else -1

    def to_bytes(self) -> bytes:
        """The one form in bytes."""
        return one_form(self)

    def _coin(self, device: str, purpose: str) -> float:
        drawn = hashlib.sha256(f"{purpose}\n{self.evaluation}\n{device}".encode()).digest()
        return int.from_bytes(drawn[:8], "big") / _COIN


def sign(question: Question, key: Ed25519PrivateKey) -> bytes:
    """The envelope that is sent. The same question and key give the same bytes.

    Raises:
        DataError: If it is longer than a device accepts.
    """
    envelope = seal(_MAGIC, question.to_bytes(), key)
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise DataError(
            f"a question of {len(envelope)} bytes",
            where=question.evaluation,
            fix="name fewer critical segments in the policy",
        )
    return envelope


def verify(envelope: bytes, keys: Iterable[bytes], *, population: str, now: float) -> Question:
    """The question in an envelope, if it is for this population and not over.

    Args:
        envelope: What arrived.
        keys: Raw Ed25519 public keys of the online role that signs assignments.
        population: The device's.
        now: Instant, by the device's trusted clock.

    Raises:
        QuestionError: If not, by name.
    """
    found = read_one_form(Question, opened(_MAGIC, envelope, keys, QuestionError), QuestionError)
    check_to_all(found, QuestionError, population=population, now=now)
    return found


def _need(ok: bool, key: str) -> None:
    if not ok:
        raise DataError("this cannot be asked", where=key, fix="see what the field says of itself")
