"""Rule 28 on time: the work of a callback is bounded, all of its loops within each other and all of its calls counted.

A unit is one instruction; what a kfunc or helper does is counted as so many of them. On a slow CPU, with a
billion instructions a second, a unit is a nanosecond, so WORK_MAX is a quarter of the shortest tick (4 ms at 250 Hz).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from schedagent.core.policies.policy import Standing
from schedagent.core.verification import Severity
from verifier.logic.rules.bounds import Bounds
from verifier.logic.rules.subject import Subject
from verifier.logic.walk import calls
from verifier.logic.walk.code import Code
from verifier.logic.walk.events import Event, Site
from verifier.logic.walk.loops import KERNEL_ROUNDS, NOTHING, QUEUED_TASKS, SIMULATED, UNBOUNDED, Loops, Nest, Work
from verifier.logic.walk.terms import TermKind, describe
from verifier.object.image import Line, Ref

WORK_MAX = 1 << 20
"""What a callback may do that runs with a run queue locked, in the kernel's way or for every task."""

RARE_WORK_MAX = 1 << 26
"""What one may do that runs when the policy is loaded, dumped or ended, or when a CPU comes or goes: 67 ms."""

RARE = frozenset({"init", "exit", "dump", "cpu_online", "cpu_offline"})

TIMER_MIN_NS = 100_000
"""The shortest period of a timer: a tenth of the shortest tick, and what a slice is at least."""

INSTRUCTIONS_MAX = 8192
"""Of one callback with all that it calls: two and a half times the largest of any composed policy (3,069)."""

INSTRUCTIONS_IN_ALL = 16_384
"""Of an object: two and a half times the largest composed policy (6,537)."""

_COSTS: Mapping[str, int] = {
    "bpf_map_lookup_elem": 20, "bpf_per_cpu_ptr": 5, "bpf_this_cpu_ptr": 5, "bpf_get_smp_processor_id": 3,
    "bpf_ktime_get_ns": 30, "scx_bpf_now": 20, "bpf_cpumask_test_cpu": 5, "bpf_iter_num_new": 5,
    "bpf_iter_num_next": 5, "bpf_iter_num_destroy": 2, "scx_bpf_nr_cpu_ids": 3, "scx_bpf_task_cpu": 3,
    "scx_bpf_dsq_nr_queued": 40, "bpf_task_storage_get": 40, "scx_bpf_cpu_node": 5, "bpf_get_current_task_btf": 2,
    "bpf_rcu_read_lock": 5, "bpf_rcu_read_unlock": 5, "scx_bpf_test_and_clear_cpu_idle": 20,
    "bpf_iter_scx_dsq_next": 60, "bpf_cpumask_first": 20, "scx_bpf_dispatch_nr_slots": 5,
    "scx_bpf_dsq_insert": 200, "scx_bpf_dsq_insert_vtime": 300, "scx_bpf_dsq_move_to_local": 200,
    "scx_bpf_dsq_move": 200, "scx_bpf_dsq_move_vtime": 300, "scx_bpf_select_cpu_dfl": 500,
    "scx_bpf_select_cpu_and": 500, "scx_bpf_pick_idle_cpu": 300, "scx_bpf_pick_any_cpu": 300,
    "scx_bpf_create_dsq": 1000, "scx_bpf_dump_bstr": 1000, "scx_bpf_error_bstr": 1000, "scx_bpf_exit_bstr": 1000,
    "scx_bpf_kick_cpu": 100, "bpf_timer_start": 300, "bpf_obj_new": 300,
}  # fmt: skip
"""Estimates, in instructions; an inlined helper or kfunc is a few, one that takes a lock some hundreds."""

_REFUSALS = 2
"""How often a loop over a queue is passed beyond its tasks: when the iterator gives none, and as it is left."""

_OTHER_COST = 100
_CALLBACK_COST = 10
_BYTES_PER_UNIT = 8
_COMPARISONS = 64
"""Of an insertion into a red-black tree: twice the logarithm of more nodes than there is memory for."""

_RBTREE_ADD = "bpf_rbtree_add"


