"""The limits of cgroups: code of our headers that is taken as a whole, where a policy has it unchanged.

What is runnable below a cgroup is a sum that only cgroups.bpf.h keeps from being a counter, budgets of CPU time are
filled by a clock, and tasks wait for them until a timer comes. Followed step by step each of these is an input that no
policy may go by. Taken as a whole they are none: a task's part of all weights says no more than weights and lengths of
queues do, which are free of charge, and a budget forgets what is a period or a second old. That holds if

- every function that touches one of their maps is, instruction by instruction, that of our headers,
- their callbacks for cgroups are those of the policy, so that no cgroup comes or goes without them,
- a task is counted as it becomes runnable, and no longer as it stops being so: whatever else the policy does there,
- nothing else is called by the rest of the policy than what INTERFACE names, and there is no other way to their maps.

What the rest hands to these functions decides as it does in the kfuncs that they call.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from verifier.logic.walk.calls import names
from verifier.object.image import BpfImage, Instruction, MapInfo, Ref

_MAPS = names("cgroup_nodes cgroup_places cgroup_tasks cgroup_totals cgroup_limits limit_timers")

COUNTED: Mapping[str, frozenset[str]] = {
    "runnable": names("cgroup_runnable"),
    "quiescent": names("cgroup_quiescent"),
}
"""Callback -> what it calls of these, first of all, for the task that it is called for; nothing else may call them."""

INIT = "create_limits"
"""What only init may call."""

INTERFACE = names("cgroup_task_init effective_weight granted_slice charge_budget join_queue")
"""What callbacks of tasks may call at any time; taint/calls.py knows what their arguments decide."""

RETURNS_LESS: Mapping[str, int] = {"granted_slice": 2}
"""What returns one of its arguments or less of it -> which argument."""

FOLLOWED = (
    "limits of cgroups are followed step by step and look like counters and clocks: their functions, maps and callbacks"
    " are not used as cgroups.bpf.h and bandwidth.bpf.h say: cgroup_runnable() and cgroup_quiescent() come first"
)
"""What is reported of a policy whose functions are not taken as a whole."""

_ACTING = ("scx_", "__scx_", "bpf_timer_", "bpf_iter_scx_")
_ASKS = names("scx_bpf_now scx_bpf_nr_cpu_ids scx_bpf_task_cgroup")
"""Kfuncs of sched_ext that do nothing."""

_BOUNDED = frozenset({"granted_slice", "budget_empty_until"})
"""What is always followed: slices and the time of the timer are made of what it returns, and have bounds."""

_WITHOUT = frozenset({"init", "exit", "dump", "dump_cpu", "dump_task"})
"""Callbacks that decide nothing, so that nobody judges what is called there."""

_ARGUMENTS = frozenset(range(6))
"""Registers that a call clobbers; the first argument of a call, and a program's context, is in _FIRST."""

_FIRST = 1
_LOAD, _MOVE, _CALL = 0x79, 0xBF, 0x85
_JUMPS, _STORES = (5, 6), (2, 3)
"""Classes of instructions: the lower three bits of an opcode."""


@dataclass(frozen=True)
class LimitsCode:
    """The code of our headers, as a bundled policy has it.

    Args:
        functions: name -> digest, of all that touches the maps.
        maps: name -> what it is declared to be.
        callbacks: callback for cgroups -> the function.
    """

    functions: Mapping[str, str] = field(default_factory=dict)
    maps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    callbacks: Mapping[str, str] = field(default_factory=dict)


def uses_limits(image: BpfImage) -> bool:
    """Whether an object has one of the maps."""
    return bool(_MAPS & image.maps.keys())


def limits_code(image: BpfImage) -> LimitsCode:
    """Return the code of an object that touches the maps."""
    callbacks = {
        member: name for ops in image.ops for member, name in ops.callbacks.items() if member.startswith("cgroup_")
    }
    maps = {name: _shape(info) for name, info in image.maps.items() if name in _MAPS}
    return LimitsCode({name: _digest(image, name) for name in _touching(image)}, maps, callbacks)


def kept_functions(image: BpfImage, ours: LimitsCode) -> frozenset[str]:
    """Return the functions that are taken as a whole; none if anything about them is not as in our headers.

    Args:
        ours: of a bundled policy.
    """
    code = limits_code(image)
    kept = frozenset(code.functions)
    if not kept or len(image.ops) != 1 or code.callbacks != ours.callbacks or code.maps != ours.maps:
        return frozenset()
    if any(ours.functions.get(name) != digest for name, digest in code.functions.items()):
        return frozenset()
    if any(info.inner is not None for info in image.maps.values()):
        return frozenset()  # a map of maps may hold one of these
    is_closed = all(called in kept for name in kept for called in _called(image, name))
    return kept if is_closed and _is_used_well(image, kept) else frozenset()


def plain_functions(image: BpfImage, kept: frozenset[str]) -> frozenset[str]:
    """Return those of the functions that only count: they do nothing to tasks, queues, CPUs or timers."""
    plain = {name for name in kept if not image.functions[name].is_program and not _acts(image, name)}
    while acting := {name for name in plain if not _called(image, name) <= plain}:
        plain -= acting
    return frozenset(plain - _BOUNDED)


