"""What single operations do to registers and memory."""

from __future__ import annotations

from abc import abstractmethod

from verifier.logic.taint import arithmetic, kernel
from verifier.logic.taint.flow import OUTSIDE, Flow
from verifier.logic.taint.state import State
from verifier.logic.taint.values import (
    CLOCKS,
    DURATIONS,
    FREE,
    PLACES,
    Area,
    Kind,
    Target,
    Value,
    by_area,
    constant,
    join,
    pointer,
)
from verifier.logic.walk import calls
from verifier.logic.walk.code import Op
from verifier.object.image import Ref, Reference

_FIELD_OFFSET = 0
_ENUM_VALUE = 11
_READ_ONLY = ".rodata"
_KCONFIG = ".kconfig"
_POINTER_BYTES = 8
_WORD_BITS = 32

_NUMBERS = calls.names(
    "task_struct.scx.slice task_struct.scx.dsq_vtime sched_ext_entity.slice sched_ext_entity.dsq_vtime "
    "task_struct.se.load.weight load_weight.weight cpumask.bits task_struct.__state task_struct.state "
    "task_struct.scx.ddsp_dsq_id task_struct.scx.dsq_flags"
)
"""Fields of 8 bytes that are no pointers."""

_CPU_ARGUMENTS = frozenset({"cpu", "prev_cpu"})
_FLAG_ARGUMENTS = frozenset({"enq_flags", "wake_flags", "deq_flags"})
_OBJECT_ARGUMENTS = frozenset({"p", "prev", "from", "to", "a", "b", "cgrp", "args", "info", "ctx", "cpumask"})


