"""What the tasks of one run use, and what outlives its shell, counted cheaply and in every arm alike.

Unlike the recorder this hears nothing of births: only the kernel's record of each task that ends, which waits in the
socket until the run is over (or until there are very many). In this machine every task that ends during a run is the
workload's, but for kernel threads, which all have the same parent.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from resource import struct_rusage

from kernel_bpf.observe.netlink import Taskstats, TaskstatsSocket, decode_taskstats, exit_record
from schedagent.core.trials.usage import CommandUsage, Usage
from verifier.guest.recorder import growth, read_pressure

PROC = Path("/proc")
VMSTAT = Path("/proc/vmstat")
MEMORY = "memory"
"""Usage.full if the kernel killed a process for its memory."""

MEMORY_SHARE = 0.5
"""If files take more than this of a memory that ran full, they are what filled it."""

KTHREADD = 2
"""Pid of the parent of all kernel threads (init/main.c)."""

COMMANDS_LIMIT = 40
"""Command names with a row of their own."""

MANY_WAITING_BYTES = 4 << 20
TAKEN_AT_ONCE = 2000
"""Exit records taken during a run, if so many wait that their buffer could overflow: some 10 ms on hardware; an
emulated machine does not end tasks so fast."""

BUSY_SHARE = 0.1
"""What outlives the shell is at work if it uses a larger share of a CPU."""

IDLE_SHARE = 0.001
"""A workload that uses less of a CPU than this waits: the timers of a sleeping service use as much."""

FULL_BELOW_BYTES = 2 << 20

_WATCH_STEP_S = 0.1
_WATCH_STEPS = 6
_IDLE_STEP_S = 1.0
_CPUCLOCK_SCHED = 2  # include/linux/posix-timers.h: the clock of a process is (~pid << 3) | 2


class Group:
    """The cgroup of the workload."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pids(self) -> frozenset[int]:
        """Ids of its living processes."""
        return frozenset(map(int, (self._folder / "cgroup.procs").read_text().split()))

    def threads(self) -> list[int]:
        """Ids of its living threads."""
        return [int(thread) for thread in (self._folder / "cgroup.threads").read_text().split()]

    def wants_cpu(self) -> bool:
        """Whether any of its threads runs or waits for a CPU."""
        return any(state_of(thread) == "R" for thread in self.threads())

    def cpu_ns(self) -> int:
        """CPU time of everything that ever ran in it."""
        fields = dict(line.split() for line in (self._folder / "cpu.stat").read_text().splitlines())
        return int(fields["usage_usec"]) * 1000


@dataclass(frozen=True)
class Leftovers:
    """Processes that the run started and that outlived its shell.

    Args:
        cpu_ns: CPU time each of them had used when the shell ended, by pid.
        names: command names, by pid.
        busy: names of those that were still at work, the hungriest first.
    """

    cpu_ns: Mapping[int, int]
    names: Mapping[int, str]
    busy: tuple[str, ...] = ()

    @property
    def total_ns(self) -> int:
        """CPU time of all of them."""
        return sum(self.cpu_ns.values())


NOTHING_LEFT = Leftovers({}, {})


@dataclass(frozen=True)
class Ending:
    """What was seen at the moment a run's shell ended.

    Args:
        used_ns: CPU time of the whole cgroup since the start.
        left: what was still running.
        pressure: growth of PSI for CPU, I/O and memory (us).
        survivors: what the threads that were there before the run have used in their lives, by thread id.
    """

    used_ns: int
    left: Leftovers
    pressure: tuple[int, ...]
    survivors: Mapping[int, Taskstats]

    @property
    def cpu_ns(self) -> int:
        """CPU time of the run, without what was left running."""
        return max(0, self.used_ns - self.left.total_ns)


