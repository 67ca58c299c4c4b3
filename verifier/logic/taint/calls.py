"""What calls do: of the object's own functions, of helpers and of kfuncs; and which of their arguments decide.

Arguments as in include/uapi/linux/bpf.h, kernel/sched/ext.c, kernel/sched/ext_idle.c and kernel/bpf/helpers.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from verifier.logic.taint import arithmetic, kernel
from verifier.logic.taint.flow import OUTSIDE
from verifier.logic.taint.limits import RETURNS_LESS
from verifier.logic.taint.maps import Maps
from verifier.logic.taint.state import State
from verifier.logic.taint.values import (
    CLOCKS,
    COUNTS,
    DURATIONS,
    FREE,
    PLACES,
    SHOWN_EVENTS,
    SHOWN_NS,
    Area,
    Kind,
    Target,
    Value,
    by_area,
    join,
    pointer,
)
from verifier.logic.walk.calls import canonical, takes_struct
from verifier.logic.walk.code import Op
from verifier.object.image import Ref

ORDER = CLOCKS | DURATIONS
"""A key may be a time."""


@dataclass(frozen=True)
class Decision:
    """A call that decides something.

    Args:
        reached: what is decided by its being made at all.
        arguments: position from 1 -> what that argument decides, and the kinds that are meant for it.
    """

    reached: str
    arguments: Mapping[int, tuple[str, int]]


_NOTHING = Kind.NONE
_INSERTED = "whether a task is inserted"
_WHICH = ("which task is served", _NOTHING)
_QUEUE = ("which queue a task enters", _NOTHING)
_SLICE = ("how long a task may run", DURATIONS)
_KEY = ("the order of tasks", ORDER)
_FLAGS = ("how a task is inserted", Kind.BITS)
_SERVED = "whether a queue is served"
_SOURCE = ("which queue is served", _NOTHING)
_CPU = ("which CPU is chosen", Kind.BITS)
_CHOSEN = "which CPU is chosen"
_ENDED = "whether the policy ends"
_SHARE = "how much CPU time the tasks of a cgroup get"

DECISIONS: Mapping[str, Decision] = {
    "scx_bpf_dsq_insert": Decision(_INSERTED, {1: _WHICH, 2: _QUEUE, 3: _SLICE, 4: _FLAGS}),
    "scx_bpf_dsq_insert_vtime": Decision(_INSERTED, {1: _WHICH, 2: _QUEUE, 3: _SLICE, 4: _KEY, 5: _FLAGS}),
    "scx_bpf_dsq_move": Decision(_SERVED, {1: _SOURCE, 2: _WHICH, 3: _QUEUE, 4: _FLAGS}),
    "scx_bpf_dsq_move_vtime": Decision(_SERVED, {1: _SOURCE, 2: _WHICH, 3: _QUEUE, 4: _FLAGS}),
    "scx_bpf_dsq_move_set_slice": Decision("how long a task may run", {2: _SLICE}),
    "scx_bpf_dsq_move_set_vtime": Decision("the order of tasks", {2: _KEY}),
    "scx_bpf_dsq_move_to_local": Decision(_SERVED, {1: _SOURCE, 2: _FLAGS}),
    "scx_bpf_dsq_reenq": Decision(_SERVED, {1: _SOURCE, 2: _FLAGS}),
    "scx_bpf_reenqueue_local": Decision(_SERVED, {}),
    "scx_bpf_sub_dispatch": Decision(_SERVED, {1: _SOURCE}),
    "scx_bpf_dispatch_cancel": Decision(_SERVED, {}),
    "scx_bpf_kick_cpu": Decision("whether a CPU is kicked", {1: ("which CPU is kicked", _NOTHING), 2: _FLAGS}),
    "scx_bpf_kick_cid": Decision("whether a CPU is kicked", {1: ("which CPU is kicked", _NOTHING), 2: _FLAGS}),
    "scx_bpf_cpuperf_set": Decision("how fast a CPU runs", {1: _CPU, 2: ("how fast a CPU runs", DURATIONS)}),
    "scx_bpf_select_cpu_dfl": Decision(_CHOSEN, {2: _CPU, 3: _CPU}),
    "scx_bpf_select_cpu_and": Decision(_CHOSEN, {2: _CPU, 3: _CPU, 4: _CPU, 5: _CPU}),
    "scx_bpf_pick_idle_cpu": Decision(_CHOSEN, {1: _CPU, 2: _CPU}),
    "scx_bpf_pick_idle_cpu_node": Decision(_CHOSEN, {1: _CPU, 2: _CPU, 3: _CPU}),
    "scx_bpf_pick_any_cpu": Decision(_CHOSEN, {1: _CPU, 2: _CPU}),
    "scx_bpf_pick_any_cpu_node": Decision(_CHOSEN, {1: _CPU, 2: _CPU, 3: _CPU}),
    "scx_bpf_test_and_clear_cpu_idle": Decision(_CHOSEN, {1: _CPU}),
    "scx_bpf_task_set_slice": Decision("how long a task may run", {1: _WHICH, 2: _SLICE}),
    "scx_bpf_task_set_dsq_vtime": Decision("the order of tasks", {1: _WHICH, 2: _KEY}),
    "scx_bpf_destroy_dsq": Decision("whether a queue exists", {1: _QUEUE}),
    "scx_bpf_create_dsq": Decision("whether a queue exists", {1: _QUEUE}),
    "scx_bpf_error_bstr": Decision(_ENDED, {}),
    "scx_bpf_exit_bstr": Decision(_ENDED, {}),
    "bpf_throw": Decision(_ENDED, {}),
    "cgroup_task_init": Decision(_SHARE, {1: _WHICH}),
    "granted_slice": Decision(_SHARE, {1: _WHICH, 2: _SLICE}),
    "charge_budget": Decision(_SHARE, {1: _WHICH, 2: _SLICE}),
    "join_queue": Decision(_INSERTED, {1: _WHICH, 2: _QUEUE, 3: _SLICE, 4: _KEY, 5: _FLAGS}),
}
"""Kfuncs, helpers, and the functions of our headers that are taken as a whole (taint/limits.py)."""

RETURNED: Mapping[str, tuple[str, int]] = {
    "select_cpu": _CPU,
    "core_sched_before": ("the order of tasks", _NOTHING),
    "yield": ("whether a task gives way", _NOTHING),
    "init_task": ("whether a task may start", _NOTHING),
    "cgroup_init": ("whether a cgroup may start", _NOTHING),
    "cgroup_prep_move": ("whether a task may change its cgroup", _NOTHING),
}
"""Callbacks whose result decides something."""

_STRUCT_FORM = {
    "scx_bpf_dsq_insert_vtime": (None, None, 0, 8, 16, 24),
    "scx_bpf_select_cpu_and": (None, None, 0, 8, None, 16),
}
"""Forms with a struct of arguments (since 6.19): position -> its offset in the struct; None: not in it."""


class Calls(Maps):
    """The last of the four parts of the machine."""

    def call(self, state: State, op: Op) -> None:
        """Any call."""
        ref = op.raw.ref
        arguments = state.regs[1:6]
        if ref is not None and ref.kind is Ref.FUNCTION:
            result = self._own_function(state, ref.name, arguments)
        elif ref is not None:
            name = canonical(ref.name)
            result = self._kernel_call(state, name, ref.symbol or ref.name, arguments)
        else:
            result = FREE.with_labels(self.label(kernel.UNKNOWN))
        state.regs[0] = self._labelled(result)
        state.regs[1:6] = [None] * 5

    def leave(self, state: State, op: Op) -> None:
        """The end of a function: its result is its callers', or decides something."""
        value = state.regs[0]
        if value is None:
            return
        routine = self.routine
        joined = join(routine.result, value, widen=True)
        if joined != routine.result:
            routine.result = joined
            self.replay.changed(routine.name)
            for name in routine.callers:
                self.dirty[name] = None
        if routine.code.function.is_program:
            for member in sorted(routine.members & RETURNED.keys()):
                decision, allowed = RETURNED[member]
                # what was decided on the way is in the labels of the value
                self.decide(decision, arithmetic.used_as(value, allowed, self.blame))

    # --- functions of the object

    def _own_function(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        if name in self.kept:
            return self._kept_function(name, arguments)
        routine = self.routines.get(name)
        if routine is None:
            return FREE.with_labels(self.label(kernel.UNKNOWN))
        arity = len(routine.code.function.parameters) if routine.code.function.parameters else 5
        shown: list[Value | None] = [value if number < arity else None for number, value in enumerate(arguments)]
        self.escape(state, shown)
        routine.callers.add(self.routine.name)
        self.replay.reads(name)
        for member in sorted(self.routine.members):
            self.enter(name, member, shown, self.context, latched=self.shadow)
        return routine.result

    def _kept_function(self, name: str, arguments: list[Value | None]) -> Value:
        """A function that is taken as a whole: what it is given decides, and of what it returns no more is known."""
        self._decisions(name, arguments, self.event())
        place = RETURNS_LESS.get(name)
        given = arguments[place - 1] if place else None
        if given is None or given.points:
            return FREE.with_labels(given.labels if given else 0)
        return given._replace(const=None, fixed=False, changed=True)

    def _callback(self, state: State, value: Value | None, arguments: list[Value | None], *, member: str = "") -> None:
        """A function of the object is called by the kernel, now or later."""
        for target in value.points if value is not None else ():
            if target.area.kind != "function":
                continue
            self.escape(state, arguments)
            members = {member} if member else self.routine.members
            for each in sorted(members):
                self.enter(target.area.name, each, arguments, self.context | self.deferred * bool(member),
                           latched=self.shadow and not member)  # fmt: skip
            routine = self.routines.get(target.area.name)
            if routine is not None:
                routine.callers.add(self.routine.name)
                self.replay.reads(routine.name)
                if not member and routine.result is not None:
                    self._loop(routine.result)

    def _loop(self, value: Value | None) -> None:
        """How often something runs."""
        if value is not None and self.routine.members != {OUTSIDE}:
            self.decide("how often a loop runs", arithmetic.used_as(value, Kind.COUNT, self.blame))

    # --- helpers and kfuncs

    def _kernel_call(self, state: State, name: str, raw: str, arguments: list[Value | None]) -> Value | None:
        handler = _HANDLERS.get(name)
        spread = self._spread(state, name, raw, arguments)
        if name == "scx_bpf_dsq_move_to_local" and "___v2" not in raw:
            spread = [arguments[0], None, None, None, None]  # flags are there since 7.1
        self._decisions(name, spread)
        if handler is not None:
            return _as_code(name, handler(self, state, name, arguments))
        labels = self._labels_of(state, spread) | self._labels_of_cpu(name, spread)
        if name in kernel.CALL_KINDS:
            return self._of_kind(kernel.CALL_KINDS[name], name, labels, spread)
        if name in kernel.CALL_INPUTS:
            labels |= self.label(*kernel.CALL_INPUTS[name])
        if name in kernel.WRITES_INPUT:
            position, inputs = kernel.WRITES_INPUT[name]
            self._write_through(state, arguments[position - 1], self.label(*inputs) | labels)
            return FREE.with_labels(labels | self.label(*inputs))
        if name in kernel.RETURNS_OBJECT:
            return pointer(Target(Area("kernel", ""), 0), labels=labels)
        if name in kernel.FREE_CALLS or name in kernel.CALL_INPUTS:
            return _as_code(name, FREE.with_labels(labels))
        labels |= self.label(kernel.UNKNOWN)
        for value in arguments:
            self._write_through(state, value, labels)
        return FREE.with_labels(labels)

    def _labels_of_cpu(self, name: str, arguments: list[Value | None]) -> int:
        """A CPU that is named by a constant, and that not every machine has."""
        cpu = arguments[kernel.CPU_ARGUMENT[name] - 1] if name in kernel.CPU_ARGUMENT else None
        return self.label("cpus") if cpu is not None and cpu.is_constant and cpu.size > 1 else 0

    def _of_kind(self, kind: int, name: str, labels: int, arguments: list[Value | None]) -> Value:
        if kind == Kind.TIME:
            return Value(kinds=kind, size=0.0, scale=kernel.JIFFY_NS if "jiffies" in name else 1.0, labels=labels)
        if name in ("scx_bpf_select_cpu_dfl",) and arguments[3] is not None:
            return Value(kinds=kind, labels=labels)
        return Value(kinds=kind, labels=labels, size=0.0 if kind & COUNTS else 1.0)

    def _spread(self, state: State, name: str, raw: str, arguments: list[Value | None]) -> list[Value | None]:
        """The arguments as the plain form of a kfunc has them, those of a struct read from it."""
        form = _STRUCT_FORM.get(name)
        if form is None or not takes_struct(raw):
            return arguments
        box = arguments[1] if "insert" in name else arguments[2]
        spread: list[Value | None] = [arguments[0]]
        for offset in form[2:]:
            if offset is None:
                spread.append(arguments[1])
            else:
                spread.append(self.read(state, box, offset, 8) if box is not None else None)
        return spread

    def _decisions(self, name: str, arguments: list[Value | None], labels: int = 0) -> None:
        """`labels`: of what decides, besides, whether the call is made."""
        decision = DECISIONS.get(name)
        if decision is None:
            return
        self.decide(decision.reached, labels)
        for position, (what, allowed) in decision.arguments.items():
            value = arguments[position - 1]
            if value is None:
                continue
            if value.points:
                self.decide(what, value.labels)
            else:
                self.decide(what, arithmetic.used_as(value, allowed, self.blame))

    # --- the kernel's memory

    def probe(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """bpf_probe_read_kernel: what the source is, the destination is now."""
        buffer, size, source = arguments[:3]
        if source is None or buffer is None:
            return None
        length = size.const if size is not None and size.const is not None else 8
        held: Value | None = None
        if not source.points:
            held = FREE.with_labels(self.label(kernel.UNKNOWN))
        for area, targets in by_area(source.points, 0):
            held = join(held, self.load_area(state, area, targets, min(length, 8), None))
        held = (held or FREE).with_labels(source.labels)
        for target in buffer.points:
            if target.area.kind in ("stack", "variable", "heap", "map"):
                self.write(state, target, length if 0 < length <= 4096 else 8, held)
        return FREE.with_labels(held.labels)

    def passes(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """What returns its first argument, acquired or cast."""
        return arguments[0]

    def from_pid(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """A task by its pid: one that was noted before may be used, one of the policy's choice may not."""
        pid = arguments[0]
        if pid is None:
            return None
        labels = pid.labels
        if not pid.kinds & Kind.PID or pid.changed:
            labels |= self.label("pid") if pid.is_constant else 0
        value = pointer(Target(Area("kernel", ""), 0), labels=labels)
        return value._replace(kinds=Kind.TASK)

    def per_cpu(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """Another CPU's copy of a variable."""
        return (
            arguments[0].with_labels(arguments[1].labels if arguments[1] is not None else 0) if arguments[0] else None
        )

    def allocates(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        return pointer(Target(Area("heap", f"{self.routine.name}:{self.index}"), 0))

    def exchange(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """bpf_kptr_xchg: the old pointer out, the new one in."""
        place, value = arguments[0], arguments[1]
        if place is None:
            return None
        held = self.read(state, place, 0, 8)
        for target in place.points:
            if value is not None and target.area.kind != "kernel":
                self.write(state, target, 8, value)
        return held or pointer()

    def link(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """A node goes into a list or tree: it is found by its head again."""
        head, node = arguments[0], arguments[1]
        for target in head.points if head is not None else ():
            if node is not None:
                self.write(state, target, 8, node)
        if "rbtree" in name:
            self._callback(state, arguments[2], [node, node, None, None, None])
        return FREE

    def unlink(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """A node of a list or tree."""
        head = arguments[0]
        return self.read(state, head, 0, 8) if head is not None else None

    def mask(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """A bpf_cpumask is changed by its other arguments."""
        position = 1 if "cpu" in name.removeprefix("bpf_cpumask") else 0
        labels = 0
        for value in arguments:
            labels |= value.labels if value is not None else 0
        target = arguments[position] if position < 5 else None
        for other in arguments:
            if other is not None and not other.points:
                labels |= arithmetic.used_as(other, Kind.NONE, self.blame)
        self._write_through(state, target, labels)
        return FREE.with_labels(labels)

    # --- loops and what runs later

    def count(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """bpf_iter_num_new: rounds from one number to another."""
        iterator, start, end = arguments[:3]
        labels, kinds = 0, Kind.NONE
        for value in (start, end):
            if value is not None:
                labels |= arithmetic.used_as(value, Kind.COUNT, self.blame)
                kinds |= Kind.CPU if value.kinds & (Kind.CPUS | Kind.ALLOWED) else Kind.NONE
                kinds |= Kind.NODE if value.kinds & Kind.NODES else Kind.NONE
        self._loop(end)
        self._loop(start)
        for target in iterator.points if iterator is not None else ():
            self.write(state, target, 4, Value(kinds=kinds, labels=labels))
        return FREE

    def next_number(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """bpf_iter_num_next: a pointer to the number, NULL at the end."""
        iterator = arguments[0]
        if iterator is None:
            return None
        number = self.read(state, iterator, 0, 4)
        return iterator.with_labels(number.labels if number is not None else 0)

    def open_queue(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """bpf_iter_scx_dsq_new: which queue is looked at."""
        iterator, queue = arguments[:2]
        labels = arithmetic.used_as(queue, Kind.NONE, self.blame) if queue is not None else 0
        for target in iterator.points if iterator is not None else ():
            self.write(state, target, 8, FREE.with_labels(labels))
        return FREE

    def rounds(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """bpf_loop."""
        number = arguments[0]
        self._loop(number)
        labels = number.labels if number is not None else 0
        index = FREE.with_labels(labels)
        if number is not None and number.kinds & (Kind.CPUS | Kind.ALLOWED):
            index = index._replace(kinds=Kind.CPU)
        self._callback(state, arguments[1], [index, arguments[2], None, None, None])
        return FREE.with_labels(labels)

    def elements(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """bpf_for_each_map_elem."""
        table = arguments[0]
        areas = [target.area for target in table.points if target.area.kind == "map"] if table is not None else []
        labels = 0
        for area in areas:
            self.reads(area)
            labels |= self.memory.presence[area.name]
        value = pointer(*(Target(area, 0) for area in areas), labels=labels)
        key = pointer(Target(Area("heap", f"key:{self.routine.name}:{self.index}"), 0), labels=labels)
        self._callback(state, arguments[1], [table, key, value, arguments[2], None])
        return FREE.with_labels(labels)

    def start(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """bpf_timer_start and bpf_wq_start: what decides when, and whether, decides what the callback does."""
        labels = self.context
        delay = arguments[1]
        if "timer" in name and delay is not None:
            labels |= delay.labels
            if delay.size * delay.scale * SHOWN_EVENTS > SHOWN_NS:
                self.slow_timer = True
            if delay.size * delay.scale > SHOWN_NS:
                labels |= self.label("time since load")
            if delay.kinds & ~(DURATIONS | Kind.TIME | PLACES | COUNTS):
                labels |= self.blame(delay.kinds & ~(DURATIONS | Kind.TIME | PLACES | COUNTS))
        if self.deferred | labels != self.deferred:
            self.deferred |= labels
            for routine in self.routines.values():
                if "timer" in routine.members:
                    routine.context |= self.deferred
                    self.dirty[routine.name] = None
        return FREE

    def later(self, state: State, name: str, arguments: list[Value | None]) -> Value | None:
        """bpf_timer_set_callback and bpf_wq_set_callback."""
        owner = arguments[0]
        areas = pointer(*(target for target in owner.points)) if owner is not None else None
        self._callback(state, arguments[1], [areas, pointer(), areas, None, None], member="timer")
        return FREE


def _as_code(name: str, value: Value | None) -> Value | None:
    """The result of a call, marked if it is an error code."""
    return value._replace(kinds=Kind.BITS) if value is not None and name in kernel.ERROR_CODES else value


Handler = Callable[[Calls, State, str, list[Value | None]], Value | None]

_HANDLERS: Mapping[str, Handler] = {
    "bpf_map_lookup_elem": Calls.lookup,
    "bpf_map_lookup_percpu_elem": Calls.lookup,
    "bpf_map_update_elem": Calls.update,
    "bpf_map_push_elem": Calls.update,
    "bpf_map_pop_elem": Calls.pop,
    "bpf_map_peek_elem": Calls.pop,
    "bpf_map_delete_elem": Calls.delete,
    "bpf_task_storage_get": Calls.storage,
    "bpf_cgrp_storage_get": Calls.storage,
    "bpf_inode_storage_get": Calls.storage,
    "bpf_task_storage_delete": Calls.delete,
    "bpf_cgrp_storage_delete": Calls.delete,
    **dict.fromkeys(kernel.READS_KERNEL, Calls.probe),
    **dict.fromkeys(kernel.RETURNS_ARGUMENT, Calls.passes),
    "bpf_task_acquire": Calls.passes,
    "bpf_cgroup_acquire": Calls.passes,
    "bpf_task_from_pid": Calls.from_pid,
    "bpf_per_cpu_ptr": Calls.per_cpu,
    "bpf_this_cpu_ptr": Calls.per_cpu,
    **dict.fromkeys(kernel.ALLOCATES, Calls.allocates),
    "bpf_kptr_xchg": Calls.exchange,
    "bpf_list_push_back": Calls.link,
    "bpf_list_push_front": Calls.link,
    "bpf_rbtree_add": Calls.link,
    "bpf_list_pop_front": Calls.unlink,
    "bpf_list_pop_back": Calls.unlink,
    "bpf_list_front": Calls.unlink,
    "bpf_list_back": Calls.unlink,
    "bpf_rbtree_first": Calls.unlink,
    "bpf_rbtree_root": Calls.unlink,
    "bpf_rbtree_left": Calls.unlink,
    "bpf_rbtree_right": Calls.unlink,
    "bpf_rbtree_remove": Calls.unlink,
    "bpf_cpumask_set_cpu": Calls.mask,
    "bpf_cpumask_clear_cpu": Calls.mask,
    "bpf_cpumask_setall": Calls.mask,
    "bpf_cpumask_clear": Calls.mask,
    "bpf_cpumask_and": Calls.mask,
    "bpf_cpumask_or": Calls.mask,
    "bpf_cpumask_xor": Calls.mask,
    "bpf_cpumask_copy": Calls.mask,
    "bpf_iter_num_new": Calls.count,
    "bpf_iter_num_next": Calls.next_number,
    "bpf_iter_scx_dsq_new": Calls.open_queue,
    "bpf_loop": Calls.rounds,
    "bpf_for_each_map_elem": Calls.elements,
    "bpf_timer_start": Calls.start,
    "bpf_wq_start": Calls.start,
    "bpf_timer_set_callback": Calls.later,
    "bpf_wq_set_callback": Calls.later,
}
