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
from schedagent.core.terminal.foreign import marked, one_line
from schedagent.report.times import duration


class Reporter(Protocol):
    """Shows the user how far a run is."""

    def budget(self, left_s: Callable[[], float]) -> None:
        """The run has a time budget; calling `left_s` returns the seconds that are left of it."""

    def stage(self, text: str) -> None:
        """A new part of the work begins."""

    def step(self, text: str) -> None:
        """Something worth a line happened."""

    def note(self, text: str) -> None:
        """Something is known that should stay on the screen."""

    def count(self, text: str, done: int, total: int) -> None:
        """`done` of at most `total` are finished."""

    def live(self) -> AbstractContextManager[object]:
        """While this is open, the display is live."""


class Pace:
    """How long what is counted still takes, by how long it has taken so far."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: tuple[int, float] | None = None

    def restart(self) -> None:
        """Something else is counted from now on."""
        self._begun = None

    def left_s(self, done: int, total: int) -> float | None:
        """Return the seconds that the rest takes, None while nothing was timed."""
        now = self._clock()
        if self._begun is None or done < self._begun[0]:
            self._begun = (done, now)
        first, since = self._begun
        return (now - since) / (done - first) * (total - done) if done > first else None


class TimeLeft:
    """What is left of the budget, in words; nothing before there is one."""

    def __init__(self) -> None:
        self._left_s: Callable[[], float] | None = None

    def begin(self, left_s: Callable[[], float]) -> None:
        self._left_s = left_s

    def bound(self, seconds: float | None) -> float | None:
        """Return what a step still takes at most, no more than is left of the budget; None if that is not known."""
        return seconds if seconds is None or self._left_s is None else min(seconds, max(0.0, self._left_s()))

    def __str__(self) -> str:
        if self._left_s is None:
            return ""
        left_s = self._left_s()
        return f"{duration(left_s)} of the budget left" if left_s > 0 else "the budget is used up"


class PlainReporter:
    """One line per event, with the seconds since the start; for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()
        self._time_left, self._pace = TimeLeft(), Pace()

    def budget(self, left_s: Callable[[], float]) -> None:
        self._time_left.begin(left_s)

    def stage(self, text: str) -> None:
        self._pace.restart()
        self._line(f"== {text}", str(self._time_left))

    def step(self, text: str) -> None:
        self._pace.restart()
        self._line(f"   {text}")

    note = step

    def count(self, text: str, done: int, total: int) -> None:
        self._line(
            f"   {text}: {done} done, at most {total}", at_most(self._time_left.bound(self._pace.left_s(done, total)))
        )

    def live(self) -> AbstractContextManager[object]:
        return nullcontext()

    def _line(self, text: str, time_left: str = "") -> None:
        elapsed_s = time.monotonic() - self._start
        shown = f"{text} ({time_left})" if time_left else text
        self._console.print(marked(f"[{elapsed_s:6.1f}s] {shown}"), markup=False, highlight=False, soft_wrap=True)


class LiveReporter:
    """A spinner with the current step, a bar where the work can be counted, and a line per stage."""

    def __init__(self, console: Console) -> None:
        self._time_left, self._pace = TimeLeft(), Pace()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TimeElapsedColumn(),
            TextColumn("{task.fields[time_left]}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None, time_left=self._time_left)

    def budget(self, left_s: Callable[[], float]) -> None:
        self._time_left.begin(left_s)

    def stage(self, text: str) -> None:
        self._progress.print(marked(f"• {text}"), markup=False, highlight=False)
        self.step(text)

    def step(self, text: str) -> None:
        self._pace.restart()
        self._progress.update(self._task, description=one_line(text), total=None, completed=0)

    def note(self, text: str) -> None:
        self._progress.print(marked(f"  {text}"), markup=False, highlight=False)

    def count(self, text: str, done: int, total: int) -> None:
        rest = at_most(self._time_left.bound(self._pace.left_s(done, total)))
        shown = f"{text} {done}/{total}" + (f", {rest}" if rest else "")
        self._progress.update(self._task, description=shown, total=total, completed=done)

    def live(self) -> AbstractContextManager[object]:
        return self._progress


def reporter(*, quiet: bool = False) -> Reporter:
    """The reporter that fits where stderr goes; with `quiet`, one that shows nothing."""
    if quiet:
        return LineReporter(lambda _text: None)
    console = open_console(stderr=True)
    return LiveReporter(console) if console.is_terminal else PlainReporter(console)


def at_most(seconds: float | None) -> str:
    """Return in words how long a step still takes at most; empty if that is not known."""
    return "" if seconds is None else f"at most {duration(seconds)} more"


@dataclass(frozen=True)
class LineReporter:
    """Passes progress on, as plain lines."""

    report: Callable[[str], None]

    def budget(self, left_s: Callable[[], float]) -> None:
        """Who listens has no use for a clock."""

    def stage(self, text: str) -> None:
        self.report(text)

    def step(self, text: str) -> None:
        self.report(text)

    note = step

    def count(self, text: str, done: int, total: int) -> None:
        self.report(f"{text}: {done} done, at most {total}")

    def live(self) -> AbstractContextManager[object]:
        return nullcontext()
