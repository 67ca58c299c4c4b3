"""The scheduling probe: our own tracing programs (bpf/observe/sched_probe.bpf.c), loaded, read, and taken away again.

    with SchedProbe.attach(Scope()) as probe:
        ...
        seen = probe.read()

The object is part of the package, compiled once without any kernel's BTF, and fits each kernel by CO-RE: any from 5.18
on with BTF. Only the very bytes whose digest stands here are loaded. `make probe` compiles it again and writes the
digest; a unit test compares both with the source.
"""

from __future__ import annotations

import functools
import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from kernel_bpf import BPF
from kernel_bpf.load.btf import KERNEL_BTF, Btf, BtfKind
from kernel_bpf.load.probe_object import ProbeObject
from schedagent.core.errors import KernelRejected, SetupError

OBJECT = BPF / "observe" / "sched_probe.o"
DIGEST = "1f439f74a6abf63384938c3ca0de631051f08ee378897546c7abbc6a4abe12b9"
"""SHA-256 of OBJECT: nothing else is loaded."""

BUCKETS, CALLS, MOST_EVENTS = 48, 4, 131072
"""As in the source."""
PAGE_FAULT = -1
"""Instead of a system call: it slept while a page was brought."""

_NAME = "sched_probe"
_FIGURES = struct.Struct(f"<10Q{3 * BUCKETS}I{2 * CALLS}I")
_ROW = struct.Struct("<IIIiIIQ16s")
_COMMAND_KEY = struct.Struct("<16sII")
_ENDED = struct.Struct(f"<Q{BUCKETS}I")
_EDGE_KEY = struct.Struct("<II")
_EDGE = struct.Struct("<Q16s16s")
_EVENT = struct.Struct("<QQIIII16s")
_RUNNING, _WOKEN, _PREEMPTED, _SLEEPING, _BLOCKED = 1, 2, 3, 4, 5
_COUNTERS = ("lost_tasks", "lost_commands", "lost_edges")

Histogram = tuple[int, ...]
"""Counts by bucket; see `bounds_us`."""


@dataclass(frozen=True)
class Scope:
    """What is watched.

    Args:
        pid: the tree that begins with this process; 0: no tree.
        cgroup_id: all in this cgroup of the one hierarchy of version 2, and below: the inode number of its folder; 0:
            no cgroup. Without both everything is watched.
    """

    pid: int = 0
    cgroup_id: int = 0


@dataclass(frozen=True)
class Figures:
    """What one task, or all tasks of one command that ended, did while they were watched.

    Args:
        run_ns, wait_ns: on a CPU, and runnable without one.
        sleep_ns, block_ns: asleep, and asleep where no signal reaches them (state D: mostly input and output).
        longest_wait_ns: of single waits.
        runs: how often it was given a CPU.
        preempted: how often it lost the CPU while it was runnable.
        wakeups, wakes: how often it was woken, and woke others (outside of interrupts).
        migrations: how often it ran on another CPU than the time before.
        woken_wait, preempted_wait: waits for a CPU after a wake-up, and after losing it.
        run: how long it kept the CPU each time.
        calls: (system call number or PAGE_FAULT, how often it slept in it), the most frequent ones; a count may be too
            high by that of the rarest.
    """

    run_ns: int
    wait_ns: int
    sleep_ns: int
    block_ns: int
    longest_wait_ns: int
    runs: int
    preempted: int
    wakeups: int
    wakes: int
    migrations: int
    woken_wait: Histogram
    preempted_wait: Histogram
    run: Histogram
    calls: tuple[tuple[int, int], ...] = ()


_SUMS = tuple(Figures.__dataclass_fields__)[:10]


@dataclass(frozen=True)
class TaskFigures:
    """One living task.

    Args:
        comm: its name as the kernel has it: anybody's bytes.
        policy: scheduling policy (include/uapi/linux/sched.h).
        kernel: it is a kernel thread.
    """

    tid: int
    tgid: int
    comm: bytes
    policy: int
    nice: int
    kernel: bool
    figures: Figures


@dataclass(frozen=True)
class CommandFigures:
    """All tasks of one command and one policy that ended while they were watched.

    Args:
        lived_ms: how long its processes lived, by bucket, in ms instead of us.
    """

    comm: bytes
    policy: int
    kernel: bool
    tasks: int
    figures: Figures
    lived_ms: Histogram = ()


