"""The state folder beside the repository: transcripts and locks of runs, and checkpoints of those that have ended."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from repo_store.retention.unneeded import Question, Stays
from schedagent.core.errors import UsageError
from schedagent.core.retention.folder import Entry, entries, remove
from schedagent.core.retention.limits import IN_USE_S
from schedagent.core.retention.lock import locked
from schedagent.core.settings import Settings
from schedagent.run.lifecycle import CHECKPOINTS, usable

_RUN = r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}"
_SUFFIX = ".transcript.jsonl"
_TRANSCRIPT = re.compile(r".+\.transcript\.jsonl")
_OURS = re.compile(_RUN)
_LOCK = re.compile(rf"({_RUN}|request-[0-9]+)\.lock")


def runs_folder(settings: Settings) -> Path:
    """Return the folder of transcripts and locks."""
    return settings.state_dir / "runs"


def old_transcripts(
    settings: Settings, question: Question, *, known: Collection[str], lost: Collection[str]
) -> Iterator[Entry]:
    """Yield the transcripts of runs that are lost, and old ones of runs that are unknown.

    Args:
        known: runs in the repository.
        lost: those of them whose transcripts go.
    """
    for entry in entries(runs_folder(settings), _TRANSCRIPT):
        run_id = entry.name.removesuffix(_SUFFIX)
        orphan = run_id not in known and _OURS.fullmatch(run_id) and entry.used_at < question.before
        if run_id in lost or orphan:
            yield Entry(str(runs_folder(settings) / entry.name), entry.bytes, entry.used_at)


def old_locks(settings: Settings, question: Question) -> Iterator[Entry]:
    """Yield the locks that were made long ago; who needs one makes it again."""
    before = question.now - max(question.older_than_s, IN_USE_S)
    for entry in entries(runs_folder(settings), _LOCK):
        if entry.used_at < before:
            yield Entry(str(runs_folder(settings) / entry.name), entry.bytes, entry.used_at)


def remove_locks(settings: Settings, paths: Collection[str]) -> Iterator[str]:
    """Remove locks of runs that nobody holds, and yield each that is gone."""
    for path in map(Path, sorted(paths)):
        if path.parent != runs_folder(settings):
            continue
        try:
            with locked(path, wait=False):
                if remove(path.parent, path.name):
                    yield str(path)
        except UsageError:  # a process works on its run
            continue


def remove_transcripts(
    settings: Settings, paths: Collection[str], known: Collection[str], stays: Mapping[str, Stays]
) -> Iterator[str]:
    """Remove transcripts of runs that are gone, or of which only the figures are needed; yield each that is gone."""
    for path in map(Path, sorted(paths)):
        run_id = path.name.removesuffix(_SUFFIX)
        if (run_id not in known or stays.get(run_id) is Stays.LESSON) and remove(runs_folder(settings), path.name):
            yield str(path)


def old_checkpoints(settings: Settings, *, unfinished: Collection[str]) -> Iterator[Entry]:
    """Yield what is left of runs that have ended, or are gone; they are as old as the file.

    Args:
        unfinished: runs that stay and have not ended.
    """
    path = settings.state_dir / CHECKPOINTS
    if not path.is_file() or path.is_symlink():
        return
    used_at = path.stat().st_mtime
    with usable(path), closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as database:
        begun = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'writes'").fetchone()
        rows = database.execute(_SIZES).fetchall() if begun else []
    for thread, size in sorted(rows):
        if thread not in unfinished:
            yield Entry(thread, int(size), used_at)


# LangGraph's own tables; the test of this module writes them with LangGraph.
_SIZES = """
SELECT thread_id, sum(size) FROM (
    SELECT thread_id, coalesce(length(checkpoint), 0) + coalesce(length(metadata), 0) AS size FROM checkpoints
    UNION ALL SELECT thread_id, coalesce(length(value), 0) FROM writes
) GROUP BY thread_id
"""
_FORGET = ("DELETE FROM checkpoints WHERE thread_id = ?", "DELETE FROM writes WHERE thread_id = ?")


def forget_checkpoints(settings: Settings, threads: Collection[str]) -> None:
    """Delete what is left of runs, and make the file smaller unless another run uses it."""
    path = settings.state_dir / CHECKPOINTS
    with usable(path), closing(sqlite3.connect(path, isolation_level=None, timeout=10.0)) as database:
        database.execute("BEGIN IMMEDIATE")
        for statement in _FORGET:
            database.executemany(statement, [(thread,) for thread in sorted(threads)])
        database.execute("COMMIT")
        try:
            database.execute("VACUUM")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError:  # a run works: the room is used again
            return
