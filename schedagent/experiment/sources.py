"""Readers of the numbers that a user names: each begins, stops and gives the number of the time in between.

`stop` is quick and marks the end; `close` and `value` may take seconds, and come when the default scheduler is in
charge again.
"""

from __future__ import annotations

import math
import os
import shlex
import stat
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import BinaryIO, Protocol

from schedagent.core.errors import MetricError, MetricUnavailable, SchedagentError
from schedagent.core.readings.metric import clean, every
from schedagent.core.terminal.foreign import quote
from schedagent.experiment.prometheus import server_of
from schedagent.experiment.spec import Kind, NumberSource
from schedagent.hostlab.command import Command
from verifier.guest.output import Output

LONGEST_LOG_BYTES = 32 << 20
"""Of one window; a log that grows faster is no metric."""
LONGEST_COMMAND_S = 600.0
PERIOD_S = 1.0
"""A command is started so often at most."""
_GONE_S = 15.0


class Reader(Protocol):
    """One number of a window."""

    def begin(self) -> None:
        """What counts begins now."""

    def stop(self) -> None:
        """What counts ends now; idempotent."""

    def close(self) -> None:
        """Stop, and return when nothing of it runs any more; idempotent."""

    def value(self) -> float:
        """Return the number; raise MetricUnavailable if there is none."""
        ...


def reader_of(source: NumberSource, environment: Mapping[str, str]) -> Reader:
    """Return what reads a source that is not the kernel's counters.

    Args:
        environment: of commands.
    """
    if source.kind is Kind.QUERY:
        return QueryReader(source)
    if source.kind is Kind.COMMAND:
        return CommandReader(source, environment)
    return LogReader(source)


class QueryReader:
    """Asks a Prometheus server for the time that has passed."""

    def __init__(self, source: NumberSource) -> None:
        self._server = server_of(source.place)
        self._query = source.text
        self._begin = self._end = 0.0

    def begin(self) -> None:
        """See Reader."""
        self._begin, self._end = time.time(), 0.0

    def stop(self) -> None:
        """See Reader."""
        self._end = self._end or time.time()

    def close(self) -> None:
        """See Reader."""
        self.stop()

    def value(self) -> float:
        """See Reader."""
        value = self._server.value(self._query, self._begin, self._end)
        return comparable(value, f"the query {quote(self._query, 80)}")


class CommandReader:
    """Runs a command again and again, as this user and without a shell, and takes the mean of what it printed.

    The number is the last line that is not blank. A command that has not ended when the window does is killed with all
    that it started, and does not count.
    """

    def __init__(self, source: NumberSource, environment: Mapping[str, str]) -> None:
        self._command, self._folder, self._environment = source.text, source.place or "/", environment
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._numbers: list[float] = []
        self._trouble: SchedagentError | None = None

    def begin(self) -> None:
        """See Reader."""
        self._numbers, self._trouble = [], None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._again_and_again, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """See Reader."""
        self._stopped.set()

    def close(self) -> None:
        """See Reader."""
        self.stop()
        if self._thread is not None:
            self._thread.join(_GONE_S)
            self._thread = None

    def value(self) -> float:
        """See Reader."""
        self.close()
        if self._trouble is not None:
            raise self._trouble
        if not self._numbers:
            raise MetricUnavailable(
                f"the metric's command did not end within the window: {quote(self._command, 80)}",
                "make --window longer than the command takes",
            )
        return comparable(math.fsum(self._numbers) / len(self._numbers), f"the command {quote(self._command, 80)}")

    def _again_and_again(self) -> None:
        try:
            while not self._stopped.is_set():
                began = time.monotonic()
                number = self._once()
                if number is None:
                    return
                self._numbers.append(number)
                self._stopped.wait(max(0.0, began + PERIOD_S - time.monotonic()))
        except SchedagentError as error:
            self._trouble = MetricUnavailable(f"the metric's command failed: {error.message}", error.hint)
        except OSError as error:
            self._trouble = MetricUnavailable(f"the metric's command cannot be started: {error.strerror or error}")

    def _once(self) -> float | None:
        """Run it; None if the window ended before it."""
        words = shlex.split(self._command)
        with (
            closing(Output(os.getuid(), os.getgid())) as output,
            Command(words, self._folder, self._environment, output) as running,
        ):
            ended = running.wait(LONGEST_COMMAND_S, lambda: not self._stopped.is_set())
            if ended.status is None:
                return None
            printed = output.printed().text
        if self._stopped.is_set():
            return None
        return _last_number(printed, ended.status, self._command)


