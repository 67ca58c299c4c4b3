"""Storing a run in a repository of a schema before 0006 through the tables of today."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path


@contextmanager
def failures_kept(path: Path) -> Iterator[None]:
    """Give the runs of the repository the column that 0006 added, for as long as this is open."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE runs ADD COLUMN failure TEXT")
        yield
        connection.execute("ALTER TABLE runs DROP COLUMN failure")
