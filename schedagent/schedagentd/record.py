"""The record of deployments: one SQLite file, written before and after whatever is done to the kernel.

Each change is one durable transaction together with its event. A file that is damaged is moved aside and
kept; since it knew which tokens were used, no token that was valid before that moment is accepted afterwards. A file of
an earlier version is brought up to date (`migrations`); one that a newer program wrote is refused and left as it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from schedagent.core.deployment import Deployment, End, Event, Phase, Stage
from schedagent.core.errors import RecordError, SetupError
from schedagent.core.retention.limits import RETENTION
from schedagent.core.terminal.foreign import one_line
from schedagent.core.token import CLOCK_SKEW_S, DeploymentToken
from schedagent.schedagentd.migrations.versions import upgrade, version_of

FILE = "record.sqlite"
KEPT_EVENTS = RETENTION["events"].count
KEPT_DEPLOYMENTS = RETENTION["deployments"].count
KEPT_TRIPS = RETENTION["trips"].count
KEPT_TRIPS_DAYS = RETENTION["trips"].days
KNOWN_GOOD = 3
"""So many earlier deployments are kept with their objects, one behind the other: each is restored when the one that
replaced it has to go."""
KEPT_TRIALS = RETENTION["trials"].count
KEPT_DAMAGED = RETENTION["damaged"].count

LONGEST_DETAIL = 4000
"""Characters of an event's detail, which is one printable line."""

_TABLES = {"deployments", "objects", "events", "nonces", "tripped", "moments", "totals"}
_LAST_SEEN = "last seen"
_TOKENS_FROM = "tokens from"
_ENDED, _EVENT = "ended", "event"
"""What is counted in the table totals."""


@dataclass(frozen=True)
class Trip:
    """That the circuit breaker ended an object which is therefore not loaded again for a while.

    Args:
        at, until: Unix times.
    """

    digest: str
    cause: End
    at: float

    @property
    def until(self) -> float:
        return self.at + KEPT_TRIPS_DAYS * 86400

    def counts(self, now: float) -> bool:
        """Whether it is not forgotten yet; nor is it from a day that a clock set wrong made up."""
        return abs(now - self.at) < self.until - self.at

    def __str__(self) -> str:
        return f"{self.cause}, on {time.strftime('%Y-%m-%d', time.gmtime(self.at))}"


