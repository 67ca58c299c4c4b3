"""What is deployed, how far it has come and why it ended: the types of schedagentd. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from schedagent.core.token import Pairs, Scope, digest_inputs
from schedagent.core.welch import Better, Spread

Entries = tuple[tuple[int, int], ...]

LARGEST_OBJECT_BYTES = 2 << 20
"""Of an object that is deployed, and of one that is verified without the zeros of its arena: what passed every gate and
has none can always be sent.

schedagentd holds a request, its text and its content in memory at once. Ten times the largest object of the library
(0.2 MiB with its BTF); what is larger is larger by debug information, which the kernel does not read.
"""
LARGEST_READ_BYTES = 32 << 20
"""Of an object that is judged, the zeros of its arena counted: variables there stand in the file, a MiB for each source
that is linked. Three schedulers of the field have 9 to 22 MB of them, and less than 2 MiB besides."""
MOST_ENTRIES = 1 << 14
"""Of each of a policy's input maps; those of the library have 4096."""


class Stage(StrEnum):
    """How much of the machine a policy schedules, and for how long."""

    TRIAL = "trial"
    """Every normal task, once and for seconds."""
    PULSE = "pulse"
    """Every normal task, for windows that become longer; the default scheduler is in charge in between."""
    CANARY = "canary"
    """The tasks of one cgroup that owns its CPUs, and their children."""
    FULL = "full"
    """Every normal task, for as long as its lease is renewed."""

    @property
    def scope(self) -> Scope:
        """The token's word for it."""
        return Scope.PARTIAL if self is Stage.CANARY else Scope.FULL

    @property
    def is_timed(self) -> bool:
        """Whether a policy is taken away at a moment that is known before it is loaded."""
        return self in (Stage.TRIAL, Stage.PULSE)


class Phase(StrEnum):
    """How far a deployment has come. Each is written to the record before what it names is done."""

    WAITING = "waiting"
    """Accepted; what it will be compared with is being measured. Nothing of it is loaded."""
    LOADING = "loading"
    """About to be given to the kernel, or just given; not confirmed."""
    RUNNING = "running"
    """In charge, confirmed by sysfs."""
    RESTING = "resting"
    """Between two pulses: nothing of it is loaded."""
    ENDING = "ending"
    """About to be taken away; not confirmed. Only records of earlier versions have it."""
    ENDED = "ended"


class End(StrEnum):
    """Why a deployment ended. TRIPS and BLAMES group them."""

    STALL = "stall"
    EJECTED = "ejected by the kernel"
    EXITED = "exited by itself"
    ERROR_EVENTS = "error events"
    REJECTED_TASKS = "rejected tasks"
    STARVATION = "starvation"
    RUN_QUEUE_DELAY = "run-queue delay worse than before"
    PRESSURE = "CPU pressure worse than before"
    CPU_SHARE = "less of the wanted CPU time than before"
    METRIC = "worse workload metric"
    LEASE_LAPSED = "lease lapsed"
    SUSPENDED = "suspend"
    HOTPLUG = "CPU hotplug"
    FOREIGN = "another scheduler"
    CORE_SCHEDULING = "core scheduling"
    HELD = "real-time tasks held CPUs"
    BLIND = "sched_ext's state cannot be read"
    NOT_SHOWN = "not shown to do no harm"
    NO_GAIN = "no gain shown"
    OVER = "its time is over"
    ROLLED_BACK = "rolled back"
    REPLACED = "replaced"
    GONE = "its process ended"
    STOPPED = "schedagentd stopped"
    DIED = "schedagentd died"
    DIED_ON_PROBATION = "schedagentd or the machine died during its probation"
    NOT_LOADED = "could not be loaded"

    @property
    def is_trip(self) -> bool:
        """Whether the circuit breaker did it."""
        return self in TRIPS

    @property
    def counts(self) -> bool:
        """Whether the same object is not loaded again, for a while, unless that is asked for.

        What the policy itself did counts, and that tasks waited for too long under it. Being worse than before never
        does: nobody can tell it from a morning on which everybody does more.
        """
        return self in _OWN_DOING | _WAITED

    @property
    def blames_policy(self) -> bool:
        """Whether the policy before it deserves another chance: the machine is as it was, and somebody is there."""
        return self in BLAMES


_OWN_DOING = frozenset({End.EJECTED, End.EXITED, End.ERROR_EVENTS, End.REJECTED_TASKS, End.DIED_ON_PROBATION})
_WAITED = frozenset({End.STALL, End.STARVATION})
_WORSE = frozenset({End.RUN_QUEUE_DELAY, End.PRESSURE, End.CPU_SHARE, End.METRIC})
_MISBEHAVED = _OWN_DOING | _WAITED | _WORSE
TRIPS = _MISBEHAVED | {
    End.LEASE_LAPSED,
    End.SUSPENDED,
    End.HOTPLUG,
    End.FOREIGN,
    End.CORE_SCHEDULING,
    End.HELD,
    End.BLIND,
}
"""Ends that the circuit breaker decides: the policy misbehaved, or nobody can vouch for it any more."""
BLAMES = _MISBEHAVED | {End.NOT_LOADED, End.NOT_SHOWN, End.NO_GAIN}
"""Ends that are the policy's own fault, or that it was not good enough."""


@dataclass(frozen=True)
class Order:
    """What is to be loaded: all that a token covers, and the token.

    Args:
        policy: name of the struct_ops map, for messages.
        digest: hex SHA-256 of the object.
        tunables: every tunable and its value, sorted by name.
        history, classes: contents of the policy's input maps, see kernel_bpf.load.sched_ext.LoadedPolicy.load.
        report_digest: of the verifier's report.
        token: as the verifier issued it.
    """

    policy: str
    digest: str
    tunables: Pairs
    history: Entries
    classes: Entries
    report_digest: str
    token: str = field(repr=False)

    @property
    def inputs_digest(self) -> str:
        """What the token says about the input maps."""
        return digest_inputs(self.history, self.classes)


