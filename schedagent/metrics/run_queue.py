"""How long threads wait in run queues before they get a CPU, as a histogram over all threads of the machine.

The kernel keeps sums for each thread: nanoseconds waited and times run (Documentation/scheduler/sched-stats.rst).
The difference between two readings, divided, is the mean of the waits between them; all of them count at that mean. So
the sum of the histogram is exact, quantiles are those of means: a single long wait among many short ones of a thread is
smoothed away. Waits of threads that came and went between two readings are not seen.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from schedagent.metrics.family import Histogram

BOUNDS_S = (
    *(1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5),
    1.0,
)
MOST_PROCESSES = 4096
MOST_THREADS = 8192
"""Bounds of one reading: at about 10 us each, a tenth of a second. With more processes, every second, fourth ... is
read, by its number, so that it is the same ones each time."""

_NS = 1e-9


class RunQueue:
    """Reads how long the threads of the machine waited.

    Args:
        proc: where procfs is.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = str(proc)
        self._seen: dict[int, tuple[int, int]] = {}
        self._step = 0
        self.histogram = Histogram(BOUNDS_S)

    @property
    def threads(self) -> int:
        """How many were read last time."""
        return len(self._seen)

    @property
    def sampled(self) -> float:
        """Part of the processes that are read."""
        return 1 / self._step if self._step else 1.0

    def read(self) -> None:
        """Add what threads have waited since the last reading; the first one only begins."""
        before, step = self._seen, self._step
        self._seen = {thread: waited for thread in self._threads() if (waited := self._waited(thread)) is not None}
        if step != self._step:
            return  # other processes than last time: what is new to us did not begin just now
        for thread, (delay_ns, runs) in self._seen.items():
            then_ns, then_runs = before.get(thread, (0, 0))
            if runs < then_runs or delay_ns < then_ns:  # another thread of the same number
                then_ns, then_runs = 0, 0
            if runs > then_runs:
                self.histogram.add((delay_ns - then_ns) / (runs - then_runs) * _NS, runs - then_runs)

    def _threads(self) -> list[int]:
        processes = _numbers(self._proc)
        self._step = 1
        while len(processes) > MOST_PROCESSES * self._step:
            self._step *= 2
        threads: list[int] = []
        for process in processes:
            if process % self._step == 0:
                threads += _numbers(f"{self._proc}/{process}/task")
            if len(threads) >= MOST_THREADS:
                break
        return threads[:MOST_THREADS]

    def _waited(self, thread: int) -> tuple[int, int] | None:
        """Nanoseconds in run queues, and how often it ran; None of a thread that ended."""
        with suppress(OSError, ValueError):
            descriptor = os.open(f"{self._proc}/{thread}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _ran, delay, runs = os.read(descriptor, 100).split()
            finally:
                os.close(descriptor)
            return int(delay), int(runs)
        return None


def _numbers(folder: str) -> list[int]:
    with suppress(OSError):
        return [int(name) for name in os.listdir(folder) if name.isdecimal()]  # noqa: PTH208 - a third of the time
    return []
