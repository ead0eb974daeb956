"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make them."""
    _decisions()
    _devices()
    _reports()
    _sources()


def _decisions() -> None:
    """What happened, and who may decide."""
    op.create_table(
        "events",
        sa.Column("stream", sa.String(200), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.Float(53), nullable=False),
    )


def _devices() -> None:
    """Who is in the fleet, and what they are told."""
    op.create_table(
        "devices",
        sa.Column("population", sa.String(100), primary_key=True),
        sa.Column("device", sa.String(100), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("standing", sa.String(20), nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("assignment", sa.LargeBinary, nullable=True),
        sa.Column("counter", sa.BigInteger, nullable=False),
        sa.Column("changed_at", sa.Float(53), nullable=False, index=True),
        sa.Column("seen_at", sa.Float(53), nullable=False),
        sa.Column("heartbeat", sa.Text, nullable=False),
        sa.UniqueConstraint("population", "number"),
    )
    op.create_table(
        "announcements",
        sa.Column("population", sa.String(100), primary_key=True),
        sa.Column("question", sa.LargeBinary, nullable=False),
        sa.Column("hasten", sa.Boolean, nullable=False),
        sa.Column("notice", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "tokens",
        sa.Column("hash", sa.String(64), primary_key=True),
        sa.Column("population", sa.String(100), nullable=False),
        sa.Column("device", sa.String(100), nullable=False),
        sa.Column("expires_at", sa.Float(53), nullable=False),
        sa.Column("used_by", sa.String(100), nullable=False),
    )


def _reports() -> None:
    """What came from devices, and what people said of it."""
    op.create_table(
        "received",
        sa.Column("population", sa.String(100), primary_key=True),
        sa.Column("device", sa.String(100), primary_key=True),
        sa.Column("source", sa.String(100), primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
    )
    op.create_table(
        "telemetry",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("population", sa.String(100), nullable=False, index=True),
        sa.Column("device", sa.String(100), nullable=False),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("received_at", sa.Float(53), nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "annotations",
        sa.Column("population", sa.String(100), primary_key=True),
        sa.Column("device", sa.String(100), primary_key=True),
        sa.Column("prediction", sa.String(200), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("label", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("outcome", sa.Text, nullable=False, index=True),
    )
    op.create_table(
        "presence",
        sa.Column("population", sa.String(100), primary_key=True),
        sa.Column("at", sa.Float(53), primary_key=True),
        sa.Column("slot_s", sa.Float(53), nullable=False),
        sa.Column("devices", sa.BigInteger, nullable=False),
        sa.Column("online", sa.LargeBinary, nullable=False),
    )


def _sources() -> None:
    """What brokers are, how far they were read, and what came from them."""
    op.create_table(
        "sources",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("population", sa.String(100), nullable=False),
        sa.Column("standing", sa.String(20), nullable=False),
        sa.Column("since", sa.Float(53), nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("num_broken", sa.BigInteger, nullable=False),
        sa.Column("counts", sa.Text, nullable=False),
    )
    op.create_table(
        "offsets",
        sa.Column("source", sa.String(64), primary_key=True),
        sa.Column("topic", sa.String(249), primary_key=True),
        sa.Column("partition", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("next", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "tallies",
        sa.Column("population", sa.String(100), primary_key=True),
        sa.Column("device", sa.String(100), primary_key=True),
        sa.Column("slot", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("package", sa.String(64), primary_key=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "dead_letters",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("source", sa.String(64), nullable=False, index=True),
        sa.Column("population", sa.String(100), nullable=False),
        sa.Column("device", sa.String(100), nullable=False),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
