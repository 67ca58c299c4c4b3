"""What the user wants to run, and what observing it once has shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from schedagent.core.trials.objective import Guard, Metric

DEFAULT_SHELL = "/bin/sh"


class Goal(StrEnum):
    """What "better" means."""

    MAKESPAN = "makespan"
    LATENCY = "latency"
    THROUGHPUT = "throughput"

    @property
    def lower_is_better(self) -> bool:
        return self is not Goal.THROUGHPUT


@dataclass(frozen=True)
class WorkloadCommand:
    """One shell command of the user's, and how its success is measured.

    Args:
        command: what ``/bin/sh -c`` runs.
        directory: absolute path of the working directory.
        goal: what is compared; LATENCY and THROUGHPUT need ``metric``.
        prepare: shell command run, untimed, before each trial; empty for none.
        metric: regular expression whose first group is a number in the output; empty means wall time in seconds.
        timeout_s: longest time one run may take.
        objective: name of what is compared, for people; empty: the metric, or wall time.
        metrics: further numbers to read from the output, shown and not judged.
        guards: numbers that must not get worse.
        preset: name of the preset that chose objective and guards; empty if the user did.
        shell: program that runs the commands, with -c.
        ignore_failure: whether a run that ends with another status than 0 counts as well.
        setup: shell command run once in each machine, before the first run; what it writes stays for all of them.
        cleanup: shell command run, untimed, after each run.
        units: (name, kind) of each number read from the output, as core.readings.metric.Reading has it; no part of
            what defines the work.
        running: it ran already and is not started: `command` names what it is, such as "unit nginx.service", and what
            is compared was measured in windows of an experiment.
    """

    command: str
    directory: str
    goal: Goal = Goal.MAKESPAN
    prepare: str = ""
    metric: str = ""
    timeout_s: float = 900.0
    objective: str = ""
    metrics: tuple[Metric, ...] = ()
    guards: tuple[Guard, ...] = ()
    preset: str = ""
    shell: str = DEFAULT_SHELL
    ignore_failure: bool = False
    setup: str = ""
    cleanup: str = ""
    units: tuple[tuple[str, str], ...] = ()
    running: bool = False

    @property
    def key(self) -> str:
        """A stable name for "the same workload": hex digest of all that defines the work, and of no more.

        What an older version did not know is part of it only where it is used: the keys of older runs stay valid.
        What is compared is part of it, since the verdict on one number teaches nothing of another; what is guarded or
        only shown is not. Of a preset it is the name of its objective: a better expression for it is no other work.
        """
        compared = f"{self.preset}: {self.objective}" if self.preset and self.metric else self.metric
        parts: list[Any] = [self.command, self.directory, self.goal.value, self.prepare, compared]
        newer = {name: getattr(self, name) for name in ("shell", "ignore_failure", "setup", "running")}
        used = {name: value for name, value in newer.items() if value not in ("", False, DEFAULT_SHELL)}
        return hashlib.sha256(json.dumps([*parts, used] if used else parts).encode()).hexdigest()[:16]


class WorkloadClass(StrEnum):
    """The kinds of work the offline planner has rules for."""

    BATCH_LONG_TAIL = "batch-long-tail"
    PARALLEL_BUILD = "parallel-build"
    LATENCY_SENSITIVE = "latency-sensitive"
    CPU_BATCH = "cpu-batch"
    SERIAL = "serial"
    MIXED = "mixed"


@dataclass(frozen=True)
class TaskRecord:
    """One finished process or thread as the kernel's taskstats reported it.

    Args:
        pid, tgid, ppid: ids in the guest.
        comm: command name at exit.
        cmdline: bytes of /proc/PID/cmdline seen after its last exec; empty if it ended before it could be read.
        start_ns: CLOCK_MONOTONIC at fork, relative to the start of the workload; -1 if not seen.
        elapsed_ns: life time.
        cpu_ns: CPU time used.
        run_delay_ns: time spent runnable but waiting for a CPU (delay accounting).
        voluntary_switches, involuntary_switches: context switches.
    """

    pid: int
    tgid: int
    ppid: int
    comm: str
    cmdline: bytes
    start_ns: int
    elapsed_ns: int
    cpu_ns: int
    run_delay_ns: int
    voluntary_switches: int
    involuntary_switches: int


@dataclass(frozen=True)
class Observation:
    """One recorded run of a workload: raw material of a WorkloadProfile.

    Args:
        wall_ns: from the fork of the workload's shell to its end.
        cpus: CPUs of the machine it ran on.
        records: every task that descends from the shell, the shell included; those that outlived it are counted so far.
        parallelism: (ns since the start, runnable tasks), sampled.
        psi_cpu_us, psi_io_us, psi_memory_us: growth of "some ... total" in /proc/pressure; -1 if the kernel has no PSI.
        lost_events: process events and exit records that never arrived; above 0, records may be missing.
    """

    wall_ns: int
    cpus: int
    records: tuple[TaskRecord, ...]
    parallelism: tuple[tuple[int, int], ...]
    psi_cpu_us: int
    psi_io_us: int
    psi_memory_us: int
    lost_events: int

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes. Records are rows, not objects, because a large build has 100 000 of them."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        rows = [[getattr(record, name) for name in TaskRecord.__dataclass_fields__] for record in self.records]
        for row in rows:
            row[_CMDLINE] = row[_CMDLINE].decode("latin-1")
        return fields | {"records": rows}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Build an Observation; raise TypeError or ValueError if `fields` is not one."""
        records = []
        for row in fields["records"]:
            values = dict(zip(TaskRecord.__dataclass_fields__, row, strict=True))
            records.append(TaskRecord(**values | {"cmdline": values["cmdline"].encode("latin-1")}))
        samples = tuple((int(when), int(runnable)) for when, runnable in fields["parallelism"])
        return cls(**{**fields, "records": tuple(records), "parallelism": samples})


