"""The transcript of the walk: what was run in the guest and what it printed, on stderr and in a file.

The file is build/host-test.txt, which git ignores; each run of `make test-host` writes it again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.paths import ROOT

PATH = ROOT / "build" / "host-test.txt"


class Transcript:
    """Writes lines with the seconds since it began, each at once, so that a run that hangs or is killed leaves them.

    Args:
        path: the file.
        now: seconds.
    """

    def __init__(self, path: Path = PATH, now: Callable[[], float] = time.monotonic) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", buffering=1)
        self._now = now
        self._begun = now()

    def line(self, text: str) -> None:
        """Write a line."""
        stamped = f"{self._now() - self._begun:6.1f} {text}\n"
        sys.stderr.write(stamped)
        self._file.write(stamped)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