class Record:
    """The open record; use `open`."""

    def __init__(self, database: sqlite3.Connection, lock: int, moved_aside: Path | None = None) -> None:
        self._database = database
        self._lock = lock
        self.moved_aside = moved_aside
        """Where the damaged file is that was found instead of a record; None if all was well."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the record in a folder, which this process then has for itself.

        Raises:
            SetupError: another schedagentd has it.
            RecordError: it cannot be opened or made, or a newer schedagentd wrote it.
        """
        lock = _locked(folder)
        path, moved = folder / FILE, None
        try:
            try:
                database = _connect(path)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                moved = _move_aside(path)
                database = _connect(path)
                now = time.time()
                _set_moment(database, _TOKENS_FROM, now + CLOCK_SKEW_S)  # a token may be used that early
                _set_moment(database, _LAST_SEEN, now)
        except RecordError:
            os.close(lock)
            raise
        except (sqlite3.Error, OSError) as error:
            os.close(lock)
            raise _unusable(error) from None
        return cls(database, lock, moved)

    def close(self) -> None:
        """Close it and let another process have it; idempotent."""
        self._database.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def begin(
        self, deployment: Deployment, content: bytes, token: DeploymentToken | None, kind: str, detail: str
    ) -> Deployment:
        """Store a new deployment and its object, and mark its token as used; return it with its number.

        Args:
            deployment: its number is not used yet.
            token: None if it was used before (what runs again was deployed with it).
            kind, detail: of its event.
        """
        with self._change() as database:
            cursor = database.execute(
                "INSERT INTO deployments (phase, digest, body) VALUES (?, ?, '{}')",
                (deployment.phase, deployment.order.digest),
            )
            numbered = replace(deployment, number=int(cursor.lastrowid or 0))
            database.execute("INSERT OR IGNORE INTO objects VALUES (?, ?)", (deployment.order.digest, content))
            if token is not None:
                self._use(token)
            self._store(numbered, kind, detail)
        return numbered

    def save(
        self, deployment: Deployment, kind: str = "", detail: str = "", token: DeploymentToken | None = None
    ) -> Deployment:
        """Store what a deployment is now, its event (none without a kind), and a newly used token."""
        with self._change():
            if token is not None:
                self._use(token)
            self._store(deployment, kind, detail)
            if deployment.phase is Phase.ENDED:
                self._prune(deployment)
        return deployment

    def note(self, kind: str, detail: str, deployment: int = 0) -> None:
        """Store an event."""
        with self._change():
            self._event(kind, deployment, detail)

    def get(self, number: int) -> Deployment | None:
        """Return a deployment, None if there is none of that number."""
        return next(self._deployments("WHERE number = ?", number), None)

    def content(self, digest: str) -> bytes | None:
        """Return an object's bytes; None if they are not kept any more."""
        rows = self._ask("SELECT content FROM objects WHERE digest = ?", digest)
        return bytes(rows[0][0]) if rows else None

    def unfinished(self) -> tuple[Deployment, ...]:
        """Return the deployments that have not ended, oldest first."""
        return tuple(self._deployments("WHERE phase != ? ORDER BY number", Phase.ENDED))

    def history(self, limit: int) -> tuple[Deployment, ...]:
        """Return the newest deployments, newest first."""
        return tuple(self._deployments("ORDER BY number DESC LIMIT ?", limit))

    @property
    def recorded(self) -> int:
        """How many deployments are kept."""
        return int(self._ask("SELECT count(*) FROM deployments")[0][0])

    def events(self, after: int, limit: int) -> tuple[Event, ...]:
        """Return the events after number `after`, oldest first."""
        rows = self._ask("SELECT * FROM events WHERE number > ? ORDER BY number LIMIT ?", after, limit)
        return tuple(Event(*row) for row in rows)

    @property
    def last_event(self) -> int:
        """Number of the newest event; 0 if there is none."""
        return int(self._ask("SELECT coalesce(max(number), 0) FROM events")[0][0])

    def deaths_under(self, number: int) -> int:
        """Return how often schedagentd ended while this deployment was pinned, without leaving it in order."""
        kinds = [row[0] for row in self._ask("SELECT kind FROM events WHERE deployment = ?", number)]
        return kinds.count("adopted") + 1 - kinds.count("left")

    def known_good(self, deployment: Deployment) -> tuple[Deployment, ...]:
        """Return what may be restored after a deployment, newest first: each one is that which the last replaced."""
        behind: list[Deployment] = []
        number = deployment.previous
        while len(behind) < KNOWN_GOOD and (before := self.get(number)) is not None:
            behind.append(before)
            number = before.previous
        return tuple(behind)

    def trip_of(self, digest: str, now: float) -> Trip | None:
        """Return why and when the circuit breaker last ended this object; None if that does not count (any more).

        Args:
            now: Unix time.
        """
        return next((trip for trip in self.trips(now) if trip.digest == digest), None)

    def trips(self, now: float) -> tuple[Trip, ...]:
        """Return every trip that counts, newest first."""
        rows = self._ask("SELECT digest, cause, at FROM tripped ORDER BY at DESC")
        trips = (Trip(digest, End(cause), at) for digest, cause, at in rows)
        return tuple(trip for trip in trips if trip.counts(now))

    def totals(self) -> dict[str, Any]:
        """Return how many deployments ever ended, by stage and end, and how many events there were, by kind.

        Counted when they happen, not when asked: the tables themselves are pruned.
        """
        rows = self._ask("SELECT what, stage, name, count FROM totals ORDER BY what, stage, name")
        return {
            "ended": [{"stage": row[1], "end": row[2], "count": row[3]} for row in rows if row[0] == _ENDED],
            "events": {row[2]: row[3] for row in rows if row[0] == _EVENT},
        }

    @property
    def used_nonces(self) -> frozenset[str]:
        """Nonces of used tokens that have not long expired."""
        return frozenset(row[0] for row in self._ask("SELECT nonce FROM nonces"))

    @property
    def last_seen(self) -> float:
        """The latest Unix time that was seen, 0 if none was."""
        return self._moment(_LAST_SEEN)

    @property
    def tokens_from(self) -> float:
        """Unix time before which no token may have begun to be valid, because the record of used ones was lost then."""
        return self._moment(_TOKENS_FROM)

    def saw(self, unix_s: float) -> None:
        """Store how late it is, if it is later than was ever stored."""
        if unix_s > self.last_seen:
            with self._change() as database:
                _set_moment(database, _LAST_SEEN, unix_s)

    def _use(self, token: DeploymentToken) -> None:
        now = max(time.time(), self.last_seen)
        self._database.execute("INSERT INTO nonces VALUES (?, ?)", (token.nonce, token.expires_at))
        _set_moment(self._database, _LAST_SEEN, now)
        # A clock may be set back by the skew that is tolerated, and must not revive one.
        self._database.execute("DELETE FROM nonces WHERE expires_at < ?", (now - CLOCK_SKEW_S,))

    def _store(self, deployment: Deployment, kind: str, detail: str) -> None:
        ended = deployment.phase is Phase.ENDED and deployment.end is not None
        if ended and not self._ask("SELECT 1 FROM deployments WHERE number = ? AND phase = 'ended'", deployment.number):
            self._count(_ENDED, deployment.stage, str(deployment.end))
        self._database.execute(
            "UPDATE deployments SET phase = ?, body = ? WHERE number = ?",
            (deployment.phase, json.dumps(deployment.to_json()), deployment.number),
        )
        if deployment.phase is Phase.ENDED and deployment.end and deployment.end.counts:
            row = (deployment.order.digest, deployment.end, deployment.ended_at)
            self._database.execute("INSERT OR REPLACE INTO tripped VALUES (?, ?, ?)", row)
        if kind:
            self._event(kind, deployment.number, detail)

    def _event(self, kind: str, deployment: int, detail: str) -> None:
        self._database.execute(
            "INSERT INTO events (at, kind, deployment, detail) VALUES (?, ?, ?, ?)",
            (time.time(), kind, deployment, one_line(detail, LONGEST_DETAIL)),
        )
        self._count(_EVENT, "", kind)

    def _count(self, what: str, stage: str, name: str) -> None:
        self._database.execute(
            "INSERT INTO totals VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1", (what, stage, name)
        )

    def _prune(self, ended: Deployment) -> None:
        """Keep the file small: forget what is old, but for what runs, waits, or may be restored after one of these.

        Args:
            ended: what has just ended: the restoring that follows needs what is behind it. Its number says nothing:
                what waits, was dropped meanwhile or was restored has a higher one.
        """
        database = self._database
        unfinished = self.unfinished()
        behind = [good for deployment in (*unfinished, ended) for good in self.known_good(deployment)]
        wanted = {deployment.order.digest for deployment in (*unfinished, *behind)}
        numbers = json.dumps([deployment.number for deployment in behind])
        database.execute("DELETE FROM events WHERE number <= (SELECT max(number) FROM events) - ?", (KEPT_EVENTS,))
        for trials, most in (("=", KEPT_TRIALS), ("!=", KEPT_DEPLOYMENTS)):
            some = f"SELECT number FROM deployments WHERE json_extract(body, '$.stage') {trials} ?"
            database.execute(
                f"DELETE FROM deployments WHERE phase = ? AND number IN ({some} ORDER BY number DESC LIMIT -1 OFFSET ?)"
                " AND number NOT IN (SELECT value FROM json_each(?))",
                (Phase.ENDED, Stage.TRIAL, most, numbers),
            )
        database.execute(
            "DELETE FROM tripped WHERE digest NOT IN (SELECT digest FROM tripped ORDER BY at DESC, digest LIMIT ?)",
            (KEPT_TRIPS,),
        )
        kept = [row[0] for row in self._ask("SELECT digest FROM objects")]
        database.executemany(
            "DELETE FROM objects WHERE digest = ?", [(digest,) for digest in kept if digest not in wanted]
        )

    def _deployments(self, condition: str, *values: object) -> Iterator[Deployment]:
        for (body,) in self._ask(f"SELECT body FROM deployments {condition}", *values):
            try:
                yield Deployment.from_json(json.loads(body))
            except (ValueError, TypeError, KeyError) as error:
                raise RecordError(f"the record holds a deployment that cannot be read: {error}", _REPAIR) from None

    def _moment(self, name: str) -> float:
        rows = self._ask("SELECT unix_s FROM moments WHERE name = ?", name)
        return float(rows[0][0]) if rows else 0.0

    def _ask(self, statement: str, *values: object) -> list[Any]:
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise _unusable(error) from None

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on the disk when it returns."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            yield self._database
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise _unusable(error) from None
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):  # SQLite has rolled back already, or will when it opens the file again
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")


