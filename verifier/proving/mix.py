"""The mix: work of a dozen kinds at once, more than the CPUs can do, and an oracle for each kind.

A task that always wants a CPU is watched for the longest time it went without one: its CPU time in /proc/PID/schedstat
stood still. A task that waits for an event records how long that took.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel_bpf.load.spinner import Spinner
from schedagent.core.errors import BpfError
from verifier.proving import work
from verifier.proving.crew import REAP_LIMIT_S, Crew, Task
from verifier.proving.ground import Ground
from verifier.proving.oracle import OracleInfo, OracleResult

LOOK_S = 0.08
CROWD_S, CROWD_TURNS, CROWD_CPU_NS = 2.0, 10, 600_000_000
"""Tasks that must not migrate run alone until they were given a CPU so often, and used so much CPU time together: six
slices of the longest, for turns also end where the agent wants the CPU for a moment, and nobody is enqueued then."""

EATEN_MIB, EATER_LIMIT_MIB = 8, 4

CGROUPS = Path("/sys/fs/cgroup")
_MOVE_WEIGHTS = (("proving-a", 50), ("proving-b", 200))
_EMPTY_GROUPS = (("proving-limited", "cpu.max", "50000 100000"), ("proving-idle", "cpu.idle", "1"))
"""For what a policy does when a cgroup is given a limit or made idle; no task is in them."""


STARVATION_BOUND_S = 2.4
_SHORT_OF = (
    "The dozen tasks that always want a CPU share the machine with everything else, so round robin with slices "
    "of 50 ms lets each wait for half a second, and one that favours others until a task has waited for 1 s, as the "
    "bundled policies do, for somewhat more than that; the bound is half as "
    "much again as the worst that any of them showed in a machine that was let run (1.6 s), and less than half of the "
    "5 s after which the kernel itself would eject the policy"
)

STARVATION = OracleInfo(
    "starvation", 29, STARVATION_BOUND_S, "s",
    "longest time that hogs (free, pinned, and of nice -5 and 5) went without CPU time",
    f"{_SHORT_OF}.",
)  # fmt: skip
AFFINITY = OracleInfo(
    "affinity", 7, 0, "tasks",
    "tasks that were seen on a CPU outside their mask, or never ran within it",
    "The mask is a promise to the program, not a wish. A task goes from CPU to CPU by its mask and looks where it is; "
    "pinned hogs are looked at from outside.",
)  # fmt: skip
MIGRATION = OracleInfo(
    "migration disabled", 7, STARVATION_BOUND_S, "s",
    "longest time that a task which is preempted while it must not migrate went without CPU time, or time to die",
    "As for starvation. The task runs a BPF program that the kernel wraps in migrate_disable(), and may use every CPU "
    "otherwise. In the mix its own CPU may happen to have the shortest queue each time; so afterwards such tasks run "
    "alone, one more than there are CPUs, and whoever is taken to the emptier queue cannot even die there. Policies "
    "without SCX_OPS_ENQ_MIGRATION_DISABLED never see such a task: the kernel queues it locally.",
)  # fmt: skip
KWORKERS = OracleInfo(
    "pinned kernel workers", 7, 1.6, "s",
    "longest time until a kernel worker on each CPU had run",
    "The workers are normal tasks with one allowed CPU that sleep most of the time, so they wait for one round of "
    "the queue, twice that beside the real-time task; the worst that a bundled policy showed was 0.9 s. A "
    "real-time task waits for them (/proc/sys/vm/stat_refresh), so the figure is their delay alone.",
)  # fmt: skip
FORKS = OracleInfo(
    "fork storm", 17, 3.0, "s",
    "longest time from fork to reaping of a child that execs and exits; a fork that fails breaks it in any case",
    "A child has to run a few times to start and to end, and its parent once to see that; bundled policies took half "
    "of the bound at worst. A child that never runs outlasts it.",
)  # fmt: skip
WAKEUPS = OracleInfo(
    "wake-ups", 29, STARVATION_BOUND_S, "s",
    "latest wake-up of sleepers of 5 ms, and longest round of a byte between two threads of a process",
    "Starvation only: behind a dozen hogs round robin is late by half a second, and may be. Latency as such "
    "is what a trial measures, on the work it matters to.",
)  # fmt: skip
YIELD = OracleInfo(
    "yield", 29, STARVATION_BOUND_S, "s",
    "longest time that a task which yields all the time went without CPU time",
    "Giving way must not mean giving up: the starvation bound holds for those who yield. What they do to others shows "
    "in the oracle for starvation.",
)  # fmt: skip
PRIORITIES = OracleInfo(
    "priority changes", 29, STARVATION_BOUND_S, "s",
    "longest time that a task whose nice level, scheduling class and mask keep changing went without CPU time",
    "Each change takes the task out of its queue and puts it back, at the end of it in many an order; so it has run "
    "since the last change before the next one comes. The starvation bound holds all the while.",
)  # fmt: skip
REAL_TIME = OracleInfo(
    "real-time interference", 29, STARVATION_BOUND_S, "s",
    "longest time that a hog went without CPU time on a CPU where a real-time task takes 20 ms out of every 60",
    "Two thirds of the CPU are left, so a round takes half as long again: 0.8 s in round robin with slices of 50 ms.",
)  # fmt: skip
CGROUPS_MOVED = OracleInfo(
    "cgroup moves", 29, STARVATION_BOUND_S, "s",
    "longest time that a hog which is moved between two cgroups of different cpu.weight went without CPU time",
    "As for priority changes: it has run since the last move before the next one comes.",
)  # fmt: skip
MEMORY = OracleInfo(
    "memory pressure", 29, STARVATION_BOUND_S, "s",
    f"longest time that a task went without CPU time while it uses {EATEN_MIB} MiB in a cgroup of {EATER_LIMIT_MIB} "
    "MiB",
    "Every page it touches makes it reclaim another one first, so it is mostly in the kernel, and sleeps there at "
    "times; the starvation bound is far above these sleeps. The machine as a whole is not short of memory.",
)  # fmt: skip

ORACLES = (
    STARVATION, AFFINITY, MIGRATION, KWORKERS, FORKS, WAKEUPS,
    YIELD, PRIORITIES, REAL_TIME, CGROUPS_MOVED, MEMORY,
)  # fmt: skip


class Gap:
    """The longest time a task went without CPU time.

    Args:
        now_s: time, CLOCK_MONOTONIC.
        used_ns: CPU time by then.
    """

    def __init__(self, now_s: float, used_ns: int) -> None:
        self._since_s = now_s
        self._used_ns = used_ns
        self.longest_s = 0.0

    def look(self, now_s: float, used_ns: int) -> None:
        """Take in another reading: CPU time that grew ends a gap, and the next one begins."""
        self.longest_s = max(self.longest_s, now_s - self._since_s)
        if used_ns > self._used_ns:
            self._since_s, self._used_ns = now_s, used_ns

    def open_s(self, now_s: float) -> float:
        """How long the gap lasts that has not ended."""
        return now_s - self._since_s


class GapWatch:
    """Follows the gaps of several tasks."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        now = time.monotonic()
        self.gaps = {task: Gap(now, task.cpu_ns()) for task in tasks}

    def look(self) -> None:
        """Read every task's CPU time once."""
        for task, gap in self.gaps.items():
            gap.look(time.monotonic(), task.cpu_ns())

    def longest_open(self, now_s: float) -> float:
        """The longest of the gaps that have not ended, in seconds."""
        return max(gap.open_s(now_s) for gap in self.gaps.values())

    def longest(self, tasks: Iterable[Task]) -> float:
        """The longest gap of these tasks, in seconds."""
        return max((self.gaps[task].longest_s for task in tasks), default=0.0)


