"""Rules about numbers: 10 (kicks), 11 (cpuperf), 21 (infinite slices), 22 (vtime), 24 (slices)."""

from __future__ import annotations

from collections.abc import Iterator

from schedagent.core.policies.policy import Standing
from schedagent.core.rules import FindingClass
from schedagent.core.verification import Severity
from verifier.logic.rules.bounds import Bounds
from verifier.logic.rules.subject import Insert, Subject
from verifier.logic.walk.events import Event, Kept, kept_at
from verifier.logic.walk.facts import Range
from verifier.logic.walk.terms import MASK64, Term, TermKind, describe, inside, linear, low_half
from verifier.object.image import Line

SLICE_MIN_NS = 100_000
SLICE_MAX_NS = 100_000_000
CPUPERF_SHARE = 4
"""A policy may slow a CPU down to this part of full performance."""

_INFINITE = MASK64
_THROUGHPUT = "saturated machine"
"""By what a person accepts that a policy slows CPUs down: in the guest no frequency changes, so no oracle shows it."""
_VTIME = "task_struct.scx.dsq_vtime"
_WEIGHTS = ("task_struct.scx.weight", "task_struct.static_prio", "task_struct.prio", "task_struct.se.load.weight",
            "scx_cgroup_init_args.weight")  # fmt: skip


def check(subject: Subject, bounds: Bounds) -> None:
    """Report what breaks rules 10, 11, 21, 22 and 24."""
    for event in subject.events("scx_bpf_kick_cpu", "scx_bpf_kick_cid"):
        _check_kick(subject, event)
    for event in subject.events("scx_bpf_cpuperf_set", "scx_bpf_cidperf_set"):
        _check_performance(subject, bounds, event)
    inserts = list(subject.inserts())
    for event, given in _slices(subject, inserts):
        for value, known in subject.ranges(event, given):
            _check_slice(subject, event, value, known)
    _check_vtime(subject, inserts)


# --- rules 10 and 11


def _check_kick(subject: Subject, event: Event) -> None:
    idle = subject.enums.get("SCX_KICK_IDLE", 1)
    preempt, wait = subject.enums.get("SCX_KICK_PREEMPT", 2), subject.enums.get("SCX_KICK_WAIT", 4)
    for flags in subject.values(event.arguments[1]) if len(event.arguments) > 1 else ():
        certain = _certain_bits(flags)
        if certain & idle and certain & (preempt | wait):
            other = "SCX_KICK_PREEMPT" if certain & preempt else "SCX_KICK_WAIT"
            subject.error(10, event, f"{event.raw}() is given SCX_KICK_IDLE together with {other} ({certain})")


def _certain_bits(term: Term) -> int:
    """Return the bits that are certainly set."""
    term = low_half(term)
    if term.is_const:
        return term.value
    if term.kind is TermKind.OP and term.parts[0] == "or":
        return _certain_bits(term.parts[1]) | _certain_bits(term.parts[2])
    return 0


def _check_performance(subject: Subject, bounds: Bounds, event: Event) -> None:
    """More than full performance ejects the policy; less than a share of it is what a person may want, and accept."""
    top = subject.enums.get("SCX_CPUPERF_ONE", 1024)
    for value, known in subject.ranges(event, event.arguments[1], 32) if len(event.arguments) > 1 else ():
        least, most = bounds.of(value, event.facts, 32)
        low, high = max(known.low, least), min(known.high, most)
        if low > top:
            subject.error(11, event, f"{event.raw}() is given {low}; the most is SCX_CPUPERF_ONE ({top})")
        elif high > top:
            subject.error(11, event, f"{event.raw}() is given {describe(value)}, which is not kept to at most "
                                     f"SCX_CPUPERF_ONE ({top})")  # fmt: skip
        elif low < top // CPUPERF_SHARE:
            text = f"{event.raw}() is given {describe(value)}, which may be {low}: a CPU that slow starves all; "
            text += f"the least is a quarter ({top // CPUPERF_SHARE})"
            classed, word = None, ""
            if subject.standing is Standing.FOREIGN:
                classed, word = FindingClass.UNFAIR, _THROUGHPUT
            subject.report(11, Severity.ERROR, event.member, event.line, text, trail=event.trail, classed=classed,
                           word=word)  # fmt: skip


# --- rules 21 and 24


def _slices(subject: Subject, inserts: list[Insert]) -> Iterator[tuple[Event, Term]]:
    """Yield everything that becomes a task's slice."""
    for insert in inserts:
        if insert.slice is not None:
            yield insert.event, insert.slice
    for event in subject.events("scx_bpf_task_set_slice", "scx_bpf_dsq_move_set_slice"):
        if len(event.arguments) > 1:
            yield event, event.arguments[1]
    for event in subject.events("store"):
        if event.arguments[0].kind is TermKind.ADDRESS and event.arguments[0].name == "task_struct.scx.slice":
            yield event, event.arguments[1]


def _check_slice(subject: Subject, event: Event, value: Term, known: Range) -> None:
    if value.is_const and value.value == _INFINITE:
        _check_infinite(subject, event)
    elif value.is_const and value.value == 0:
        if event.name.startswith("scx_bpf_dsq_insert"):  # elsewhere 0 ends the task's turn, which is meant
            subject.error(
                24, event, "the slice is 0: the task continues with what is left of its last one, which may be 1 ns"
            )
    elif _is_share(low_half(value)) and known.low < SLICE_MIN_NS:
        subject.error(
            24, event, f"the slice is {describe(value)}, with no lower bound; accepted is {SLICE_MIN_NS} ns or more"
        )
    elif known.high < SLICE_MIN_NS or known.low > SLICE_MAX_NS:
        length = f"{known.low} ns" if known.low == known.high else f"{known.low} to {known.high} ns"
        name = f" ({describe(value)})" if not value.is_const or value.parts[1] else ""
        subject.error(24, event, f"the slice is {length}{name}; accepted is {SLICE_MIN_NS} ns to {SLICE_MAX_NS} ns")


