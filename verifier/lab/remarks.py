"""What a run of the workload really did, in sentences: pure functions of what was measured and printed.

Where the figure of a run would be nonsense the run is refused; everything else that a user should know of is a remark.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from schedagent.core.process.shell_text import quoted
from schedagent.core.trials.trial import Sample
from schedagent.core.trials.usage import CommandUsage, Usage
from schedagent.core.trials.workload import Goal, Observation, WorkloadCommand
from verifier.lab.bashisms import AMPERSAND_REDIRECTION, bashisms
from verifier.microvm import jobs

MEMORY = "memory"
BASH_HINT = "give --shell bash"
GENERAL_HINT = "fix the command until it works; nothing was changed on this machine"

LITTLE_CPU_NS = 250_000_000
"""A run that uses less CPU time, and takes no longer, is over before a scheduler matters; emulated, a shell that starts
a program takes a tenth of it."""

NOTHING_DONE_CPU_NS = 1_000_000_000
"""A build tool that says it had nothing to do, and used less CPU time than this, has done nothing."""

WAITING_SHARE = 0.05
WAITING_FROM_NS = 1_000_000_000
CROWD = 4.0
MEMORY_PRESSURE_SHARE = 0.05

_NOTHING_DONE = (
    (re.compile(r"^make(\[\d+\])?: (Nothing to be done for .*|.* is up to date\.)$", re.MULTILINE), "make clean"),
    (re.compile(r"^ninja: no work to do\.$", re.MULTILINE), "ninja -t clean"),
    (re.compile(r"\A\s*Finished .*target\(s\) in .*\s*\Z"), "cargo clean"),
)
"""What build tools print if there was nothing to do, and what would give them something to do."""

_FAILURE_HINTS = (
    (
        re.compile(r"EOFError|not a (tty|terminal)|Inappropriate ioctl for device|end of file reading", re.IGNORECASE),
        "nobody answers in the lab: standard input is /dev/null; give it a file with < FILE",
    ),
    (
        re.compile(
            r"name resolution|could not resolve|network is unreachable|no address associated|unknown host",
            re.IGNORECASE,
        ),
        "the lab has no network but 127.0.0.1: fetch what is needed before, outside",
    ),
    (
        re.compile(r"no space left on device", re.IGNORECASE),
        "files that the workload writes are kept in the lab's memory: write less, or give --memory a larger size",
    ),
    (
        re.compile(r"cannot allocate memory|out of memory|MemoryError|std::bad_alloc", re.IGNORECASE),
        "give the lab more memory with --memory, or the workload less to do at once",
    ),
)


@dataclass(frozen=True)
class Nonsense:
    """Why the figures of a run must not be used.

    Args:
        what: the rest of a sentence that begins with the workload.
        hint: what to do.
    """

    what: str
    hint: str


def usage_of(answer: jobs.RunAnswer) -> Usage:
    """What a run used, as the guest's agent counted it; nothing if it did not get so far."""
    if answer.usage is None:
        return Usage(0, 0)
    fields: dict[str, Any] = dict(answer.usage)
    fields["commands"] = tuple(CommandUsage(**row) for row in fields["commands"])
    fields["left_behind"] = tuple(fields["left_behind"])
    return Usage(**{**fields, "loader_cpu_ns": answer.loader.cpu_ns if answer.loader else 0})


def failure_seen(workload: WorkloadCommand, answer: jobs.RunAnswer) -> str | None:
    """Why a run cannot be compared, as far as its exit status does not show it; see Usage.failure."""
    full = usage_of(answer).full
    if answer.prepare_status != 0:
        return f"its --prepare command {how_it_ended(answer.prepare_status)}"
    if answer.waited:
        return "it waited for a long time, without using any CPU time, and was ended"
    if full == MEMORY:
        return "the lab's memory ran full, and the kernel killed one of its processes"
    if full and answer.exit_status != 0:
        return f"the lab's space for files ran full; most of it is in {full}"
    if abandoned(workload, answer.busy, answer.cpu_ns):
        return f"it returned while work it had started was still going on: {names(answer.busy)}"
    return "" if workload.ignore_failure and answer.exit_status is not None else None


