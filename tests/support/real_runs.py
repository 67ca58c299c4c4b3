"""The whole program as processes of its own: what they stored so far, and what they left behind."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROGRAM = [sys.executable, "-m", "schedagent"]
Measured = tuple[int, str, str]
"""Block, arm and start of a sample."""


def query(database: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(database) as connection:
        return list(connection.execute(sql))


def samples(database: Path) -> list[Measured]:
    return query(database, "select block, arm, started_at from samples order by block, position")


def wait_for_blocks(database: Path, count: int, process: subprocess.Popen[Any], limit_s: float = 300) -> list[Measured]:
    """Wait until a run has stored `count` blocks, and return its samples; kill it if that takes longer.

    Raises:
        AssertionError: with what the process printed, if it ended before.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the run ended early, with {process.returncode}: {process.communicate()}")
        try:
            found = samples(database)
        except sqlite3.OperationalError:  # not created yet
            found = []
        if len({block for block, _arm, _started in found}) >= count:
            return found
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"no {count} blocks within {limit_s:g} s")


def qemu_of(parent: int) -> list[str]:
    """QEMU processes that outlived their parent for two seconds."""
    time.sleep(2)
    listing = subprocess.run(["ps", "-eo", "ppid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if line.split()[0] == str(parent) and "qemu-system" in line]