@dataclass(frozen=True)
class Wakeups:
    """How often one task woke another.

    Args:
        waker: thread id; 0: an interrupt.
        waker_comm: empty for an interrupt.
    """

    waker: int
    wakee: int
    waker_comm: bytes
    wakee_comm: bytes
    count: int


@dataclass(frozen=True)
class Switch:
    """From `at_ns` (CLOCK_MONOTONIC) on, `cpu` runs `tid`, which waited for it; 0: nobody, or somebody not watched.

    Args:
        previous_state: of the task before, as the kernel's bits; 0: it was runnable.
    """

    at_ns: int
    waited_ns: int
    tid: int
    tgid: int
    cpu: int
    previous_state: int
    comm: bytes


@dataclass(frozen=True)
class ProbeReading:
    """What the probe has counted.

    Args:
        interrupts_known: wake-ups by interrupts are told apart by the kernel's own count; otherwise only those that
            interrupt an idle CPU are known for what they are.
        lost: what found no room: name of the counter -> how often.
        switches: the first ones, if they were asked for; `more_switches` came later.
    """

    tasks: tuple[TaskFigures, ...]
    commands: tuple[CommandFigures, ...]
    wakeups: tuple[Wakeups, ...]
    interrupts_known: bool
    lost: dict[str, int] = field(default_factory=dict)
    switches: tuple[Switch, ...] = ()
    more_switches: int = 0


