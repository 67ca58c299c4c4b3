"""How calls and stores change the marks of a path: inserts of the task, places it is stored in, kicks."""

from __future__ import annotations

import functools
from typing import Protocol

from verifier.logic.walk import calls, refusal
from verifier.logic.walk.calls import names
from verifier.logic.walk.events import Claim, Key, Marks, Pending, Query, Site, settled
from verifier.logic.walk.facts import Condition, Facts, range_of
from verifier.logic.walk.state import State
from verifier.logic.walk.terms import (
    Term,
    TermKind,
    Terms,
    identifies_task,
    inside,
    is_callback_task,
    linear,
    low_half,
    pointer,
    signed,
)
from verifier.object.image import BpfImage, Line

INSERTS = frozenset({"scx_bpf_dsq_insert", "scx_bpf_dsq_insert_vtime"})
KICKS = frozenset({"scx_bpf_kick_cpu", "scx_bpf_kick_cid"})
_OF_THE_TASK = frozenset({"select_cpu", "enqueue"})
"""Callbacks that decide where their task goes."""

_NODE_ADDERS = frozenset({"bpf_rbtree_add", "bpf_list_push_front", "bpf_list_push_back"})
MOVES_TO_LOCAL = "scx_bpf_dsq_move_to_local"
_RESETS_BATCH = frozenset({"scx_bpf_dispatch_nr_slots", MOVES_TO_LOCAL})
PICKS_IDLE = names("scx_bpf_pick_idle_cpu scx_bpf_pick_idle_cpu_node scx_bpf_select_cpu_and")
"""Claim an idle CPU and return it; a negative number, -EBUSY, if there is none (kernel/sched/ext_idle.c)."""

_TAKES = "scx_bpf_test_and_clear_cpu_idle"
_CLAIMS = PICKS_IDLE | {_TAKES}
_SEEKS = _CLAIMS | names("scx_bpf_select_cpu_dfl scx_bpf_get_idle_cpumask scx_bpf_get_idle_smtmask")
_RECORDS = "bpf_task_storage_get"
_STORAGE_FLAGS = 3
_CREATES = 1
"""BPF_LOCAL_STORAGE_GET_F_CREATE (include/uapi/linux/bpf.h)."""

_REMEMBERED = 4096
"""Values of which is remembered what they are made of."""

_EBUSY = -16
_LOCAL_ON = 3
"""The two highest bits of SCX_DSQ_LOCAL_ON | cpu."""

_NAMED = frozenset({TermKind.ARGUMENT, TermKind.CALL, TermKind.PURE})
"""What a CPU may be for its claim to be followed: a value that keeps its name."""

_QUEUES = frozenset({calls.QUEUE, calls.STACK})
_BPF_EXIST = 2


class Callback(Protocol):
    """The callback that is walked: its object, the terms of the walk, and which member of sched_ext_ops it is.

    Attributes:
        watched: DSQs of which has to be known whether dispatch found them empty.
    """

    image: BpfImage
    terms: Terms
    member: str
    watched: frozenset[int]


def plain_arguments(
    callback: Callback, state: State, raw: str, name: str, arguments: tuple[Term, ...]
) -> tuple[Term, ...]:
    """Return a call's arguments as the plain form has them, where the object calls the form with a struct."""
    if not calls.takes_struct(raw) or not arguments:
        return arguments
    terms, struct = callback.terms, arguments[-1]

    def member(offset: int, size: int) -> Term:
        stored = None
        if struct.kind is TermKind.STACK:
            stored = state.read_stack(struct.parts[0], struct.parts[1] + offset, size, terms)
        return stored or terms.make(TermKind.UNKNOWN, "member", struct, offset)

    if name == "scx_bpf_dsq_insert_vtime":  # struct scx_bpf_dsq_insert_vtime_args
        return (arguments[0], *(member(offset, 8) for offset in (0, 8, 16, 24)))
    if name == "scx_bpf_select_cpu_and":  # struct scx_bpf_select_cpu_and_args
        return arguments[0], member(0, 4), member(8, 8), arguments[1], member(16, 8)
    return arguments


def _is_builtin(queue: Term) -> bool:
    """Whether a DSQ id has bit 63, as far as it is a number or a sum with one."""
    if queue.kind is TermKind.OP:
        return any(part.is_const and part.value >> 63 for part in queue.parts[1:])
    return linear(queue)[0] >> 63 == 1


