"""Loops that count: how often the head of a loop is passed before a counter ends it.

A register or a stack slot counts if every round adds to it, never less than so much (or takes away), and if every
round compares it with a number and goes on only on one side of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from verifier.logic.walk import calls
from verifier.logic.walk.code import FRAME_POINTER, Code, Op, frame_offsets
from verifier.logic.walk.events import Ranges, Site

_LARGEST = 1 << 31
"""Counters and their bounds stay below, so that 32 and 64 bits mean the same."""

_LARGEST_STEP = 1 << 20
_UNSETTLED = 8
"""A difference that changed so often at one place grows with the rounds of an inner loop."""

_OPPOSITE = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}
_SWAPPED = {"eq": "eq", "ne": "ne", "lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}
_NO = (-1, 0)
_STACK_BYTES = 512
_REMEMBERED = 64
"""Functions of which is remembered what each of their loops asks."""


class Value(NamedTuple):
    """What a place held at the loop's head (base), or 0 (None), plus something from low to high."""

    base: int | None
    low: int
    high: int

    def plus(self, low: int, high: int) -> Value:
        return Value(self.base, self.low + low, self.high + high)


Places = dict[int, Value]
"""Registers by number, stack slots by their offset from the frame pointer, which is negative; others are unknown."""


def rounds(code: Code, part: frozenset[int], heads: Mapping[Site, Ranges]) -> tuple[int, int]:
    """Return the head of a loop and how often it is passed at most, (-1, 0) if the loop does not count."""
    head = _head(code, part)
    if head < 0:
        return _NO
    known = heads.get(Site(code.name, head))
    if known is None:
        return head, 0  # no path comes here
    flow = _Flow(code, part, head)
    steps = flow.steps()
    bounds = [bound for index in part for bound in _bounds_at(flow, index, steps, known)]
    return (head, min(bounds)) if bounds else _NO


def increments(code: Code, part: frozenset[int], heads: Mapping[Site, Ranges]) -> Iterator[tuple[int, int]]:
    """Yield instructions that add to a counter, not in every round, and how often each runs at most."""
    head = _head(code, part)
    known = heads.get(Site(code.name, head)) if head >= 0 else None
    if known is None:
        return
    for index in part:
        op = code.ops[index]
        if op.kind != "alu" or op.name != "add" or op.from_register or op.dst < 6 or not known.get(op.dst):
            continue
        steps = _Flow(code, part, index).steps()
        start = _first(code, part, head, index, op.dst, known[op.dst]) if op.dst in steps else None
        if start is not None:
            flow = _Flow(code, part, index)
            bounds = [bound for at in part for bound in _bounds_at(flow, at, steps, {op.dst: start})]
            if bounds:
                yield index, min(bounds)


def _first(
    code: Code, part: frozenset[int], head: int, index: int, register: int, entered: tuple[int, int]
) -> tuple[int, int] | None:
    """Return what a register holds when an instruction is reached first, None if the way there changes it."""
    flow = _Flow(code, part, head, stop=index)
    here = flow.before.get(index, {}).get(register)
    if here is None or here.base != register or flow.steps().get(register, (0, 0)) != (0, 0):
        return None
    if register not in flow.steps() and flow.goes_round:
        return None
    return entered[0] + here.low, entered[1] + here.high


def _head(code: Code, part: frozenset[int]) -> int:
    """Return the instruction at which a loop is entered, always and for the first time; -1 if that may be several."""
    entries = {(before, index) for index in part for before in code.entered_from(index) if before not in part}
    entered = {index for _before, index in entries}
    if 0 in part or len(entered) != 1 or not entered <= code.loop_heads or code.back_edges & entries:
        return -1
    return entered.pop()