@dataclass(frozen=True)
class Mix:
    """The running tasks, by what is asked of them; None where this kernel cannot do it."""

    hogs: Sequence[Task]
    pinned: Sequence[tuple[Task, int]]
    flipper: Task
    sleepers: Sequence[Task]
    ping: Task
    forks: Task
    refresher: Task
    yielder: Task
    victim: Task
    moved: Task
    mover: Task
    eater: Task
    immovable: Task | None

    def hungry(self) -> list[Task]:
        """Those that want a CPU all the time."""
        others = [self.flipper, self.yielder, self.victim, self.moved, self.eater]
        return [
            *self.hogs,
            *(task for task, _cpu in self.pinned),
            *others,
            *([self.immovable] if self.immovable else []),
        ]


def prove(ground: Ground, seconds: float) -> list[OracleResult]:
    """Run the mix for `seconds` and judge it."""
    spinner = spinner_or_none()
    with Crew() as crew:
        mix = start(crew, ground.cpus, spinner)
        watch, misplaced = observe(ground, mix, seconds)
        results = judge(mix, watch, misplaced)
    if crew.undead:
        return [_undead(crew.undead), *results[1:]]
    if spinner and any(result.name == MIGRATION.name and result.ok for result in results):
        return judge_crowd(results, *immovable_crowd(ground, spinner))
    return results


