"""What the host may ask of the guest agent, and what it answers. Shared by both sides.

One JSON object a line over virtio-serial: ``{"job": "RunWorkload", ...fields}`` one way,
``{"answer": {...fields}}`` or ``{"error": kind, "message": ..., "hint": ...}`` the other way.
Imports only the standard library and core, because it runs inside the micro-VM.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from schedagent.core.trials.workload import DEFAULT_SHELL

PORT_NAME = "schedagent"
"""Name of the virtio-serial port."""

HOST_TAG = "hostroot"
"""9p mount tag of the host's tree."""

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Message:
    """A typed message; fields hold only what JSON can carry, or another Message in `nested`."""

    nested: ClassVar[Mapping[str, type[Message]]] = {}

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Build the message; raise TypeError on missing or unknown fields."""
        values = dict(fields)
        for name, kind in cls.nested.items():
            if values.get(name) is not None:
                values[name] = kind.from_json(values[name])
        return cls(**values)


@dataclass(frozen=True)
class PolicyLoad(Message):
    """A compiled policy, ready to load.

    Args:
        name: policy name; root/ops must show it after attach.
        object_base64: the ELF file.
        tunables, history, classes: see core.policy.CandidatePolicy. 64-bit map keys travel as [key, value] pairs.
    """

    name: str
    object_base64: str
    tunables: dict[str, int]
    history: list[tuple[int, int]]
    classes: list[tuple[int, int]]

    @property
    def object_bytes(self) -> bytes:
        return base64.b64decode(self.object_base64)


@dataclass(frozen=True)
class LoaderStart(Message):
    """A program that loads a policy itself and stays.

    Args:
        argv: its path on the host, and its arguments.
        attach_timeout_s: how long its policy may take to be in charge.
    """

    argv: list[str]
    attach_timeout_s: float


@dataclass(frozen=True)
class LoaderAnswer(Message):
    """What became of it.

    Args:
        failure: what went wrong with the program; empty for nothing.
        cpu_ns: CPU time that it used, while the workload ran.
    """

    failure: str
    cpu_ns: int = 0


@dataclass(frozen=True)
class Hello(Message):
    """First job after a restore: sets the guest's clock, which stood still in the snapshot."""

    unix_time_ns: int


@dataclass(frozen=True)
class HelloAnswer(Message):
    kernel_release: str
    cpus: int
    memory_mib: int


@dataclass(frozen=True)
class MountHost(Message):
    """Mount the host's file tree read-only (profile hostfs only).

    Args:
        hidden: absolute paths of files and folders of the host that nobody in the guest is to see.
    """

    hidden: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RunWorkload(Message):
    """Run a shell command once on a fresh overlay of the host's tree.

    Args:
        command, directory, prepare, environment, timeout_s: see core.workload.WorkloadCommand.
        uid, gid, groups: whose files it may touch: the user who asked.
        policy: attached just before the command starts and detached after it; None for the default scheduler.
        loader: a program that does both itself, instead of a policy.
        attached: False detaches the policy again before the command starts: the default scheduler, on a kernel whose
            code was patched as for a policy.
        observe: record process events and taskstats.
        shell: the words before the command, which is the argument of -c.
        cleanup: run, untimed, after the command.
        idle_limit_s: end a run in which for so long nothing ran and nothing could have run; 0 for never.
        batch, slice_us: knobs of the fair class for the command; see core.trials.arm.Knob.
    """

    command: str
    directory: str
    prepare: str
    environment: dict[str, str]
    timeout_s: float
    uid: int
    gid: int
    groups: list[int]
    policy: PolicyLoad | None = None
    attached: bool = True
    observe: bool = False
    shell: list[str] = field(default_factory=lambda: [DEFAULT_SHELL])
    cleanup: str = ""
    idle_limit_s: float = 0.0
    batch: bool = False
    slice_us: int = 0
    loader: LoaderStart | None = None
    nested: ClassVar[Mapping[str, type[Message]]] = {"policy": PolicyLoad, "loader": LoaderStart}


@dataclass(frozen=True)
class RunAnswer(Message):
    """What one run measured; see core.trial.Sample.

    Args:
        prepare_status: exit status of the prepare command (0 if there was none); if not 0 nothing else ran.
        output: stdout and stderr together (of prepare, if that failed); of more than OUTPUT_LIMIT_BYTES the beginning
            and the end. Bytes that are not UTF-8 are lone surrogates (PEP 383); see `readable_output`.
        observation: core.workload.Observation as JSON, None unless asked for.
        usage: core.trials.usage.Usage as JSON; None if prepare failed.
        busy: names of processes that outlived the shell and were still at work.
        waited: whether it was ended because of `idle_limit_s`.
        cleanup_status, cleanup_output: of the cleanup command; 0 and empty if there was none.
        loader: of the program that loaded the policy; None if there was none.
    """

    wall_ns: int
    cpu_ns: int
    exit_status: int | None
    prepare_status: int | None
    calibration_ns: int
    output: str
    policy_exit: str
    observation: dict[str, Any] | None
    usage: dict[str, Any] | None = None
    busy: list[str] = field(default_factory=list)
    waited: bool = False
    cleanup_status: int | None = 0
    cleanup_output: str = ""
    loader: LoaderAnswer | None = None
    nested: ClassVar[Mapping[str, type[Message]]] = {"loader": LoaderAnswer}

    @property
    def readable_output(self) -> str:
        r"""The output as valid Unicode: a byte that is not UTF-8 stands as \xff."""
        return readable(self.output)


