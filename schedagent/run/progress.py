"""How far the work is: a live line on a terminal, plain lines otherwise. On stderr: stdout is for the answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from schedagent.core.terminal.console import open_console
from schedagent.core.terminal.printable import printable


class Reporter(Protocol):
    """Shows the user how far a run is."""

    def stage(self, text: str) -> None:
        """A new part of the work begins."""

    def step(self, text: str) -> None:
        """Something worth a line happened."""

    def count(self, text: str, done: int, total: int) -> None:
        """`done` of at most `total` are finished."""

    def live(self) -> AbstractContextManager[object]:
        """While this is open, the display is live."""


class PlainReporter:
    """One line per event, with the seconds since the start; for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()

    def stage(self, text: str) -> None:
        self._line(f"== {text}")

    def step(self, text: str) -> None:
        self._line(f"   {text}")

    def count(self, text: str, done: int, total: int) -> None:
        self._line(f"   {text}: {done} done, at most {total}")

    def live(self) -> AbstractContextManager[object]:
        return nullcontext()

    def _line(self, text: str) -> None:
        elapsed_s = time.monotonic() - self._start
        self._console.print(f"[{elapsed_s:6.1f}s] {printable(text)}", markup=False, highlight=False, soft_wrap=True)


class LiveReporter:
    """A spinner with the current step, a bar where the work can be counted, and a line per stage."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None)

    def stage(self, text: str) -> None:
        self._progress.print(f"• {printable(text)}", markup=False, highlight=False)
        self._progress.update(self._task, description=text, total=None, completed=0)

    def step(self, text: str) -> None:
        self._progress.update(self._task, description=text, total=None, completed=0)

    def count(self, text: str, done: int, total: int) -> None:
        self._progress.update(self._task, description=f"{text} {done}/{total}", total=total, completed=done)

    def live(self) -> AbstractContextManager[object]:
        return self._progress


def reporter() -> Reporter:
    """The reporter that fits where stderr goes."""
    console = open_console(stderr=True)
    return LiveReporter(console) if console.is_terminal else PlainReporter(console)


@dataclass(frozen=True)
class LineReporter:
    """Passes progress on, as plain lines."""

    report: Callable[[str], None]

    def stage(self, text: str) -> None:
        self.report(text)

    def step(self, text: str) -> None:
        self.report(text)

    def count(self, text: str, done: int, total: int) -> None:
        self.report(f"{text}: {done} done, at most {total}")

    def live(self) -> AbstractContextManager[object]:
        return nullcontext()
