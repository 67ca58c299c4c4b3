"""What a walk brings back: calls and stores met on the way, how paths end, and the way there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from schedagent.core.verification import Step
from verifier.logic.walk.code import Code
from verifier.logic.walk.facts import Condition, Facts
from verifier.logic.walk.terms import MASK64, Term, TermKind, Terms, describe, low_half, number, pointer, signed
from verifier.object.image import Line

_MOST_STEPS = 8


class Site(NamedTuple):
    """An instruction: the function and its place in it."""

    function: str
    place: int


@dataclass(frozen=True)
class Trail:
    """The way so far, last step first: a decided branch (condition) or a call."""

    before: Trail | None
    line: Line | None
    condition: Condition | None = None
    holds: bool = True
    call: str = ""


class Pending(NamedTuple):
    """A store whose result nobody looked at yet."""

    result: Term
    region: str
    line: int


class Key(NamedTuple):
    """A map, and a key in it that is a task's own: made of its address or its number."""

    map: str
    value: Term


class Query(NamedTuple):
    """A call whose result decides what happened, and that nobody looked at yet.

    Args:
        name: of the function.
        about: the CPU that it claims, the DSQ that it takes a task from, the map in which it makes a record, or the key
            under which it puts something there.
    """

    result: Term
    name: str
    about: Term | str | Key


class Claim(NamedTuple):
    """An idle CPU that a path took for itself: nobody else finds it idle until it has run.

    Args:
        inserted: whether the task was inserted into its local DSQ.
        kicked: whether it was kicked.
    """

    cpu: Term
    inserted: bool = False
    kicked: bool = False


class Marks(NamedTuple):
    """What happened on a path that the rules ask about; paths with different marks are never merged.

    Args:
        inserts: of the callback's task, 2 for more.
        stores: the maps or variables that hold the task now; in init_task those in which it has a record.
        pending: stores that may have failed.
        waits: whether the task went into a DSQ that is not built in.
        queue: the DSQ that enqueue put the task into, if that is not built in.
        kicks: the CPUs that enqueue kicked.
        sought: whether an idle CPU was looked for.
        missed: whether none was idle before the task went into its DSQ.
        last: whether one was looked for after that.
        queries: claims, moves and records whose success is not known yet.
        claims: idle CPUs that were claimed, but for the one that the task is on.
        stays: whether enqueue put the task into the local DSQ of the CPU that it is on.
        emptied: DSQs, by their number, from which dispatch got no task.
        ended: whether the policy ended itself with scx_bpf_error().
        batch: sites of inserts since the dispatch buffer was last looked at or flushed.
        created: ids of single DSQs that init created.
        excuse: why a callback that may refuse a task may do so on this path: for want of memory, for instance.
        exchanged: addresses at which such a callback put an object with bpf_kptr_xchg().
        put: keys of the task under which such a callback put something into a map.
        certain: results of calls of such a callback, and whether each is NULL, as far as its own task's records go.
    """

    inserts: int = 0
    stores: frozenset[str] = frozenset()
    pending: frozenset[Pending] = frozenset()
    waits: bool = False
    queue: Term | None = None
    kicks: frozenset[Term] = frozenset()
    sought: bool = False
    missed: bool = False
    last: bool = False
    queries: frozenset[Query] = frozenset()
    claims: frozenset[Claim] = frozenset()
    stays: bool = False
    emptied: frozenset[int] = frozenset()
    ended: bool = False
    batch: frozenset[Site] = frozenset()
    created: frozenset[int] = frozenset()
    excuse: str = ""
    exchanged: frozenset[Term] = frozenset()
    put: frozenset[Key] = frozenset()
    certain: frozenset[tuple[Term, bool]] = frozenset()

    @property
    def kicked(self) -> bool:
        """Whether enqueue kicked a CPU."""
        return bool(self.kicks)


@dataclass(frozen=True)
class Event:
    """A call or a store that some path reaches.

    Args:
        name: the function called, in its canonical form; "store" for a store to memory.
        raw: the name as the object spells it.
        member: the callback of the ops struct, or the name of another program, that was entered.
        arguments: of the call; for a store the address and the value.
        result: what the call returned; None for a store.
        facts, marks: known before it.
        looped: whether the path came by here before, without a look at the dispatch buffer in between.
        bound: how often the loops around it may run, None if that is not known.
        printed: of a call with a format, the values for it.
    """

    name: str
    raw: str
    member: str
    site: Site
    line: Line | None
    arguments: tuple[Term, ...]
    result: Term | None
    facts: Facts
    marks: Marks
    trail: Trail | None
    looped: bool = False
    bound: int | None = None
    printed: tuple[Term, ...] = ()

    def argument(self, index: int) -> Term | None:
        return self.arguments[index] if index < len(self.arguments) else None


@dataclass(frozen=True)
class Exit:
    """A path's end."""

    member: str
    line: Line | None
    result: Term
    facts: Facts
    marks: Marks
    trail: Trail | None


@dataclass(frozen=True)
class Comparison:
    """A branch that could go either way."""

    condition: Condition
    member: str
    line: Line | None


class Store(NamedTuple):
    """A write to memory that may be a variable: by an instruction, or by a function that was given its address.

    Args:
        size: bytes; 0 if that is not known.
        value: what is written; None if that is not known.
        low, high: bounds of the value.
        reach: of an address that is a variable's plus an index, the first and the last offset in its section that it
            may be; None if they are not known.
    """

    address: Term
    size: int
    value: Term | None = None
    low: int = 0
    high: int = MASK64
    reach: tuple[int, int] | None = None