def _acts(image: BpfImage, name: str) -> bool:
    """Whether a function does more than count."""
    refs = (instruction.ref.name for instruction in image.functions[name].instructions if instruction.ref is not None)
    return any(each.startswith(_ACTING) and each not in _ASKS for each in refs)


def _is_used_well(image: BpfImage, kept: frozenset[str]) -> bool:
    """Whether the rest of an object calls what it may, where it may, and what it has to."""
    callbacks = image.ops[0].callbacks
    if len({*callbacks.values()}) != len(callbacks):
        return False
    member_of = {name: member for member, name in callbacks.items()}
    for member, ways in COUNTED.items():
        if not ways & set(_first_calls(image, callbacks.get(member, ""))):
            return False
    for name, function in image.functions.items():
        called = _called(image, name) & kept if name not in kept else frozenset[str]()
        if not called <= INTERFACE | COUNTED.get(member_of.get(name, ""), frozenset()) | {INIT}:
            return False
        counted = called - INTERFACE - {INIT}
        if counted and (not function.is_program or sum(_calls(image, name, each) for each in counted) != 1):
            return False
    return all(_may_reach(image, member_of, name, kept) for name in image.functions if name not in kept)


def _may_reach(image: BpfImage, member_of: Mapping[str, str], name: str, kept: frozenset[str]) -> bool:
    """Whether a program calls nothing of these where nobody would judge it."""
    if not image.functions[name].is_program and name not in member_of:
        return True
    member = member_of.get(name, "")
    reached = _called_outside(image, name, kept)
    if INIT in reached and member != "init":
        return False
    return not reached & INTERFACE or bool(member and member not in _WITHOUT)


def _called_outside(image: BpfImage, name: str, kept: frozenset[str]) -> frozenset[str]:
    """The functions of these that a program calls, by its own code and what that calls."""
    reached, waiting = {name}, [name]
    while waiting:
        called = _called(image, waiting.pop()) - reached
        reached |= called
        waiting += called - kept
    return frozenset(reached) & kept


def _first_calls(image: BpfImage, name: str) -> Iterator[str]:
    """Yield what a program calls before its first branch for the task that it was called for, its first argument."""
    function = image.functions.get(name)
    context, task = frozenset({_FIRST}), frozenset[int]()  # the registers that hold them
    for instruction in function.instructions if function is not None and function.is_program else ():
        opcode, ref = instruction.opcode, instruction.ref
        source, target = instruction.src, frozenset({instruction.dst})
        if opcode == _CALL:
            if ref is not None and ref.kind is Ref.FUNCTION and _FIRST in task:
                yield ref.name
            context, task = context - _ARGUMENTS, task - _ARGUMENTS
        elif opcode & 7 in _JUMPS:
            return
        elif opcode & 7 in _STORES:  # an exchange or an addition may return what was there
            context, task = context - {0, source}, task - {0, source}
        elif opcode == _MOVE and not instruction.offset:
            context = context | target if source in context else context - target
            task = task | target if source in task else task - target
        else:
            loads = opcode == _LOAD and source in context and not instruction.offset and ref is None
            context, task = context - target, task | target if loads else task - target


def _calls(image: BpfImage, name: str, called: str) -> int:
    """How often a function refers to another one."""
    refs = (instruction.ref for instruction in image.functions[name].instructions)
    return sum(ref is not None and ref.kind is Ref.FUNCTION and ref.name == called for ref in refs)


def _called(image: BpfImage, name: str) -> frozenset[str]:
    """The functions that a function calls or hands on."""
    function = image.functions.get(name)
    refs = (instruction.ref for instruction in (function.instructions if function else ()))
    return frozenset(ref.name for ref in refs if ref is not None and ref.kind is Ref.FUNCTION)


def _touching(image: BpfImage) -> Iterator[str]:
    """Yield the functions that refer to one of the maps."""
    for name, function in image.functions.items():
        refs = (instruction.ref for instruction in function.instructions)
        if any(ref is not None and ref.kind is Ref.MAP and ref.name in _MAPS for ref in refs):
            yield name


def _shape(info: MapInfo) -> tuple[int, ...]:
    return (info.type, info.key_size, info.value_size, info.max_entries, info.flags, info.pinning)


def _digest(image: BpfImage, name: str) -> str:
    function = image.functions[name]
    parts = [function.section, function.is_program, *map(_essence, function.instructions)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _essence(instruction: Instruction) -> list[object]:
    """What an instruction does. Where a variable lies is another place in each object, so none may be named."""
    ref = instruction.ref
    if ref is None:
        rest: list[object] = [instruction.imm]
    elif ref.kind in (Ref.FUNCTION, Ref.MAP, Ref.VARIABLE):
        rest = [ref.kind, ref.name, ref.symbol, ref.offset]
    else:
        rest = [ref.kind, ref.name, ref.symbol, ref.core_kind]
    return [instruction.opcode, instruction.dst, instruction.src, instruction.offset, *rest]
