"""Names in the repository for who needs nothing else, at once: a shell that completes one cannot wait for SQLAlchemy.

Opens an SQLite file for reading only, and finds nothing in one that is missing, damaged or of another version.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

_MOST = 200
_PATIENCE_S = 0.2


def run_ids(path: Path, statuses: Collection[str]) -> list[str]:
    """Return the ids of the latest runs that stand in one of these ways, newest first."""
    rows = _rows(path, f"SELECT id, status FROM runs ORDER BY started_at DESC LIMIT {_MOST}")
    return [run_id for run_id, status in rows if status in statuses]


def derived_policies(path: Path) -> list[str]:
    """Return the names of the policies that runs have derived."""
    return [name for (name,) in _rows(path, f"SELECT name FROM derived_policies ORDER BY name LIMIT {_MOST}")]


def _rows(path: Path, query: str) -> list[tuple[str, ...]]:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE_S)) as database:
            return database.execute(query).fetchall()
    except sqlite3.Error:
        return []