@functools.lru_cache(maxsize=_REMEMBERED)
def is_timelike(term: Term) -> bool:
    """Whether a value may be a virtual time or a slice worth looking at."""
    return any(part.kind is TermKind.FIELD and part.name.startswith("task_struct.scx.") for part in inside(term))


def region(callback: Callback, address: Term) -> str:
    """Return the map or variable that an address lies in, "" if that is not known."""
    for part in inside(address):
        if part.kind is TermKind.MAP:
            return part.name
        if part.kind is TermKind.GLOBAL:
            return variable_at(callback, part, address) or part.name
    return ""


def variable_at(callback: Callback, section: Term, address: Term) -> str:
    base, offset = pointer(address)
    if base is not section:
        return ""
    for variable in callback.image.variables.values():
        if variable.section == section.name and variable.offset <= offset < variable.offset + variable.size:
            return variable.name
    return ""


def after_call(
    callback: Callback, state: State, name: str, site: Site, line: Line | None, arguments: tuple[Term, ...]
) -> Marks:
    """Return the marks after a helper or kfunc was called."""
    marks = _after(callback, state, name, site, line, arguments)
    about = _asks(callback, state, name, arguments, state.regs[0])
    return marks if about is None else _ask(marks, Query(low_half(state.regs[0]), name, about))


def _after(
    callback: Callback, state: State, name: str, site: Site, line: Line | None, arguments: tuple[Term, ...]
) -> Marks:
    """Return the marks after a call, as far as its result does not matter."""
    marks, member = state.marks, callback.member
    if name in INSERTS:
        marks = _after_insert(marks, member, site, arguments)
    elif name in KICKS and member in _OF_THE_TASK:
        kicks = marks.kicks | {low_half(arguments[0])} if member == "enqueue" else marks.kicks
        marks = _used(marks, arguments[0], kicked=True)._replace(kicks=kicks)
    elif name in _RESETS_BATCH:
        marks = marks._replace(batch=frozenset())
    elif name in calls.ENDS_POLICY:
        marks = marks._replace(ended=True)
    elif name == "bpf_task_storage_delete" and member == "init_task":
        marks = marks._replace(stores=marks.stores - {region(callback, arguments[0])})
    elif name in refusal.FOLLOWED and member in refusal.MAY_REFUSE:
        marks = refusal.after_call(callback.image, state, name, arguments)
    elif name == "scx_bpf_create_dsq" and member == "init" and arguments[0].is_const:
        marks = marks._replace(created=marks.created | {arguments[0].value})
    elif member == "enqueue":
        if name in _SEEKS:
            marks = marks._replace(sought=True, last=marks.waits)
        else:
            marks = _after_storing(callback, state, name, line, arguments)
    return marks


def _after_insert(marks: Marks, member: str, site: Site, arguments: tuple[Term, ...]) -> Marks:
    if member == "dispatch":
        return marks._replace(batch=marks.batch | {site})
    if member in _OF_THE_TASK and is_callback_task(arguments[0]):
        enqueued, queue = member == "enqueue", low_half(arguments[1])
        leaves = enqueued and not _is_builtin(arguments[1])
        stays = marks.stays or (enqueued and queue.is_const and queue.value == calls.FIXED_ENUMS["SCX_DSQ_LOCAL"])
        cpu = queue if queue.kind is TermKind.UNKNOWN else _local_on(queue)
        if cpu is not None:
            marks = _used(marks, cpu, inserted=True)
        marks = marks._replace(inserts=min(2, marks.inserts + 1), stays=stays)
        return marks._replace(waits=True, queue=arguments[1]) if leaves else marks
    return marks


# --- idle CPUs, and other calls whose result decides