class Kept(NamedTuple):
    """A place in a variable, or in the values of a map: what has the same name there is one thing for the rules.

    Args:
        name: of the map or the data section.
    """

    name: str
    offset: int


class Load(NamedTuple):
    """A read of memory that no CO-RE relocation names a field of."""

    address: Term
    size: int
    member: str
    line: Line | None


Ranges = Mapping[int, tuple[int, int]]
"""Bounds of what registers, by number, and stack slots, by their negative offsets, hold."""

Held = dict[int, dict[Term, tuple[int, int]]]
"""The same with each value that was seen there."""


@dataclass
class Walked:
    """What became of one entry."""

    member: str
    function: str
    paths: int = 0
    steps: int = 0
    joined: bool = False
    exhausted: bool = False
    unreadable: str = ""


@dataclass
class Walk:
    """Everything that the walks of all entries found.

    Attributes:
        fields: of kernel structs that are read.
        merged: values that were joined from others, and these.
        spans: (value that was joined, one of those it was joined from) -> the latter's unsigned bounds where they met.
        codes: the functions that were walked.
        heads: what registers and stack slots hold where a loop is entered.
        stores: to variables.
        loads: of memory that has no name.
        kept: what is written to maps and variables: some values of each place.
    """

    terms: Terms = field(default_factory=Terms)
    events: list[Event] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    entries: list[Walked] = field(default_factory=list)
    fields: set[str] = field(default_factory=set)
    merged: dict[Term, set[Term]] = field(default_factory=dict)
    spans: dict[tuple[Term, Term], tuple[int, int]] = field(default_factory=dict)
    codes: dict[str, Code] = field(default_factory=dict)
    heads: dict[Site, Held] = field(default_factory=dict)
    stores: set[Store] = field(default_factory=set)
    loads: set[Load] = field(default_factory=set)
    kept: dict[Kept, set[Term]] = field(default_factory=dict)

    def may_be(self, term: Term) -> frozenset[Term]:
        """Return the values that were joined in one, however often; the value itself if none were."""
        seen, waiting, values = {term}, [term], set()
        while waiting:
            part = waiting.pop()
            known = self.merged.get(low_half(part)) or _renamed(part)
            if known is None:
                values.add(part)
                continue
            waiting += [value for value in known if value not in seen]
            seen |= known
        return frozenset(values)


def kept_at(address: Term) -> Kept | None:
    """Return the place that an address names, as far as it lies in a map's value or in a variable."""
    base, offset = pointer(address)
    if base.kind is TermKind.GLOBAL:
        return Kept(base.name, offset)
    if base.kind is not TermKind.CALL:
        return None
    return next((Kept(each.name, offset) for each in base.parts[2][:1] if each.kind is TermKind.MAP), None)


def _renamed(term: Term) -> set[Term] | None:
    """What an UNKNOWN stands for that is only a value of an earlier round."""
    if term.kind is TermKind.UNKNOWN and len(term.parts) > 1 and term.parts[0] == "before":
        return {value for value in term.parts[1:2] if isinstance(value, Term)}
    return None


def steps(trail: Trail | None) -> tuple[Step, ...]:
    """Describe a path in at most eight steps: the last ones, one per line of the source."""
    chosen: list[Step] = []
    seen = set()
    while trail is not None and len(chosen) < _MOST_STEPS:
        step = _step(trail)
        key = (step.file, step.line)
        if key not in seen:
            seen.add(key)
            chosen.append(step)
        trail = trail.before
    return tuple(reversed(chosen))


def _step(trail: Trail) -> Step:
    file, row, _wrapper = place_of(trail.line)
    text = f"calls {trail.call}()" if trail.condition is None else _in_c(trail.condition, trail.holds)
    return Step(file, row, text)


def place_of(line: Line | None) -> tuple[str, int, tuple[Step, ...]]:
    """Return the file and line to show for a place, and its context: where a wrapper of a header was inlined, the line
    that calls it is shown, and the wrapper is the context. Line 0: it is not known.
    """
    if line is None:
        return "", 0, ()
    author = line.author
    if author is line:
        return _plain(line.file), line.line, ()
    return _plain(author.file), author.line, (Step(_plain(line.file), line.line, line.text or "in this wrapper"),)


def _plain(file: str) -> str:
    while file.startswith("./"):
        file = file[2:]
    return file


def _in_c(condition: Condition, holds: bool) -> str:
    """Write a decided condition in C, as it turned out."""
    operator, bits, left, right = condition
    sign = {"eq": ("==", "!="), "ult": ("<", ">="), "slt": ("<", ">=")}[operator][not holds]
    left_text = _side_in_c(left, bits, operator)
    right_text = _side_in_c(right, bits, operator)
    if left.is_const and operator != "eq":
        return f"{right_text} {'>' if holds else '<='} {left_text}"
    return f"{left_text} {sign} {right_text}"


def _side_in_c(term: Term, bits: int, operator: str) -> str:
    if term.is_const and not term.parts[1]:
        return number(signed(term.value, bits) if operator == "slt" or term.value >> 63 else term.value)
    return describe(term)


def trails(trail: Trail | None) -> Iterator[Trail]:
    """Walk a trail back to its start."""
    while trail is not None:
        yield trail
        trail = trail.before


def settled(marks: Marks, pending: Pending, stored: bool) -> Marks:
    """Return the marks once the result of a store is known."""
    stores = marks.stores | {pending.region} if stored else marks.stores
    return replace_marks(marks, pending=marks.pending - {pending}, stores=stores)


def replace_marks(marks: Marks, **changes: object) -> Marks:
    return marks._replace(**changes)  # type: ignore[arg-type]