class Operations(Flow):
    """Loads, stores, arithmetic; calls are in calls.py."""

    def execute(self, state: State, op: Op) -> None:
        """One operation that is no branch."""
        match op.kind:
            case "alu":
                state.regs[op.dst] = self._labelled(self._alu(state, op))
            case "imm64":
                state.regs[op.dst] = self._labelled(self._wide(op))
            case "load":
                state.regs[op.dst] = self._labelled(self._load(state, op))
            case "store":
                self._store(state, op)
            case "atomic":
                self._atomic(state, op)
            case "call":
                self.call(state, op)
            case "exit":
                self.leave(state, op)

    @abstractmethod
    def call(self, state: State, op: Op) -> None:
        """A call of a helper, a kfunc or a function of the object; calls.py has them."""

    @abstractmethod
    def leave(self, state: State, op: Op) -> None:
        """The end of a function; calls.py has it."""

    def _labelled(self, value: Value | None) -> Value | None:
        if value is None:
            return None
        if self.shadow and value.fixed and not value.remembered and not value.points:
            value = value._replace(remembered=True)
        return value.with_labels(self.context) if self.context else value

    # --- numbers

    def operand(self, state: State, op: Op) -> Value | None:
        """The second operand."""
        if op.from_register:
            return state.regs[op.src]
        return self._immediate(op.raw.ref, op.raw.imm)

    def _immediate(self, ref: Reference | None, imm: int) -> Value:
        if ref is None or ref.kind is Ref.ENUM:
            return constant(imm)
        if ref.kind is Ref.FIELD and ref.core_kind == _FIELD_OFFSET:
            return constant(imm)._replace(const=None, field=ref.name)
        return constant(imm)._replace(const=None, size=0.0)  # sizes and whether something exists, of this kernel

    def _alu(self, state: State, op: Op) -> Value | None:
        left, right = state.regs[op.dst], self.operand(state, op)
        if op.name == "mov":
            return self._moved(op, right)
        if op.name in ("neg", "end"):
            return self._unary(op, left) if left is not None else None
        if left is None or right is None:
            return None
        result = arithmetic.compute(op.name, op.bits, left, right, self.blame)
        return arithmetic.moved_word(result, self.blame) if op.bits == 32 else result

    def _moved(self, op: Op, value: Value | None) -> Value | None:
        if value is None or op.raw.offset == _WORD_BITS:
            return value
        if op.raw.offset:  # sign extension of 8 or 16 bits
            return self._narrow(value)
        return arithmetic.moved_word(value, self.blame) if op.bits == _WORD_BITS else value

    def _narrow(self, value: Value) -> Value:
        kept = value.kinds & (PLACES | Kind.BITS)
        return value._replace(const=None, kinds=kept, labels=value.labels | self.blame(value.kinds & ~kept))

    def _unary(self, op: Op, value: Value) -> Value:
        if op.name == "neg":
            return arithmetic.compute("sub", op.bits, constant(0), value, self.blame)
        lost = value.kinds & (CLOCKS | DURATIONS | Kind.BIRTH | Kind.PID | Kind.FLAGS)
        return value._replace(const=None, points=frozenset(), kinds=value.kinds & (PLACES | Kind.BITS),
                       labels=value.labels | (self.blame(lost) if lost else 0))  # fmt: skip

    def _wide(self, op: Op) -> Value:
        ref = op.raw.ref
        if ref is None or ref.kind in (Ref.ENUM, Ref.FIELD, Ref.TYPE):
            return self._immediate(ref, op.raw.imm)
        if ref.kind is Ref.MAP:
            return pointer(Target(Area("map", ref.name), 0))
        if ref.kind is Ref.VARIABLE:
            if ref.name == _KCONFIG:
                return pointer(Target(Area("symbol", ref.symbol), 0), labels=self.label("kernel"))
            return pointer(self.memory.variable(ref.name, ref.offset))
        if ref.kind is Ref.FUNCTION:
            return pointer(Target(Area("function", ref.name), 0))
        return pointer(Target(Area("symbol", ref.name), 0))

    # --- memory

    def _load(self, state: State, op: Op) -> Value | None:
        base = state.regs[op.src]
        if base is None:
            return None
        if not base.points:
            return FREE.with_labels(base.labels | self.label(kernel.UNKNOWN))
        loaded: Value | None = None
        for area, targets in by_area(base.points, op.raw.offset):
            loaded = join(loaded, self.load_area(state, area, targets, op.size, op.raw.ref))
        if loaded is None:
            return None
        if base.kinds & PLACES and loaded.is_constant and loaded.const is None:
            loaded = loaded._replace(kinds=base.kinds & PLACES, changed=True)
        return loaded.with_labels(base.labels)

    def load_area(
        self, state: State, area: Area, targets: tuple[Target, ...], size: int, ref: Reference | None
    ) -> Value | None:
        """What a load from some places of one area gives."""
        kind = area.kind
        if ref is not None and ref.kind is Ref.FIELD:
            return self.field(ref.name, size)
        if kind in ("kernel", "function"):
            return self.field(area.name if kind == "kernel" else "", size)
        if kind == "symbol":
            return self._symbol(area.name)
        if kind == "context":
            return self._arguments(area.name, targets)
        loaded = self.read_area(state, area, targets, size)
        if kind == "map" and loaded is not None and self.labelling and area not in self.memory.written:
            return FREE.with_labels(self.label("map values"))
        return loaded

    def _arguments(self, function: str, targets: tuple[Target, ...]) -> Value | None:
        value: Value | None = None
        for target in targets:
            value = join(value, self._argument(function, target.offset or 0))
        return value

    def field(self, name: str, size: int) -> Value:
        """What a field of a kernel object holds."""
        if not name:
            return FREE.with_labels(self.label(kernel.UNKNOWN))
        label, kind = kernel.of_field(name)
        value = Value(kinds=kind, size=0.0 if kind else 1.0)
        if not kind and size == _POINTER_BYTES and name not in _NUMBERS:
            value = pointer(Target(Area("kernel", name), 0))
        return value.with_labels(self.label(label)) if label else value

    def _argument(self, function: str, offset: int) -> Value:
        """An argument of an entry."""
        routine = self.routines[function]
        position = offset // 8
        value: Value | None = None
        for member in sorted(routine.members):
            known = calls.CALLBACK_ARGUMENTS.get(member)
            if member == OUTSIDE:
                value = join(value, self._traced(routine.code.function.section, position))
            elif known is None or not 0 <= position < len(known):
                value = join(value, FREE.with_labels(self.label(kernel.UNKNOWN)))
            elif known[position] in _OBJECT_ARGUMENTS:
                value = join(value, pointer(Target(Area("kernel", ""), 0)))
            elif known[position] in _CPU_ARGUMENTS:
                value = join(value, Value(kinds=Kind.CPU))
            elif known[position] in _FLAG_ARGUMENTS:
                value = join(value, Value(kinds=Kind.BITS))
            else:
                value = join(value, FREE)
        return value or FREE

    def _traced(self, section: str, position: int) -> Value:
        """An argument of a tracing program: of a task's events the tasks are known."""
        if section.startswith("syscall"):
            return FREE.with_labels(self.label("map values"))
        tasks = {"sched_process_exec": (0,), "sched_process_exit": (0,), "sched_process_fork": (0, 1)}
        event = section.rpartition("/")[2]
        value = pointer(Target(Area("kernel", ""), 0))
        if position in tasks.get(event, ()):
            return value
        if event == "sched_process_exec" and position == 1:
            return FREE.with_labels(self.label("pid"))
        return value.with_labels(self.label("map values"))

    def _symbol(self, name: str) -> Value:
        kind = kernel.SYMBOL_KINDS.get(name, Kind.NONE)
        if kind:
            return Value(kinds=kind, size=0.0, scale=kernel.JIFFY_NS if kind == Kind.TIME else 1.0)
        if name in kernel.FREE_SYMBOLS:
            return FREE
        if name in self.image.variables or name.startswith(("CONFIG_", "LINUX_")):
            return FREE.with_labels(self.label("kernel"))
        return FREE.with_labels(self.label(kernel.UNKNOWN))

    def _store(self, state: State, op: Op) -> None:
        base = state.regs[op.dst]
        value = state.regs[op.src] if op.from_register else constant(op.raw.imm)
        if base is None or value is None:
            return
        for target in base.points:
            if target.area.kind == "kernel":
                self._store_field(op, value.with_labels(base.labels))
        self.write_all(state, base.points, op.raw.offset, op.size, value.with_labels(base.labels))

    def _store_field(self, op: Op, value: Value) -> None:
        """A field of a kernel object is set: of all tasks, slice and key are what a policy may write."""
        name = op.raw.ref.name if op.raw.ref is not None else ""
        if name.endswith(".dsq_vtime"):
            self.decide("the order of tasks", arithmetic.used_as(value, CLOCKS | DURATIONS, self.blame))
        elif name.endswith(".slice"):
            self.decide("how long a task may run", arithmetic.used_as(value, DURATIONS, self.blame))
        else:
            self.decide("what is written to the kernel", arithmetic.used_as(value, Kind.NONE, self.blame))

    def _atomic(self, state: State, op: Op) -> None:
        base, value = state.regs[op.dst], state.regs[op.src]
        if base is None or value is None:
            return
        held = self.read(state, base, op.raw.offset, op.size)
        operation = op.raw.imm & 0xF0
        names = {0x00: "add", 0x40: "or", 0x50: "and", 0xA0: "xor"}
        if op.raw.imm == 0xF1:  # compare and exchange: r0 is what is expected
            labels = 0
            if held is not None and state.regs[0] is not None:
                labels = arithmetic.compare("eq", held, state.regs[0], self.blame)
            stored: Value | None = value.with_labels(labels)
            state.regs[0] = self._labelled(held)
        elif operation in names and held is not None:
            stored = arithmetic.compute(names[operation], 64, held, value, self.blame)
        else:
            stored = value if operation not in names else None
        if stored is not None:
            self.write_all(state, base.points, op.raw.offset, op.size, stored.with_labels(base.labels))
        if op.raw.imm & 1 and op.raw.imm != 0xF1:
            state.regs[op.src] = self._labelled(held)
