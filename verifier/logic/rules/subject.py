"""What the rules look at: the object, its ops, and what the walks found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from schedagent.core.policies.policy import Standing
from schedagent.core.rules import FindingClass
from schedagent.core.verification import Finding, Severity, rank
from verifier.logic.rules.queues import Queue, decode
from verifier.logic.walk.calls import canonical, names
from verifier.logic.walk.events import Event, Exit, Trail, Walk, place_of, steps
from verifier.logic.walk.facts import Condition, Facts, Range, range_of
from verifier.logic.walk.terms import MASK32, Term, TermKind, low_half
from verifier.object.image import BpfImage, Function, Line, OpsStruct

FLAT_IDLE = names("scx_bpf_get_idle_cpumask scx_bpf_get_idle_smtmask scx_bpf_pick_idle_cpu scx_bpf_pick_any_cpu")
"""Idle kfuncs that the per-node mode forbids (kernel/sched/ext_idle.c)."""

IDLE_KFUNCS = names(
    "scx_bpf_select_cpu_dfl scx_bpf_select_cpu_and scx_bpf_pick_idle_cpu scx_bpf_pick_idle_cpu_node "
    "scx_bpf_test_and_clear_cpu_idle scx_bpf_get_idle_cpumask scx_bpf_get_idle_smtmask "
    "scx_bpf_get_idle_cpumask_node scx_bpf_get_idle_smtmask_node"
)
"""What needs the built-in idle tracking."""

CHOOSES_CPU = names("scx_bpf_select_cpu_dfl scx_bpf_select_cpu_and scx_bpf_pick_idle_cpu scx_bpf_pick_idle_cpu_node")


@dataclass(frozen=True)
class Insert:
    """An insert of a task into a DSQ, or its move there from another DSQ.

    Args:
        queue: one of the DSQs that it may go to.
        vtime: None for a FIFO insert.
        slice: None if the call sets none.
        moves: whether the task is moved from another DSQ.
    """

    event: Event
    task: Term
    queue: Queue
    slice: Term | None
    vtime: Term | None
    flags: Term | None
    moves: bool = False


@dataclass(frozen=True)
class Drain:
    """A call that takes tasks out of a DSQ."""

    event: Event
    queue: Queue


@dataclass(frozen=True)
class Subject:
    """One policy under judgement.

    Args:
        enums: values of enumerators by short name.
        features: what the target kernel has.
        standing: where the policy comes from.
        reads: inputs that it declares to go by.
    """

    image: BpfImage
    ops: OpsStruct
    walk: Walk
    enums: Mapping[str, int]
    features: frozenset[str]
    standing: Standing = Standing.DERIVED
    reads: frozenset[str] = frozenset()
    findings: list[Finding] = field(default_factory=list)

    def flag(self, name: str) -> bool:
        """Whether an ops flag is set."""
        return bool(self.ops.numbers.get("flags", 0) & self.enums.get(name, 0))

    def is_seen(self, member: str) -> bool:
        """Whether all that a callback does was seen: only then it is known what it does not do."""
        return not any(entry.member == member and entry.exhausted for entry in self.walk.entries)

    def callback(self, member: str) -> Function | None:
        return self.image.functions.get(self.ops.callbacks.get(member, ""))

    def events(self, *names: str, member: str = "") -> Iterator[Event]:
        """Yield the events of these names, of one callback if given."""
        for event in self.walk.events:
            if event.name in names and (not member or event.member == member):
                yield event

    def exits(self, member: str) -> Iterator[Exit]:
        return (path for path in self.walk.exits if path.member == member)

    def queues(self, term: Term, facts: Facts) -> tuple[Queue, ...]:
        """Return the DSQs that an id may mean where so much is known."""
        return decode(term, self.enums, self.walk.merged, facts)

    def values(self, term: Term) -> tuple[Term, ...]:
        """Return a value, or the values it may be where paths were joined."""
        known = self.walk.merged.get(low_half(term))
        return tuple(known) if known else (term,)

    def ranges(self, event: Event, term: Term, bits: int = 64) -> Iterator[tuple[Term, Range]]:
        """Yield a value with its bounds; where paths were joined, each that it may be, as bounded where they met."""
        inner = low_half(term)
        bounds = range_of(event.facts, bits, term if bits == 64 else inner)
        known = self.walk.merged.get(inner)
        if not known:
            yield term, bounds
            return
        for value in known:
            low, high = self.walk.spans[inner, value]
            if high >> bits or (inner is not term and high > MASK32):  # what is cut off may leave anything
                low, high = bounds.low, bounds.high
            low, high = max(low, bounds.low), min(high, bounds.high)
            if low <= high:
                yield value, Range(low, high, bounds.signed_low, bounds.signed_high)

    def inserts(self) -> Iterator[Insert]:
        """Yield every insert and move of the object, once for each DSQ it may mean."""
        for event in self.events("scx_bpf_dsq_insert", "scx_bpf_dsq_insert_vtime"):
            arguments = event.arguments
            timed = event.name.endswith("vtime")
            if len(arguments) < 4:
                continue
            vtime, flags = (arguments[3], arguments[-1]) if timed else (None, arguments[3])
            for queue in self.queues(arguments[1], event.facts):
                yield Insert(event, arguments[0], queue, arguments[2], vtime, flags)
        for event in self.events("scx_bpf_dsq_move", "scx_bpf_dsq_move_vtime"):
            if len(event.arguments) < 4:
                continue
            vtime = event.result if event.name.endswith("vtime") else None
            for queue in self.queues(event.arguments[2], event.facts):
                yield Insert(event, event.arguments[1], queue, None, vtime, event.arguments[3], moves=True)

    def drains(self) -> Iterator[Drain]:
        """Yield every call that takes tasks out of DSQs."""
        for event in self.events("scx_bpf_dsq_move_to_local", "scx_bpf_dsq_reenq"):
            for queue in self.queues(event.arguments[0], event.facts) if event.arguments else ():
                yield Drain(event, queue)
        for event in self.events("scx_bpf_dsq_move", "scx_bpf_dsq_move_vtime"):
            for source in self._sources(event):
                yield Drain(event, source)

    def _sources(self, event: Event) -> tuple[Queue, ...]:
        """The DSQ that an iterator goes through: remembered in the task that its next() returned."""
        task = event.argument(1)
        if task is not None and task.kind is TermKind.CALL and task.name == "bpf_iter_scx_dsq_next" and task.parts[2]:
            iterator = task.parts[2][0]
            if iterator.kind is TermKind.ITERATOR and iterator.parts[2]:
                return self.queues(iterator.parts[2][0], event.facts)
        return ()

    def report(
        self, rule: int, severity: Severity, where: str, line: Line | None, message: str, *,
        trail: Trail | None = None, cleared_by: str = "", classed: FindingClass | None = None,
        word: str = "",
    ) -> None:  # fmt: skip
        """Add a finding at the author's own line; of one rule at one place the worst is kept."""
        file, row, wrapper = place_of(line)
        path = (*steps(trail), *wrapper)
        finding = Finding(rule, severity, where, file, row, message, path, cleared_by, classed, word)
        for index, known in enumerate(self.findings):
            same_place = (known.rule, known.where, known.file, known.line) == (rule, where, file, row) and row
            if same_place or (known.rule, known.where, known.message) == (rule, where, message):
                if rank(finding) < rank(known):
                    self.findings[index] = finding
                return
        self.findings.append(finding)

    def error(self, rule: int, event: Event | Exit, message: str, *, classed: FindingClass | None = None) -> None:
        self.report(rule, Severity.ERROR, event.member, event.line, message, trail=event.trail, classed=classed)

    def warning(self, rule: int, event: Event | Exit, message: str, cleared_by: str) -> None:
        self.report(rule, Severity.WARNING, event.member, event.line, message, trail=event.trail, cleared_by=cleared_by)

    def unsafe(self, rule: int, event: Event | Exit, message: str) -> None:
        """Report what nobody may have proved for him, unless the policy is one of ours."""
        if self.standing is not Standing.BUNDLED:
            self.error(rule, event, message)

    def forbidden(self, rule: int, where: str, line: Line | None, message: str) -> None:
        """Report what no policy may do."""
        self.report(rule, Severity.ERROR, where, line, message)

    def unusual(self, rule: int, where: str, line: Line | None, message: str) -> None:
        """Report what none of our policies does: what a person brings may, and its report notes it."""
        classed = FindingClass.HOUSE if self.standing is Standing.FOREIGN else None
        self.report(rule, Severity.ERROR, where, line, message, classed=classed)

    def start_of(self, member: str) -> Line | None:
        """Return the first line of a callback."""
        function = self.callback(member)
        return next((each.line for each in function.instructions if each.line), None) if function else None


def calls_any(image: BpfImage, name: str, functions: frozenset[str]) -> bool:
    """Whether a function, or one that it calls, calls one of these kfuncs or helpers, if only in a dead branch."""
    return any(
        each.ref is not None and canonical(each.ref.name) in functions
        for called in image.reached_from(name)
        for each in image.functions[called].instructions
    )


def truths(facts: Facts) -> Iterator[tuple[Term, bool]]:
    """Yield the terms that are known to be zero or not on this path."""
    for key, known in facts.items():
        if isinstance(key, Condition):
            if key.operator == "eq" and key.right.is_const and key.right.value == 0 and isinstance(known, bool):
                yield key.left, not known
        elif isinstance(known, Range) and (known.low > 0 or known.high == 0):
            yield key[1], known.low > 0