class _Flow:
    """What places hold at each instruction of a loop, in terms of what they held at its head."""

    def __init__(self, code: Code, part: frozenset[int], head: int, stop: int = -1) -> None:
        self.code, self.part, self.head, self.stop = code, part, head, stop
        self.frames = frame_offsets(code)
        self.sizes = _sizes(code)
        self.shielded = not _writes_anywhere(code)
        self.before: dict[int, Places] = {}
        self._run()

    def _run(self) -> None:
        at_head: Places = {register: Value(register, 0, 0) for register in range(FRAME_POINTER)}
        if self.shielded:
            at_head |= {slot: Value(slot, 0, 0) for slot, size in self.sizes.items() if size}
        self.before[self.head] = at_head
        waiting, changes = [self.head], dict.fromkeys(self.part, 0)
        while waiting:
            index = waiting.pop()
            if index == self.stop:
                continue
            after = self._after(index)
            for following in self.code.next_of(index):
                if following not in self.part or following == self.head:
                    continue
                known = self.before.get(following)
                merged = after if known is None else _joined(known, after, changes[following] >= _UNSETTLED)
                if merged != known:
                    self.before[following] = merged
                    changes[following] += 1
                    waiting.append(following)

    def steps(self) -> dict[int, tuple[int, int]]:
        """What a round adds to each place, at least and at most; places that are written otherwise are left out."""
        ends = [self._after(index) for index in self._ends()]
        steps = {}
        for place in self.before[self.head]:
            values = [end.get(place) for end in ends]
            if values and all(value is not None and value.base == place for value in values):
                steps[place] = min(v.low for v in values if v), max(v.high for v in values if v)
        return steps

    def _ends(self) -> list[int]:
        """The instructions of the loop that lead back to the head."""
        return [before for before in self.code.entered_from(self.head)
                if before in self.part and before in self.before and before != self.stop]  # fmt: skip

    @property
    def goes_round(self) -> bool:
        return bool(self._ends())

    def _after(self, index: int) -> Places:
        op, after = self.code.ops[index], dict(self.before[index])
        frame = self.frames[index]
        if op.kind == "alu":
            _set(after, op.dst, self._computed(op, after))
        elif op.kind == "imm64":
            _set(after, op.dst, None)
        elif op.kind == "load":
            slot = frame[op.src] + op.raw.offset if op.src in frame else 0
            _set(after, op.dst, after.get(slot) if slot < 0 else None)
        elif op.kind in ("store", "atomic"):
            self._store(op, after, frame)
        elif op.kind == "call":
            self._call(op, after, frame)
        return after

    def _computed(self, op: Op, places: Places) -> Value | None:
        right: Value | None = None
        if op.from_register:
            right = places.get(op.src)
        elif op.raw.ref is None and (op.bits == 64 or op.raw.imm >= 0 or op.name in ("add", "sub")):
            right = Value(None, op.raw.imm, op.raw.imm)
        left = places.get(op.dst)
        if right is None:
            return None
        if op.name == "mov":
            return right if op.raw.offset == 0 else None
        if left is None or right.base is not None or op.name not in ("add", "sub"):
            return None
        return left.plus(right.low, right.high) if op.name == "add" else left.plus(-right.high, -right.low)

    def _store(self, op: Op, places: Places, frame: Mapping[int, int]) -> None:
        if op.kind == "atomic":
            for register in (0, op.src):
                places.pop(register, None)
        if op.dst not in frame:
            return
        slot = frame[op.dst] + op.raw.offset
        _forget(places, slot, slot + op.size)
        if op.kind == "store" and self.shielded and self.sizes.get(slot):
            value = places.get(op.src) if op.from_register else Value(None, op.raw.imm, op.raw.imm)
            _set(places, slot, value)

    def _call(self, op: Op, places: Places, frame: Mapping[int, int]) -> None:
        for register in range(6):
            places.pop(register, None)
        ref = op.raw.ref
        name = calls.canonical(ref.name) if ref is not None else ""
        given = [offset for register, offset in frame.items() if 1 <= register <= 5]
        if name.startswith("bpf_iter_") or not given:
            return
        if ref is None or ref.kind == "function" or name in calls.CALLBACK_ARGUMENT:
            _forget(places, -_STACK_BYTES, 0)  # a function of the object reaches all of the caller's stack
        elif name not in calls.ONLY_READS:
            _forget(places, min(given), 0)


@functools.lru_cache(maxsize=_REMEMBERED)
def _sizes(code: Code) -> Mapping[int, int]:
    """The stack slots that are always read and written whole: how many bytes each has; 0 for the others."""
    sizes: dict[int, int] = {}
    for op, frame in zip(code.ops, frame_offsets(code), strict=True):
        base = {"load": op.src, "store": op.dst}.get(op.kind, -1)
        if base in frame:
            slot = frame[base] + op.raw.offset
            sizes[slot] = op.size if sizes.get(slot, op.size) == op.size and op.size >= 4 else 0
    return sizes


@functools.lru_cache(maxsize=_REMEMBERED)
def _writes_anywhere(code: Code) -> bool:
    """Whether something is stored, or may be by a call, at an address in the stack that is not known here."""
    frames = frame_offsets(code)
    filled = any(
        op.kind == "store" and op.from_register and op.src in frames[index] for index, op in enumerate(code.ops)
    )
    held = [0] * len(code.ops)
    held[0] = 1 << FRAME_POINTER
    waiting = [0]
    while waiting:
        index = waiting.pop()
        op, frame, before = code.ops[index], frames[index], held[index]
        strays = before & ~sum(1 << register for register in frame)
        if op.kind in ("store", "atomic") and strays >> op.dst & 1:
            return True
        if op.kind == "call" and strays & 0b111110:
            return True
        after = _stack_pointers(op, before, filled)
        for following in code.next_of(index):
            if after & ~held[following]:
                held[following] |= after
                waiting.append(following)
    return False