def immovable_crowd(ground: Ground, spinner: Spinner) -> tuple[int, Sequence[str]]:
    """Run tasks that must not migrate, one more than there are CPUs, and nothing beside them.

    Whenever one of two on a CPU is preempted, another CPU has the shorter queue.

    Returns:
        how often they were given a CPU, and the names of those that could not die.
    """
    with Crew() as crew:
        body = work.migration_disabled(spinner)
        tasks = [crew.start(f"number {number}", body) for number in range(len(ground.cpus) + 1)]
        for _now in ground.watch(CROWD_S, LOOK_S):
            used_ns = sum(task.cpu_ns() for task in tasks)
            turns = sum(task.turns() for task in tasks)
            if turns >= CROWD_TURNS and used_ns >= CROWD_CPU_NS and all(task.record.events for task in tasks):
                break
        turns = sum(task.turns() for task in tasks)
    return turns, crew.undead


def judge_crowd(results: Sequence[OracleResult], turns: int, undead: Sequence[str]) -> list[OracleResult]:
    """Have the crowd confirm what the mix shows of migration; one that hardly came about clears no warning."""
    others = [result for result in results if result.name != MIGRATION.name]
    if undead:
        detail = f"killed among others that must not migrate, did not get the CPU time to die: {', '.join(undead)}"
        return [*others, MIGRATION.fail(REAP_LIMIT_S, detail)]
    return list(results) if turns >= CROWD_TURNS else others


def start(crew: Crew, cpus: Sequence[int], spinner: Spinner | None) -> Mix:
    """Start every task of the mix."""
    first, last = cpus[0], cpus[-1]
    groups = [cgroup(name, "cpu.weight", str(weight)) for name, weight in _MOVE_WEIGHTS]
    for name, file, value in _EMPTY_GROUPS:
        cgroup(name, file, value)
    there, back = os.pipe(), os.pipe()
    pinned = [crew.start(f"hog pinned to CPU {cpu}", work.pinned(cpu, work.hog)) for cpu in (first, last)]
    hogs = [crew.start(f"hog {number}", work.hog) for number in range(len(cpus) - 1)]
    hogs += [crew.start(f"hog of nice {nice}", work.niced(nice, work.hog)) for nice in (-5, 5)]
    moved = crew.start("hog in moving cgroups", work.hog)
    crew.start("real-time bursts", work.real_time(work.pinned(last, work.burster)))
    return Mix(
        hogs=hogs,
        pinned=list(zip(pinned, (first, last), strict=True)),
        flipper=crew.start("affinity changes", work.affinity_flipper(cpus)),
        sleepers=[crew.start(f"sleeper {number}", work.sleeper) for number in range(2)],
        ping=crew.start("ping", work.in_two_threads(work.ping(there[1], back[0]), work.pong(back[1], there[0]))),
        forks=crew.start("fork storm", work.fork_storm),
        refresher=crew.start("statistics refresh", work.real_time(work.stat_refresher)),
        yielder=crew.start("yielder", work.yielder),
        victim=crew.start("hog of changing priority", work.hog),
        moved=moved,
        mover=crew.start("cgroup mover", work.real_time(work.cgroup_mover(moved.pid, groups))),
        eater=crew.start("memory eater", work.memory_eater(eater_cgroup(), EATEN_MIB)),
        immovable=crew.start("task that must not migrate", work.migration_disabled(spinner)) if spinner else None,
    )


def cgroup(name: str, file: str, value: str) -> Path:
    """A cgroup of the proving ground with one of its files set."""
    folder = CGROUPS / name
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(value)
    return folder


def eater_cgroup() -> Path:
    """The cgroup that is too small for what its task uses."""
    (CGROUPS / "cgroup.subtree_control").write_text("+memory")
    return cgroup("proving-memory", "memory.max", str(EATER_LIMIT_MIB << 20))


def spinner_or_none() -> Spinner | None:
    """The program that disables migration; None on a kernel that does not take it."""
    try:
        return Spinner.load()
    except BpfError:
        return None


def changes(pid: int, cpus: Sequence[int]) -> list[Callable[[], None]]:
    """What is done to a task from outside, in turn. Classes that would take the machine over are left at once."""
    everyday = os.SCHED_OTHER

    def pass_through(policy: int, priority: int) -> None:
        os.sched_setscheduler(pid, policy, os.sched_param(priority))
        os.sched_setscheduler(pid, everyday, os.sched_param(0))

    return [
        lambda: os.setpriority(os.PRIO_PROCESS, pid, 5),
        lambda: os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0)),
        lambda: os.setpriority(os.PRIO_PROCESS, pid, 0),
        lambda: pass_through(os.SCHED_FIFO, 1),
        lambda: os.sched_setaffinity(pid, {cpus[0]}),
        lambda: pass_through(os.SCHED_IDLE, 0),
        lambda: os.sched_setaffinity(pid, {cpus[-1]}),
        lambda: os.sched_setaffinity(pid, cpus),
    ]


