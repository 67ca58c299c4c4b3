"""What the kernel counts of a scope, and of everybody else, between two times: the guards that are always there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kernel_bpf.observe.tasks import PROC, Sums, TaskSample, Threads, Watch, cgroup_root, tree_of
from schedagent.core.deployment import Tree
from schedagent.core.errors import SchedagentError, UsageError
from schedagent.core.trials.objective import Direction
from schedagent.core.welch import PRESSURE_FLOOR, WORSE_RATIO
from schedagent.experiment.spec import Experiment
from schedagent.observing.scope import Target, folder, where

STARVED_S = 3.0
"""A runnable task that has not run for so long is starved, as for schedagentd."""
WAITING_FLOOR, SHARE_FLOOR = 0.1, 0.1
LEAST_WAITING = 0.01
"""Waiting below so many seconds a CPU second is nothing: it is added to both sides of a ratio."""
_LEAST_RAN_S = 0.001

LEAST_WANTED = 0.05
"""Who wants fewer CPUs than this on average, and has them or not, says nothing."""

OWN_WAITING = "its waiting for CPUs"
"""Seconds in run queues for each second on a CPU. Not for each run: a policy with longer slices for those in no hurry
has longer waits, and fewer of them."""
OTHERS_SHARE = "everybody else's share of the CPU time they want"
"""The same turned round, for a sum of all others may be too small to divide by: the kernel counts it in ticks."""
PRESSURE = "pressure on the CPUs"


@dataclass(frozen=True)
class BuiltIn:
    """A guard that is always there.

    Args:
        name: key of `Sample.values`.
        margin: how much worse it may be, as a fraction.
        floor: nobody feels less: it is added to both sides, so that the margin of the sum is the floor.
        harm: a window is harmful that is so many times as bad as the worst of the default scheduler.
    """

    name: str
    direction: Direction
    margin: float
    floor: float
    harm: float

    @property
    def added(self) -> float:
        """What is added to both values before they are compared."""
        return self.floor / self.margin


_SHARE_MARGIN = round(WORSE_RATIO / (1 + WORSE_RATIO), 2)
"""What is better higher may become as many times smaller as what is better lower may become larger."""

BUILT_IN = (
    BuiltIn(OWN_WAITING, Direction.LOWER, WORSE_RATIO, WAITING_FLOOR, 4.0),
    BuiltIn(OTHERS_SHARE, Direction.HIGHER, _SHARE_MARGIN, SHARE_FLOOR, 2.0),
    BuiltIn(PRESSURE, Direction.LOWER, WORSE_RATIO, PRESSURE_FLOOR, 2.0),
)


class ScopeChangedError(SchedagentError):
    """What is watched was started again within a window, which does not count then."""


class Counters:
    """The counters of what an experiment is about; opened for one window, since a service may have been started again.

    Raises:
        SchedagentError: it does not run.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        try:
            self._target = experiment.target()
            self._identity = _identity(self._target)
        except (UsageError, OSError):
            raise stopped(experiment) from None
        self._root = cgroup_root()
        place = where(self._target)
        self._threads = Threads(place, self._root)
        self._watch, self._sums = Watch(place, STARVED_S, self._root), Sums()
        self.check()
        self._first = self._last = self._read()

    def begin(self) -> None:
        """What counts begins now."""
        self._first = self._last = self._read()

    def read(self) -> dict[str, float]:
        """Return what has been measured since the begin, by name; what was not to be seen is not there."""
        self._last = self._read()
        return {name: value for name, value in self._values().items() if math.isfinite(value)}

    @property
    def ran_s(self) -> float:
        """CPU time of the scope between the begin and the last reading."""
        return self._last[0].ran_s - self._first[0].ran_s

    def check(self) -> None:
        """Raise if what is watched has stopped, or is another one than it was."""
        if not any(map(_lives, self._threads.now())):
            raise stopped(self._experiment)
        try:
            same = _identity(self._target) == self._identity
        except (UsageError, OSError):
            raise stopped(self._experiment) from None
        if not same:
            raise ScopeChangedError(f"{self._experiment.words} was started again within a window")

    def _read(self) -> tuple[TaskSample, TaskSample]:
        return self._watch.sample(), self._sums.sample()

    def _values(self) -> Mapping[str, float]:
        own, machine = (_grown(*pair) for pair in zip(self._first, self._last, strict=True))
        elapsed_s = self._last[0].at - self._first[0].at
        others = [max(0.0, whole - part) for whole, part in zip(machine[:2], own[:2], strict=True)]
        return {
            OWN_WAITING: _waiting(own, elapsed_s),
            OTHERS_SHARE: _share(others, elapsed_s) if machine[1] > 0 else math.nan,
            PRESSURE: machine[2],
        }


def stopped(experiment: Experiment) -> SchedagentError:
    """Return the error that says that what is watched does not run any more."""
    return SchedagentError(
        f"{experiment.words} does not run any more: it stopped during the experiment", "start it again"
    )


def _lives(thread: int) -> bool:
    """Whether a thread is more than the status that nobody has asked for yet (proc_pid_stat(5), state)."""
    try:
        after = (PROC / str(thread) / "stat").read_text(errors="replace").rpartition(")")[2]
    except OSError:
        return False
    return after.split()[:1] not in (["Z"], ["X"])


def _grown(first: TaskSample, last: TaskSample) -> tuple[float, float, float]:
    """Return how long tasks waited and ran (s), and the part of time with pressure."""
    elapsed_s = max(1e-9, last.at - first.at)
    known = first.stalled_s is not None and last.stalled_s is not None
    stalled = ((last.stalled_s or 0.0) - (first.stalled_s or 0.0)) / elapsed_s if known else math.nan
    return last.delay_s - first.delay_s, last.ran_s - first.ran_s, stalled


def _waiting(grown: Sequence[float], elapsed_s: float) -> float:
    """Return seconds in run queues for each second on a CPU; of what never ran, many."""
    wanted = grown[0] + grown[1] >= LEAST_WANTED * elapsed_s
    return grown[0] / max(grown[1], _LEAST_RAN_S) if wanted else 0.0


def _share(grown: Sequence[float], elapsed_s: float) -> float:
    """Return which part of the wanted CPU time was got; all of it where next to nothing was wanted."""
    wanted_s = grown[0] + grown[1]
    return grown[1] / wanted_s if wanted_s >= LEAST_WANTED * elapsed_s and wanted_s > 0 else 1.0


def _identity(target: Target) -> tuple[int, int]:
    if target.pid:
        tree = tree_of(target.pid)
        if not isinstance(tree, Tree):
            raise UsageError(f"there is no process {target.pid}")
        return tree.pid, tree.started
    status = folder(target.cgroup).stat()
    return status.st_dev, status.st_ino
