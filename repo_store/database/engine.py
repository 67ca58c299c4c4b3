"""Opening the database: connections, schema, and the one place where database errors become RepositoryError."""

from __future__ import annotations

import os
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from repo_store.database.tables import SCHEMA
from schedagent.core.errors import RepositoryError
from schedagent.core.settings import private_file

BUSY_TIMEOUT_MS = 10_000
_PRAGMAS = (
    f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}",  # first: the next ones may have to wait too
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # one sync per block of runs that took seconds: a power cut loses nothing either
    "PRAGMA foreign_keys = ON",
)


def open_engine(url_or_path: str | Path) -> Engine:
    """Open a database, creating the file or bringing its schema up to date if need be.

    Args:
        url_or_path: an SQLAlchemy URL, or the path of an SQLite file.

    Raises:
        RepositoryError: it cannot be opened, is damaged, or was written by a newer schedagent.
    """
    if isinstance(url_or_path, str) and "://" in url_or_path:
        url = make_url(url_or_path)
    else:
        url = URL.create("sqlite", database=str(url_or_path))
    place = place_of(url)
    if url.get_backend_name() == "sqlite":
        _prepare_file(Path(url.database or ""))
    with mapped_errors(place):
        engine = create_engine(url)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _configure)
            event.listen(engine, "begin", begin)
        try:
            _migrate(engine, place)
        except BaseException:
            engine.dispose()
            raise
    return engine


class Database:
    """An open database: sessions that read, and sessions that write in one transaction.

    Args:
        engine: as `open_engine` gives it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.place = place_of(engine.url)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with mapped_errors(self.place), Session(self._engine) as session:
            yield session

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with mapped_errors(self.place), Session(for_writing(self._engine)) as session, session.begin():
            yield session


def for_writing(engine: Engine) -> Engine:
    """Return the same engine, whose transactions take SQLite's write lock at once.

    A transaction that reads first and writes later cannot wait for another writer: SQLite ends it with "locked".
    """
    return engine.execution_options(begin_immediate=True)


def place_of(url: URL) -> str:
    """Name the database for messages: the path of an SQLite file, else the URL without its password."""
    return url.database or "" if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)


@contextmanager
def mapped_errors(place: str) -> Iterator[None]:
    """Turn every database error into a RepositoryError that says what to do."""
    try:
        yield
    except DBAPIError as error:
        raise _mapped(place, error.orig or error) from error
    except (SQLAlchemyError, sqlite3.Error, UnicodeEncodeError, ModuleNotFoundError) as error:
        raise _mapped(place, error) from error


def _mapped(place: str, error: BaseException) -> RepositoryError:
    name: str = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return RepositoryError(f"the repository {place} is damaged: {error}", _move_away(place))
    if name.startswith("SQLITE_FULL"):
        return RepositoryError(
            f"the disk with the repository {place} is full",
            "make room on it and resume the run: everything stored before is kept",
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return RepositoryError(
            f"the repository {place} cannot be written: {error}", "check the permissions of its folder"
        )
    if name.startswith("SQLITE_BUSY"):
        return RepositoryError(
            f"the repository {place} was locked by another process for {BUSY_TIMEOUT_MS // 1000} s",
            f"see which one: fuser {shlex.quote(place)}",
        )
    if name.startswith("SQLITE_IOERR"):
        return RepositoryError(
            f"reading or writing the repository {place} failed: {error}",
            "check the disk and its quota, then resume the run",
        )
    other_tables = any(words in str(error) for words in ("no such table", "no such column", "has no column named"))
    hint = "if a newer schedagent has been installed since this one was started, restart it" if other_tables else ""
    return RepositoryError(f"the repository {place} cannot be used: {error}", hint)


def _move_away(place: str) -> str:
    moves = [f"mv {shlex.quote(place)} {shlex.quote(place + '.broken')}"]
    if Path(place + "-wal").exists():
        moves.append(f"mv {shlex.quote(place + '-wal')} {shlex.quote(place + '.broken-wal')}")
    return f"move it away, it is never deleted; the next run starts an empty one: {' && '.join(moves)}"


def _prepare_file(path: Path) -> None:
    """Create the file for its owner only, because it holds commands and what they printed; SQLite keeps the mode."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        private_file(path)
    except OSError as error:
        raise RepositoryError(
            f"the repository {path} cannot be written: {error.strerror}", "set another folder, or its permissions"
        ) from error


def _configure(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    # sqlite3 must not begin transactions by itself: it would leave statements that change the schema outside of them.
    connection.isolation_level = None
    for pragma in _PRAGMAS:
        connection.execute(pragma)


def begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("begin_immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _migrate(engine: Engine, place: str) -> None:
    """Bring the schema up to date in one transaction; of two processes at once, the second finds the work done."""
    with engine.connect() as connection:
        if revision_of(connection, place) == SCHEMA:
            return
    with for_writing(engine).begin() as connection:
        if revision_of(connection, place) != SCHEMA:
            _upgrade(connection)


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    # The option goes through a ConfigParser, to which % is special.
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, SCHEMA)


def revision_of(connection: Connection, place: str) -> str:
    """Return the revision of the schema in the database, empty for an empty database."""
    tables = inspect(connection).get_table_names()
    if not tables:
        return ""
    if "alembic_version" not in tables:
        raise RepositoryError(
            f"{place} is a database of another program: it has the table {tables[0]}",
            "name another file for the repository",
        )
    revision = str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")
    if revision > SCHEMA:
        raise RepositoryError(
            f"the repository {place} was written by a newer schedagent (schema {revision}, known here: {SCHEMA})",
            "install the newer schedagent again, or name another file",
        )
    return revision
