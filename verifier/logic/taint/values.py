"""What is known of a value: where it points, which inputs it holds, and which clocks, counters and numbers of CPUs.

An *input* is what a policy has to declare (core.policies.policy.READABLE). Most become one as soon as they are read.
Others are harmless as long as they are used in the way they are meant for, and become inputs when they are not: these
are *kinds*. A clock may be subtracted from itself, be compared with itself, or be the key of a task; compared with a
constant, divided or masked it says how late it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

MASK64 = (1 << 64) - 1

SHOWN_NS = 10_000_000_000
"""A duration that the proof shows: its phases last for twice as long together, so it sees both sides."""

SHOWN_EVENTS = 64
"""So many events of any kind, each wake-up or each switch of a CPU, happen within the first second of the proof."""

LARGE_MACHINE = 512
"""CPUs beyond this are no matter of the proof: tables end there."""

LARGE_NODES = 64
"""The same for NUMA nodes."""


class Kind:
    """What a value is that is no input yet: a bit each, in plain numbers, which are ten times as fast as flags."""

    NONE = 0
    TIME = 1
    """A reading of a clock of time."""
    BIRTH = 2
    """One that was stored once: what is measured from there on is an age."""
    RUNTIME = 4
    """All CPU time that a task has used, sum_exec_runtime."""
    COUNT = 8
    """What only grows, by constants."""
    KEY = 16
    """The key of a queued task, scx.dsq_vtime: a clock of whatever kind the policy orders by."""
    SPAN = 32
    """A difference of two readings of a clock."""
    SUM = 64
    """A sum of such differences."""
    CPUS = 128
    """The number of CPUs."""
    NODES = 256
    """The number of NUMA nodes."""
    ALLOWED = 512
    """The number of CPUs in some mask."""
    CPU = 1024
    """The number of a CPU, or what is computed from it."""
    NODE = 2048
    """The number of a node."""
    PID = 4096
    """A process id, as a handle."""
    FLAGS = 8192
    """task_struct.flags: some bits are free."""
    TASK = 16384
    """A task found by its pid: may be used, but not recognised."""
    ADDRESS = 32768
    """Where something lies in the kernel, taken as a number: as good as random, or an identity."""
    BITS = 65536
    """Flags, or an error code: free to branch on, for the proof shows which branches were taken. A bit that goes into a
    key or a slice by arithmetic alone leaves no branch, and may never have been set."""


CLOCKS = Kind.TIME | Kind.RUNTIME | Kind.COUNT | Kind.KEY
DURATIONS = Kind.SPAN | Kind.SUM
COUNTS = Kind.CPUS | Kind.NODES | Kind.ALLOWED
PLACES = Kind.CPU | Kind.NODE

WITHOUT_BRANCH = "a flag or an error code"
"""The input that bits are when they decide something by arithmetic alone; nobody can declare it."""

INPUT_OF: Mapping[int, str] = {
    Kind.TIME: "time since boot",
    Kind.BIRTH: "time since load",
    Kind.RUNTIME: "runtime",
    Kind.COUNT: "counters",
    Kind.KEY: "time since boot",
    Kind.SPAN: "time since load",
    Kind.SUM: "time since load",
    Kind.CPUS: "cpus",
    Kind.NODES: "nodes",
    Kind.ALLOWED: "cpus",
    Kind.CPU: "cpus",
    Kind.NODE: "nodes",
    Kind.PID: "pid",
    Kind.FLAGS: "flags",
    Kind.TASK: "pid",
    Kind.ADDRESS: "kernel memory",
    Kind.BITS: WITHOUT_BRANCH,
}
"""Which input a kind becomes when it is used for something that it is not meant for."""


def each_kind(kinds: int) -> Iterator[int]:
    """Yield the kinds of a set one by one."""
    while kinds:
        lowest = kinds & -kinds
        yield lowest
        kinds ^= lowest


class Area(NamedTuple):
    """Memory that a pointer may lie in: the stack of a function, a map's values, a variable, a kernel object.

    Args:
        kind: "stack", "map", "variable", "kernel", "context", "heap", "symbol", "function" or "outer".
        name: of the function, map, variable, the field last reached, or the place that allocated it.
    """

    kind: str
    name: str


class Target(NamedTuple):
    """A place in an area; offset None: anywhere behind `base`."""

    area: Area
    offset: int | None
    base: int = 0


_PLACES_APART = 64
"""So many places of one area a pointer may be known to point to; of more it is known only that they are in it."""

ANYWHERE = -(1 << 63)
"""The base of a target that may be anywhere in its area."""


class Place(NamedTuple):
    """What a value was loaded from: a part of what outlives a callback."""

    area: Area
    offset: int | None


class Value(NamedTuple):
    """What is known of a register or of a part of memory.

    Args:
        points: where it may point.
        const: its value, if it is one constant; 64 bits, unsigned.
        fixed: whether it is made of constants alone.
        size: the largest constant part of it, as a magnitude; gains by constant factors included.
        grown: how much was added to it since it was loaded; gain: by what it was multiplied.
        kinds: what it is besides, bits of Kind.
        scale: ns that one unit of a duration stands for; of a counter, steps of it.
        labels: bit set of the inputs that it holds, and where each was read (Labels).
        origins: from where it was loaded, however it was changed since.
        changed: whether it was computed with since it was read.
        field: the kernel field whose offset this is.
        remembered: whether it depends on anything that the policy stored.
        loaded: the one place that it was loaded from, if only what comes from no place was added since.
    """

    points: frozenset[Target] = frozenset()
    const: int | None = None
    fixed: bool = False
    size: float = 1.0
    grown: float = 0.0
    kinds: int = Kind.NONE
    scale: float = 1.0
    labels: int = 0
    origins: frozenset[Place] = frozenset()
    changed: bool = False
    field: str = ""
    loaded: Place | None = None
    remembered: bool = False
    gain: float = 1.0

    @property
    def is_constant(self) -> bool:
        """Whether nothing varying is in it."""
        return self.fixed and not self.points and not self.labels and not self.kinds

    @property
    def extent(self) -> float:
        """Its constant part in ns or steps."""
        return self.size * self.scale if self.kinds & (CLOCKS | DURATIONS) else self.size

    def with_labels(self, labels: int) -> Value:
        both = self.labels | labels
        return self if both == self.labels else _made(Value, (*self[:_LABELS], both, *self[_LABELS + 1 :]))


_LABELS = Value._fields.index("labels")
_made = tuple.__new__
"""Makes a Value without the call of a constructor that takes keywords; nothing is made more often."""

FREE = Value()
"""A number that anything free of charge may have been."""


def constant(number: int) -> Value:
    """A value that is one number."""
    number &= MASK64
    return Value(const=number, fixed=True, size=float(magnitude(number)))


def pointer(*targets: Target, labels: int = 0) -> Value:
    return Value(points=frozenset(targets), labels=labels, size=0.0)


def magnitude(number: int) -> int:
    """How large a number is, if it is taken as signed."""
    return (1 << 64) - number if number >> 63 else number


def signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def join(first: Value | None, second: Value | None, *, widen: bool = False) -> Value | None:
    """What holds for both; None is nothing yet. `widen`: what grew does not grow on."""
    if first is None or first is second:
        return second
    if second is None or first == second:
        return first
    (points, const, fixed, size, grown, kinds, scale, labels, origins, changed, field, loaded, remembered, gain) = first
    (o_points, o_const, o_fixed, o_size, o_grown, o_kinds, o_scale, o_labels, o_origins, o_changed, o_field, o_loaded,
     o_remembered, o_gain) = second  # fmt: skip
    fixed = fixed and o_fixed
    if widen:
        fixed = fixed and o_size <= size
    else:
        size = o_size if o_size > size else size
        grown = o_grown if o_grown > grown else grown
        scale = o_scale if o_scale > scale else scale
        gain = o_gain if o_gain > gain else gain
    return _made(
        Value,
        (
            points if o_points <= points else together(points | o_points),
            const if const == o_const else None,
            fixed,
            size,
            grown,
            kinds | o_kinds,
            scale,
            labels | o_labels,
            origins if o_origins <= origins else origins | o_origins,
            changed or o_changed,
            field if field == o_field else "",
            loaded if loaded == o_loaded else None,
            remembered or o_remembered,
            gain,
        ),
    )


def shifted(target: Target, distance: int) -> Target:
    """A target so many bytes further on."""
    if target.offset is not None:
        return Target(target.area, target.offset + distance, target.base)
    if distance < 0 and target.base != ANYWHERE:
        return Target(target.area, None, target.base + distance)
    return target


@lru_cache(maxsize=1 << 14)
def by_area(points: frozenset[Target], distance: int) -> tuple[tuple[Area, tuple[Target, ...]], ...]:
    """The targets so many bytes further on, those of one area together."""
    areas: dict[Area, list[Target]] = {}
    for target in points:
        areas.setdefault(target.area, []).append(shifted(target, distance))
    return tuple((area, tuple(targets)) for area, targets in areas.items())


def together(points: frozenset[Target], most: int = _PLACES_APART) -> frozenset[Target]:
    """These targets; those of an area that a loop has walked through are one, or the loop would never settle."""
    walked = {target.area for target in points if target.base == ANYWHERE}
    if not walked and len(points) <= most:
        return points
    walked |= {area for area, count in Counter(target.area for target in points).items() if count > most}
    apart = frozenset(target for target in points if target.area not in walked)
    return apart | {Target(area, None, ANYWHERE) for area in walked}


class Labels:
    """Inputs with the places where they were read, each a bit."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str, int], int] = {}
        self._known: list[tuple[str, str, int]] = []

    def bit(self, name: str, function: str, index: int) -> int:
        """The bit of an input that is read at an instruction."""
        key = (name, function, index)
        if key not in self._numbers:
            self._numbers[key] = len(self._known)
            self._known.append(key)
        return 1 << self._numbers[key]

    def inputs(self, labels: int) -> Iterator[tuple[str, str, int]]:
        """Yield input, function and index of each bit, in the order in which they were met."""
        number = 0
        while labels:
            if labels & 1:
                yield self._known[number]
            labels >>= 1
            number += 1
