"""Runs migrations on the connection that `fedretrain.server.database.migrate` hands over."""

from __future__ import annotations

from alembic import context

from fedretrain.server.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