class SchedProbe:
    """The attached probe; `attach` makes one."""

    def __init__(self, loaded: ProbeObject, interrupts_known: bool, tracing: bool) -> None:
        self._object = loaded
        self._interrupts_known = interrupts_known
        self._tracing = tracing

    @classmethod
    def attach(cls, scope: Scope, tracing: bool = False) -> Self:
        """Load, attach, and begin to watch what is there.

        Args:
            tracing: keep the first MOST_EVENTS single switches as well.

        Raises:
            SetupError: this process may not load BPF, the kernel has no BTF, or the object is not the one we ship.
            KernelRejected: the kernel refused it.
            BpfError: it could not be attached.
        """
        if not KERNEL_BTF.exists():
            raise SetupError(
                f"this kernel has no BTF ({KERNEL_BTF} is missing), so nothing can be traced",
                "use a kernel with CONFIG_DEBUG_INFO_BTF=y, or a lower tier",
            )
        content = shipped_object()
        try:
            loaded = cls._load(content, scope, tracing, "on_waking")
            known = True
        except KernelRejected as error:
            if "address for kernel symbol" not in error.message:
                raise
            loaded, known = cls._load(content, scope, tracing, "on_waking_guessed"), False
        try:
            loaded.attach_programs()
            loaded.run_iterator("seed")
        except BaseException:
            loaded.close()
            raise
        return cls(loaded, known, tracing)

    @staticmethod
    def _load(content: bytes, scope: Scope, tracing: bool, on_waking: str) -> ProbeObject:
        loaded = ProbeObject.open(content, _NAME)
        try:
            loaded.set_tunables(
                {
                    "root_tgid": scope.pid,
                    "cgroup_id": scope.cgroup_id,
                    "tracing": int(tracing),
                    "interrupt_mask": interrupt_mask(),
                }
            )
            loaded.want_program(on_waking)
            if not tracing:
                loaded.set_room("events", 1)
            loaded.check_memory()
            loaded.load()
        except BaseException:
            loaded.close()
            raise
        return loaded

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Take it away; idempotent."""
        self._object.close()

    def tasks(self) -> tuple[TaskFigures, ...]:
        """Return what each living task did so far; what it is just doing counts up to now."""
        return tuple(_tasks(self._object.run_iterator("report")))

    def read(self) -> ProbeReading:
        """Return all that was counted so far."""
        written = self._object.counter("next_event") if self._tracing else 0
        kept = min(written, MOST_EVENTS)
        return ProbeReading(
            tasks=self.tasks(),
            commands=tuple(_command(key, value) for key, value in self._object.entries("commands")),
            wakeups=tuple(_wakeups(key, value) for key, value in self._object.entries("edges")),
            interrupts_known=self._interrupts_known,
            lost={name: count for name in _COUNTERS if (count := self._object.counter(name))},
            switches=tuple(_switches(self._object.mapped("events", kept * _EVENT.size))),
            more_switches=written - kept,
        )


@functools.cache
def interrupt_mask() -> int:
    """Return which bits of the preemption count mean an interrupt (include/linux/preempt.h).

    Since 7.3 (commit 9634d860ac15) bits 16 to 23 count how often interrupts were disabled, and hardirqs and NMIs have
    the bits above; the variable came with them.
    """
    with Btf.parse(KERNEL_BTF) as btf:
        moved = btf.has(BtfKind.VAR, "local_interrupt_disable_state")
    return 0x1F000100 if moved else 0x00FF0100


def may_trace() -> bool:
    """Whether this process may load tracing programs: root, or CAP_BPF and CAP_PERFMON (capabilities(7))."""
    if os.geteuid() == 0:
        return True
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return all(effective >> capability & 1 for capability in (_CAP_PERFMON, _CAP_BPF))


_CAP_PERFMON, _CAP_BPF = 38, 39  # include/uapi/linux/capability.h


def shipped_object() -> bytes:
    """Return the object; raise SetupError if it is missing, or is not the one whose digest stands here."""
    try:
        content = OBJECT.read_bytes()
    except OSError as error:
        raise SetupError(f"{OBJECT} cannot be read: {error.strerror}", "install schedagent again") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != DIGEST:
        raise SetupError(f"{OBJECT} was changed: its SHA-256 is {digest}, not {DIGEST}", "install schedagent again")
    return content


def bounds_us(bucket: int) -> tuple[int, int]:
    """Return from where to where a bucket of a histogram goes, in us: two buckets for each power of two."""
    if bucket < 2:
        return bucket, bucket + 1
    power, half = divmod(bucket, 2)
    width = 1 << (power - 1)
    low = (1 << power) + half * width
    return low, low + width


def _figures(raw: bytes, offset: int = 0) -> Figures:
    values = _FIGURES.unpack_from(raw, offset)
    rest = values[10:]
    woken, preempted, run = (tuple(rest[place : place + BUCKETS]) for place in range(0, 3 * BUCKETS, BUCKETS))
    calls = rest[3 * BUCKETS :]
    counted = [(calls[place] - 1, calls[place + 1]) for place in range(0, 2 * CALLS, 2) if calls[place + 1]]
    frequent = tuple(sorted(counted, key=lambda pair: -pair[1]))
    sums = dict(zip(_SUMS, values[:10], strict=True))
    return Figures(**sums, woken_wait=woken, preempted_wait=preempted, run=run, calls=frequent)


def _tasks(raw: bytes) -> Iterator[TaskFigures]:
    size = _ROW.size + _FIGURES.size
    for offset in range(0, len(raw) - size + 1, size):
        tid, tgid, policy, nice, kernel, state, in_state_ns, comm = _ROW.unpack_from(raw, offset)
        figures = _figures(raw, offset + _ROW.size)
        grows = _GROWS.get(state)
        if grows:
            figures = replace(figures, **{grows: getattr(figures, grows) + in_state_ns})
        yield TaskFigures(tid, tgid, _text(comm), policy, nice, bool(kernel), figures)


_GROWS = {_RUNNING: "run_ns", _WOKEN: "wait_ns", _PREEMPTED: "wait_ns", _SLEEPING: "sleep_ns", _BLOCKED: "block_ns"}
"""State of a task -> the sum that its present time in that state belongs to."""


def _command(key: bytes, value: bytes) -> CommandFigures:
    comm, policy, kernel = _COMMAND_KEY.unpack(key)
    tasks, *lived_ms = _ENDED.unpack_from(value)
    return CommandFigures(_text(comm), policy, bool(kernel), tasks, _figures(value, _ENDED.size), tuple(lived_ms))


def _wakeups(key: bytes, value: bytes) -> Wakeups:
    waker, wakee = _EDGE_KEY.unpack(key)
    count, waker_comm, wakee_comm = _EDGE.unpack(value)
    return Wakeups(waker, wakee, _text(waker_comm), _text(wakee_comm), count)


def _switches(raw: bytes) -> Iterator[Switch]:
    for at, waited, tid, tgid, cpu, state, comm in _EVENT.iter_unpack(raw):
        if at:  # else it was being written while it was read
            yield Switch(at, waited, tid, tgid, cpu, state, _text(comm))


def _text(comm: bytes) -> bytes:
    return comm.partition(b"\0")[0]
