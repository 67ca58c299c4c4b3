"""One shell command on this machine: run in a session of its own, timed, and ended with all that it started."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kernel_bpf.observe import tasks
from schedagent.core.process import proc
from verifier.guest.output import Output
from verifier.guest.usage import name_of, process_cpu_ns
from verifier.guest.waiting import Ended, wait

_SESSION = 3
"""Of /proc/PID/stat behind the command, counted from 0: session (proc_pid_stat(5), 6)."""

_AT_WORK_S, _KILLED_S = 0.05, 0.005
_GONE_S = 10.0


@dataclass(frozen=True)
class Left:
    """What outlived the shell of a command.

    Args:
        names: of its processes, sorted.
        busy: names of those that still worked.
        cpu_ns: CPU time that they had used.
    """

    names: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    cpu_ns: int = 0


class Command:
    """A shell command that runs; whatever it left behind is killed on leaving.

    It dies with this process, too: its shell gets SIGKILL then (setpriv --pdeathsig).

    Args:
        words: the shell and its arguments.
        output: where it prints.
    """

    def __init__(self, words: Sequence[str], directory: str, environment: Mapping[str, str], output: Output) -> None:
        self._output = output
        argv = ["setpriv", "--pdeathsig", "KILL", "--", *words]
        self.started_ns = time.monotonic_ns()
        self._process = proc.start(argv, output=output.writer, cwd=Path(directory), env=environment)
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def wait(self, timeout_s: float, healthy: Callable[[], bool] = lambda: True) -> Ended:
        """Wait until the shell ends; give up after the time limit, or if it does not stay healthy."""
        ended = wait(self.pid, timeout_s, _Watch(self._output, healthy))
        if ended.status is not None:
            self._process.returncode = ended.status
        return ended

    def left(self) -> Left:
        """Return what is still there of it; looks twice, a moment apart."""
        before = {pid: process_cpu_ns(pid) for pid in self._session()}
        if not before:
            return Left()
        time.sleep(_AT_WORK_S)
        after = {pid: process_cpu_ns(pid) for pid in before}
        busy = {name_of(pid) for pid in before if after[pid] > before[pid]}
        names = {name_of(pid) for pid in before}
        return Left(tuple(sorted(names - {""})), tuple(sorted(busy - {""})), sum(before.values()))

    def _session(self) -> list[int]:
        return [pid for pid in tasks.processes() if _session_of(pid) == self.pid]

    def _kill(self) -> None:
        deadline = time.monotonic() + _GONE_S
        while (pids := self._session()) and time.monotonic() < deadline:
            for pid in pids:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_KILLED_S)
        self._process.poll()


class _Watch:
    """Empties the pipe while a command runs."""

    idle = False

    def __init__(self, output: Output, healthy: Callable[[], bool]) -> None:
        self._output = output
        self._healthy = healthy

    def look(self) -> bool:
        """Return whether the command may continue."""
        self._output.drain()
        return self._healthy()

    @property
    def pause_s(self) -> float:
        """How long nobody needs to look."""
        return self._output.pause_s


def _session_of(pid: int) -> int:
    """Return the session of a process that lives; 0 if it is gone, or nothing is left of it but its status."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(tasks.PROC, str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(fields[_SESSION]) if fields[0] not in "ZX" else 0
    return 0
