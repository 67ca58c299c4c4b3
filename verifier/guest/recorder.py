"""Records what a workload does: which tasks it makes, what each of them costs, how many can run at once.

Runs inside the micro-VM (and on any host, as root). While the workload runs it only stores datagrams, reads the
command line of what has just exec'd, and samples the load; all decoding happens afterwards, because in an emulated
machine every event handled in Python takes time from the workload.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kernel_bpf.observe.netlink import (
    EVENT_EXEC,
    EVENT_FORK,
    LostEvents,
    ProcessEvents,
    Taskstats,
    TaskstatsSocket,
    decode_event,
    decode_taskstats,
    exec_pid,
    exit_record,
)
from schedagent.core.errors import SetupError
from schedagent.core.policies.identity import CMDLINE_LIMIT_BYTES
from schedagent.core.trials.workload import Observation, TaskRecord

DELAY_ACCOUNTING = Path("/proc/sys/kernel/task_delayacct")
PRESSURE = Path("/proc/pressure")
SAMPLE_PERIOD_S = 0.05
BATCH_PERIOD_S = 0.005
"""Events are taken in batches. What lives shorter than this keeps no command line, and is too short to matter."""

_NICE = -10


class Recorder:
    """Records from `start` to `stop`; used once."""

    def __init__(self) -> None:
        """Open the sockets and turn delay accounting on, which counts for tasks forked from now on.

        Raises:
            SetupError: not root, or the kernel lacks process events, taskstats or delay accounting.
        """
        self._events = ProcessEvents()
        self._exits = TaskstatsSocket()
        try:
            self._delay_accounting_before = DELAY_ACCOUNTING.read_text()
            DELAY_ACCOUNTING.write_text("1")
        except OSError as error:
            raise SetupError(
                f"cannot turn delay accounting on: {DELAY_ACCOUNTING}: {error.strerror}",
                "this needs root and a kernel with CONFIG_TASK_DELAY_ACCT=y",
            ) from error
        self._event_log: list[tuple[bytes, bytes]] = []
        self._exit_log: list[bytes] = []
        self._samples: list[tuple[int, int]] = []
        self._pressure: tuple[int, ...] = ()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin to record; what is forked after this returns is seen."""
        self._exits.listen()
        self._pressure = read_pressure()
        self._thread.start()

    def stop(self, root_pid: int) -> Observation:
        """End the recording and return what `root_pid` and its descendants did.

        Args:
            root_pid: the workload's first process, forked after `start`.

        Raises:
            SetupError: no process event of `root_pid` arrived.
        """
        ended_ns = time.monotonic_ns()
        pressure = read_pressure()
        self.close()
        tasks, lost = replay(self._event_log)
        attach_stats(tasks, self._exit_log)
        family = descendants(tasks, root_pid)
        if not family:
            raise SetupError(f"no process event of pid {root_pid} arrived", "start the recorder before the workload")
        ask_for_survivors(family)
        root = family[0]
        return Observation(
            wall_ns=root.stats.elapsed_ns if root.stats else ended_ns - root.forked_ns,
            cpus=len(os.sched_getaffinity(0)),
            records=tuple(task_record(task, task.stats, root.forked_ns) for task in family if task.stats),
            parallelism=tuple((when - root.forked_ns, count) for when, count in self._samples if when > root.forked_ns),
            psi_cpu_us=growth(self._pressure[0], pressure[0]),
            psi_io_us=growth(self._pressure[1], pressure[1]),
            psi_memory_us=growth(self._pressure[2], pressure[2]),
            lost_events=lost + sum(task.stats is None for task in family),
        )

    def close(self) -> None:
        """End the thread, close the sockets, leave delay accounting as it was; may be called at any time, and again."""
        if self._end.is_set():
            return
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        DELAY_ACCOUNTING.write_text(self._delay_accounting_before)
        self._events.close()
        self._exits.close()

    def _watch(self) -> None:
        """Store what arrives and sample the load, until `close`."""
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        next_sample_s = time.monotonic()
        while not self._end.wait(BATCH_PERIOD_S):
            select.select([self._events], [], [], max(0.0, next_sample_s - time.monotonic()))
            self._drain()
            if time.monotonic() >= next_sample_s:
                self._samples.append((time.monotonic_ns(), runnable_tasks()))
                next_sample_s = time.monotonic() + SAMPLE_PERIOD_S
        self._drain()

    def _drain(self) -> None:
        self._events.drain(self._take_event)
        self._exits.drain(self._exit_log.append)

    def _take_event(self, datagram: bytes) -> None:
        pid = exec_pid(datagram)
        self._event_log.append((datagram, read_cmdline(pid) if pid else b""))