def _last_number(printed: str, status: int, command: str) -> float:
    last = next((line.strip() for line in reversed(printed.splitlines()) if line.strip()), "")
    if status != 0:
        raise MetricUnavailable(f"{quote(command, 80)} ended with status {status}; its last line: {quote(last, 80)}")
    with suppress(ValueError):
        return float(last)
    raise MetricUnavailable(
        f"its last line is {quote(last, 80)}, which is not a number", "have it print one number on its last line"
    )


class LogReader:
    """Reads the lines that a file grows by: the mean of an expression's numbers, or without a group its rate a second.

    A file that was rotated is read to its end, and its successor from its beginning.
    """

    def __init__(self, source: NumberSource) -> None:
        self._path, self._expression = source.place, source.text
        self._file: BinaryIO | None = None
        self._offset = 0
        self._began = self._ended = 0.0
        self._lines = b""
        self._trouble: MetricUnavailable | None = None

    def begin(self) -> None:
        """See Reader."""
        self.stop()
        self._lines, self._trouble, self._began, self._ended = b"", None, time.monotonic(), 0.0
        try:
            self._file = _opened(self._path)
            self._offset = self._file.seek(0, os.SEEK_END)
        except OSError as error:
            self._trouble = MetricUnavailable(f"the log {self._path} cannot be read: {error.strerror or error}")

    def stop(self) -> None:
        """See Reader."""
        if self._file is None:
            return
        self._ended = time.monotonic()
        with closing(self._file):
            try:
                self._lines = self._grown(self._file)
            except OSError as error:
                self._trouble = MetricUnavailable(f"the log {self._path} cannot be read: {error.strerror or error}")
            self._file = None

    def close(self) -> None:
        """See Reader."""
        self.stop()

    def value(self) -> float:
        """See Reader."""
        if self._trouble:
            raise self._trouble
        text = clean(self._lines.decode("utf-8", "replace"))
        try:
            count, numbers = every(self._expression, text, f"the log {self._path}")
        except MetricError as error:
            raise MetricUnavailable(error.message, error.hint) from None
        if numbers:
            return math.fsum(numbers) / len(numbers)
        if _has_group(self._expression):
            raise MetricUnavailable(
                f"no line that the log {self._path} grew by in this window matched",
                "make --window longer, or check the expression",
            )
        return count / max(1e-3, self._ended - self._began)

    def _grown(self, file: BinaryIO) -> bytes:
        now = os.fstat(file.fileno())
        if now.st_size < self._offset:  # it was truncated in place
            self._offset = 0
        file.seek(self._offset)
        grown = self._bounded(file, now.st_size - self._offset)
        with suppress(FileNotFoundError), closing(_opened(self._path)) as successor:
            newer = os.fstat(successor.fileno())
            if (newer.st_dev, newer.st_ino) != (now.st_dev, now.st_ino):
                grown += self._bounded(successor, newer.st_size)
        return grown

    def _bounded(self, file: BinaryIO, length: int) -> bytes:
        if length > LONGEST_LOG_BYTES:
            raise OSError(0, f"it grew by more than {LONGEST_LOG_BYTES >> 20} MiB in a window")
        return file.read(length)


def _opened(path: str) -> BinaryIO:
    """Open a regular file, and nothing that could block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is no regular file")
    return os.fdopen(descriptor, "rb")


def _has_group(expression: str) -> bool:
    from schedagent.core.readings.metric import problem_of

    return not problem_of(expression, group_needed=True)[0]


def comparable(value: float, what: str) -> float:
    """Return a value of which ratios can be made; zero counts, see `rule`.

    Raises:
        MetricUnavailable: it is negative, or not finite.
    """
    if not math.isfinite(value) or not 0 <= value <= 1e18:
        raise MetricUnavailable(f"{what} gave {value:g}, which has no ratio", "compare a number that is never negative")
    return value