def check(subject: Subject, bounds: Bounds) -> None:
    """Report callbacks that may do too much, or that are too long to be judged."""
    works = _Works(subject, bounds)
    for entry in subject.walk.entries:
        if entry.function in subject.walk.codes:
            _check_work(subject, works, entry.member, entry.function)
    _check_size(subject)
    _check_iterators(subject)
    for event in subject.events("bpf_timer_start"):
        _check_timer(subject, bounds, event)


def _check_work(subject: Subject, works: _Works, member: str, function: str) -> None:
    rare = member in RARE or subject.image.functions[function].section.startswith("syscall")
    limit = RARE_WORK_MAX if rare else WORK_MAX
    work = works.of(function)
    if work.instructions <= limit:
        return
    line = next((nest.line for nest in work.nest if nest.line), subject.start_of(member))
    loops = " x ".join(_times(nest) for nest in work.nest) or "no loops"
    amount = "without a bound" if work.instructions >= UNBOUNDED else f"of up to {work.instructions:,} instructions"
    text = f"{member} may do work {amount} (rounds: {loops}); accepted are {limit:,}"
    unknown = any(_is_unknown(nest.rounds) for nest in work.nest)
    queued = work.instructions <= RARE_WORK_MAX and any(_goes_through_a_queue(nest.rounds) for nest in work.nest)
    if subject.standing is Standing.FOREIGN and (unknown or queued):
        subject.report(28, Severity.WARNING, member, line, text, cleared_by="starvation")
    else:
        _report(subject, member, line, text)


def _is_unknown(rounds: int) -> bool:
    """Whether nothing in the code bounds a loop, and the kernel alone does."""
    return rounds == SIMULATED or rounds > KERNEL_ROUNDS


def _goes_through_a_queue(rounds: int) -> bool:
    """Whether a loop has as many rounds as tasks are assumed to wait in a queue: how many do, a run shows."""
    return 0 < rounds - QUEUED_TASKS <= _REFUSALS


def _times(nest: Nest) -> str:
    return "any number" if nest.rounds >= UNBOUNDED else f"{nest.rounds:,}"


def _report(subject: Subject, member: str, line: Line | None, text: str) -> None:
    """An error of what is not ours: its time is nobody's word, and its paths are no longer all known."""
    if subject.standing is not Standing.BUNDLED:
        subject.report(28, Severity.ERROR, member, line, text)


def _check_size(subject: Subject) -> None:
    functions = subject.image.functions
    total = sum(len(function.instructions) for function in functions.values())
    if total > INSTRUCTIONS_IN_ALL:
        _report_size(subject, "", f"the object has {total:,} instructions; accepted are {INSTRUCTIONS_IN_ALL:,}")
    for entry in subject.walk.entries:
        size = sum(len(functions[name].instructions) for name in subject.image.reached_from(entry.function))
        if size > INSTRUCTIONS_MAX:
            text = f"{entry.member} has {size:,} instructions with all that it calls; accepted are {INSTRUCTIONS_MAX:,}"
            _report_size(subject, entry.member, text)


def _report_size(subject: Subject, member: str, text: str) -> None:
    """What a person brings may be long: it is followed as far as anything, and what is not followed says so."""
    if subject.standing is not Standing.BUNDLED:
        subject.unusual(28, member, subject.start_of(member) if member else None, text)


def _check_iterators(subject: Subject) -> None:
    """An iterator of a caller cannot be counted: a function could begin it again. One that was destroyed gives nothing
    until it is made again, so the end that two loops share may stand for either.
    """
    for code in subject.walk.codes.values():
        for index, op in enumerate(code.ops):
            ref = op.raw.ref
            if op.kind != "call" or ref is None or ref.kind is not Ref.KFUNC:
                continue
            counted = ref.name.startswith("bpf_iter_") and not ref.name.endswith("_destroy")
            if counted and code.iterator_at(index) is None:
                text = f"{ref.name}() is called on an iterator that is not a local variable of {code.name}"
                if subject.standing is Standing.FOREIGN:
                    subject.report(28, Severity.WARNING, code.name, op.line, text, cleared_by="starvation")
                else:
                    _report(subject, code.name, op.line, text)