def _asks(
    callback: Callback, state: State, name: str, arguments: tuple[Term, ...], result: Term
) -> Term | str | Key | None:
    """Return what a call is about, if it has to be known whether it succeeds."""
    member = callback.member
    if member in _OF_THE_TASK and name in PICKS_IDLE:
        return low_half(result)
    if member in _OF_THE_TASK and name == _TAKES:
        cpu = low_half(arguments[0])
        return cpu if cpu.kind in _NAMED and not _is_own_cpu(cpu) else None
    if member == "dispatch" and name == MOVES_TO_LOCAL:
        return arguments[0] if arguments[0].is_const and arguments[0].value in callback.watched else None
    if (
        member == "init_task"
        and name == _RECORDS
        and len(arguments) > _STORAGE_FLAGS
        and is_callback_task(arguments[1])
    ):
        creates = arguments[_STORAGE_FLAGS].is_const and arguments[_STORAGE_FLAGS].value & _CREATES
        return region(callback, arguments[0]) if creates else None
    if member in refusal.MAY_REFUSE and name == refusal.PUTS:
        return refusal.key_of(callback.image, state, arguments)
    return None


def _ask(marks: Marks, query: Query) -> Marks:
    """Await a call's result; the one that it returned before at the same place is gone."""
    others = frozenset(other for other in marks.queries if other.result is not query.result)
    claims = frozenset(claim for claim in marks.claims if claim.cpu is not query.result)
    return marks._replace(queries=others | {query}, claims=claims)


def _is_own_cpu(cpu: Term) -> bool:
    """Whether a CPU is the one that the task is on."""
    if cpu.kind is TermKind.PURE and cpu.name == "scx_bpf_task_cpu":
        return is_callback_task(cpu.parts[1][0])
    return cpu.kind is TermKind.FIELD and "cpu" in cpu.name


def _local_on(queue: Term) -> Term | None:
    """Return the CPU of SCX_DSQ_LOCAL_ON | cpu."""
    if queue.kind is TermKind.OP and queue.parts[0] == "or":
        parts = [part for part in queue.parts[1:] if not (part.is_const and part.value >> 62 == _LOCAL_ON)]
        return low_half(parts[0]) if len(parts) == 1 else None
    constant, addends = linear(queue)
    return low_half(addends[0][0]) if constant >> 62 == _LOCAL_ON and len(addends) == 1 else None


def _used(marks: Marks, cpu: Term, *, inserted: bool = False, kicked: bool = False) -> Marks:
    """Note what became of a claimed CPU; a value that was joined from several may be any of them."""
    cpu = low_half(cpu)
    if not (marks.claims or marks.queries):
        return marks
    anything = cpu.kind is TermKind.UNKNOWN
    used = frozenset(
        Claim(claim.cpu, claim.inserted or inserted or anything, claim.kicked or kicked or anything)
        if anything or claim.cpu is cpu
        else claim
        for claim in marks.claims
    )
    here = frozenset(query for query in marks.queries if query.name in _CLAIMS and (anything or query.about is cpu))
    used |= {Claim(query.about, inserted or anything, kicked or anything) for query in here
             if isinstance(query.about, Term)}  # fmt: skip
    return marks._replace(claims=used, queries=marks.queries - here)


def unanswered_claims(marks: Marks) -> frozenset[Term]:
    """Return the CPUs that a path asked for and never looked whether it got them."""
    return frozenset(query.about for query in marks.queries if query.name in _CLAIMS and isinstance(query.about, Term))


def _answer(query: Query, facts: Facts) -> bool | None:
    """Return whether a call succeeded, None if the path does not know."""
    if query.name in PICKS_IDLE:
        return found_cpu(facts, query.result)
    for bits in (32, 64):
        known = range_of(facts, bits, query.result)
        if known.low > 0 or known.high == 0:
            return known.low > 0
    return None


def found_cpu(facts: Facts, result: Term) -> bool | None:
    """Whether a CPU that was picked is one: no negative number, of which the kfuncs return -EBUSY alone."""
    known = range_of(facts, 32, result)
    if known.signed_low >= 0 or known.signed_high < 0:
        return known.signed_low >= 0
    tested = any(
        isinstance(key, Condition) and key.operator == "eq" and holds is False and low_half(key.left) is result
        and key.right.is_const and signed(key.right.value, 32) == _EBUSY
        for key, holds in facts.items()
    )  # fmt: skip
    return True if tested else None


def _answered(marks: Marks, query: Query, succeeded: bool) -> Marks:
    """Return the marks once it is known whether a call succeeded."""
    marks, about = marks._replace(queries=marks.queries - {query}), query.about
    if isinstance(about, Key):
        return marks if succeeded else marks._replace(put=marks.put | {about})  # 0 is success
    if isinstance(about, str):
        return marks._replace(stores=marks.stores | {about}) if succeeded else marks
    if query.name == MOVES_TO_LOCAL:
        return marks if succeeded else marks._replace(emptied=marks.emptied | {about.value})
    if not succeeded:
        return marks._replace(missed=marks.missed or not marks.waits)
    return marks._replace(claims=marks.claims | {Claim(about)})