def read_cmdline(pid: int) -> bytes:
    """Return the start of a process's command line; empty if it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:  # noqa: PTH123  (a Path costs as much again)
            return file.read(CMDLINE_LIMIT_BYTES)
    except OSError:
        return b""


def runnable_tasks() -> int:
    """Return how many tasks run or wait for a CPU, the caller left out (/proc/loadavg, fourth field)."""
    running, _total = Path("/proc/loadavg").read_text().split()[3].split("/")
    return int(running) - 1


def read_pressure() -> tuple[int, int, int]:
    """Return the microseconds in which some task waited for CPU, I/O and memory; -1 for what the kernel lacks."""
    cpu, io, memory = (_some_total(PRESSURE / name) for name in ("cpu", "io", "memory"))
    return cpu, io, memory


def _some_total(path: Path) -> int:
    try:
        some = path.read_text().splitlines()[0]
    except OSError:
        return -1
    return int(some.rpartition("total=")[2])


def growth(before: int, after: int) -> int:
    """Return after - before; -1 if the kernel reported neither."""
    return after - before if before >= 0 else -1


@dataclass(slots=True)
class Task:
    """One task since its fork; `stats` come when it exits."""

    pid: int
    tgid: int
    parent_tgid: int
    forked_ns: int
    cmdline: bytes = b""
    stats: Taskstats | None = None


def replay(event_log: Iterable[tuple[bytes, bytes]]) -> tuple[list[Task], int]:
    """Return the tasks that were forked, in order, and the number of events lost.

    A pid that is used again is another task. Each event comes with the command line read after it, if it was an exec.
    """
    lost = LostEvents()
    tasks: list[Task] = []
    current: dict[int, Task] = {}
    for datagram, cmdline in event_log:
        event = decode_event(datagram)
        if event is None:
            continue
        lost.see(event)
        if event.what == EVENT_FORK:
            task = Task(event.pid, event.tgid, event.parent_tgid, event.timestamp_ns)
            tasks.append(task)
            current[event.pid] = task
        elif event.what == EVENT_EXEC and event.pid in current:
            current[event.pid].cmdline = cmdline
    return tasks, lost.count


def attach_stats(tasks: Iterable[Task], exit_log: Iterable[bytes]) -> None:
    """Give each task its exit record: the first record of a pid belongs to the first task of that pid, and so on."""
    records: dict[int, list[Taskstats]] = {}
    for datagram in exit_log:
        stats = exit_record(datagram)
        if stats:
            record = decode_taskstats(stats)
            records.setdefault(record.pid, []).append(record)
    for task in tasks:
        if records.get(task.pid):
            task.stats = records[task.pid].pop(0)


def descendants(tasks: Iterable[Task], root_pid: int) -> list[Task]:
    """Return the process `root_pid` and all that came from it, threads included, in the order of their forks."""
    family: list[Task] = []
    processes: set[int] = set()
    for task in tasks:
        is_thread = task.pid != task.tgid
        if task.pid == root_pid and not family:
            related = True
        else:
            related = (task.tgid if is_thread else task.parent_tgid) in processes
        if related:
            family.append(task)
            processes.add(task.tgid)
        elif not is_thread:
            processes.discard(task.tgid)
    return family


def ask_for_survivors(family: Iterable[Task]) -> None:
    """Fill in what tasks that outlived the workload have used so far."""
    with TaskstatsSocket() as requests:
        for task in family:
            if task.stats is None:
                task.stats = requests.get(task.pid)


def task_record(task: Task, stats: Taskstats, origin_ns: int) -> TaskRecord:
    """Join what process events and taskstats contain of a task."""
    return TaskRecord(
        pid=task.pid,
        tgid=task.tgid,
        ppid=task.parent_tgid,
        comm=stats.comm,
        cmdline=task.cmdline,
        start_ns=task.forked_ns - origin_ns,
        elapsed_ns=stats.elapsed_ns,
        cpu_ns=stats.cpu_ns,
        run_delay_ns=stats.run_delay_ns,
        voluntary_switches=stats.voluntary_switches,
        involuntary_switches=stats.involuntary_switches,
    )
