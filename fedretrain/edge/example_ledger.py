"""What training has cost a device's examples under example-level DP: a durable ledger in the agent's folder.

Rules of this file:
    * `charge` returns after the charge is on the disk, and its head in the witness beside it: charge first, then answer. A kill in
      between wastes budget and never spends it unrecorded.
    * A database of its own: the process that trains writes it, the agent only looks, and a buffer that is set aside as damaged
      takes no memory of what was spent with it. A damaged or older ledger is refused by name, never begun anew.
    * Each row carries the hash of the row before it. Epsilon is derived from the charges; the one that is stored with each is for who
      only looks, so that an agent without the accountant can show it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.core.durable import sync_folder
from fedretrain.core.errors import PrivacyError
from fedretrain.edge.transaction import transaction
from fedretrain.privacy.example import EXAMPLE_RELATION, EXAMPLE_SCOPE, EXAMPLE_UNIT, ExampleCharge
from fedretrain.privacy.file_ledger import WitnessFile
from fedretrain.privacy.ledger import Head, check_witness

if TYPE_CHECKING:
    from fedretrain.privacy.example import ExampleBudget

LEDGER = "example-ledger.db"
"""Its name in a logical device's folder."""
_TABLE = """
create table if not exists charges (
    number integer primary key, charge text not null, epsilon real not null, delta real not null, hash text not null
) strict
"""
_BUSY_S = 10.0


@dataclass(frozen=True)
class Row:
    """One charge as it is kept.

    Attributes:
        charge: The fact.
        epsilon: Of it and all before, at `delta`.
        delta: The budget's, when it was charged.
    """

    charge: ExampleCharge
    epsilon: float
    delta: float


class ExampleLedger:
    """The ledger of one logical device.

    Args:
        path: The database; made if it is not there.

    Raises:
        PrivacyError: If it is damaged, was changed, or is older than its witness.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._witness = WitnessFile(self._path.with_suffix(".witness"))
        with self._open() as connection:
            try:
                connection.execute(_TABLE)
            except sqlite3.Error as error:
                raise self._unusable(str(error)) from error
            _, heads = self._read(connection)
        sync_folder(self._path.parent)
        if self._witness.load() is None:  # from the first charge on it is never without one
            self._witness.save(heads[-1])

    def rows(self) -> tuple[Row, ...]:
        """Every charge, oldest first."""
        with self._open() as connection:
            return self._read(connection)[0]

    def check(self, charge: ExampleCharge, budget: ExampleBudget) -> float:
        """Epsilon after a charge.

        Raises:
            PrivacyError: If the budget does not allow it.
        """
        return budget.after([row.charge for row in self.rows()], charge)

    def charge(self, charge: ExampleCharge, budget: ExampleBudget) -> float:
        """Make a charge durable; epsilon after it. Nothing may be sent before this returns.

        Raises:
            PrivacyError: If the budget does not allow it, or it cannot be written.
        """
        try:
            with self._open() as connection, transaction(connection):
                rows, heads = self._read(connection)
                epsilon = budget.after([row.charge for row in rows], charge)
                row = Row(charge, epsilon, budget.delta)
                head = _chained(heads[-1], row)
                connection.execute(
                    "insert into charges values (?, ?, ?, ?, ?)",
                    (head.counter, _text(asdict(charge)), epsilon, budget.delta, head.hash),
                )
            self._witness.save(head)
        except OSError as error:
            raise self._unusable(str(error)) from error
        return epsilon

    def _open(self) -> closing[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
        except sqlite3.Error as error:
            raise self._unusable(str(error)) from error
        return closing(connection)

    def _read(self, connection: sqlite3.Connection) -> tuple[tuple[Row, ...], list[Head]]:
        """Every row, its chain checked, and the heads from the empty ledger on."""
        rows, heads = [], [Head()]
        seen = self._witness.load()  # first: another process may be charging
        try:
            for number, charge, epsilon, delta, found in connection.execute(
                "select number, charge, epsilon, delta, hash from charges order by number"
            ):
                row = Row(ExampleCharge(**json.loads(charge)), epsilon, delta)
                heads.append(_chained(heads[-1], row))
                if (number, found) != (heads[-1].counter, heads[-1].hash):
                    raise self._unusable(f"the chain of hashes breaks at charge {number}")
                rows.append(row)
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise self._unusable(str(error)) from error
        check_witness(seen, heads, str(self._path))
        return tuple(rows), heads

    def _unusable(self, why: str) -> PrivacyError:
        return PrivacyError(
            f"the ledger of what this device's examples have cost cannot be used: {why}",
            where=str(self._path),
            fix="restore the newest copy; without it the device takes no part in example-level DP",
        )


def shown(path: Path, budget: ExampleBudget) -> dict[str, Any] | None:
    """What a device has spent, for people; None where it never was charged, its ``problem`` alone where that cannot be read."""
    if not path.exists():
        return None
    try:
        rows = ExampleLedger(path).rows()
    except PrivacyError as error:
        return {"problem": str(error)}
    if not rows:
        return None
    return {
        "epsilon": rows[-1].epsilon,
        "delta": rows[-1].delta,
        "budget": budget.epsilon or None,
        "num_updates": len(rows),
        "unit": EXAMPLE_UNIT,
        "relation": EXAMPLE_RELATION,
        "scope": EXAMPLE_SCOPE,
    }


def _chained(before: Head, row: Row) -> Head:
    body = _text([asdict(row.charge), row.epsilon, row.delta])
    counter = before.counter + 1
    return Head(counter, hashlib.sha256(f"{counter}|{before.hash}|{body}".encode()).hexdigest())


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
