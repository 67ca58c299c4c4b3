"""Observation: run the workload once under the default scheduler and classify it.

`build_profile` and everything below it is pure: it turns one recorded run into tables, a classification and the
sentences that carry the evidence. Command names never decide; only shapes and measured times do. `interpret` has a
model put it into words, which stand beside the numbers. The lab is a Protocol that the composition root fills.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from agents.claims import figures_of_place, figures_of_profile, without_claims
from agents.schemas import Described
from agents.session import ModelSession
from agents.summaries import profile_text, workload_text
from schedagent.core.errors import SetupError
from schedagent.core.policies.identity import cmdline_identity, comm_identity, stable_arguments
from schedagent.core.trials.lesson import Meaning
from schedagent.core.trials.trial import Hardware, Sample
from schedagent.core.trials.workload import (
    CommandStats,
    Observation,
    TaskRecord,
    WorkloadClass,
    WorkloadCommand,
    WorkloadProfile,
)
from verifier.lab.remarks import remarks

HISTORY_LIMIT = 2048
"""Identities handed to a policy at most; half of what its map holds."""

_WORKING_SHARE = 0.95
_TAIL_MULTIPLE = 3.0
_TAIL_RATIO = 0.95
_SPLIT_MULTIPLE = 2.0
_SPLIT_CPU_SHARE = 0.01
_SERIAL_PARALLELISM = 1.25
_SERIAL_DELAY_SHARE = 0.10
_BUILD_PROCESSES = 12
_BUILD_SUCCESSION = 0.25
_LABEL_LENGTH = 40


class ObservingLab(Protocol):
    """Where a workload can be run and recorded."""

    def observe(self, workload: WorkloadCommand) -> tuple[Sample, Observation]:
        """Run it; the sample holds all of its output."""
        ...


def observe(
    lab: ObservingLab,
    workload: WorkloadCommand,
    remark: Callable[[str], None] = lambda _text: None,
    *,
    kappa: float = 1.0,
) -> tuple[Sample, WorkloadProfile]:
    """Run the workload once under the default scheduler; return the sample and its profile.

    Args:
        remark: called with each sentence that a user should know of this run.
        kappa: how many times as long work takes in the lab as on hardware.

    Raises:
        SchedagentError: whatever the lab raises; WorkloadFailed if the workload itself failed.
    """
    sample, observation = lab.observe(workload)
    for text in remarks(workload, sample, observation):
        remark(text)
    return sample, build_profile(observation, kappa=kappa)


def interpret(
    session: ModelSession, workload: WorkloadCommand, hardware: Hardware, profile: WorkloadProfile
) -> Meaning | None:
    """Have a model put into words what the profile means; None if it gives no answer. Its words hold no new numbers."""
    sections = {"workload": workload_text(workload, hardware), "profile": profile_text(profile)}
    answer = session.ask("observation", 0, session.question("What do these figures mean?", sections), Described)
    if answer is None:
        return None
    known = figures_of_place(workload, hardware) | figures_of_profile(profile)
    return Meaning(without_claims(answer.meaning, known), without_claims(answer.goal, known))


def build_profile(observation: Observation, *, kappa: float = 1.0) -> WorkloadProfile:
    """Return what a recorded run shows.

    Args:
        kappa: how many times as long work takes in the lab as on hardware.

    Raises:
        SetupError: the recording holds no task.
    """
    if not observation.records or observation.wall_ns <= 0:
        raise SetupError("the recording of the workload holds no task", "run again; if it repeats, report it as a bug")
    histories = history_table(observation.records)
    run = _Run(observation, {row.identity: row.label for row in histories}, HARDWARE_PACE.stretched(kappa))
    kind, evidence = classify(run)
    return WorkloadProfile(
        wall_s=run.wall_ns / 1e9,
        cpu_s=run.cpu_ns / 1e9,
        cpus=run.cpus,
        parallelism=tuple((when / 1e9, count) for when, count in observation.parallelism),
        busy_fraction=run.cpu_ns / (run.wall_ns * run.cpus),
        commands=command_table(observation.records),
        histories=histories,
        psi_cpu_some_s=_seconds(observation.psi_cpu_us),
        psi_io_some_s=_seconds(observation.psi_io_us),
        psi_memory_some_s=_seconds(observation.psi_memory_us),
        kind=kind,
        evidence=evidence,
        lost_events=observation.lost_events,
        predicted_ratio=run.tail.ratio if run.tail else 1.0,
    )


def _seconds(microseconds: int) -> float:
    return -1.0 if microseconds < 0 else microseconds / 1e6


# --- tables ---------------------------------------------------------------------------------------------------------


def command_table(records: Iterable[TaskRecord]) -> tuple[CommandStats, ...]:
    """Return one row per command name, by total CPU time, descending."""
    rows = [summarise(comm, comm_identity(comm), group) for comm, group in _by_comm(records).items()]
    return tuple(sorted(rows, key=lambda row: -row.cpu_ns_total))


def history_table(records: Sequence[TaskRecord]) -> tuple[CommandStats, ...]:
    """Return the rows a policy may look up, by total CPU time, descending, at most HISTORY_LIMIT.

    Every command name has a row. Its command lines have rows of their own only where that is informative: they differ
    clearly in CPU time and the command matters at all.
    """
    rows = []
    total_ns = sum(record.cpu_ns for record in records)
    for comm, group in _by_comm(records).items():
        rows.append(summarise(comm, comm_identity(comm), group))
        lines = _by_cmdline(group)
        if _worth_splitting(lines, total_ns):
            labels = _labels(comm, lines)
            rows.extend(summarise(labels[key], key, members) for key, members in lines.items())
    return tuple(sorted(rows, key=lambda row: -row.cpu_ns_total)[:HISTORY_LIMIT])


def _by_comm(records: Iterable[TaskRecord]) -> dict[str, list[TaskRecord]]:
    groups: dict[str, list[TaskRecord]] = defaultdict(list)
    for record in records:
        groups[record.comm].append(record)
    return groups


def _by_cmdline(records: Iterable[TaskRecord]) -> dict[int, list[TaskRecord]]:
    """Group by identity of the command line; tasks without one (threads, forks that never exec'd) are left out."""
    groups: dict[int, list[TaskRecord]] = defaultdict(list)
    for record in records:
        if record.cmdline:
            groups[cmdline_identity(record.cmdline)].append(record)
    return groups


def _worth_splitting(lines: Mapping[int, Sequence[TaskRecord]], total_ns: int) -> bool:
    typical = [_quantile(sorted(record.cpu_ns for record in members), 0.5) for members in lines.values()]
    if len(typical) < 2:
        return False
    cpu_ns = sum(record.cpu_ns for members in lines.values() for record in members)
    return cpu_ns >= _SPLIT_CPU_SHARE * total_ns and max(typical) >= _SPLIT_MULTIPLE * min(typical)


def _labels(comm: str, lines: Mapping[int, Sequence[TaskRecord]]) -> dict[int, str]:
    """Name each command line by the arguments that it does not share with all the others."""
    arguments = {key: stable_arguments(members[0].cmdline) for key, members in lines.items()}
    shared = set.intersection(*(set(words) for words in arguments.values()))
    labels = {}
    for key, words in arguments.items():
        own = [word.decode(errors="replace") for word in words if word not in shared] or [""]
        label = " ".join(own)
        labels[key] = f"{comm} {label if len(label) <= _LABEL_LENGTH else min(own, key=len)}"[:_LABEL_LENGTH].rstrip()
    return labels


def summarise(label: str, identity: int, records: Sequence[TaskRecord]) -> CommandStats:
    """Return the row of a group of tasks."""
    cpu = sorted(record.cpu_ns for record in records)
    voluntary = sum(record.voluntary_switches for record in records)
    involuntary = sum(record.involuntary_switches for record in records)
    return CommandStats(
        label=label,
        identity=identity,
        comm=records[0].comm,
        count=len(records),
        cpu_ns_p50=_quantile(cpu, 0.5),
        cpu_ns_p95=_quantile(cpu, 0.95),
        cpu_ns_max=cpu[-1],
        cpu_ns_total=sum(cpu),
        run_delay_ns_total=sum(record.run_delay_ns for record in records),
        run_delay_ns_max=max(record.run_delay_ns for record in records),
        # Every task's last stint ends by its exit, which counts as no switch.
        burst_ns_mean=sum(cpu) // (voluntary + involuntary + len(records)),
        voluntary_switches=voluntary,
        involuntary_switches=involuntary,
    )


def _quantile(ordered: Sequence[int], fraction: float) -> int:
    """Return the nearest-rank quantile of sorted values."""
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


# --- what order can gain --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A task reduced to when it became ready and how much CPU time it needs, both in ns."""

    ready_ns: int
    cpu_ns: int


def fair_makespan(jobs: Iterable[Job], cpus: int) -> float:
    """Return when the last job ends, in ns, if all ready jobs share the CPUs equally at every moment.

    Equal shares mean that a job ends when the service given to everyone has grown by its need, so one heap of
    "service at which it ends" is the whole state. For n equal jobs and one long one this gives the closed form
    s * ((n + 1) / C + r - 1).
    """
    waiting = sorted(jobs, key=lambda job: job.ready_ns)
    now, service = 0.0, 0.0
    ends: list[float] = []
    upcoming = 0
    while upcoming < len(waiting) or ends:
        rate = min(1.0, cpus / len(ends)) if ends else 0.0
        next_end = now + (ends[0] - service) / rate if ends else float("inf")
        next_ready = waiting[upcoming].ready_ns if upcoming < len(waiting) else float("inf")
        moment = min(next_end, next_ready)
        service += (moment - now) * rate
        now = moment
        if next_ready <= next_end:
            heapq.heappush(ends, service + waiting[upcoming].cpu_ns)
            upcoming += 1
        else:
            service = heapq.heappop(ends)
    return now


def longest_first_bound(jobs: Iterable[Job], cpus: int) -> float:
    """Return the makespan, in ns, that no order can beat and that longest-first comes near.

    For every moment: what becomes ready from then on cannot end before its longest job, nor before its sum / CPUs.
    """
    bound, longest, total = 0.0, 0, 0
    for job in sorted(jobs, key=lambda job: -job.ready_ns):
        longest = max(longest, job.cpu_ns)
        total += job.cpu_ns
        bound = max(bound, job.ready_ns + max(longest, total / cpus))
    return bound


@dataclass(frozen=True)
class Tail:
    """The longest task, and what running it first would gain.

    Args:
        longest: the task.
        others: tasks that did real work and lived beside it.
        median_ns: their median CPU time.
        fair_ns: time that these tasks and the longest take under fair sharing.
        bound_ns: time that they need at least.
        ratio: predicted makespan of the whole workload / the present one.
    """

    longest: TaskRecord
    others: int
    median_ns: int
    fair_ns: float
    bound_ns: float
    ratio: float


def find_tail(working: Sequence[TaskRecord], wall_ns: int, cpus: int) -> Tail | None:
    """Return the long tail among tasks that compete for the CPUs; None if there is none.

    Only tasks that lived beside the longest one count: what starts after its end (the link step of a build) would
    simply start earlier.
    """
    longest = max(working, key=lambda record: record.cpu_ns)
    end_ns = longest.start_ns + longest.elapsed_ns
    beside = [
        record
        for record in working
        if record is not longest and record.start_ns < end_ns and record.start_ns + record.elapsed_ns > longest.start_ns
    ]
    if len(beside) < cpus:
        return None
    median_ns = _quantile(sorted(record.cpu_ns for record in beside), 0.5)
    if longest.cpu_ns < _TAIL_MULTIPLE * median_ns:
        return None
    origin_ns = min(record.start_ns for record in [longest, *beside])
    jobs = [Job(record.start_ns - origin_ns, record.cpu_ns) for record in [longest, *beside]]
    fair_ns, bound_ns = fair_makespan(jobs, cpus), longest_first_bound(jobs, cpus)
    ratio = 1 - (fair_ns - bound_ns) / max(fair_ns, wall_ns)
    if ratio > _TAIL_RATIO:
        return None
    return Tail(longest, len(beside), median_ns, fair_ns, bound_ns, ratio)


# --- classification -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """The thresholds of the rules that are times: all others are counts and shares, and hold at any speed.

    Args:
        lively_wakeups_per_s: a lively task wakes up so often at least.
        lively_burst_ns: and uses no more CPU time each time it runs.
        busy_burst_ns: a task that almost never sleeps uses more CPU time than this between two sleeps.
    """

    lively_wakeups_per_s: float
    lively_burst_ns: float
    busy_burst_ns: float

    def stretched(self, kappa: float) -> Pace:
        """Return the same thresholds in the time of a machine on which all work takes `kappa` times as long."""
        return Pace(self.lively_wakeups_per_s / kappa, self.lively_burst_ns * kappa, self.busy_burst_ns * kappa)


HARDWARE_PACE = Pace(lively_wakeups_per_s=20, lively_burst_ns=5_000_000, busy_burst_ns=50_000_000)


class _Run:
    """The figures of a recorded run that the rules below share."""

    def __init__(self, observation: Observation, labels: Mapping[int, str], pace: Pace) -> None:
        self.labels = labels
        self.pace = pace
        self.records = observation.records
        self.wall_ns = observation.wall_ns
        self.cpus = observation.cpus
        self.cpu_ns = sum(record.cpu_ns for record in self.records)
        self.run_delay_ns = sum(record.run_delay_ns for record in self.records)
        self.working = working_tasks(self.records)
        self.tail = find_tail(self.working, self.wall_ns, self.cpus)

    @property
    def parallelism(self) -> float:
        """Tasks that ran or wanted to run, averaged over the run."""
        return (self.cpu_ns + self.run_delay_ns) / self.wall_ns


def working_tasks(records: Sequence[TaskRecord]) -> list[TaskRecord]:
    """Return the largest tasks that together used 95 % of the CPU time: shells and wrappers drop out."""
    ordered = sorted(records, key=lambda record: -record.cpu_ns)
    wanted_ns = _WORKING_SHARE * sum(record.cpu_ns for record in ordered)
    chosen: list[TaskRecord] = []
    used_ns = 0
    for record in ordered:
        if chosen and used_ns >= wanted_ns:
            break
        chosen.append(record)
        used_ns += record.cpu_ns
    return chosen


def classify(run: _Run) -> tuple[WorkloadClass, tuple[str, ...]]:
    """Return the first class whose rule holds, and the evidence: its own, and that of a long tail if there is one."""
    for kind, rule in _RULES:
        sentence = rule(run)
        if sentence:
            tail = _tail_evidence(run)
            known = (sentence, tail) if tail and tail != sentence else (sentence,)
            return kind, (*known, _load_evidence(run))
    return WorkloadClass.MIXED, ("no single shape dominates", _load_evidence(run))


def _load_evidence(run: _Run) -> str:
    return (
        f"{run.cpu_ns / 1e9:.2f} s of CPU time in {run.wall_ns / 1e9:.2f} s on {run.cpus} CPUs; on average "
        f"{run.parallelism:.1f} tasks ran or waited, together they waited {run.run_delay_ns / 1e9:.2f} s"
    )


def _serial_evidence(run: _Run) -> str:
    if run.parallelism > _SERIAL_PARALLELISM or run.run_delay_ns > _SERIAL_DELAY_SHARE * run.wall_ns:
        return ""
    return (
        f"on average {run.parallelism:.2f} tasks wanted a CPU and all together waited "
        f"{100 * run.run_delay_ns / run.wall_ns:.0f} % of the run for one: scheduling cannot help"
    )


def _build_evidence(run: _Run) -> str:
    """Many short processes, still being started after others have ended, under a tree of commands."""
    processes = [record for record in run.records if record.pid == record.tgid]
    later = succession(processes)
    typical_ns = _quantile(sorted(record.cpu_ns for record in processes), 0.5)
    if len(processes) < _BUILD_PROCESSES or later < _BUILD_SUCCESSION or typical_ns > run.cpu_ns / _BUILD_PROCESSES:
        return ""
    rate = len(processes) / (run.wall_ns / 1e9)
    return (
        f"{len(processes)} processes, {rate:.1f} a second, {tree_depth(processes)} levels deep, "
        f"{100 * later:.0f} % of them started after others had ended, median {typical_ns / 1e6:.1f} ms of "
        "CPU time: the shape of a parallel build"
    )


def succession(processes: Sequence[TaskRecord]) -> float:
    """Return the share of processes that started after a tenth of all (at least three) had ended.

    A batch is started as a whole, however slowly; a build starts steps as others end.
    """
    ends = sorted(record.start_ns + record.elapsed_ns for record in processes)
    moment = ends[min(len(ends), max(3, len(ends) // 10)) - 1]
    return sum(record.start_ns > moment for record in processes) / len(processes)


def tree_depth(processes: Sequence[TaskRecord]) -> int:
    """Return the length of the longest chain from a process to its ancestors, in the order of their forks."""
    depth: dict[int, int] = {}
    for record in sorted(processes, key=lambda record: record.start_ns):
        depth[record.tgid] = depth.get(record.ppid, 0) + 1
    return max(depth.values(), default=0)


def _latency_evidence(run: _Run) -> str:
    """Long-lived tasks that run briefly and often, and wait noticeably before each time they run."""
    lively = [record for record in run.records if _is_lively(record, run.wall_ns, run.pace)]
    wakeups = sum(record.voluntary_switches for record in lively)
    if wakeups < 100:
        return ""
    cpu_ns = sum(record.cpu_ns for record in lively)
    delay_ns = sum(record.run_delay_ns for record in lively)
    if delay_ns < cpu_ns / 4 and cpu_ns < run.cpu_ns / 2:
        return ""
    return (
        f"{len(lively)} tasks woke up {wakeups} times, ran {cpu_ns / wakeups / 1e6:.2f} ms each time and waited "
        f"{delay_ns / wakeups / 1e6:.2f} ms for a CPU before it"
    )


def _is_lively(record: TaskRecord, wall_ns: int, pace: Pace) -> bool:
    switches = record.voluntary_switches + record.involuntary_switches
    return (
        record.elapsed_ns >= 0.3 * wall_ns
        and record.voluntary_switches >= pace.lively_wakeups_per_s * record.elapsed_ns / 1e9
        and record.voluntary_switches >= 2 * record.involuntary_switches
        and record.cpu_ns <= pace.lively_burst_ns * switches
    )


def _tail_evidence(run: _Run) -> str:
    tail = run.tail
    if tail is None:
        return ""
    multiple = tail.longest.cpu_ns / max(1, tail.median_ns)
    label = run.labels.get(cmdline_identity(tail.longest.cmdline), tail.longest.comm)
    return (
        f"the longest task ({label}) needs {tail.longest.cpu_ns / 1e9:.2f} s of CPU time, {multiple:.1f} "
        f"times the median of the {tail.others} tasks beside it; fair sharing of {run.cpus} CPUs takes about "
        f"{tail.fair_ns / 1e9:.2f} s for them, longest first at least {tail.bound_ns / 1e9:.2f} s: up to "
        f"{100 * (1 - tail.ratio):.0f} % of the run to gain"
    )


def _batch_evidence(run: _Run) -> str:
    """Tasks that hardly ever sleep and keep the CPUs contended."""
    busy_burst_ns = run.pace.busy_burst_ns
    bound = [record for record in run.working if record.voluntary_switches * busy_burst_ns <= record.cpu_ns]
    cpu_ns = sum(record.cpu_ns for record in bound)
    if cpu_ns < 0.8 * run.cpu_ns:
        return ""
    return (
        f"{len(bound)} tasks that almost never sleep use {100 * cpu_ns / run.cpu_ns:.0f} % of the CPU time, "
        f"{_quantile(sorted(record.cpu_ns for record in bound), 0.5) / 1e9:.2f} s each (median)"
    )


_RULES: tuple[tuple[WorkloadClass, Callable[[_Run], str]], ...] = (
    (WorkloadClass.SERIAL, _serial_evidence),
    (WorkloadClass.PARALLEL_BUILD, _build_evidence),
    (WorkloadClass.LATENCY_SENSITIVE, _latency_evidence),
    (WorkloadClass.BATCH_LONG_TAIL, _tail_evidence),
    (WorkloadClass.CPU_BATCH, _batch_evidence),
)