_CMDLINE = list(TaskRecord.__dataclass_fields__).index("cmdline")


@dataclass(frozen=True)
class CommandStats:
    """All tasks of one command (one identity) in one observed run.

    Args:
        label: for people: the command name, or the start of its command line.
        identity: hash the policies look up (see core.identity).
        comm: command name.
        count: how many tasks.
        cpu_ns_p50, cpu_ns_p95, cpu_ns_max, cpu_ns_total: distribution of CPU time per task.
        run_delay_ns_total, run_delay_ns_max: waiting while runnable.
        burst_ns_mean: CPU time per switch, a measure of how long a task runs once it runs.
        voluntary_switches, involuntary_switches: sums.
    """

    label: str
    identity: int
    comm: str
    count: int
    cpu_ns_p50: int
    cpu_ns_p95: int
    cpu_ns_max: int
    cpu_ns_total: int
    run_delay_ns_total: int
    run_delay_ns_max: int
    burst_ns_mean: int
    voluntary_switches: int
    involuntary_switches: int


@dataclass(frozen=True)
class WorkloadProfile:
    """What one observed run under the default scheduler has shown.

    Args:
        wall_s: time from start to end.
        cpu_s: CPU time of all its tasks.
        cpus: CPUs of the lab machine.
        parallelism: runnable tasks over time, as (seconds since start, runnable tasks).
        busy_fraction: CPU time / (wall * cpus).
        commands: per-command-name table, by total CPU time, descending.
        histories: per-identity table for the loader (command lines where they repeat a name), same order.
        psi_cpu_some_s: seconds in which some task waited for a CPU (/proc/pressure/cpu), -1 if unknown.
        psi_io_some_s, psi_memory_some_s: the same for I/O and memory.
        kind: classification.
        evidence: sentences with the numbers that led to `kind`.
        lost_events: process events the kernel dropped; above 0 the table may miss tasks.
        predicted_ratio: longest-first bound / fair-sharing estimate of the makespan; 1.0 if ordering cannot help.
    """

    wall_s: float
    cpu_s: float
    cpus: int
    parallelism: tuple[tuple[float, int], ...]
    busy_fraction: float
    commands: tuple[CommandStats, ...]
    histories: tuple[CommandStats, ...]
    psi_cpu_some_s: float
    psi_io_some_s: float
    psi_memory_some_s: float
    kind: WorkloadClass
    evidence: tuple[str, ...]
    lost_events: int = 0
    predicted_ratio: float = 1.0
