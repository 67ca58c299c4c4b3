"""Reading cgroups and the machine: how long tasks wait for a CPU, and which commands use it.

Everything comes from /proc and cgroupfs, as an ordinary user may read them. A reading opens two small files for each
thread (the first 4096 of each subject), 78 us a thread; the whole service used 0.12 % of a CPU at 130 threads and one
reading a minute (tests/bench/test_service.py). Waits of tasks that came and went between two readings show only in the
pressure, and their CPU time under `ENDED`.
"""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kernel_bpf.observe.tasks import PROC, TaskSample, Watch, cgroup_root
from schedagent.core.recommendation import ENDED, MACHINE, Reading

MOST_COMMANDS = 16
OTHERS = "(others)"
_NS, _US = 1e-9, 1e-6


class HostMeter:
    """Reads its subjects; a reading covers the interval since the one before.

    Args:
        cgroups: paths of the cgroups that are watched besides the machine.
        now: Unix time.
    """

    def __init__(self, cgroups: Sequence[str], now: Callable[[], float] = time.time) -> None:
        root = cgroup_root()
        scopes = {MACHINE: "", **{cgroup: cgroup for cgroup in cgroups}}
        self._subjects = {name: _Subject(name, scope, root) for name, scope in scopes.items()}
        self._now = now

    def read(self) -> list[Reading]:
        """Return a reading of each subject; the first call begins the interval and returns none."""
        readings = (subject.read(self._now()) for subject in self._subjects.values())
        return [reading for reading in readings if reading is not None]


class _Subject:
    """One cgroup, or the machine."""

    def __init__(self, name: str, cgroup: str, root: Path) -> None:
        self._name = name
        self._cgroup = cgroup
        self._root = root
        self._watch = Watch(cgroup, math.inf, root)
        self._before: tuple[TaskSample, Mapping[int, int], float | None] | None = None

    def read(self, now: float) -> Reading | None:
        total_s = self._total_s()  # at the time of the sample, which is taken before its tasks are read, one by one
        sample = self._watch.sample()
        ran_ns = self._watch.ran_ns
        before, self._before = self._before, (sample, ran_ns, total_s)
        if before is None or sample.at <= before[0].at:
            return None
        first, ran_before_ns, total_before_s = before
        used_s = None if total_s is None or total_before_s is None else total_s - total_before_s
        elapsed_s, turns = sample.at - first.at, sample.runs - first.runs
        return Reading(
            subject=self._name,
            at=now,
            elapsed_s=elapsed_s,
            delay_s=(sample.delay_s - first.delay_s) / turns if turns > 0 else None,
            pressure=min(1.0, max(0.0, ((sample.stalled_s or 0.0) - (first.stalled_s or 0.0)) / elapsed_s)),
            commands=by_command(ran_before_ns, ran_ns, used_s),
        )

    def _total_s(self) -> float | None:
        """CPU time of all that ever ran here; None where that is not counted."""
        try:
            if self._cgroup:
                counters = Path(self._root, self._cgroup.lstrip("/"), "cpu.stat").read_text()
                return int(counters.partition("usage_usec")[2].split()[0]) * _US
            user, nice, system = (PROC / "stat").read_text().split()[1:4]
            return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return None


def by_command(before_ns: Mapping[int, int], now_ns: Mapping[int, int], used_s: float | None) -> dict[str, float]:
    """Return CPU time in seconds by command name: of living threads by what they used, the rest under `ENDED`.

    Args:
        before_ns, now_ns: CPU time by thread id, at two readings.
        used_s: CPU time of all threads in between; None if that is not known.
    """
    used: dict[str, float] = defaultdict(float)
    for thread, ran in now_ns.items():
        earlier = before_ns.get(thread, 0)
        grown = ran - earlier if ran >= earlier else ran  # less than before: a new thread has the old one's id
        if grown > 0:
            used[_command(thread)] += grown * _NS
    rest = 0.0 if used_s is None else used_s - sum(used.values())
    if rest > 0:
        used[ENDED] += rest
    ranked = sorted(used.items(), key=lambda item: -item[1])
    others = sum(seconds for _name, seconds in ranked[MOST_COMMANDS:])
    return dict(ranked[:MOST_COMMANDS]) | ({OTHERS: others} if others > 0 else {})


def _command(thread: int) -> str:
    """Return a thread's command name in printable characters; ENDED if it has just ended."""
    try:
        raw = Path(PROC, str(thread), "comm").read_bytes()
    except OSError:
        return ENDED
    name = raw.rstrip(b"\n").decode(errors="replace")
    return "".join(letter if letter.isprintable() else "?" for letter in name) or "?"
