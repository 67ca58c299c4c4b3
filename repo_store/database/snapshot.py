"""Looking into a repository that somebody else writes, or nobody, without changing anything about it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.pool import NullPool

from repo_store.database.engine import begin, mapped_errors, revision_of
from repo_store.database.tables import SCHEMA
from schedagent.core.errors import RepositoryError

_PATIENCE_S = 2.0


@contextmanager
def read_only(path: Path) -> Iterator[Connection]:
    """Open an existing SQLite file to look at it: one moment of it, and not a byte of its folder is changed if it may
    not be.

    Raises:
        RepositoryError: it cannot be read, its schema is not the present one, or it was written to in a way that may
            have been seen half.
    """
    place, before = str(path), _stamp(path)
    still = [False]

    def connect() -> sqlite3.Connection:
        connection, still[0] = _connect_reading(path)
        return connection

    with mapped_errors(place):
        engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
        event.listen(engine, "begin", begin)
        with engine.connect() as connection:
            revision = revision_of(connection, place)
            if revision != SCHEMA:
                raise RepositoryError(
                    f"the repository {place} has schema {revision or 'none'}, this schedagent reads {SCHEMA}",
                    "the next run brings it up to date",
                )
            yield connection
    if still[0] and _stamp(path) != before:
        raise RepositoryError(f"the repository {place} was written to while it was read", "read it again")


def _connect_reading(path: Path) -> tuple[sqlite3.Connection, bool]:
    """Open for reading; True: as a file that nobody writes, which it must have been in the end.

    In a folder that this process may not write, SQLite cannot make the shared memory through which readers and writers
    agree (https://sqlite.org/wal.html#readonly). It is there as long as a writer is; without one the file is at rest.
    """
    uri = f"file:{quote(str(path))}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=_PATIENCE_S, isolation_level=None)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        return connection, False
    except sqlite3.OperationalError as error:
        connection.close()
        refused = error.sqlite_errorname.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY"))
        if not refused or _stamp(path)[-1]:
            raise
    return sqlite3.connect(f"{uri}&immutable=1", uri=True, isolation_level=None), True


def _stamp(path: Path) -> tuple[int, int, bool]:
    """What changes when somebody writes."""
    try:
        status = path.stat()
    except OSError as error:
        raise RepositoryError(f"the repository {path} cannot be read: {error.strerror}") from None
    return status.st_mtime_ns, status.st_size, path.with_name(f"{path.name}-wal").exists()
