"""PolicySpec: a scheduling policy described by primitives, small enough for a cheap model, or none, to write.

    spec = read_spec(tomllib.loads(text))       # schedagent.core.policies.spec_reader
    composed = compose(spec)                    # kernel_bpf.policies.compose

A spec names classes of tasks; a task belongs to the first class whose match it satisfies, and the last class takes
everything else. Each class has its order, slice and placement; `dispatch` is how a CPU chooses among the classes.
What no spec can switch off: pinned tasks wait in a queue of their CPU, idle CPUs are kicked, slices are clamped, and a
task that waited for starvation_ms goes next.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields

from schedagent.core.errors import SpecError
from schedagent.core.trials.workload import WorkloadClass

FIFO, VTIME, DEADLINE = "fifo", "vtime", "deadline"
LONGEST_FIRST, SHORTEST_FIRST = "longest_first", "shortest_first"
ORDERS = (FIFO, VTIME, DEADLINE, LONGEST_FIRST, SHORTEST_FIRST)
BY_VTIME = (VTIME, DEADLINE)
"""Orders on the virtual clock of a queue; the others are on the clock of the machine."""

ANY_IDLE, PREVIOUS_CPU, SAME_LLC, SPREAD, PACK = "any_idle", "previous_cpu", "same_llc", "spread", "pack"
PLACEMENTS = (ANY_IDLE, PREVIOUS_CPU, SAME_LLC, SPREAD, PACK)

PRIORITY, SHARES, ROUND_ROBIN = "priority", "shares", "round_robin"
DISPATCHES = (PRIORITY, SHARES, ROUND_ROBIN)

MAX_CLASSES = 4
"""As in kernel_bpf/bpf/include/queues.bpf.h."""

STARVATION_MAX_MS_OF_CLASSES = 500
"""A class that is only served by the starvation bound needs several turns to fork, run and end a child."""

STARVATION_MAX_MS_OF_MEASURED = 200
"""Where measurement puts a task into another class, one that slept for long may come back as a hog in a better one, and
keep others from their CPU for the bound, the period of the rescue (50 ms) and a slice: together at most the 350 ms that
the verifier's oracle "sleeper's return" grants.
"""

NAME = re.compile(r"[a-z][a-z0-9_]{0,14}", re.ASCII)
"""A kernel shows at most 15 bytes of a map's name."""