class Accounting:
    """Counts from `start` to `usage`; used once.

    Args:
        group: where the workload's processes are.

    Raises:
        SetupError: the kernel lacks taskstats, or the caller is not root.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._exits = TaskstatsSocket()
        self._log: list[bytes] = []
        self._prepared: frozenset[int] = frozenset()
        self._before: dict[int, Taskstats] = {}
        self._pressure = read_pressure()
        self._killed = 0
        self._cpu_ns = 0
        self._beside: tuple[int, ...] = ()

    def start(self, beside: Iterable[int] = ()) -> None:
        """Begin to count. Processes of the group that are there already, such as a server, belong to the run as well.

        Args:
            beside: processes that are no part of it, nor are their children: a policy's loader.
        """
        self._beside = tuple(beside)
        self._prepared = self._group.pids()
        self._before = living(self._group.threads()) if self._prepared else {}
        self._exits.listen()
        self._killed = killed_for_memory()
        self._pressure = read_pressure()
        self._cpu_ns = self._group.cpu_ns()

    def look(self) -> None:
        """Take some of the records that wait, if they are very many."""
        if self._exits.buffer().used_bytes > MANY_WAITING_BYTES:
            self._exits.drain(self._log.append, TAKEN_AT_ONCE)

    def end(self, *, shell_ended: bool) -> Ending:
        """Note, the moment the shell has ended, what was used and what is still there."""
        cpu_ns = self._group.cpu_ns() - self._cpu_ns
        pids = self._new() if shell_ended else ()
        left = Leftovers({pid: process_cpu_ns(pid) for pid in pids}, {pid: name_of(pid) for pid in pids})
        pressure = tuple(map(growth, self._pressure, read_pressure()))
        self._exits.drain(self._log.append)
        survivors = {} if not self._prepared else living(self._group.threads())
        return Ending(cpu_ns, left, pressure, survivors)

    def watch(self, ending: Ending, drain: Callable[[], None]) -> Ending:
        """Look for a moment at what was left: what ends by itself was not left behind, what works is told apart.

        Args:
            drain: called meanwhile, so that what is left can print.
        """
        if not ending.left.names:
            return ending
        busy: tuple[str, ...] = ()
        for _step in range(_WATCH_STEPS):
            busy = self._at_work(_WATCH_STEP_S)
            drain()
            if not busy:
                break
        left = self._new()
        if left:
            names = {pid: name_of(pid) for pid in left}  # by now each has become what it was started for
            return replace(ending, left=Leftovers(ending.left.cpu_ns, {**ending.left.names, **names}, busy))
        self._exits.drain(self._log.append)
        return replace(ending, left=NOTHING_LEFT)

    def usage(self, ending: Ending, rusage: struct_rusage | None, printed_bytes: int, layers: Sequence[Layer]) -> Usage:
        """Return what the run used, without what it left behind.

        If exit records were lost no command has figures, and the switches are those of the shell and of all that it
        and its children waited for.

        Args:
            rusage: the shell's; None if it did not end.
            printed_bytes: see Usage.output_bytes.
            layers: what could have run full.
        """
        lost = self._exits.buffer().dropped > 0
        tasks = list(self._tasks(ending))
        voluntary, involuntary = (rusage.ru_nvcsw, rusage.ru_nivcsw) if rusage else (0, 0)
        if not lost:
            voluntary = sum(task.voluntary_switches for task in tasks)
            involuntary = sum(task.involuntary_switches for task in tasks)
        return Usage(
            voluntary_switches=voluntary,
            involuntary_switches=involuntary,
            commands=() if lost else by_command(tasks),
            psi_cpu_us=ending.pressure[0],
            psi_io_us=ending.pressure[1],
            psi_memory_us=ending.pressure[2],
            left_behind=tuple(sorted(set(ending.left.names.values()))),
            left_cpu_ns=ending.left.total_ns,
            output_bytes=printed_bytes,
            full=filled(layers, killed_for_memory() > self._killed),
        )

    def close(self) -> None:
        """Stop listening."""
        self._exits.close()

    def _tasks(self, ending: Ending) -> Iterator[Taskstats]:
        """Yield what each task of the run has used in it, those that were there before and after it included."""
        before = dict(self._before)
        for task in without({*ending.left.names, *self._beside}, workload_tasks(self._log)):
            yield since(before.pop(task.pid, None), task)
        for thread, task in ending.survivors.items():
            if thread in before:
                yield since(before[thread], task)

    def _new(self) -> list[int]:
        """Processes of the run that neither were there before it nor descend from such."""
        pids = self._group.pids() - self._prepared
        return sorted(pid for pid in pids if not descends(pid, self._prepared))

    def _at_work(self, seconds: float) -> tuple[str, ...]:
        """Names of the leftovers that use CPU time, the hungriest first; none if together they use almost nothing."""
        before = {pid: process_cpu_ns(pid) for pid in self._new()}
        began_ns = time.monotonic_ns()
        time.sleep(seconds)
        used_ns = {pid: process_cpu_ns(pid) - before.get(pid, 0) for pid in self._new()}
        if sum(used_ns.values()) < BUSY_SHARE * (time.monotonic_ns() - began_ns):
            return ()
        return tuple(dict.fromkeys(name_of(pid) for pid in sorted(used_ns, key=used_ns.__getitem__, reverse=True)))


class Idleness:
    """Notices that a workload waits: nothing of it has used CPU time for long, and nothing wanted to.

    Args:
        limit_s: for how long; 0 for never.
    """

    def __init__(self, group: Group, limit_s: float) -> None:
        self._group = group
        self._limit_s = limit_s
        self._looked_s = self._since_s = time.monotonic()
        self._cpu_ns = group.cpu_ns()

    def reached(self) -> bool:
        """Whether it has waited for longer than the limit; looks no more than once a second."""
        now_s = time.monotonic()
        if not self._limit_s or now_s - self._looked_s < _IDLE_STEP_S:
            return False
        self._looked_s = now_s
        cpu_ns = self._group.cpu_ns()
        if cpu_ns - self._cpu_ns > IDLE_SHARE * self._limit_s * 1e9 or self._group.wants_cpu():
            self._since_s, self._cpu_ns = now_s, cpu_ns
        return now_s - self._since_s > self._limit_s


# --- tasks ----------------------------------------------------------------------------------------------------------


def workload_tasks(log: Iterable[bytes]) -> Iterator[Taskstats]:
    """Yield the tasks that ended, kernel threads left out."""
    for datagram in log:
        stats = exit_record(datagram)
        task = decode_taskstats(stats) if stats else None
        if task and task.ppid != KTHREADD:
            yield task


def without(left: Collection[int], tasks: Iterable[Taskstats]) -> list[Taskstats]:
    """Return the tasks that neither belong to a process that was left behind nor descend from one."""
    listed = list(tasks)
    if not left:
        return listed
    parents = {task.tgid: task.ppid for task in listed}
    return [task for task in listed if not descends(task.tgid, left, parents.get)]


def since(before: Taskstats | None, now: Taskstats) -> Taskstats:
    """Return what a task has used since it was looked at before."""
    if before is None:
        return now
    return replace(
        now,
        elapsed_ns=now.elapsed_ns - before.elapsed_ns,
        cpu_ns=now.cpu_ns - before.cpu_ns,
        run_delay_ns=now.run_delay_ns - before.run_delay_ns,
        voluntary_switches=now.voluntary_switches - before.voluntary_switches,
        involuntary_switches=now.involuntary_switches - before.involuntary_switches,
    )


def by_command(tasks: Iterable[Taskstats], limit: int = COMMANDS_LIMIT) -> tuple[CommandUsage, ...]:
    """Sum tasks by their command name, most CPU time first; those beyond the limit together, without a name."""
    groups: dict[str, list[Taskstats]] = defaultdict(list)
    for task in tasks:
        groups[task.comm].append(task)
    rows = sorted((summed(comm, group) for comm, group in groups.items()), key=lambda row: (-row.cpu_ns, row.comm))
    rare = [task for row in rows[limit:] for task in groups[row.comm]]
    return (*rows[:limit], *([summed("", rare)] if rare else []))


def summed(comm: str, tasks: Sequence[Taskstats]) -> CommandUsage:
    """Return the sums over some tasks."""
    return CommandUsage(
        comm=comm,
        tasks=len(tasks),
        cpu_ns=sum(task.cpu_ns for task in tasks),
        run_delay_ns=sum(task.run_delay_ns for task in tasks),
        voluntary_switches=sum(task.voluntary_switches for task in tasks),
        involuntary_switches=sum(task.involuntary_switches for task in tasks),
    )


# --- what the kernel shows ------------------------------------------------------------------------------------------


def living(threads: Iterable[int]) -> dict[int, Taskstats]:
    """Return what living threads have used so far, by thread id."""
    with TaskstatsSocket() as requests:
        return {thread: stats for thread in threads if (stats := requests.get(thread))}


def process_cpu_ns(pid: int) -> int:
    """CPU time of a process, its ended threads included; 0 if it is gone."""
    with suppress(OSError):
        return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)
    return 0


def name_of(pid: int) -> str:
    """Command name of a process; empty if it is gone."""
    with suppress(OSError):
        return (PROC / str(pid) / "comm").read_bytes().rstrip(b"\n").decode(errors="replace")
    return ""


def parent_of(pid: int) -> int | None:
    """Parent of a process; None if it is gone."""
    _state, parent = _state_and_parent(pid)
    return parent


def state_of(pid: int) -> str:
    """State of a process or thread, a letter of proc_pid_stat(5); empty if it is gone."""
    return _state_and_parent(pid)[0]


def _state_and_parent(pid: int) -> tuple[str, int | None]:
    with suppress(OSError):
        state, parent, *_others = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        return state, int(parent)
    return "", None


def descends(pid: int, ancestors: Collection[int], parent: Callable[[int], int | None] = parent_of) -> bool:
    """Whether a process is one of `ancestors`, or a descendant of one."""
    seen: set[int] = set()
    current: int | None = pid
    while ancestors and current is not None and current not in seen:
        if current in ancestors:
            return True
        seen.add(current)
        current = parent(current)
    return False


def killed_for_memory() -> int:
    """How many processes the kernel has killed since boot because memory was full."""
    for line in VMSTAT.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return 0


class Layer:
    """A throw-away file system, and whether it ran full.

    Args:
        mount: where it is mounted.
        files: folder in it whose files are looked at.
        shown: what users know this folder as.
    """

    def __init__(self, mount: Path, files: Path, shown: str) -> None:
        self._mount = mount
        self._files = files
        self._shown = shown
        self.full = False

    def look(self) -> None:
        """See whether there is space now; the last few pages may be left, for files are given several at once."""
        status = os.statvfs(self._mount)
        self.full = self.full or status.f_bavail * status.f_frsize < FULL_BELOW_BYTES

    @property
    def used_bytes(self) -> int:
        """How much is stored in it."""
        status = os.statvfs(self._mount)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def largest(self) -> str:
        """Path of the largest file, as the workload knows it; the layer itself if there is none."""
        sizes: dict[str, int] = {}
        for folder, _folders, names in os.walk(self._files):
            for name in names:
                with suppress(OSError):
                    sizes[os.path.join(folder, name)] = os.lstat(os.path.join(folder, name)).st_blocks  # noqa: PTH118
        if not sizes:
            return self._shown
        path = Path(max(sizes, key=sizes.__getitem__)).relative_to(self._files)
        return os.fsencode(Path(self._shown, path)).decode(errors="replace")


def filled(layers: Sequence[Layer], out_of_memory: bool) -> str:
    """Name what ran full: what fills a layer, what in a layer fills the memory, or MEMORY; empty if nothing did."""
    for layer in layers:
        if layer.full or (out_of_memory and layer.used_bytes > MEMORY_SHARE * memory_bytes()):
            return layer.largest()
    return MEMORY if out_of_memory else ""


def memory_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