def how_it_ended(status: int | None) -> str:
    """The end of a sentence about a command that failed."""
    return "ran into its time limit" if status is None else f"ended with exit status {status}"


def why_nonsense(workload: WorkloadCommand, sample: Sample, busy: Collection[str]) -> Nonsense | None:
    """Why the figures of a run under observation must not be used, although it may have ended well."""
    if abandoned(workload, busy, sample.cpu_ns):
        return Nonsense(
            f"returned while work it had started was still going on: {names(busy)}", _background_hint(workload)
        )
    nothing = nothing_done(sample) if sample.exit_status == 0 and not workload.metric else None
    if nothing:
        line, clean = nothing
        return Nonsense(
            f"had nothing left to do: {line}", f"undo the work before each run, for example: --prepare {quoted(clean)}"
        )
    return None


def abandoned(workload: WorkloadCommand, busy: Collection[str], cpu_ns: int) -> bool:
    """Whether what outlived the shell is the very work that was to be measured.

    A load that was started to run beside a benchmark outlives it as well: then the rest of the command has done
    something, too. A remark says so.

    Args:
        busy: what was still at work.
        cpu_ns: CPU time of the rest.
    """
    if not busy or workload.metric:
        return False
    return cpu_ns < LITTLE_CPU_NS or AMPERSAND_REDIRECTION in shell_trouble(workload)


def _background_hint(workload: WorkloadCommand) -> str:
    if AMPERSAND_REDIRECTION in shell_trouble(workload):
        return (
            f"in {workload.shell} &> runs the command in the background and empties the file: "
            f"{BASH_HINT}, or write > FILE 2>&1"
        )
    return "end the command with `wait` if that work is to be measured, or with `kill` if it only runs beside"


def nothing_done(sample: Sample) -> tuple[str, str] | None:
    """The line by which a build tool says that there was nothing to do, and what undoes the work; None if none does."""
    if sample.cpu_ns > NOTHING_DONE_CPU_NS:
        return None
    for expression, clean in _NOTHING_DONE:
        match = expression.search(sample.output_tail)
        if match:
            return match[0].strip(), clean
    return None


def failure_hint(workload: WorkloadCommand, sample: Sample, output: str) -> str:
    """What to do about a run that failed."""
    full = sample.usage.full if sample.usage else ""
    if full == MEMORY:
        return "give the lab more memory with --memory, or the workload less to do at once (make -j N)"
    if full:
        return "files that the workload writes are kept in the lab's memory: write less, or give --memory a larger size"
    if sample.usage and sample.usage.failure and "waited" in sample.usage.failure:
        return (
            "a wait, even one that is meant (sleep), cannot be scheduled better, and others never end in the lab: "
            "standard input is /dev/null, there is no network but 127.0.0.1, and no process of yours that holds a lock"
        )
    for expression, hint in _FAILURE_HINTS:
        if expression.search(output):
            return hint
    trouble = shell_trouble(workload)
    if trouble:
        return f"{workload.shell} does not know {names(trouble)}: {BASH_HINT}"
    return GENERAL_HINT


def remarks(workload: WorkloadCommand, sample: Sample, observation: Observation) -> tuple[str, ...]:
    """What a user should know of a run under observation, a sentence each."""
    return tuple(filter(None, (remark(workload, sample, observation) for remark in _REMARKS)))


def _about_shell(workload: WorkloadCommand, _sample: Sample, _observation: Observation) -> str:
    trouble = shell_trouble(workload)
    if not trouble:
        return ""
    return (
        f"the command uses {names(trouble)}, which means something else in {workload.shell} than in bash: {BASH_HINT}"
    )


def _about_little_work(workload: WorkloadCommand, sample: Sample, _observation: Observation) -> str:
    if workload.metric or max(sample.cpu_ns, sample.wall_ns) > LITTLE_CPU_NS:
        return ""
    return (
        f"it was over after {_seconds(sample.wall_ns)} with {_seconds(sample.cpu_ns)} of CPU time: if there should be "
        "more to do, undo the work with --prepare, and note that standard input is /dev/null"
    )


