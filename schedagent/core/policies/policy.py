"""Policies: the documented library entry, and one configured candidate made from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Self

from schedagent.core.errors import TunableError
from schedagent.core.policies.program import SchedulerProgram
from schedagent.core.policies.proposal import Origin
from schedagent.core.policies.rodata import NOTHING_SET, Rodata


@dataclass(frozen=True)
class Tunable:
    """One `const volatile` global of a policy that the loader may set before load.

    Args:
        name: the C identifier, with its unit as suffix (slice_ns).
        type: C type: u32, u64, s32, s64 or bool.
        unit: ns, us, ms, percent, tasks, ratio or none.
        minimum, maximum: accepted range, inclusive.
        default: the value the source carries.
        effect: what raising it does, one sentence.
    """

    name: str
    type: str
    unit: str
    minimum: int
    maximum: int
    default: int
    effect: str

    def check(self, value: int) -> int:
        """Return `value` if the range accepts it; raise TunableError otherwise."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise TunableError(f"tunable {self.name}={value!r} is not a whole number")
        if not self.minimum <= value <= self.maximum:
            raise TunableError(
                f"tunable {self.name}={value} is out of range",
                f"accepted: {self.minimum} to {self.maximum} {self.unit} (default {self.default})",
            )
        return value


CGROUP_WEIGHTS, CGROUP_LIMITS = "cgroup weights", "cgroup limits"
"""The oracles of rule 31: cpu.weight and cpu.idle, and cpu.max."""

DECLARABLE = (
    "weights", "idle machine", "saturated machine", "work conservation", "sleeper's return", "pinned crowd",
    CGROUP_WEIGHTS, CGROUP_LIMITS,
)  # fmt: skip
"""Oracles of the rules whose class is unfair (20, 22, 23, 30 and 31): a policy may declare that it does not seek what
they measure, and whoever brings one may accept that; safety can neither be declared away nor accepted."""

READS_PREFIX = "reads:"
"""Before an input of READABLE, where it is accepted by name: "reads:comm"."""


class Standing(StrEnum):
    """Where a policy comes from, as its verifier sees it: the less is known of its author, the more has to be shown."""

    BUNDLED = "bundled"
    """Its source is one of ours, byte by byte."""
    DERIVED = "derived"
    """A model or a composer made it, or nobody says where it comes from."""
    FOREIGN = "foreign"
    """A person brought it, and decides on what is only reported."""


READABLE = (
    "comm", "uid", "gid", "pid", "parent", "cgroup", "namespace", "nice", "arguments", "cpus", "nodes", "kernel",
    "time since load", "time since boot", "wall clock", "runtime", "counters", "flags", "random numbers", "map values",
)  # fmt: skip
"""Inputs that a policy may declare to go by (rule 32): whatever else the order follows from needs no word.

"runtime" is all CPU time that a task has used, "flags" are bits of task_struct.flags that say more than what kind of
task it is, "map values" are written by others than the policy's callbacks: the loader, tracing and syscall programs.
"""


def is_acceptable(word: str) -> bool:
    """Whether somebody may accept this of a policy: an oracle of DECLARABLE, or "reads:" and an input of READABLE."""
    return word in DECLARABLE or (word.startswith(READS_PREFIX) and word.removeprefix(READS_PREFIX) in READABLE)