def observe(ground: Ground, mix: Mix, seconds: float) -> tuple[GapWatch, int]:
    """Look at the mix until the time is over; return the gaps, and how often a pinned task was elsewhere."""
    watch, misplaced, used_ns = GapWatch(mix.hungry()), 0, 0
    upheaval = itertools.cycle(changes(mix.victim.pid, ground.cpus))
    for _now in ground.watch(seconds, LOOK_S):
        watch.look()
        if mix.victim.cpu_ns() > used_ns:
            used_ns = mix.victim.cpu_ns()
            next(upheaval)()
        misplaced += sum(task.cpu() != cpu for task, cpu in mix.pinned if task.record.events)
    watch.look()
    return watch, misplaced


def judge(mix: Mix, watch: GapWatch, misplaced: int) -> list[OracleResult]:
    """Apply every oracle; one whose subject did not come about has no result, and clears no warning."""
    pinned = [task for task, _cpu in mix.pinned]
    results = [
        gap_result(STARVATION, watch, [*mix.hogs, *pinned]),
        affinity_result(mix.flipper, watch.longest([mix.flipper]), misplaced),
        latency_result(KWORKERS, [mix.refresher], "refreshes"),
        forks_result(mix.forks),
        latency_result(WAKEUPS, [*mix.sleepers, mix.ping], "wake-ups and rounds"),
        gap_result(YIELD, watch, [mix.yielder]),
        gap_result(PRIORITIES, watch, [mix.victim]),
        gap_result(REAL_TIME, watch, pinned[-1:]),
    ]
    optional = [(CGROUPS_MOVED, mix.moved, mix.mover.record.events, "moves")]
    optional += [(MEMORY, mix.eater, reclaim_count(), "times the limit was hit")]
    if mix.immovable:
        optional += [(MIGRATION, mix.immovable, mix.immovable.record.events, "runs")]
    for info, task, came_about, what in optional:
        result = gap_result(info, watch, [task], f"{came_about} {what}")
        results += [result] if came_about or not result.ok else []
    return results


def gap_result(info: OracleInfo, watch: GapWatch, tasks: Sequence[Task], more: str = "") -> OracleResult:
    """Judge the longest gap of these tasks, naming the task."""
    worst = max(tasks, key=lambda task: watch.gaps[task].longest_s)
    longest_s = watch.gaps[worst].longest_s
    detail = f"{worst.name} went {longest_s:.2f} s without CPU time" + (f"; {more}" if more else "")
    return info.judge(longest_s, detail)


def latency_result(info: OracleInfo, tasks: Sequence[Task], what: str) -> OracleResult:
    """Judge the longest operation of these tasks."""
    worst = max(tasks, key=lambda task: task.record.longest_s())
    events = sum(task.record.events for task in tasks)
    return info.judge(worst.record.longest_s(), f"{events} {what}; {worst.name} waited longest")


def affinity_result(flipper: Task, gap_s: float, misplaced: int) -> OracleResult:
    """Judge where tasks were seen, and whether the one that moves could."""
    record = flipper.record
    stuck = gap_s > STARVATION_BOUND_S or not record.events
    detail = f"{record.events} moves, the slowest took {record.longest_s():.2f} s; {record.wrong} ended elsewhere"
    detail += f"; pinned tasks were elsewhere {misplaced} times"
    return AFFINITY.judge(record.wrong + misplaced + stuck, detail)


def forks_result(forks: Task) -> OracleResult:
    """Judge the children of the fork storm."""
    record = forks.record
    detail = f"{record.events} children, {record.wrong} of which did not end well"
    if record.errno:
        return FORKS.fail(record.longest_s(), f"{detail}; fork failed: {os.strerror(record.errno)}")
    return FORKS.judge(record.longest_s(), detail) if record.events else FORKS.fail(record.longest_s(), detail)


def reclaim_count() -> int:
    """How often the memory eater ran into its limit (memory.events of its cgroup)."""
    events = dict(line.split() for line in (CGROUPS / "proving-memory/memory.events").read_text().splitlines())
    return int(events["max"])


def _undead(names: Sequence[str]) -> OracleResult:
    """The verdict on tasks that were killed and did not get the CPU time to die."""
    return STARVATION.fail(REAP_LIMIT_S, f"killed tasks did not get the CPU time to die: {', '.join(names)}")