def _check_timer(subject: Subject, bounds: Bounds, event: Event) -> None:
    if len(event.arguments) < 3:
        return
    period, flags = event.arguments[1:3]
    shortest, _longest = bounds.of(period, event.facts)
    if shortest < TIMER_MIN_NS:
        text = f"a timer is started for {describe(period)}, which may be {shortest} ns: less than {TIMER_MIN_NS}"
        subject.unsafe(28, event, text)
    least, most = bounds.of(flags, event.facts)
    if least != most or least & 1:
        subject.unsafe(28, event, "a timer is started for an absolute time, which may have passed (BPF_F_TIMER_ABS)")


@dataclass
class _Works:
    """The work of functions, each worked out once."""

    subject: Subject
    bounds: Bounds
    known: dict[str, Work] = field(default_factory=dict)
    _events: dict[Site, list[Event]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for event in self.subject.walk.events:
            if event.name != "store":
                self._events.setdefault(event.site, []).append(event)

    def of(self, name: str) -> Work:
        """Return the work of one call of a function; a function that calls itself has no bound."""
        if name not in self.known:
            self.known[name] = Work(UNBOUNDED)
            code = self.subject.walk.codes.get(name)
            self.known[name] = self._counted(code) if code is not None else NOTHING
        return self.known[name]

    def _counted(self, code: Code) -> Work:
        heads = {
            site: self.bounds.held(held) for site, held in self.subject.walk.heads.items() if site.function == code.name
        }
        return Loops(
            code, lambda index: self._call(code, index), lambda index: self._rounds(Site(code.name, index)), heads
        ).work()

    def _rounds(self, site: Site) -> int:
        """The rounds of bpf_for(i, start, end): those of the largest difference; the kernel counts in an int.

        KERNEL_ROUNDS if nothing says how many, or the code itself says as many as the kernel allows; less than that if
        the code says more.
        """
        most = 0
        for event in self._events.get(site, ()):
            if len(event.arguments) < 3:
                return KERNEL_ROUNDS
            start, end = (self.bounds.of_int(value, event.facts) for value in event.arguments[1:3])
            rounds = end[1] - start[0]
            constant = event.arguments[1].is_const and event.arguments[2].is_const and rounds != KERNEL_ROUNDS
            most = max(most, min(rounds, KERNEL_ROUNDS - 2) if constant else rounds)
        return min(most, KERNEL_ROUNDS)

    def _call(self, code: Code, index: int) -> Work:
        """What a call does; of one that no path reaches, nothing."""
        op, site = code.ops[index], Site(code.name, index)
        ref = op.raw.ref
        if ref is not None and ref.kind is Ref.FUNCTION:
            return self.of(ref.name)
        worked = NOTHING
        for event in self._events.get(site, ()):
            cost = self._cost(event)
            worked = cost if cost.instructions > worked.instructions else worked
        return worked

    def _cost(self, event: Event) -> Work:
        units = _COSTS.get(event.name, _OTHER_COST)
        if event.name in calls.WRITES_FIRST_ARGUMENT and len(event.arguments) > 1:
            size = self.bounds.of(event.arguments[1], event.facts, 32)[1]
            units += min(size, 1 << 29) // _BYTES_PER_UNIT
        called = [term.name for term in event.arguments if term.kind is TermKind.FUNCTION]
        if event.name in calls.DEFERRED_CALLBACK or not called:
            return Work(units)
        inner = max((self.of(name) for name in called), key=lambda work: work.instructions)
        once = Work(min(UNBOUNDED, inner.instructions + _CALLBACK_COST), inner.nest)
        repeated = once.times(self._repeats(event), event.line)
        return Work(min(UNBOUNDED, units + repeated.instructions), repeated.nest)

    def _repeats(self, event: Event) -> int:
        """How often a helper calls the function that it is given."""
        if event.name == "bpf_loop":
            return min(KERNEL_ROUNDS, self.bounds.of(event.arguments[0], event.facts, 32)[1])
        if event.name == "bpf_for_each_map_elem":
            info = self.subject.image.maps.get(event.arguments[0].name)
            return info.max_entries if info is not None and event.arguments[0].kind is TermKind.MAP else UNBOUNDED
        return _COMPARISONS if event.name == _RBTREE_ADD else UNBOUNDED
