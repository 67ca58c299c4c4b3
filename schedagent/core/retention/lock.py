"""Locks whose files may be removed: by who holds one, and by nobody else."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from schedagent.core.errors import UsageError


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[IO[str]]:
    """Hold the lock of a file, which is created for its owner only; the kernel releases it however this process ends.

    A holder may remove the file. So a lock counts only if the file still has its name when it is held: otherwise two
    processes could hold locks of two files of one name.

    Args:
        wait: wait for whoever holds it.

    Raises:
        UsageError: another process holds it.
        OSError: the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise UsageError(f"another process holds {path}", "wait for it, or stop it first") from None
            if _is_at(file, path):
                yield file
                return


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False