_REPAIR = "restart schedagentd: it moves a damaged record aside and ends what it cannot account for"


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file, prove that it is sound, and bring it up to date.

    The version comes first: what stands in the file of a newer program is not for this one to judge.
    """
    database = sqlite3.connect(path, isolation_level=None, timeout=2.0)
    try:
        version_of(database)
        for pragma in (
            "locking_mode = EXCLUSIVE",
            "journal_mode = DELETE",
            "synchronous = EXTRA",
            "trusted_schema = OFF",
        ):
            database.execute(f"PRAGMA {pragma}")
        if [row[0] for row in database.execute("PRAGMA quick_check(1)")] != ["ok"]:
            raise sqlite3.DatabaseError("database disk image is malformed")
        upgrade(database)
        missing = _TABLES - {row[0] for row in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if missing:
            raise sqlite3.DatabaseError(f"malformed: there is no table {', '.join(sorted(missing))}")
        for (body,) in database.execute("SELECT body FROM deployments WHERE phase != ?", (Phase.ENDED,)):
            try:
                Deployment.from_json(json.loads(body))
            except (ValueError, TypeError, KeyError) as error:
                raise sqlite3.DatabaseError(f"malformed deployment: {error}") from None
    except BaseException:
        database.close()
        raise
    return database


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is no sound record, and not just out of reach (permissions, disk)."""
    name = getattr(error, "sqlite_errorname", "")
    return name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or "malformed" in str(error)