def readable(text: str) -> str:
    r"""Return text from the guest as valid Unicode: a lone surrogate, which stands for a byte, is written as \xff."""
    return _SURROGATE.sub(lambda match: f"\\x{ord(match[0]) & 0xFF:02x}", text)


OUTPUT_LIMIT_BYTES = 1 << 20
"""What is kept of a command's output."""


@dataclass(frozen=True)
class RunSetup(Message):
    """Run a shell command once; what it writes to files is there in every run that follows in this machine.

    Args:
        command, directory, environment, timeout_s, uid, gid, groups, shell: see RunWorkload.
    """

    command: str
    directory: str
    environment: dict[str, str]
    timeout_s: float
    uid: int
    gid: int
    groups: list[int]
    shell: list[str] = field(default_factory=lambda: [DEFAULT_SHELL])


@dataclass(frozen=True)
class SetupAnswer(Message):
    """How it ended: status and output as in RunAnswer."""

    status: int | None
    output: str


@dataclass(frozen=True)
class LoadPolicy(Message):
    """Gate "kernel verifier": load, do not attach."""

    policy: PolicyLoad
    nested: ClassVar[Mapping[str, type[Message]]] = {"policy": PolicyLoad}


@dataclass(frozen=True)
class LoadAnswer(Message):
    programs: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Prove(Message):
    """Gates "attach" and "proving ground": take a policy through phases of verifier.proving.

    Args:
        seconds: for all phases together, if all are run.
        phases: their names.
        worn: fields of verifier.proving.identity.Worn: constants of the policy's object, for the crew to wear.
        reads: what the policy declares to go by, see core.policies.policy.READABLE.
        stretch: bounds in seconds, and the watchdog's, are so many times as wide.
        copy_base64: the policy's object with probes, see verifier.coverage; empty if there is none.
        copy_section: where its probes leave their marks.
        copy_inputs: maps of the copy to fill for tasks of our own, "history" and "classes".
        copy_hotplug: whether the copy handles CPUs that come and go.
    """

    policy: PolicyLoad
    seconds: float
    phases: list[str]
    worn: dict[str, list[Any]] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    copy_base64: str = ""
    copy_section: str = ""
    copy_inputs: list[str] = field(default_factory=list)
    copy_hotplug: bool = False
    stretch: float = 1.0
    nested: ClassVar[Mapping[str, type[Message]]] = {"policy": PolicyLoad}


@dataclass(frozen=True)
class ProveAnswer(Message):
    """What the proving ground showed; see verifier.proving.prove.Proof.

    Args:
        exit_text: why the kernel ejected the policy; empty if it stayed to the end.
        results: verifier.proving.oracle.OracleResult as JSON, one for each oracle whose subject came about.
        events: growth of the counters in /sys/kernel/sched_ext/root/events.
        seconds: how long each phase took.
        stalled_s: longest time that a CPU of the machine stood still.
        undecided: oracles that saw too little for a verdict, with what is missing; they are not among the results.
        passed, kept: numbers of the probes that were passed, and of those that the kernel did not remove.
        entered: (DSQ id, tasks that entered it); None if the kernel did not show them.
        unmeasured, queues_unmeasured: why probes, or queues, are not known; empty if they are.
    """

    exit_text: str
    results: list[dict[str, Any]]
    events: dict[str, int]
    seconds: dict[str, float]
    stalled_s: float = 0.0
    undecided: dict[str, str] = dataclasses.field(default_factory=dict)
    passed: list[int] = dataclasses.field(default_factory=list)
    kept: list[int] = dataclasses.field(default_factory=list)
    entered: list[tuple[int, int]] | None = None
    unmeasured: str = ""
    queues_unmeasured: str = ""


@dataclass(frozen=True)
class MoveClock(Message):
    """What the guest wishes amid a job, as {"wish": ...}, and waits for: its clocks set ahead, or that all ran since.

    Args:
        place: fields of verifier.microvm.clock.place.ClockPlace.
        wall_s: what the wall clock shows, in whole seconds since 1970.
        ahead_s: by so many seconds.
        ran: they were, and every task ran since; see verifier.microvm.clock.move.rest_watchdog.
    """

    place: dict[str, int]
    wall_s: int
    ahead_s: int
    ran: bool = False


@dataclass(frozen=True)
class MeasureCosts(Message):
    """Measure what a piece of work and a task switch cost in this machine; see verifier.guest.costs."""


@dataclass(frozen=True)
class CostsAnswer(Message):
    """What they cost.

    Args:
        work_ns: CPU time of a fixed piece of work.
        switch_ns: CPU time of a context switch.
    """

    work_ns: int
    switch_ns: float


JOBS: Mapping[str, type[Message]] = {
    kind.__name__: kind for kind in (Hello, MountHost, RunSetup, RunWorkload, LoadPolicy, Prove, MeasureCosts)
}