def _is_share(value: Term) -> bool:
    """Whether a slice is some time divided by a number that may grow."""
    return value.kind is TermKind.OP and value.parts[0] in ("div", "div32") and not value.parts[2].is_const


def _check_infinite(subject: Subject, event: Event) -> None:
    if not _preempts(subject):
        subject.error(21, event, "the slice is SCX_SLICE_INF, and nothing in the policy ever preempts")
    else:
        subject.warning(21, event, "the slice is SCX_SLICE_INF: it must be preempted in time", "starvation")


def _preempts(subject: Subject) -> bool:
    """Whether anything interrupts a running task: a preempting kick or insert, a slice that is set to 0, or another
    slice than an endless one that it is given while it runs, by a timer or at a tick.
    """
    preempt = subject.enums.get("SCX_KICK_PREEMPT", 2)
    for event in subject.events("scx_bpf_kick_cpu", "scx_bpf_kick_cid"):
        if len(event.arguments) > 1 and any(
            not v.is_const or v.value & preempt for v in subject.values(event.arguments[1])
        ):
            return True
    head = subject.enums.get("SCX_ENQ_PREEMPT", 1 << 32)
    if any(insert.flags is not None and _certain_bits(insert.flags) & head for insert in subject.inserts()):
        return True
    return any(
        given.is_const and (given.value == 0 or (given.value != _INFINITE and _while_it_runs(subject, event)))
        for event, given in _slices(subject, [])
    )


def _while_it_runs(subject: Subject, event: Event) -> bool:
    return event.member == "tick" or event.member not in subject.ops.callbacks


# --- rule 22


def _check_vtime(subject: Subject, inserts: list[Insert]) -> None:
    timed = [insert for insert in inserts if insert.vtime is not None and not insert.moves]
    own = [
        insert for insert in timed for value in subject.values(insert.vtime or insert.task) if _is_accumulated(value)
    ]
    clocks = _virtual_clocks(subject, timed)
    for comparison in subject.walk.comparisons:
        condition = comparison.condition
        sides = [low_half(condition.left), low_half(condition.right)]
        if condition.operator != "ult" or condition.bits != 64 or any(side.is_const for side in sides):
            continue
        if any(_is_virtual(part, clocks) for side in sides if not _is_distance(side) for part in _addends(side)):
            text = f"{describe(condition.left)} and {describe(condition.right)} are compared as unsigned numbers, "
            text += "which fails when one wraps; compare (s64)(a - b) with 0"
            subject.report(22, Severity.ERROR, comparison.member, comparison.line, text)
    for insert in timed:
        values = subject.values(insert.vtime or insert.task)
        if any(_is_virtual(part, clocks) for value in values for part in inside(value)):
            _check_clamped(subject, insert, clocks)
    if own and not subject.walk.fields & set(_WEIGHTS):
        line: Line | None = own[0].event.line
        text = "the order is by vtime, but no weight is ever read: nice levels mean nothing"
        subject.report(22, Severity.WARNING, own[0].event.member, line, text, cleared_by="weights")


def _virtual_clocks(subject: Subject, timed: list[Insert]) -> frozenset[Kept]:
    """Return where the policy keeps virtual times itself: what is charged there, and is the order of a queue."""
    keys = {kept_at(part.parts[1]) for insert in timed if insert.vtime is not None
            for value in subject.walk.may_be(insert.vtime) for part in _addends(value)
            if part.kind is TermKind.LOAD}  # fmt: skip
    return frozenset(place for place in keys if place is not None and _is_charged(subject, place))


def _is_charged(subject: Subject, place: Kept) -> bool:
    """Whether something is added to what a place holds that is more than a constant step."""
    for value in subject.walk.kept.get(place, ()):
        parts = _addends(value)
        before = [part for part in parts if part.kind is TermKind.LOAD and kept_at(part.parts[1]) == place]
        if before and len(parts) > len(before):
            return True
    return False


def _addends(term: Term) -> list[Term]:
    return [low_half(part) for part, _factor in linear(low_half(term))[1]]


def _is_distance(term: Term) -> bool:
    """Whether a value is a difference of two: how far they are apart, which is no time itself."""
    return any(factor >> 63 for _part, factor in linear(term)[1])


def _is_virtual(term: Term, clocks: frozenset[Kept]) -> bool:
    return _is_raw_vtime(term) or (term.kind is TermKind.LOAD and kept_at(term.parts[1]) in clocks)


def _is_raw_vtime(term: Term) -> bool:
    return term.kind is TermKind.FIELD and term.name == _VTIME


def _is_accumulated(term: Term) -> bool:
    """Whether a key is a task's virtual time, and not a time of day."""
    return any(_is_raw_vtime(part) for part in inside(term))


def _check_clamped(subject: Subject, insert: Insert, clocks: frozenset[Kept]) -> None:
    """A key that is the task's vtime as it is must have been compared with something before."""
    for comparison in subject.walk.comparisons:
        if comparison.member != insert.event.member:
            continue
        sides = (comparison.condition.left, comparison.condition.right)
        if any(_is_virtual(part, clocks) for side in sides for part in inside(side)):
            return
    text = "a task enters with its vtime as it was when it went to sleep: nothing limits the credit of a long sleeper"
    subject.warning(22, insert.event, text, "sleeper's return")
