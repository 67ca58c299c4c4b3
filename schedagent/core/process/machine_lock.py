"""The lab's lock: on one machine one process measures at a time, whoever's it is, and those who wait see for whom.

The lock is flock(2) on a file that every user can open, so it ends with its holder, however that ends. The file's
content only says who holds it: it is read by those who wait, while the lock is held, and believed by nobody else.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import pwd
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from schedagent.core.errors import SetupError

log = logging.getLogger(__name__)

FOLDERS = (Path("/run/lock"), Path("/dev/shm"), Path("/tmp"))
"""Where the file may lie: the first of them that every user may write to, so that all users choose the same.

/run/lock is root's alone on some distributions, where our package puts the file there; a systemd unit has a /tmp of its
own, but shares /dev/shm.
"""
FILE_NAME = "schedagent-lab.lock"
REPEAT_S = 30.0

_SHARED = stat.S_ISVTX | stat.S_IWOTH
_RECORD_BYTES = 1024
_LONGEST_TASK = 80


class MachineLock:
    """The lock, as this process uses it.

    Args:
        folders: where its file may lie.

    Attributes:
        task: what this process measures for, as others read it while they wait.
        on_wait: called while this process waits with a line for the user, and at the end with an empty one and the
            seconds that it took.
        waited_s: how long this process has waited in all.
    """

    def __init__(self, folders: Sequence[Path] = FOLDERS) -> None:
        self._folders = folders
        self.task = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
        self.on_wait: Callable[[str, float], None] = log_wait
        self.waited_s = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait until no other process measures on this machine.

        Raises:
            SetupError: the file cannot be opened.
        """
        file = self._locked()
        try:
            _sign(file, self.task)
            yield
        finally:
            with suppress(OSError):
                os.ftruncate(file, 0)
            os.close(file)

    def note_wait(self, line: str, seconds: float) -> None:
        """Show the user that this process waits, itself or through another one, and count the seconds."""
        self.waited_s += seconds
        self.on_wait(line, seconds)

    def _locked(self) -> int:
        """Open and lock the file; again if it was removed meanwhile, which would leave two locks of one name."""
        while True:
            path, file = self._opened()
            try:
                self._lock(file)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file), path.lstat()):
                        return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with self._waiting(file):
                fcntl.flock(file, fcntl.LOCK_EX)

    @contextmanager
    def _waiting(self, file: int) -> Iterator[None]:
        """Say now, and again every REPEAT_S, who holds the lock; count the time."""
        began, over = time.monotonic(), threading.Event()

        def repeat() -> None:
            while True:
                self.note_wait(f"waiting until this machine's lab is free: it measures for {_holder(file)}", 0.0)
                if over.wait(REPEAT_S):
                    return

        reporter = threading.Thread(target=repeat, daemon=True, name="waiting for the lab")
        try:
            reporter.start()
            yield
        finally:
            over.set()
            if reporter.is_alive():  # Ctrl-C may come before it starts
                reporter.join()
            self.note_wait("", time.monotonic() - began)

    def _opened(self) -> tuple[Path, int]:
        """Return the file in the first folder where it is usable, and its descriptor."""
        refusals = []
        for folder in self._folders:
            path = folder / FILE_NAME
            try:
                return path, _open(path)
            except OSError as error:
                refusals.append(f"{path}: {error.strerror}")
        raise SetupError(
            f"the lab's lock cannot be opened ({'; '.join(refusals)})",
            "see what lies there; it must be a plain file that every user may read",
        )


def log_wait(line: str, _seconds: float) -> None:
    """Show a waiting line to the user."""
    if line:
        log.warning("%s", line)


LAB_LOCK = MachineLock()
"""The one of this process."""


def _open(path: Path) -> int:
    """Open the lock's file, or make it; nobody's link is followed, and what is not a file of its own is refused.

    An existing file is opened without O_CREAT, which fs.protected_regular forbids for a file of another user.
    """
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = _open_existing(path, flags)
    except FileNotFoundError:
        if path.parent.stat().st_mode & _SHARED != _SHARED:
            raise
        try:
            file = _make(path, flags)
        except FileExistsError:  # another process was faster
            file = _open_existing(path, flags)
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(file)
        raise OSError(errno.EINVAL, "not a plain file with one name")
    return file


def _make(path: Path, flags: int) -> int:
    """Make the file such that no moment shows it to another user with a mode that shuts them out."""
    before = os.umask(0)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o666)
    finally:
        os.umask(before)


def _open_existing(path: Path, flags: int) -> int:
    try:
        return os.open(path, os.O_RDWR | flags)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS):
            raise
        return os.open(path, os.O_RDONLY | flags)  # enough for flock; others then see no name while we hold it


def _sign(file: int, task: str) -> None:
    """Write who holds the lock; a full disk, or a file that is only readable, leaves the holder unnamed."""
    record = {"pid": os.getpid(), "uid": os.geteuid(), "task": task[:_LONGEST_TASK], "since": int(time.time())}
    with suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(record).encode(), 0)


def _holder(file: int) -> str:
    """Whoever holds the lock, as the record has it. Every user can write it: it is checked, and only shown."""
    try:
        record = json.loads(os.pread(file, _RECORD_BYTES, 0))
        pid, uid, task, since = (record[key] for key in ("pid", "uid", "task", "since"))
        if not all(type(number) is int for number in (pid, uid, since)):
            raise ValueError(record)
        shown = "".join(letter for letter in str(task) if letter.isprintable())[:_LONGEST_TASK]
        return f"{shown} (process {pid} of {_user_name(uid)}), for {_duration(time.time() - since)}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"user id {uid}"


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{max(0, int(seconds))} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
