"""Functions of an object made ready for the walk: decoded instructions, jump targets, loops, what is live where."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from verifier.logic.walk import calls
from verifier.object.image import Function, Instruction, Line, Ref

LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)

_ALU_NAMES = ("add", "sub", "mul", "div", "or", "and", "lsh", "rsh", "neg", "mod", "xor", "mov", "arsh", "end")
_JUMP_NAMES = {
    1: "eq",
    2: "gt",
    3: "ge",
    4: "set",
    5: "ne",
    6: "sgt",
    7: "sge",
    10: "lt",
    11: "le",
    12: "slt",
    13: "sle",
}
_SIZES = {0: 4, 8: 2, 16: 1, 24: 8}
_ATOMIC = 0xC0
_FRAME_SLOTS = 64
_ADDRESS_BYTES = 8

REGISTERS = 11
FRAME_POINTER = 10
ALL_STACK = ((1 << _FRAME_SLOTS) - 1) << REGISTERS


@dataclass(frozen=True)
class Op:
    """One decoded instruction.

    Args:
        kind: "alu", "load", "store", "atomic", "imm64", "jump", "branch", "may_goto", "call" or "exit".
        name: ALU or jump operator.
        bits: 32 or 64 for "alu" and "branch".
        size: bytes for loads and stores.
        from_register: whether the second operand is src, not imm.
        target: index of the instruction a jump goes to.
    """

    kind: str
    raw: Instruction
    name: str = ""
    bits: int = 64
    size: int = 8
    from_register: bool = False
    target: int = -1

    @functools.cached_property
    def dst(self) -> int:
        return self.raw.dst

    @functools.cached_property
    def src(self) -> int:
        return self.raw.src

    @functools.cached_property
    def line(self) -> Line | None:
        return self.raw.line


@dataclass(eq=False)
class Code:
    """A function ready for the walk.

    Args:
        joins: indexes where paths meet.
        loop_heads: joins that a jump goes back to.
        back_edges: those jumps: (from, to).
        live: for every index, a bit set of what is read later: registers, then stack slots of 8 bytes downward.
        frames: what `frame_offsets` found out, once it was asked.
        spilled: the same with what the compiler put into the stack meanwhile, once it was asked.
        before: what `entered_from` answers.
    """

    function: Function
    ops: tuple[Op, ...]
    joins: frozenset[int] = frozenset()
    loop_heads: frozenset[int] = frozenset()
    back_edges: frozenset[tuple[int, int]] = frozenset()
    live: tuple[int, ...] = ()
    frames: list[dict[int, int]] = field(default_factory=list, repr=False)
    spilled: list[dict[int, int]] = field(default_factory=list, repr=False)
    before: list[list[int]] = field(default_factory=list, repr=False)

    @property
    def name(self) -> str:
        return self.function.name

    def frame_at(self, index: int) -> dict[int, int]:
        """Return which registers hold frame pointer + constant before an instruction, and the constants."""
        return frame_offsets(self)[index]

    def iterator_at(self, index: int) -> int | None:
        """Return the place in this function's stack, from the frame pointer, of the iterator that a call is given.

        None if it is not known, or another function's. An address that waited in the stack is known, too: nothing but
        this function can have put another one there (check_stack_write_fixed_off() of kernel/bpf/verifier.c), and what
        else is written there is no address any more.
        """
        known = self.frame_at(index).get(1)
        if known is not None:
            return known
        if not self.spilled:
            self.spilled = _offsets(self, _track_spills)
        return self.spilled[index].get(1)

    def entered_from(self, index: int) -> list[int]:
        """Return the indexes that may come before one."""
        if not self.before:
            self.before = [[] for _op in self.ops]
            for earlier in range(len(self.ops)):
                for later in self.next_of(earlier):
                    self.before[later].append(earlier)
        return self.before[index]

    def next_of(self, index: int) -> tuple[int, ...]:
        """Return the indexes that may come after one."""
        op = self.ops[index]
        if op.kind == "exit":
            return ()
        after = (index + 1,) if index + 1 < len(self.ops) else ()
        if op.kind == "jump":
            return (op.target,)
        return (*after, op.target) if op.kind in ("branch", "may_goto") else after


class BadCode(ValueError):
    """The instructions make no sense: a jump out of the function, an unknown opcode."""


def prepare(function: Function, arity_of: Mapping[str, int]) -> Code:
    """Decode a function and work out where its paths meet and what is live.

    Args:
        arity_of: number of parameters of the object's own functions.

    Raises:
        BadCode: an opcode or a jump target that does not exist.
    """
    index_of = {instruction.slot: index for index, instruction in enumerate(function.instructions)}
    ops = tuple(_decode(instruction, index_of) for instruction in function.instructions)
    if not ops:
        raise BadCode(f"{function.name} has no instructions")
    code = Code(function, ops)
    entered = [0] * len(ops)
    for index in range(len(ops)):
        for after in code.next_of(index):
            entered[after] += 1
    code.back_edges = _find_back_edges(code)
    code.loop_heads = frozenset(head for _source, head in code.back_edges)
    code.joins = frozenset(index for index, count in enumerate(entered) if count > 1) | code.loop_heads
    code.live = _liveness(code, arity_of)
    return code


def _decode(raw: Instruction, index_of: Mapping[int, int]) -> Op:
    group, opcode = raw.opcode & 7, raw.opcode
    if opcode == 0x18:
        return Op("imm64", raw)
    if group in (ALU, ALU64):
        number = opcode >> 4
        if number >= len(_ALU_NAMES):
            raise BadCode(f"unknown opcode {opcode:#x} in slot {raw.slot}")
        bits = 64 if group == ALU64 else 32
        return Op("alu", raw, _ALU_NAMES[number], bits, from_register=bool(opcode & 8))
    if group in (JMP, JMP32):
        return _decode_jump(raw, index_of, 64 if group == JMP else 32)
    size = _SIZES[opcode & 0x18]
    if group == LDX:
        return Op("load", raw, size=size)
    if group == STX and opcode & 0xE0 == _ATOMIC:
        return Op("atomic", raw, size=size, from_register=True)
    if group in (ST, STX):
        return Op("store", raw, size=size, from_register=group == STX)
    raise BadCode(f"unknown opcode {opcode:#x} in slot {raw.slot}")


def _decode_jump(raw: Instruction, index_of: Mapping[int, int], bits: int) -> Op:
    number = raw.opcode >> 4
    if number == 8:
        return Op("call", raw)
    if number == 9:
        return Op("exit", raw)
    distance = raw.imm if number == 0 and bits == 32 else raw.offset
    target = index_of.get(raw.slot + 1 + distance)
    if target is None:
        raise BadCode(f"the jump in slot {raw.slot} leaves the function")
    if number == 0:
        return Op("jump", raw, target=target)
    if number == 14:
        return Op("may_goto", raw, target=target)
    if number not in _JUMP_NAMES:
        raise BadCode(f"unknown opcode {raw.opcode:#x} in slot {raw.slot}")
    return Op("branch", raw, _JUMP_NAMES[number], bits, from_register=bool(raw.opcode & 8), target=target)


def _find_back_edges(code: Code) -> frozenset[tuple[int, int]]:
    """Find the jumps back to an instruction that leads to them, by a depth-first search."""
    edges, state = set(), [0] * len(code.ops)
    stack: list[tuple[int, Iterator[int]]] = [(0, iter(code.next_of(0)))]
    state[0] = 1
    while stack:
        index, following = stack[-1]
        after = next(following, None)
        if after is None:
            state[index] = 2
            stack.pop()
        elif state[after] == 1:
            edges.add((index, after))
        elif state[after] == 0:
            state[after] = 1
            stack.append((after, iter(code.next_of(after))))
    return frozenset(edges)


def call_arity(op: Op, arity_of: Mapping[str, int]) -> int:
    """Return how many argument registers a call reads."""
    ref = op.raw.ref
    if ref is None:
        return 5
    if ref.kind is Ref.FUNCTION:
        return arity_of.get(ref.name, 5)
    name = ref.name.partition("___")[0]
    if calls.takes_struct(name):
        return 2 if "insert" in name else 3
    return calls.ARITY.get(calls.canonical(name), 5)


@functools.cache
def stack_bits(low: int, high: int) -> int:
    """Return the bits of the stack slots that overlap [low, high), offsets from the frame pointer."""
    first, last = max(1, (-high) // 8 + 1), min(_FRAME_SLOTS, (-low + 7) // 8)
    return ((1 << max(0, last - first + 1)) - 1) << (REGISTERS + first - 1) if last >= first else 0


def _liveness(code: Code, arity_of: Mapping[str, int]) -> tuple[int, ...]:
    """Backward data flow over registers and stack slots."""
    frames = frame_offsets(code)
    effects = [_effect(op, frame, arity_of) for op, frame in zip(code.ops, frames, strict=True)]
    live = [0] * len(code.ops)
    changed = True
    while changed:
        changed = False
        for index in range(len(code.ops) - 1, -1, -1):
            out = 0
            for after in code.next_of(index):
                out |= live[after]
            used, defined = effects[index]
            now = used | (out & ~defined)
            if now != live[index]:
                live[index], changed = now, True
    return tuple(live)


def _effect(op: Op, frame: Mapping[int, int], arity_of: Mapping[str, int]) -> tuple[int, int]:
    """Return bit sets of what an instruction reads and what it overwrites."""
    dst, src = 1 << op.dst, 1 << op.src
    operand = src if op.from_register else 0
    effect = 0, 0
    match op.kind:
        case "alu":
            effect = operand | (dst if op.name != "mov" else 0), dst
        case "imm64":
            effect = 0, dst
        case "load":
            effect = src | _slots_at(frame, op.src, op.raw.offset, op.size), dst
        case "store" | "atomic":
            effect = _effect_of_store(op, frame)
        case "branch":
            effect = dst | operand, 0
        case "call":
            effect = _effect_of_call(op, frame, arity_of)
        case "exit":
            effect = 1, 0
    return effect


def _effect_of_store(op: Op, frame: Mapping[int, int]) -> tuple[int, int]:
    used = 1 << op.dst | (1 << op.src if op.from_register else 0)
    if op.kind == "atomic":
        fetched = {0xF1: 1}.get(op.raw.imm, 1 << op.src if op.raw.imm & 1 else 0)
        return used | (1 if op.raw.imm == 0xF1 else 0) | _slots_at(frame, op.dst, op.raw.offset, op.size), fetched
    if op.from_register and op.src in frame and op.src != FRAME_POINTER:
        used |= stack_bits(frame[op.src], 0)  # the address escapes to memory: its target stays live
    written = _slots_at(frame, op.dst, op.raw.offset, op.size) if op.size == 8 and op.raw.offset % 8 == 0 else 0
    return used, written


def _effect_of_call(op: Op, frame: Mapping[int, int], arity_of: Mapping[str, int]) -> tuple[int, int]:
    used = 0
    for register in range(1, call_arity(op, arity_of) + 1):
        used |= 1 << register
        if register in frame:
            used |= stack_bits(frame[register], 0)
    return used, 0b111111


def _slots_at(frame: Mapping[int, int], register: int, offset: int, size: int) -> int:
    if register not in frame:
        return 0
    low = frame[register] + offset
    return stack_bits(low, low + size)


def frame_offsets(code: Code) -> list[dict[int, int]]:
    """Return for every instruction: which registers hold frame pointer + constant; forward data flow."""
    if not code.frames:
        code.frames = _offsets(code, _track_frame)
    return code.frames


def _offsets(code: Code, track: Callable[[Op, dict[int, int]], dict[int, int]]) -> list[dict[int, int]]:
    """Follow addresses in the stack from instruction to instruction, and keep what all ways to one agree on."""
    offsets: list[dict[int, int] | None] = [None] * len(code.ops)
    waiting: list[tuple[int, dict[int, int]]] = [(0, {FRAME_POINTER: 0})]
    while waiting:
        index, incoming = waiting.pop()
        known = offsets[index]
        merged = incoming if known is None else {r: o for r, o in known.items() if incoming.get(r) == o}
        if known is not None and merged == known:
            continue
        offsets[index] = merged
        outgoing = track(code.ops[index], merged)
        waiting.extend((after, outgoing) for after in code.next_of(index))
    return [frame or {FRAME_POINTER: 0} for frame in offsets]


def _track_frame(op: Op, before: dict[int, int]) -> dict[int, int]:
    after = dict(before)
    if op.kind == "call":
        for register in range(6):
            after.pop(register, None)
    elif op.kind in ("alu", "load", "imm64"):
        after.pop(op.dst, None)
        if op.kind == "alu" and op.bits == 64:
            if op.name == "mov" and op.from_register and op.src in before:
                after[op.dst] = before[op.src]
            elif op.name == "add" and not op.from_register and op.dst in before:
                after[op.dst] = before[op.dst] + op.raw.imm
    return after


def _track_spills(op: Op, before: dict[int, int]) -> dict[int, int]:
    """The same with the stack: an address that lies there has the (negative) offset of its place for its key."""
    after = _track_frame(op, before)
    if op.kind == "load" and op.src in before and op.size == _ADDRESS_BYTES:
        held = before.get(before[op.src] + op.raw.offset)
        if held is not None:
            after[op.dst] = held
    elif op.kind in ("store", "atomic") and op.dst in before:
        start = before[op.dst] + op.raw.offset
        for place in [each for each in after if each < 0 and start - _ADDRESS_BYTES < each < start + op.size]:
            del after[place]
        if op.kind == "store" and op.from_register and op.src in before and op.size == _ADDRESS_BYTES and start < 0:
            after[start] = before[op.src]
    return after