def _about_waiting(_workload: WorkloadCommand, sample: Sample, _observation: Observation) -> str:
    if sample.wall_ns < WAITING_FROM_NS or sample.cpu_ns > WAITING_SHARE * sample.wall_ns:
        return ""
    return (
        f"it used {_seconds(sample.cpu_ns)} of CPU time in {_seconds(sample.wall_ns)}: it mostly waits, which no "
        "scheduler shortens (in the lab there is no input and no network)"
    )


def _about_leftovers(_workload: WorkloadCommand, sample: Sample, _observation: Observation) -> str:
    usage = sample.usage
    if usage is None or not usage.left_behind:
        return ""
    return (
        f"it left {names(usage.left_behind)} running, which is killed after each run: "
        f"{_seconds(usage.left_cpu_ns)} of CPU time are part of no figure (end the command with `wait` to count them)"
    )


def _about_crowd(workload: WorkloadCommand, _sample: Sample, observation: Observation) -> str:
    """Many runnable tasks are what `make -j` is for; they matter to latencies, and where they fill the memory."""
    tasks = mean_runnable(observation)
    pressure = observation.psi_memory_us * 1000 / observation.wall_ns if observation.wall_ns else 0.0
    if tasks < CROWD * observation.cpus:
        return ""
    crowd = f"on average {tasks:.0f} tasks wanted the lab's {observation.cpus} CPUs"
    if pressure > MEMORY_PRESSURE_SHARE:
        return f"{crowd} and waited for memory in {pressure:.0%} of the time: let fewer run at once, or give --memory"
    if workload.goal is Goal.LATENCY:
        return f"{crowd}: latencies are mostly time in the queue; on more CPUs (--cpus) they would be others"
    return ""


def _about_space(_workload: WorkloadCommand, sample: Sample, _observation: Observation) -> str:
    full = sample.usage.full if sample.usage else ""
    return f"the lab's space for files ran full; most of it is in {full}" if full and full != MEMORY else ""


def _about_output(_workload: WorkloadCommand, sample: Sample, _observation: Observation) -> str:
    printed = sample.usage.output_bytes if sample.usage else 0
    if printed <= jobs.OUTPUT_LIMIT_BYTES:
        return ""
    kept = jobs.OUTPUT_LIMIT_BYTES >> 10
    return f"of the {printed / 1e6:.1f} MB it printed, {kept} KiB are kept (the beginning and the end)"


_REMARKS: tuple[Callable[[WorkloadCommand, Sample, Observation], str], ...] = (
    _about_shell,
    _about_little_work,
    _about_waiting,
    _about_leftovers,
    _about_crowd,
    _about_space,
    _about_output,
)


def shell_trouble(workload: WorkloadCommand) -> tuple[str, ...]:
    """What in the workload's commands only bash understands, if its shell is a plain one."""
    if not plain_shell(workload.shell):
        return ()
    commands = (workload.setup, workload.prepare, workload.command, workload.cleanup)
    return tuple(dict.fromkeys(name for command in commands for name in bashisms(command)))


def plain_shell(shell: str) -> bool:
    """Whether a shell is one of those that know POSIX and little more."""
    program = shell.split(maxsplit=1)[0] if shell.split() else ""
    return os.path.basename(os.path.realpath(program)) in {"sh", "dash", "ash", "busybox", "posh"}  # noqa: PTH119


def mean_runnable(observation: Observation) -> float:
    """Runnable tasks, the mean of all samples."""
    counts = [count for _when, count in observation.parallelism]
    return sum(counts) / len(counts) if counts else math.nan


def names(several: Collection[str], most: int = 4) -> str:
    """A list for a sentence."""
    shown = list(several)[:most]
    return ", ".join([*shown, *(["..."] if len(several) > most else [])])


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.2g} s"
