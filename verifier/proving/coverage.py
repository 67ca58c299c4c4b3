"""What of a policy runs: a round of work under a copy of it whose branches leave marks, and the kernel's queue counts.

The oracles judge the policy itself, never this copy: what they saw of it is what the copy shows to have run under the
same work (verifier.coverage makes the copy and judges the marks).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kernel_bpf.load.queue_counts import queue_counts
from kernel_bpf.load.sched_ext import LoadedPolicy, kernel_state
from schedagent.core.errors import BpfError, KernelRejected, PolicyError
from verifier.proving import conservation, lifecycle, limits, mix, strangers, work
from verifier.proving.crew import Crew, Task
from verifier.proving.ground import NO_ELDERS, PLAIN, Ground, attached_ground, end

MIX_S, IDLE_S = 1.2, 0.5
"""How long the copy is under the mix, and under work that leaves CPUs idle, at standard depth."""

TURNS = 3
"""A task that the policy serves was given a CPU so often within OUTSIDER_LIMIT_S."""

OUTSIDER_LIMIT_S = 2.4
_POLL_S = 0.01

THROTTLED, THROTTLED_MAX = "proving-throttled", "2000 20000"
"""A cgroup whose tasks wait for its quota most of the time, and which goes again: what a policy does then."""

# include/uapi/linux/bpf.h: opcode, registers (dst in the lower half), offset, immediate
_SLOT = struct.Struct("<BBhi")
_LD_IMM64, _MAP_VALUE, _STORE_BYTE = 0x18, 2, 0x72


@dataclass(frozen=True)
class Copy:
    """A copy of the policy with probes.

    Args:
        load: gives it to the kernel.
        section: where its probes leave their marks.
        strangers: whether it knows the tasks of strangers.py.
        hotplug: whether it handles CPUs that come and go.
    """

    load: Callable[[], LoadedPolicy]
    section: str
    strangers: bool = False
    hotplug: bool = False


@dataclass
class Marks:
    """What a round under the copy showed.

    Args:
        passed: numbers of the probes that were passed.
        kept: numbers of those that the kernel's verifier did not prove to be out of reach.
        entered: DSQ id -> tasks that entered it, of the policy itself and of the copy; None if the kernel did not show.
        why: why the probes are not known; empty if they are.
        why_queues: the same of the queues.
    """

    passed: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    entered: Mapping[int, int] | None = field(default_factory=dict)
    why: str = ""
    why_queues: str = ""

    def count(self) -> None:
        """Add what the kernel counts now, for the policy in charge."""
        try:
            counts = queue_counts()
        except BpfError as error:
            self.entered, self.why_queues = None, error.message
            return
        if counts is None or self.entered is None:
            return
        entered = dict(self.entered)
        for queue in counts.created:
            entered[queue.id] = entered.get(queue.id, 0) + queue.inserts
        self.entered = entered


def run_copy(marks: Marks, copy: Copy, share: float) -> None:
    """Put the copy in charge of work of many kinds; add what it passed.

    Args:
        marks: of the policy itself so far.
        share: of the time at standard depth.
    """
    try:
        with copy.load() as policy:
            policy.attach()
            marks.kept = tuple(sorted({number for code in policy.translated() for number in probes_in(code)}))
            problem = _stimulate(marks, policy, copy, share)
            content = policy.read_section(copy.section)
    except (KernelRejected, PolicyError, BpfError) as error:
        marks.why = f"the copy with probes cannot be run: {error.message}"
        return
    marks.passed = tuple(number for number, mark in enumerate(content) if mark)
    if problem:
        marks.why = f"the copy with probes did not stay in charge: {problem}"


def _stimulate(marks: Marks, policy: LoadedPolicy, copy: Copy, share: float) -> str:
    """The mix, work that leaves CPUs idle, and a CPU that goes and comes if that is handled; then end the copy.

    Returns:
        why the copy was not in charge until the end; empty if it was.
    """
    ground = attached_ground(PLAIN, NO_ELDERS)
    with limits.cgroups({THROTTLED: 100}), Crew() as crew:
        (limits.CGROUPS / THROTTLED / "cpu.max").write_text(THROTTLED_MAX)
        for number in range(len(ground.cpus)):
            crew.start(f"throttled hog {number}", limits.inside(THROTTLED))
        if copy.strangers:
            strangers.start(crew, ground.cpus)
        mix.observe(ground, mix.start(crew, ground.cpus, mix.spinner_or_none()), MIX_S * share)
    if ground.enabled():
        conservation.prove(ground, IDLE_S * share)
    marks.count()
    if not copy.hotplug or not ground.enabled():
        return end(policy)
    with Crew() as crew:
        lifecycle.go_and_come(lifecycle.start_tasks(crew), [], 0.0)
        problem, _ending = lifecycle.judge_hotplug_end(policy)
    return problem or (end(policy) if policy.enabled() else "")


def probes_in(code: bytes) -> Iterator[int]:
    """Yield the numbers of the probes in a program as the kernel shows it: an address loaded, and a 1 stored behind it.

    What else looks like that is taken for a probe, too, and so for something that may be reached.
    """
    slots = list(_SLOT.iter_unpack(code))
    for load, _high, store in zip(slots, slots[1:], slots[2:], strict=False):
        loads = load[0] == _LD_IMM64 and load[1] >> 4 == _MAP_VALUE
        if loads and store[0] == _STORE_BYTE and store[1] & 0xF == load[1] & 0xF and store[3] == 1 and store[2] >= 0:
            yield store[2]


def left_out() -> str:
    """Say, by sysfs, that the policy leaves normal tasks to others; empty if it is in charge of all."""
    return "" if kernel_state().switch_all else "it schedules only tasks of policy SCHED_EXT: switch_all is 0"


def outsiders(ground: Ground) -> str:
    """Say why the policy does not schedule the tasks of the proving ground; empty if it does.

    Besides sysfs, /proc/PID/sched says of which class a task is, and the kernel's counts say that its turns came out
    of queues of this policy.
    """
    if why := left_out():
        return why
    with Crew() as crew:
        before = _inserts()
        tasks = [crew.start("free task", work.hog), crew.start("sleeper", work.sleeper)]
        tasks += [crew.start(f"task pinned to CPU {cpu}", work.pinned(cpu, work.hog)) for cpu in ground.cpus]
        for _now in ground.watch(OUTSIDER_LIMIT_S, _POLL_S):
            if all(task.turns() >= TURNS for task in tasks):
                break
        turns, counted = sum(task.turns() for task in tasks), _inserts()
        outside = [task.name for task in tasks if not _in_class(task)]
    if outside:
        return f"these tasks are not of its class: {', '.join(outside)}"
    if before is not None and counted is not None and turns >= TURNS * len(tasks) and counted - before < turns // 2:
        return f"tasks were given a CPU {turns} times, and entered queues of the kernel {counted - before} times"
    return ""


def _inserts() -> int | None:
    try:
        counts = queue_counts()
    except BpfError:
        return None
    return counts.inserts if counts else 0


def _in_class(task: Task) -> bool:
    """Whether the kernel schedules a task by sched_ext; true where it does not say (CONFIG_SCHED_DEBUG)."""
    try:
        lines = Path(f"/proc/{task.pid}/sched").read_text().splitlines()
    except OSError:
        return True
    shown = next((line for line in lines if line.startswith("ext.enabled")), ": 1")
    return shown.rpartition(":")[2].strip() == "1"
