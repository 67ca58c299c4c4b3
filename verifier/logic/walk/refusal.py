"""Why a callback may refuse a task: what fails there without anybody's choice.

An allocation fails for want of memory. And what a task's record holds is known while its callback makes it: nothing at
first, and then what was put there. A test of the opposite is a precaution, and no condition that a policy sets.
"""

from __future__ import annotations

from verifier.logic.walk import calls
from verifier.logic.walk.events import Key, Marks
from verifier.logic.walk.facts import Condition
from verifier.logic.walk.state import State
from verifier.logic.walk.terms import Term, TermKind, identifies_task, pointer
from verifier.object.image import BpfImage

MAY_REFUSE = ("init_task", "cgroup_init", "cgroup_prep_move")
"""Callbacks whose error the kernel hands on to whoever asked."""

PUTS = "bpf_map_update_elem"
FOLLOWED = frozenset({"bpf_kptr_xchg", "bpf_map_lookup_elem", "bpf_map_delete_elem"})
"""Calls that change what is known of a task's record, or ask for it."""

_STORAGES = frozenset({"bpf_task_storage_get", "bpf_cgrp_storage_get"})
_STORAGE_FLAGS = 3
_CREATES = 1
"""BPF_LOCAL_STORAGE_GET_F_CREATE (include/uapi/linux/bpf.h)."""

_ALLOCATIONS = frozenset({"bpf_cpumask_create", "bpf_obj_new", "bpf_percpu_obj_new", "bpf_arena_alloc_pages"})
"""What returns NULL for want of memory, and for no other reason (kernel/bpf/cpumask.c, helpers.c and arena.c)."""

_WANT_OF_MEMORY = "for want of memory"
_OWN_RECORD = "because the task's new record is not as this callback left it"


def after_call(image: BpfImage, state: State, name: str, arguments: tuple[Term, ...]) -> Marks:
    """Return the marks after a call that is about a task's record."""
    result = state.regs[0]
    marks = state.marks._replace(certain=frozenset(known for known in state.marks.certain if known[0] is not result))
    if name == "bpf_kptr_xchg":
        return _after_exchange(marks, arguments, result)
    if name == "bpf_map_delete_elem":
        return marks._replace(put=frozenset(key for key in marks.put if key.map != arguments[0].name))
    if key_of(image, state, arguments) in marks.put:
        return marks._replace(certain=marks.certain | {(result, False)})
    return marks


def _after_exchange(marks: Marks, arguments: tuple[Term, ...], result: Term) -> Marks:
    """What is put into a new record for the first time replaces nothing."""
    place, value = arguments[:2]
    if value.is_const:
        return marks
    first = place not in marks.exchanged and _makes(pointer(place)[0])
    certain = marks.certain | {(result, True)} if first else marks.certain
    return marks._replace(exchanged=marks.exchanged | {place}, certain=certain)


def key_of(image: BpfImage, state: State, arguments: tuple[Term, ...]) -> Key | None:
    """Return the key that a call is given, if it is a task's own in a map that drops nothing by itself."""
    if len(arguments) < 2 or arguments[0].kind is not TermKind.MAP or arguments[1].kind is not TermKind.STACK:
        return None
    info = image.maps.get(arguments[0].name)
    if info is None or info.type not in calls.KEEPS_ALL:
        return None
    value = state.stack.get(arguments[1].parts)
    return Key(info.name, value[1]) if value and value[0] == info.key_size and identifies_task(value[1]) else None


def excuse_for(marks: Marks, condition: Condition, holds: bool) -> str:
    """Return why a task may be refused after a branch of a callback that may do so, "" if that gives no reason.

    A look-up that makes nothing is no allocation, and neither is a map that may be full. What the path itself put into
    its place as bpf_kptr_xchg() does is there: whoever looks again asks whether it was made.
    """
    call, zero = condition.left, condition.right
    if condition.operator != "eq" or not zero.is_const or zero.value != 0:
        return ""
    if (call, not holds) in marks.certain:
        return _OWN_RECORD
    if not holds:
        return ""
    if call.kind is TermKind.LOAD:
        return _WANT_OF_MEMORY if call.parts[1] in marks.exchanged else ""
    return _WANT_OF_MEMORY if _makes(call) or (call.kind is TermKind.CALL and call.name in _ALLOCATIONS) else ""


def _makes(call: Term) -> bool:
    """Whether a value is a record that is made if there is none."""
    if call.kind is not TermKind.CALL or call.name not in _STORAGES or len(call.parts[2]) <= _STORAGE_FLAGS:
        return False
    flags = call.parts[2][_STORAGE_FLAGS]
    return bool(flags.is_const and flags.value & _CREATES)