def _is_where_the_task_is(facts: Facts, cpu: Term) -> bool:
    """Whether the path found a CPU to be the one that the task is on."""
    return any(
        isinstance(key, Condition) and key.operator == "eq" and holds is True
        and any(low_half(side) is cpu for side in key[2:]) and any(_is_own_cpu(low_half(side)) for side in key[2:])
        for key, holds in facts.items()
    )  # fmt: skip


def _after_storing(
    callback: Callback, state: State, name: str, line: Line | None, arguments: tuple[Term, ...]
) -> Marks:
    marks = state.marks
    place = region(callback, arguments[0]) if arguments else ""
    if name in ("bpf_map_push_elem", "bpf_map_update_elem"):
        operands = arguments[1:2] if name == "bpf_map_push_elem" else arguments[1:3]
        if place and any(_holds_task(callback, state, place, operand, which) for which, operand in enumerate(operands)):
            return _stored_in_map(callback, state, place, name, line, arguments)
    elif name in _NODE_ADDERS:
        return marks._replace(stores=marks.stores | {place or "a list"})
    elif name == "bpf_kptr_xchg" and len(arguments) > 1 and identifies_task(arguments[1]):
        return marks._replace(stores=marks.stores | {place or "a kptr"})
    elif name in ("bpf_ringbuf_output", "bpf_ringbuf_submit"):
        return marks._replace(stores=marks.stores | {place or "a ring buffer"})
    return marks


def _stored_in_map(
    callback: Callback, state: State, place: str, name: str, line: Line | None, arguments: tuple[Term, ...]
) -> Marks:
    marks, info = state.marks, callback.image.maps.get(place)
    flags = arguments[2 if name == "bpf_map_push_elem" else 3] if len(arguments) > 2 else None
    overwrites = flags is not None and flags.is_const and flags.value & _BPF_EXIST
    if info is not None and info.type in _QUEUES and overwrites:
        return marks  # a full queue then drops its oldest task
    if info is not None and info.type == calls.ARRAY:
        return marks._replace(stores=marks.stores | {place})
    pending = Pending(state.regs[0], place, line.line if line else 0)
    return marks._replace(pending=marks.pending | {pending})


def _holds_task(callback: Callback, state: State, place: str, operand: Term, which: int) -> bool:
    """Whether the key or value that is handed over names the callback's task."""
    if operand.kind is not TermKind.STACK:
        return region(callback, operand) in state.marks.stores
    info = callback.image.maps.get(place)
    size = 8
    if info is not None:
        size = info.key_size if which == 0 and info.key_size else info.value_size
    depth, offset = operand.parts
    return any(
        identifies_task(value)
        for (level, at), (_bytes, value) in state.stack.items()
        if level == depth and offset <= at < offset + max(size, 4)
    )


def after_store(callback: Callback, state: State, address: Term, value: Term) -> Marks:
    """Return the marks after a store to memory that is neither the stack nor a kernel struct."""
    if callback.member != "enqueue" or not identifies_task(value):
        return state.marks
    place = region(callback, address)
    return state.marks._replace(stores=state.marks.stores | {place}) if place else state.marks


def settle(marks: Marks, facts: Facts) -> Marks:
    """Look at the stores and the questions whose result was just tested: of a store, zero is success."""
    for pending in tuple(marks.pending):
        result = low_half(pending.result)
        for bits in (32, 64):
            known = range_of(facts, bits, result)
            if known.low == known.high == 0 or known.signed_low >= 0:
                marks = settled(marks, pending, stored=True)
                break
            if known.low > 0 or known.signed_high < 0:
                marks = settled(marks, pending, stored=False)
                break
    for query in tuple(marks.queries):
        succeeded = _answer(query, facts)
        if succeeded is not None:
            marks = _answered(marks, query, succeeded)
    if any(_is_where_the_task_is(facts, claim.cpu) for claim in marks.claims):
        elsewhere = frozenset(claim for claim in marks.claims if not _is_where_the_task_is(facts, claim.cpu))
        marks = marks._replace(claims=elsewhere)
    return marks