def _move_aside(path: Path) -> Path:
    """Keep a damaged file under another name, for whoever wants to examine it."""
    place = path.with_name(f"{path.name}.damaged-{int(time.time())}")
    path.rename(place)
    journal = path.with_name(f"{path.name}-journal")
    if journal.exists():
        journal.rename(place.with_name(f"{place.name}-journal"))
    for old in sorted(path.parent.glob(f"{path.name}.damaged-[0-9]*[0-9]"), reverse=True)[KEPT_DAMAGED:]:
        for file in (old, old.with_name(f"{old.name}-journal")):
            file.unlink(missing_ok=True)
    return place


def _set_moment(database: sqlite3.Connection, name: str, unix_s: float) -> None:
    database.execute("INSERT OR REPLACE INTO moments VALUES (?, ?)", (name, unix_s))


def _locked(folder: Path) -> int:
    """Take the folder for this process; the kernel gives it back however the process ends."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RecordError(f"the folder of the record {folder} cannot be used: {error.strerror}") from None
    status = os.fstat(lock)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        os.close(lock)
        raise RecordError(
            f"others than user id {os.geteuid()} may write to the folder of the record {folder}", f"chmod 700 {folder}"
        )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise SetupError(
            f"another schedagentd works with {folder}", "there can be one only: systemctl status schedagentd"
        ) from None
    return lock


def _unusable(error: sqlite3.Error | OSError) -> RecordError:
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    hint = "free some space" if name == "SQLITE_FULL" else "check the disk, its space and the permissions"
    return RecordError(f"the record of deployments cannot be used: {error} ({name})", hint)
