"""Runs migrations inside the transaction that repo_store.database.engine has opened."""

from __future__ import annotations

from alembic import context

from repo_store.database.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
