"""The first record: deployments, their objects, events, used nonces, trips and moments."""

from __future__ import annotations

import sqlite3

_TABLES = (
    "deployments (number INTEGER PRIMARY KEY AUTOINCREMENT, phase TEXT NOT NULL, digest TEXT NOT NULL,"
    " body TEXT NOT NULL)",
    "objects (digest TEXT PRIMARY KEY, content BLOB NOT NULL)",
    "events (number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL,"
    " deployment INTEGER NOT NULL, detail TEXT NOT NULL)",
    "nonces (nonce TEXT PRIMARY KEY, expires_at INTEGER NOT NULL)",
    "tripped (digest TEXT PRIMARY KEY, cause TEXT NOT NULL, at REAL NOT NULL)",
    "moments (name TEXT PRIMARY KEY, unix_s REAL NOT NULL)",
)


def upgrade(database: sqlite3.Connection) -> None:
    """Make the tables; they may be there, because a record had no version at first."""
    for table in _TABLES:
        database.execute(f"CREATE TABLE IF NOT EXISTS {table} STRICT")
