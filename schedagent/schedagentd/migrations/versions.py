"""Brings a record up to date, in one transaction; what a newer program wrote is refused before anything is changed."""

from __future__ import annotations

import sqlite3

from schedagent.core.errors import RecordError
from schedagent.schedagentd.migrations import (
    v0001_first_record,
    v0002_totals,
    v0003_trees_and_metrics,
    v0004_known_good,
    v0005_pulses,
)

_UPGRADES = (
    v0001_first_record.upgrade,
    v0002_totals.upgrade,
    v0003_trees_and_metrics.upgrade,
    v0004_known_good.upgrade,
    v0005_pulses.upgrade,
)
"""The first makes version 1 of an empty file; the versions up to 3 were not numbered when they were written."""

SCHEMA = len(_UPGRADES)
"""The version that this program reads and writes."""


def upgrade(database: sqlite3.Connection) -> None:
    """Bring a sound record of any earlier version, or an empty file, to `SCHEMA`: all of it, or nothing.

    Args:
        database: without a transaction, and not used yet: the first thing done to it is to read its version.

    Raises:
        RecordError: a newer schedagentd wrote it; it was not changed.
        sqlite3.DatabaseError: it is damaged, or cannot be written.
    """
    version = version_of(database)
    if version == SCHEMA:
        return
    database.execute("BEGIN EXCLUSIVE")
    try:
        for number in range(version, SCHEMA):
            _UPGRADES[number](database)
        database.execute(f"PRAGMA user_version = {SCHEMA}")  # part of the transaction, like the rest
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def version_of(database: sqlite3.Connection) -> int:
    """Return a record's version, 0 if it is empty or was written before versions were numbered.

    Raises:
        RecordError: a newer schedagentd wrote it.
        sqlite3.DatabaseError: it is no record.
    """
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA:
        raise RecordError(
            f"the record of deployments was written by a newer schedagentd (version {version}, known here: {SCHEMA})",
            "install the newer schedagent again; the record was not touched",
        )
    if version < 0:
        raise sqlite3.DatabaseError(f"malformed version {version}")
    return version
