"""A scheduler that loads its policy itself: a program with its arguments, such as `scx_lavd --performance`."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

from schedagent.core.errors import UsageError


@dataclass(frozen=True)
class SchedulerProgram:
    """One program of this host, as it is to be started.

    Args:
        path: of the file, absolute.
        arguments: what it is given.
        digest: hex SHA-256 of the file: what was measured of one build says nothing of another.
    """

    path: str
    arguments: tuple[str, ...]
    digest: str

    @property
    def argv(self) -> list[str]:
        """How it is executed."""
        return [self.path, *self.arguments]

    @property
    def name(self) -> str:
        """Its file name, by which people know it."""
        return Path(self.path).name

    @property
    def command(self) -> str:
        """How a person types it, if its folder is in PATH."""
        return shlex.join([self.name, *self.arguments])

    def require_unchanged(self) -> None:
        """Raise UsageError if the file is not there any more, or another one by now."""
        try:
            digest = digest_of(Path(self.path))
        except OSError as error:
            raise UsageError(f"the scheduler {self.path} cannot be read: {error.strerror}", _AGAIN) from None
        if digest != self.digest:
            raise UsageError(f"the scheduler {self.path} has changed since this run began", _AGAIN)


_AGAIN = "what was measured before and after cannot be compared: start a new run"


def digest_of(path: Path) -> str:
    """Return the hex SHA-256 of a file; raise OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