def _stack_pointers(op: Op, before: int, filled: bool) -> int:
    """Return a bit for each register that may hold an address in the stack after an instruction."""
    if op.kind == "call":
        return before & ~0b111111
    if op.kind not in ("alu", "load", "imm64"):
        return before
    source = bool(op.from_register and before >> op.src & 1)
    holds = (op.kind == "alu" and (source or (op.name != "mov" and before >> op.dst & 1))) or (
        op.kind == "load" and filled and bool(before >> op.src & 1)
    )
    return before | 1 << op.dst if holds else before & ~(1 << op.dst)


def _set(places: Places, place: int, value: Value | None) -> None:
    if value is None:
        places.pop(place, None)
    else:
        places[place] = value


def _forget(places: Places, low: int, high: int) -> None:
    """Drop the stack slots that overlap [low, high)."""
    for slot in [place for place in places if place < 0 and place < high and place + 8 > low]:
        del places[slot]


def _joined(known: Places, other: Places, unsettled: bool) -> Places:
    joined = {}
    for place, value in known.items():
        beside = other.get(place)
        if value == beside:
            joined[place] = value
        elif beside is not None and beside.base == value.base:
            wider = Value(value.base, min(value.low, beside.low), max(value.high, beside.high))
            if wider == value or not unsettled:
                joined[place] = wider
    return joined


def _bounds_at(flow: _Flow, index: int, steps: Mapping[int, tuple[int, int]], known: Ranges) -> Iterator[int]:
    """Yield how often the head is passed if the branch at an index ends the loop."""
    code, op = flow.code, flow.code.ops[index]
    if op.kind != "branch" or index not in flow.before or op.name == "set":
        return
    stays = [after in flow.part for after in (op.target, index + 1)]
    if stays[0] == stays[1] or _avoidable(code, flow.part, flow.head, index):
        return
    name = op.name.removeprefix("s") if op.name.startswith("s") else op.name
    name = name if stays[0] else _OPPOSITE[name]
    places = flow.before[index]
    right = places.get(op.src) if op.from_register else Value(None, op.raw.imm, op.raw.imm)
    left = places.get(op.dst)
    if left is None or right is None or op.raw.ref is not None:
        return
    for counter, relation, other in ((left, name, right), (right, _SWAPPED[name], left)):
        limit = _limit(other, steps, known)
        if counter.base in steps and counter.base is not None and limit is not None:
            start = known.get(counter.base)
            if start is not None and 0 <= start[0] <= start[1] < _LARGEST:
                yield from _count(relation, start, counter, steps[counter.base], limit)


def _avoidable(code: Code, part: frozenset[int], head: int, index: int) -> bool:
    """Whether a round may get from the head back to it without passing an instruction."""
    if index == head:
        return False
    waiting, seen = [head], {head}
    while waiting:
        for after in code.next_of(waiting.pop()):
            if after == head:
                return True
            if after in part and after != index and after not in seen:
                seen.add(after)
                waiting.append(after)
    return False


def _limit(value: Value, steps: Mapping[int, tuple[int, int]], known: Ranges) -> tuple[int, int] | None:
    """Return the bounds of what a counter is compared with: a number, or a place that no round changes."""
    low, high = value.low, value.high
    if value.base is not None:
        start = known.get(value.base)
        if steps.get(value.base) != (0, 0) or start is None:
            return None
        low, high = low + start[0], high + start[1]
    return (low, high) if 0 <= low <= high < _LARGEST else None


def _count(
    relation: str, start: tuple[int, int], counter: Value, step: tuple[int, int], limit: tuple[int, int]
) -> Iterator[int]:
    """Yield how often `counter relation limit` holds at most, where a round adds a step to the counter."""
    low, high = step
    if not -_LARGEST_STEP <= low <= high <= _LARGEST_STEP or max(abs(counter.low), abs(counter.high)) > _LARGEST_STEP:
        return
    first = start[0] + counter.low, start[1] + counter.high
    exact = low == high and abs(low) == 1 and counter.low == counter.high and limit[0] == limit[1]
    if low >= 1:
        if relation in ("lt", "le") and first[0] >= 0:
            yield max(0, limit[1] - first[0]) // low + 2
        elif relation == "ne" and exact and first[1] <= limit[0]:
            yield limit[0] - first[0] + 1
    elif high <= -1:
        smallest = limit[0] + (relation == "gt") + low  # below 0 it would be a large number again
        if relation in ("gt", "ge") and counter.low == counter.high and first[0] >= 0 and smallest >= 0:
            yield max(0, first[1] - limit[0]) // -high + 2
        elif relation == "ne" and exact and first[0] >= limit[0]:
            yield first[1] - limit[0] + 1