@dataclass(frozen=True)
class PolicyInfo:
    """A documented policy: one `<name>.bpf.c` with its `<name>.toml`.

    Args:
        name: file stem, op prefix and the name the kernel shows in root/ops.
        description: one sentence.
        target_workloads: WorkloadClass values it is meant for, best first.
        algorithm: how it decides, a few sentences.
        limitations: when it loses.
        tunables: what may be set.
        inputs: maps the loader fills: "history" (identity -> expected CPU ns), "classes" (identity -> class).
        source: path of the C source, or of a compiled object.
        declares: names of oracles (core.rules.Rule.checks) that this policy does not mean to satisfy, such as
            "weights" for a policy that ignores them by design; only those of DECLARABLE.
        reads: what it goes by, of READABLE, as its author declares it.
        classes: (program, class number) for the input "classes": labels of a profile's tables, or
            core.spec.PROGRAM_KINDS, which are measured; programs that are not named stay out of the map.
        documented: whether a .toml describes all this; else its object may have tunables that `tunables` does not list.
        origin: whether it came with the program, or how it was made.
        parent: the policy that was patched to make it; empty for all others.
        parts: further sources that are linked with `source` into one object.
        rodata: what is set in the object as its own loader would set it.
    """

    name: str
    description: str
    target_workloads: tuple[str, ...]
    algorithm: str
    limitations: str
    tunables: tuple[Tunable, ...]
    inputs: tuple[str, ...]
    source: Path
    declares: tuple[str, ...] = ()
    classes: tuple[tuple[str, int], ...] = ()
    documented: bool = True
    origin: Origin = Origin.BUNDLED
    parent: str = ""
    reads: tuple[str, ...] = ()
    parts: tuple[Path, ...] = ()
    rodata: Rodata = NOTHING_SET

    @property
    def is_object(self) -> bool:
        """Whether a compiled object, or a program that holds one, was brought instead of a source."""
        return self.source.suffix != ".c"

    @property
    def source_digest(self) -> str:
        """Hex SHA-256 of the source as it is now; raise OSError if it cannot be read."""
        return hashlib.sha256(self.source.read_bytes()).hexdigest()

    def tunable(self, name: str) -> Tunable:
        """Return the tunable called `name`; raise TunableError naming those that exist."""
        for tunable in self.tunables:
            if tunable.name == name:
                return tunable
        known = ", ".join(tunable.name for tunable in self.tunables) or "none"
        raise TunableError(f"policy {self.name} has no tunable {name!r}", f"it has: {known}")

    def accepting(self, words: Iterable[str]) -> PolicyInfo:
        """Return it with what somebody accepts by name added to what it declares itself; see `is_acceptable`."""
        words = tuple(words)
        declares = (*self.declares, *(word for word in words if word in DECLARABLE))
        inputs = (word.removeprefix(READS_PREFIX) for word in words if word.startswith(READS_PREFIX))
        return replace(
            self, declares=tuple(dict.fromkeys(declares)), reads=tuple(dict.fromkeys((*self.reads, *inputs)))
        )

    def configured(self, changes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
        """Return all tunables, sorted by name, with `changes` applied; raise TunableError if one is not accepted."""
        values = {tunable.name: tunable.default for tunable in self.tunables}
        for name, value in changes.items():
            values[name] = self.tunable(name).check(value)
        return tuple(sorted(values.items()))


@dataclass(frozen=True)
class CandidatePolicy:
    """A policy from the library with every tunable and input map settled: what is verified and tried.

    Args:
        policy: name in the library.
        tunables: every tunable of the policy, sorted by name.
        history: (identity, expected CPU time in ns), measured by observation; empty if the policy has no such input.
        classes: (identity, class number); empty if the policy has no such input.
        reason: one sentence: why this candidate.
        origin: how it came about.
        expected: one sentence: the effect its planner expects; empty if it named none.
        refuted_by: one sentence: what measurement would refute that; empty if it named none.
        program: the scheduler that loads its policy itself, if that is its origin: it is in no library, no gate
            sees it, and there is never a token for it.
    """

    policy: str
    tunables: tuple[tuple[str, int], ...] = ()
    history: tuple[tuple[int, int], ...] = ()
    classes: tuple[tuple[int, int], ...] = ()
    reason: str = ""
    origin: Origin = Origin.CONFIGURE
    expected: str = ""
    refuted_by: str = ""
    program: SchedulerProgram | None = None

    @classmethod
    def of_program(cls, program: SchedulerProgram, reason: str = "") -> Self:
        """Return the candidate that a scheduler with a loader of its own is."""
        return cls(program.name, reason=reason, origin=Origin.PROGRAM, program=program)

    @property
    def loads_itself(self) -> bool:
        """Whether it is a program that loads its policy: then nothing is compiled or verified, only measured."""
        return self.origin is Origin.PROGRAM

    @property
    def key(self) -> str:
        """A stable id over what decides its behaviour (not over the reasons of its planner)."""
        parts: list[object] = [self.policy, self.tunables, self.history, self.classes]
        if self.program:
            parts += [self.program.digest, self.program.arguments]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Short text for tables: the policy and its tunables, or a program and its arguments."""
        if self.program:
            return self.program.command
        values = " ".join(f"{name}={value}" for name, value in self.tunables)
        return f"{self.policy} {values}".strip()


@dataclass(frozen=True)
class Plan:
    """What to try next.

    Args:
        candidates: to verify and to try, most promising first; none if no policy can help.
        reason: one sentence: why these, or why none.
        learned: one sentence: what earlier results contributed; empty if they contributed nothing.
    """

    candidates: tuple[CandidatePolicy, ...]
    reason: str
    learned: str = ""
