"""The whole program as processes of its own: what they stored so far, and what they left behind."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.no_verdict import no_verdict

PROGRAM = [sys.executable, "-m", "schedagent"]
Measured = tuple[int, str, str]
"""Block, arm and start of a sample."""


class EndedEarly(AssertionError):
    """A run was over before it had measured what it was to measure; the message holds all that it printed."""


def query(database: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(database) as connection:
        return list(connection.execute(sql))


def samples(database: Path) -> list[Measured]:
    return query(database, "select block, arm, started_at from samples order by block, position")


def wait_for_blocks(database: Path, count: int, process: subprocess.Popen[Any], limit_s: float = 300) -> list[Measured]:
    """Wait until a run has stored `count` blocks, and return its samples; kill it if that takes longer.

    Raises:
        EndedEarly: it ended before.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EndedEarly(f"the run ended early, with {process.returncode}: {process.communicate()}")
        try:
            found = samples(database)
        except sqlite3.OperationalError:  # not created yet
            found = []
        if len({block for block, _arm, _started in found}) >= count:
            return found
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"no {count} blocks within {limit_s:g} s")


@contextmanager
def begun(argv: list[str], environment: Mapping[str, str], limit_s: float = 300) -> Iterator[subprocess.Popen[str]]:
    """Start a run, and wait until it has stored a block.

    A busy host leaves a gate of its candidates open now and then: it is started once more then, and passes are kept.
    """
    database = Path(environment["SCHEDAGENT_STATE"], "repository.sqlite")
    for last in (False, True):
        with subprocess.Popen(
            argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                wait_for_blocks(database, 1, process, limit_s)
            except EndedEarly as early:
                if last:
                    no_verdict(str(early))
                continue
            yield process
            return


def newest_run(database: Path) -> str:
    """Its id."""
    [(run,)] = query(database, "select id from runs order by rowid desc limit 1")
    return str(run)


def qemu_of(parent: int) -> list[str]:
    """QEMU processes that outlived their parent for two seconds."""
    time.sleep(2)
    listing = subprocess.run(["ps", "-eo", "ppid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if line.split()[0] == str(parent) and "qemu-system" in line]
