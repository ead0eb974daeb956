"""Tables of the coordinator's database.

Rules of this file:
    * `events` is the record; everything else can be told from it again, or is held for a moment (a lease).
    * Times are seconds since the epoch, as floats; digests are hex; what has a shape of its own is canonical JSON text.
    * A change here comes with a migration in `migrations/versions`; a test compares both.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

events = Table(
    "events",
    metadata,
    Column("stream", String(200), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Float(53), nullable=False),
    Column("record", Text, nullable=False),
    Column("hash", String(64), nullable=False),
)
"""Append only, one hash chain for each stream."""

leases = Table(
    "leases",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires_at", Float(53), nullable=False),
)
"""Who may act in a name's stead, until when; the token only grows."""

devices = Table(
    "devices",
    metadata,
    Column("population", String(100), primary_key=True),
    Column("device", String(100), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("standing", String(20), nullable=False),
    Column("record", Text, nullable=False),
    Column("assignment", LargeBinary, nullable=True),
    Column("counter", BigInteger, nullable=False, default=0),
    Column("changed_at", Float(53), nullable=False, default=0.0, index=True),
    Column("seen_at", Float(53), nullable=False, default=0.0),
    Column("heartbeat", Text, nullable=False, default="{}"),
    UniqueConstraint("population", "number"),
)
"""One row for each device: what it is, what it was last told, what it last said."""

announcements = Table(
    "announcements",
    metadata,
    Column("population", String(100), primary_key=True),
    Column("question", LargeBinary, nullable=False),
    Column("hasten", Boolean, nullable=False),
    Column("notice", LargeBinary, nullable=False),
)
"""What every gateway tells a population's devices: the signed federated evaluation that is on, whether they are heard sooner, and what they must
leave at once."""

tokens = Table(
    "tokens",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("population", String(100), nullable=False),
    Column("device", String(100), nullable=False, default=""),
    Column("expires_at", Float(53), nullable=False),
    Column("used_by", String(100), nullable=False, default=""),
)
"""One-time enrolment tokens, by their hash."""

received = Table(
    "received",
    metadata,
    Column("population", String(100), primary_key=True),
    Column("device", String(100), primary_key=True),
    Column("source", String(100), primary_key=True),
    Column("state", Text, nullable=False),
)
"""Which records of a device have counted, so that each counts once."""

telemetry = Table(
    "telemetry",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("population", String(100), nullable=False, index=True),
    Column("device", String(100), nullable=False),
    Column("at", Float(53), nullable=False),
    Column("received_at", Float(53), nullable=False),
    Column("payload", LargeBinary, nullable=False),
)
"""Records of devices that have counted, in the order of arrival; views are made from them again after a restart.

Those that no window can need any more are deleted (`telemetry.Telemetry.prune`)."""

brought_labels = Table(
    "annotations",
    metadata,
    Column("population", String(100), primary_key=True),
    Column("device", String(100), primary_key=True),
    Column("prediction", String(200), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("label", BigInteger, nullable=False),
    Column("at", Float(53), nullable=False),
    Column("outcome", Text, nullable=False, default="", index=True),
)
"""Labels that people brought for predictions of devices; what the device found, once it has answered."""

presence = Table(
    "presence",
    metadata,
    Column("population", String(100), primary_key=True),
    Column("at", Float(53), primary_key=True),
    Column("slot_s", Float(53), nullable=False),
    Column("devices", BigInteger, nullable=False),
    Column("online", LargeBinary, nullable=False),
)
"""Which devices were heard of in each slot, one bit for each."""

sources = Table(
    "sources",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("population", String(100), nullable=False),
    Column("standing", String(20), nullable=False),
    Column("since", Float(53), nullable=False),
    Column("error", Text, nullable=False),
    Column("num_broken", BigInteger, nullable=False),
    Column("counts", Text, nullable=False),
)
"""Brokers that telemetry comes from: whether they can be reached, and what became of their messages."""

offsets = Table(
    "offsets",
    metadata,
    Column("source", String(64), primary_key=True),
    Column("topic", String(249), primary_key=True),
    Column("partition", BigInteger, primary_key=True, autoincrement=False),
    Column("next", BigInteger, nullable=False),
)
"""How far each partition of a Kafka source has counted; it changes in the transaction that counts."""

tallies = Table(
    "tallies",
    metadata,
    Column("population", String(100), primary_key=True),
    Column("device", String(100), primary_key=True),
    Column("slot", BigInteger, primary_key=True, autoincrement=False),
    Column("package", String(64), primary_key=True),
    Column("payload", LargeBinary, nullable=False),
)
"""Counts of raw samples, of slots that are not over: each becomes a record of `telemetry`."""

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("source", String(64), nullable=False, index=True),
    Column("population", String(100), nullable=False),
    Column("device", String(100), nullable=False),
    Column("at", Float(53), nullable=False),
    Column("origin", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)
"""The newest messages of each source that were refused, with the reason."""
