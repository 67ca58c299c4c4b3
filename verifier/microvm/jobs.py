"""What the host may ask of the guest agent, and what it answers. Shared by both sides.

One JSON object a line over virtio-serial: ``{"job": "RunWorkload", ...fields}`` one way,
``{"answer": {...fields}}`` or ``{"error": kind, "message": ..., "hint": ...}`` the other way.
Imports only the standard library and core, because it runs inside the micro-VM.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

PORT_NAME = "schedagent"
"""Name of the virtio-serial port."""

HOST_TAG = "hostroot"
"""9p mount tag of the host's tree."""


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
    """Mount the host's file tree read-only (profile hostfs only)."""


@dataclass(frozen=True)
class RunWorkload(Message):
    """Run a shell command once on a fresh overlay of the host's tree.

    Args:
        command, directory, prepare, environment, timeout_s: see core.workload.WorkloadCommand.
        uid, gid, groups: whose files it may touch: the user who asked.
        policy: attached just before the command starts and detached after it; None for the default scheduler.
        attached: False detaches the policy again before the command starts: the default scheduler, on a kernel whose
            code was patched as for a policy.
        observe: record process events and taskstats.
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
    nested: ClassVar[Mapping[str, type[Message]]] = {"policy": PolicyLoad}


@dataclass(frozen=True)
class RunAnswer(Message):
    """What one run measured; see core.trial.Sample.

    Args:
        prepare_status: exit status of the prepare command (0 if there was none); if not 0 nothing else ran.
        output: the last OUTPUT_LIMIT_BYTES of stdout and stderr together (of prepare, if that failed).
        observation: core.workload.Observation as JSON, None unless asked for.
    """

    wall_ns: int
    cpu_ns: int
    exit_status: int | None
    prepare_status: int | None
    calibration_ns: int
    output: str
    policy_exit: str
    observation: dict[str, Any] | None


OUTPUT_LIMIT_BYTES = 1 << 20


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
        phases: their names; empty for all.
    """

    policy: PolicyLoad
    seconds: float
    phases: list[str]
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
    """

    exit_text: str
    results: list[dict[str, Any]]
    events: dict[str, int]
    seconds: dict[str, float]
    stalled_s: float = 0.0


@dataclass(frozen=True)
class MeasureCosts(Message):
    """Measure what a piece of work and a task switch cost in this machine; see verifier.microvm.guest_costs."""


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
    kind.__name__: kind for kind in (Hello, MountHost, RunWorkload, LoadPolicy, Prove, MeasureCosts)
}
