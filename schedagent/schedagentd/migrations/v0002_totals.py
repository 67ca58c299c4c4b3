"""What is counted when it happens, because the tables themselves are pruned."""

from __future__ import annotations

import sqlite3


def upgrade(database: sqlite3.Connection) -> None:
    """Make the table, empty: what happened before was not counted, and nothing is made up."""
    database.execute(
        "CREATE TABLE IF NOT EXISTS totals (what TEXT NOT NULL, stage TEXT NOT NULL, name TEXT NOT NULL,"
        " count INTEGER NOT NULL, PRIMARY KEY (what, stage, name)) STRICT"
    )