@dataclass(frozen=True)
class Tree:
    """A process, its threads and its descendants.

    Args:
        pid: of the process.
        started: when it began, in clock ticks since boot: another process may get its id one day.
    """

    pid: int
    started: int

    def __str__(self) -> str:
        return f"process {self.pid}"


Where = str | Tree
"""Whose tasks: a cgroup's path below the root, "" for the whole machine; or a process tree's."""


@dataclass(frozen=True)
class Deployment:
    """One deployment. Times on the boot clock (CLOCK_BOOTTIME, in seconds) do not jump with the machine's clock.

    Args:
        number: counts up; names it.
        order: what is loaded.
        stage: how much of the machine it has, or waits for if nothing of it is loaded.
        cgroup, tree: whose tasks a canary has; at other stages whose tasks are measured, "" and None for everybody's.
        phase: how far it has come.
        uid: user who asked for it.
        boot_id: boot of the kernel that the times belong to.
        lease_s, lease_until: how long a lease is, and when (boot clock) it lapses.
        token_until: when (boot clock) its token expires: no lease goes beyond.
        created_at: Unix time.
        since: when (boot clock) the present stage or phase began.
        pulse_s, pairs: how long its pulses are at present, 0 for none; and how many pairs of windows of that length
            were compared.
        better: which way the metric is better that its keeper reports; None if it reports none.
        enable_seq: number of its enabling in the kernel; -1 if it was never confirmed.
        proven: it survived the probation of its stage.
        pinned: it is meant to survive this process.
        previous: number of the proven deployment that it replaced; 0 for none.
        restores: number of the deployment that it is again, as the last known good one, and by which it is still
            renewed; 0 for none.
        baseline: what was measured before this stage, by name.
        end, detail: why it ended, and in detail.
        own_words: what the policy itself tells of that, or the kernel quoting it; only for who may deploy, for it may
            hold whatever the policy came to know.
        ended_at: Unix time; 0 while it has not.
    """

    number: int
    order: Order
    stage: Stage
    cgroup: str
    phase: Phase
    uid: int
    boot_id: str
    lease_s: float
    lease_until: float
    token_until: float
    created_at: float
    since: float
    tree: Tree | None = None
    pulse_s: float = 0.0
    pairs: int = 0
    better: Better | None = None
    enable_seq: int = -1
    proven: bool = False
    pinned: bool = False
    previous: int = 0
    restores: int = 0
    baseline: Mapping[str, Spread] = field(default_factory=dict)
    end: End | None = None
    detail: str = ""
    own_words: str = field(default="", repr=False)
    ended_at: float = 0.0

    @property
    def label(self) -> str:
        """Short text for people."""
        return f"deployment {self.number} ({self.order.policy} {self.order.digest[:12]})"

    @property
    def names(self) -> tuple[int, int]:
        """The numbers that it goes by: its own, and that of the one it is again."""
        return self.number, self.restores or self.number

    @property
    def where(self) -> Where:
        """Whose tasks it has, or are measured."""
        return self.tree or self.cgroup

    def to_json(self) -> dict[str, Any]:
        """All of it as the record keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """Read what to_json wrote; raise ValueError, TypeError or KeyError if it is something else."""
        order = stored["order"]
        for name in ("tunables", "history", "classes"):
            order[name] = tuple((first, second) for first, second in order[name])
        return cls(
            **stored
            | {
                "order": Order(**order),
                "stage": Stage(stored["stage"]),
                "phase": Phase(stored["phase"]),
                "tree": Tree(**stored["tree"]) if stored.get("tree") else None,
                "better": Better(stored["better"]) if stored.get("better") else None,
                "baseline": {name: Spread(**spread) for name, spread in stored["baseline"].items()},
                "end": End(stored["end"]) if stored["end"] else None,
            }
        )

    def summary(self, boot_now: float) -> dict[str, Any]:
        """What people and programs are shown of it: everything but maps, object and token."""
        alive = self.phase is not Phase.ENDED
        return {
            "deployment": self.number,
            "policy": self.order.policy,
            "digest": self.order.digest,
            "tunables": dict(self.order.tunables),
            "stage": self.stage,
            "cgroup": self.cgroup,
            "pid": self.tree and self.tree.pid,
            "better": self.better,
            "phase": self.phase,
            "proven": self.proven,
            "pinned": self.pinned,
            "pulse_s": self.pulse_s,
            "pairs": self.pairs,
            "created_at": self.created_at,
            "since_s": round(boot_now - self.since, 1) if alive else None,
            "lease_left_s": round(self.lease_until - boot_now, 1) if alive else None,
            "token_left_s": round(self.token_until - boot_now, 1) if alive else None,
            "baseline": {name: asdict(spread) for name, spread in self.baseline.items()},
            "previous": self.previous,
            "restores": self.restores,
            "uid": self.uid,
            "end": self.end,
            "tripped": self.end is not None and self.end.is_trip,
            "detail": self.detail,
            "own_words": self.own_words,
            "ended_at": self.ended_at,
        }


@dataclass(frozen=True)
class Event:
    """Something that happened, as the stream of events reports it.

    Args:
        number: counts up.
        at: Unix time.
        kind: one word: accepted, loading, running, proven, promoted, pinned, adopted, renewed, ending, ended, ...
        deployment: number, 0 if it is about none.
        detail: one sentence.
    """

    number: int
    at: float
    kind: str
    deployment: int
    detail: str