RESERVED_NAMES = frozenset(
    (
        *("auto", "bool", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum"),
        *("extern", "float", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short"),
        *("signed", "sizeof", "static", "struct", "switch", "typedef", "typeof", "union", "unsigned", "void"),
        *("volatile", "while", "asm", "false", "true", "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "current"),
        *("all", "config", "cpuset", "day", "equal", "fail", "ifbond", "ifslave", "month", "none", "phandle"),
        *("possible", "regular", "remote", "uch", "uint", "ulg", "ulong", "undefined", "uptrval", "ush", "ushort"),
        *("u128", "year"),
    )
)
"""What a policy cannot be called: words of C, and single words that name something else in kernels' BTF (6.18, 7.3).

Names that our headers use are found by kernel_bpf.policies.compose.
"""

_TEXT_MAX = 300


@dataclass(frozen=True)
class Number:
    """A numeric field.

    Args:
        about: what it is, one sentence.
        minimum, maximum: inclusive.
        default: what it is if the spec leaves it out.
        unit: of core.policy.Tunable.
        effect: what raising it does, one sentence.
    """

    about: str
    minimum: int
    maximum: int
    default: int
    unit: str
    effect: str


NUMBERS: Mapping[str, Number] = {
    "starvation_ms": Number("A task that waited this long goes next, whatever the order says.", 100, 1000, 200, "ms",
        "Lower values cost order and weighting, higher ones let others wait."),
    "preempt_scan_cpus": Number("CPUs looked at for one to preempt.", 1, 64, 16, "none",
        "One to preempt is found more often, at a higher cost of each wake-up."),
    "slice_us": Number("Time a task runs at a stretch.", 100, 100_000, 5000, "us",
        "Longer turns: fewer switches, longer waits."),
    "priority": Number("Higher goes first; among equals, the class listed first.", 0, 9, 0, "none",
        "The class is served before more of the others."),
    "share": Number("CPU time relative to the other classes.", 1, 1000, 100, "ratio",
        "More CPU time for the class while others want it too."),
    "slack_us": Number("CPU time since the last sleep that counts in a deadline.", 0, 50_000, 5000, "us",
        "Those who have just woken get further ahead of those who compute."),
    "patience_ms": Number("Longest wait for newcomers.", 1, 1000, 100, "ms",
        "The order counts more, and the time of arrival less."),
    "long_us": Number("Bursts from here on wait longest.", 200, 100_000, 3000, "us",
        "Long bursts are told apart from very long ones, short ones less."),
    "unknown_ms": Number("CPU time expected of a task that no earlier run tells about.", 0, 600_000, 100, "ms",
        "Unknown tasks go earlier."),
    "prelude_us": Number("CPU time served at once after a wake-up.", 0, 20_000, 2000, "us",
        "Drivers and pipelines go before the longest task."),
}  # fmt: skip
"""Every numeric field of a spec and of its classes."""

MEASURES: Mapping[str, Number] = {
    "nice": Number("nice level", -20, 20, 0, "none", ""),
    "burst_us": Number("measured burst in us", 0, 1_000_000, 0, "us", ""),
    "runtime_ms": Number("CPU time so far in ms", 0, 3_600_000, 0, "ms", ""),
    "wakeups_per_s": Number("measured rate of wake-ups per second", 0, 100_000, 0, "none", ""),
}
"""What a match may bound."""

PROGRAM_KINDS: Mapping[str, str] = {
    "short_bursts": "programs that run, each time they wake, at most a tenth as long as the heaviest one",
    "workers": "all other programs, unless the workload is latency-sensitive",
    "background": "all other programs, if the workload is latency-sensitive",
}
"""What a profile measures of every program, whatever its name."""

MOST_PROGRAMS = 32
LONGEST_PROGRAM = 80

MEASURED = ("burst_us", "runtime_ms", "wakeups_per_s")
"""Those that change while a task runs, so that it changes its class."""

ORDER_NUMBERS: Mapping[str, tuple[str, ...]] = {
    FIFO: (),
    VTIME: (),
    DEADLINE: ("slack_us",),
    LONGEST_FIRST: ("patience_ms", "unknown_ms", "prelude_us"),
    SHORTEST_FIRST: ("patience_ms", "long_us"),
}
"""The numbers that only some orders have."""


@dataclass(frozen=True)
class Bounds:
    """A half-open interval; None where there is no bound."""

    at_least: int | None = None
    below: int | None = None


@dataclass(frozen=True)
class Match:
    """Which tasks belong to a class: those that satisfy every condition given.

    Args:
        programs: labels of the profile's tables (a command name, or a command line as it stands there), or
            PROGRAM_KINDS, which are measured; the loader's map `task_class` has the number of this class for these.
        cgroup: name (last part of the path) of the task's own cgroup; empty: any.
        pinned: whether the task may use one CPU only.
        kthread: whether it is a kernel thread.
        nice, burst_us, runtime_ms, wakeups_per_s: see MEASURES.
    """

    programs: tuple[str, ...] = ()
    cgroup: str = ""
    pinned: bool | None = None
    kthread: bool | None = None
    nice: Bounds | None = None
    burst_us: Bounds | None = None
    runtime_ms: Bounds | None = None
    wakeups_per_s: Bounds | None = None

    def bounds(self) -> Iterator[tuple[str, Bounds]]:
        """Yield the measures that are bounded."""
        for name in MEASURES:
            bounds: Bounds | None = getattr(self, name)
            if bounds is not None:
                yield name, bounds

    @property
    def is_empty(self) -> bool:
        """Whether every task satisfies it."""
        return self == Match()


@dataclass(frozen=True)
class TaskClass:
    """One class of tasks. Numbers that are None take their default of NUMBERS.

    Args:
        name: a C identifier of lower case; prefix of the class's tunables.
        match: which tasks; empty for the last class.
        order: who of the waiting goes first, one of ORDERS.
        placement: which idle CPU a waking task takes, one of PLACEMENTS.
        slice_by_weight: slices in proportion to the task's weight; not for orders by vtime, which keep weights anyway.
        preempts: a task that wakes and finds no idle CPU interrupts one of a class of lower priority.
        slice_us: time a task runs before the next one may run.
        priority: for dispatch = priority.
        share: for dispatch = shares.
        slack_us, patience_ms, long_us, unknown_ms, prelude_us: see ORDER_NUMBERS.
    """

    name: str
    match: Match = field(default_factory=Match)
    order: str = VTIME
    placement: str = ANY_IDLE
    slice_by_weight: bool = False
    preempts: bool = False
    slice_us: int | None = None
    priority: int | None = None
    share: int | None = None
    slack_us: int | None = None
    patience_ms: int | None = None
    long_us: int | None = None
    unknown_ms: int | None = None
    prelude_us: int | None = None

    def number(self, name: str) -> int:
        """Return a numeric field, or its default."""
        value: int | None = getattr(self, name)
        return NUMBERS[name].default if value is None else value

    def given(self) -> Iterator[tuple[str, int]]:
        """Yield the numeric fields that are not None."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in NUMBERS and value is not None:
                yield entry.name, value


@dataclass(frozen=True)
class PolicySpec:
    """A policy.

    Args:
        name: of the policy: file stem, op prefix, what the kernel shows in root/ops.
        goal: what it is for, one sentence.
        target_workloads: WorkloadClass values, best first.
        classes: one to MAX_CLASSES; the first that matches counts, and the last takes everything else.
        dispatch: how a CPU chooses among the classes, one of DISPATCHES.
        starvation_ms: a task that waited this long goes next, whatever the order says.
        preempt_scan_cpus: how many CPUs are looked at for one to preempt.
    """

    name: str
    goal: str
    classes: tuple[TaskClass, ...]
    target_workloads: tuple[str, ...] = (WorkloadClass.MIXED.value,)
    dispatch: str = PRIORITY
    starvation_ms: int = NUMBERS["starvation_ms"].default
    preempt_scan_cpus: int = NUMBERS["preempt_scan_cpus"].default

    @property
    def by_rank(self) -> tuple[TaskClass, ...]:
        """The classes, highest priority first."""
        return tuple(sorted(self.classes, key=lambda kind: -kind.number("priority")))

    def rank(self, kind: TaskClass) -> int:
        """Return 1 for the class served last by priority, up to the number of classes."""
        return len(self.classes) - self.by_rank.index(kind)

    @property
    def starvation_max_ms(self) -> int:
        """The highest starvation_ms with which no task waits too long behind another class."""
        if len(self.classes) == 1:
            return NUMBERS["starvation_ms"].maximum
        measured = any(name in MEASURED for kind in self.classes for name, _bounds in kind.match.bounds())
        if measured and self.dispatch != ROUND_ROBIN:
            return STARVATION_MAX_MS_OF_MEASURED
        return STARVATION_MAX_MS_OF_CLASSES

    @property
    def preempts(self) -> bool:
        """Whether any class preempts."""
        return any(kind.preempts for kind in self.classes)


def check_spec(spec: PolicySpec) -> None:
    """Raise SpecError naming every field that cannot be as it is."""
    mistakes = list(problems(spec))
    if mistakes:
        raise spec_error(mistakes)


def spec_error(mistakes: list[str]) -> SpecError:
    """Return the error with all mistakes, one per line."""
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return SpecError(f"the spec has {count}:\n" + "\n".join(f"  {mistake}" for mistake in mistakes),
                     "fix these fields; the schema: schedagent compose --schema")  # fmt: skip


def problems(spec: PolicySpec) -> Iterator[str]:
    """Yield each mistake as `field = value: what is wrong`."""
    yield from _name_problems("name", spec.name)
    if spec.name in RESERVED_NAMES or spec.name.endswith("_t"):
        yield f"name = {spec.name!r}: this word means something else in C; choose another"
    yield from _goal_problems(spec.goal)
    for position, word in enumerate(spec.target_workloads):
        yield from _word_problems(f"target_workloads[{position}]", word, tuple(kind.value for kind in WorkloadClass))
    yield from _word_problems("dispatch", spec.dispatch, DISPATCHES)
    yield from _starvation_problems(spec)
    yield from _number_problems("preempt_scan_cpus", spec.preempt_scan_cpus, NUMBERS["preempt_scan_cpus"])
    if not 1 <= len(spec.classes) <= MAX_CLASSES:
        yield f"classes: {len(spec.classes)} of them, accepted are 1 to {MAX_CLASSES}"
        return
    yield from _double_names(spec)
    yield from _double_programs(spec)
    for position, kind in enumerate(spec.classes):
        yield from _class_problems(f"classes[{position}]", kind, spec, last=position == len(spec.classes) - 1)


def _starvation_problems(spec: PolicySpec) -> Iterator[str]:
    accepted = NUMBERS["starvation_ms"]
    if accepted.minimum <= spec.starvation_ms <= accepted.maximum and spec.starvation_ms > spec.starvation_max_ms:
        measured = spec.starvation_max_ms == STARVATION_MAX_MS_OF_MEASURED
        why = f" of which one is by {', '.join(MEASURED[:-1])} or {MEASURED[-1]}" if measured else ""
        yield f"starvation_ms = {spec.starvation_ms}: above {spec.starvation_max_ms}, the most for several classes{why}"
    else:
        yield from _number_problems("starvation_ms", spec.starvation_ms, accepted)


def _double_names(spec: PolicySpec) -> Iterator[str]:
    seen: dict[str, int] = {}
    for position, kind in enumerate(spec.classes):
        first = seen.setdefault(kind.name, position)
        if first != position:
            yield f"classes[{position}].name = {kind.name!r}: classes[{first}] has this name already"


def _double_programs(spec: PolicySpec) -> Iterator[str]:
    """A program is in one class only: the loader's map has one number for it."""
    seen: dict[str, str] = {}
    for position, kind in enumerate(spec.classes):
        for place, program in enumerate(kind.match.programs):
            where = f"classes[{position}].match.programs[{place}]"
            first = seen.setdefault(program, where)
            if first != where:
                yield f"{where} = {program!r}: {first} is the same program"


def _class_problems(where: str, kind: TaskClass, spec: PolicySpec, *, last: bool) -> Iterator[str]:
    yield from _name_problems(f"{where}.name", kind.name)
    yield from _word_problems(f"{where}.order", kind.order, ORDERS)
    yield from _word_problems(f"{where}.placement", kind.placement, PLACEMENTS)
    for name, value in kind.given():
        yield from _number_problems(f"{where}.{name}", value, NUMBERS[name])
        yield from _unused_number(where, name, value, kind, spec)
    if kind.slice_by_weight and kind.order in BY_VTIME:
        yield f"{where}.slice_by_weight = true: order {kind.order!r} keeps weights anyway; leave it out"
    if "patience_ms" in ORDER_NUMBERS.get(kind.order, ()) and kind.number("patience_ms") > spec.starvation_ms:
        yield f"{where}.patience_ms = {kind.number('patience_ms')}: above starvation_ms = {spec.starvation_ms}, "\
              "after which any wait ends"  # fmt: skip
    if kind.preempts:
        yield from _preemption_problems(where, kind, spec)
    if last and not kind.match.is_empty:
        yield f"{where}.match: the last class takes everything else, so it must be left out there"
    elif not last and kind.match.is_empty:
        yield f"{where}.match: empty, so no later class gets a task; only the last class may have none"
    yield from _match_problems(f"{where}.match", kind.match)


def _unused_number(where: str, name: str, value: int, kind: TaskClass, spec: PolicySpec) -> Iterator[str]:
    """A number that nothing would look at is a misunderstanding."""
    needs = {"priority": PRIORITY, "share": SHARES}.get(name)
    if needs and spec.dispatch != needs:
        yield f"{where}.{name} = {value}: only dispatch = {needs!r} has it, not {spec.dispatch!r}"
    orders = [order for order, names in ORDER_NUMBERS.items() if name in names]
    if orders and kind.order in ORDERS and kind.order not in orders:
        yield f"{where}.{name} = {value}: only order = {' or '.join(map(repr, orders))} has it, not {kind.order!r}"


def _preemption_problems(where: str, kind: TaskClass, spec: PolicySpec) -> Iterator[str]:
    if spec.dispatch != PRIORITY:
        yield f"{where}.preempts = true: only with dispatch = {PRIORITY!r}, not {spec.dispatch!r}"
    elif kind is spec.by_rank[-1]:
        yield f"{where}.preempts = true: no class has a lower priority than {kind.name!r}"


def _match_problems(where: str, match: Match) -> Iterator[str]:
    if len(match.programs) > MOST_PROGRAMS:
        yield f"{where}.programs: {len(match.programs)} of them, accepted are at most {MOST_PROGRAMS}"
    for place, program in enumerate(match.programs):
        if not program.strip() or len(program) > LONGEST_PROGRAM or not program.isprintable():
            yield f"{where}.programs[{place}] = {program[:100]!r}: not 1 to {LONGEST_PROGRAM} printable characters"
    if match.cgroup and ("/" in match.cgroup or not match.cgroup.isprintable() or len(match.cgroup.encode()) > 63):
        yield f"{where}.cgroup = {match.cgroup!r}: not the last part of a path, of at most 63 bytes"
    for name, bounds in match.bounds():
        accepted = MEASURES[name]
        if bounds.at_least is None and bounds.below is None:
            yield f"{where}.{name}: neither at_least nor below is given"
        for side in ("at_least", "below"):
            value = getattr(bounds, side)
            if value is not None:
                yield from _number_problems(f"{where}.{name}.{side}", value, accepted)
        if bounds.at_least is not None and bounds.below is not None and bounds.at_least >= bounds.below:
            yield f"{where}.{name}: no number is at least {bounds.at_least} and below {bounds.below}"


def _name_problems(where: str, name: str) -> Iterator[str]:
    if not NAME.fullmatch(name):
        yield f"{where} = {name!r}: not 1 to 15 of a-z, 0-9 and _, beginning with a letter"


def _goal_problems(goal: str) -> Iterator[str]:
    if not goal.strip() or len(goal) > _TEXT_MAX:
        yield f"goal: {len(goal)} characters, accepted are 1 to {_TEXT_MAX}"
    if not all(letter.isprintable() or letter == "\n" for letter in goal):
        yield "goal: has characters that cannot be printed"
    if "*/" in goal or "/*" in goal:
        yield "goal: has the marks of a C comment, which it is going to stand in"


def _word_problems(where: str, word: str, accepted: tuple[str, ...]) -> Iterator[str]:
    if word not in accepted:
        yield f"{where} = {word!r}: accepted are {', '.join(accepted)}"


def _number_problems(where: str, value: int, accepted: Number) -> Iterator[str]:
    if value < accepted.minimum:
        yield f"{where} = {value}: below {accepted.minimum}"
    elif value > accepted.maximum:
        yield f"{where} = {value}: above {accepted.maximum}"
