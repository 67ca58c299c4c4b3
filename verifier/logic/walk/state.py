"""The machine at one point of one path: registers, stack, facts, frames."""

from __future__ import annotations

from typing import NamedTuple

from verifier.logic.walk import calls
from verifier.logic.walk.code import ALL_STACK, REGISTERS, Code, stack_bits
from verifier.logic.walk.events import Marks, Trail
from verifier.logic.walk.facts import Facts, living, without
from verifier.logic.walk.terms import Term, TermKind, Terms, low_half, pointer
from verifier.object.image import Line

SavedRegisters = tuple[Term, ...]
Stack = dict[tuple[int, int], tuple[int, Term]]
"""(frame depth, offset) -> (bytes, value)."""


class Frame(NamedTuple):
    """Where a call goes back to.

    Args:
        back: index of the instruction after the call.
        saved: r6 to r9 of the caller.
        again: the arguments of a callback that may be called once more (bpf_loop); None for a plain call.
        result: what the helper that runs the callback returns.
    """

    code: Code
    back: int
    saved: SavedRegisters
    again: tuple[Term, ...] | None = None
    result: Term | None = None


class State:
    """One path's machine; `fork` copies it.

    Attributes:
        origin: the instruction before this one.
        returned: where r0 was last computed.
    """

    __slots__ = ("code", "facts", "frames", "index", "loops", "marks", "origin", "regs", "returned", "stack", "trail")

    def __init__(self, code: Code, regs: list[Term]) -> None:
        self.code = code
        self.index = 0
        self.origin = -1
        self.returned: Line | None = None
        self.regs = regs
        self.stack: Stack = {}
        self.facts = Facts()
        self.frames: tuple[Frame, ...] = ()
        self.marks = Marks()
        self.trail: Trail | None = None
        self.loops: dict[tuple[int, str, int], tuple[tuple[Term, ...], Stack]] = {}

    def fork(self) -> State:
        other = State.__new__(State)
        other.code, other.index, other.origin, other.regs = self.code, self.index, self.origin, list(self.regs)
        other.stack, other.facts, other.frames = dict(self.stack), self.facts, self.frames
        other.marks, other.trail, other.loops = self.marks, self.trail, dict(self.loops)
        other.returned = self.returned
        return other

    def read_stack(self, depth: int, offset: int, size: int, terms: Terms) -> Term | None:
        """Return what was stored there, None if that is not known."""
        slot = self.stack.get((depth, offset))
        if slot is None:
            return self._part_of(depth, offset, size, terms)
        stored_size, value = slot
        if stored_size == size:
            return value
        return terms.zext(value) if (stored_size, size) == (8, 4) else None

    def _part_of(self, depth: int, offset: int, size: int, terms: Terms) -> Term | None:
        """Read from the middle of a wider constant, as clang initialises structs."""
        start = offset & ~7
        stored_size, value = self.stack.get((depth, start), (0, None))
        if value is None or stored_size != 8 or not value.is_const or offset + size > start + 8:
            return None
        return terms.const(value.value >> (8 * (offset - start)) & ((1 << (8 * size)) - 1))

    def write_stack(self, depth: int, offset: int, size: int, value: Term) -> None:
        for place in [key for key in self.stack if key[0] == depth and offset - 8 < key[1] < offset + size]:
            if place[1] + self.stack[place][0] > offset:
                del self.stack[place]
        self.stack[depth, offset] = (size, value)

    def forget_stack(self, depth: int, offset: int, size: int) -> None:
        """A call wrote there."""
        for key in [key for key in self.stack if key[0] == depth and offset <= key[1] < offset + size]:
            del self.stack[key]

    def remake(self, term: Term, terms: Terms) -> None:
        """Give a term a new value: what was known of the old one is dropped, and what holds the old one is renamed."""
        self.facts = without(self.facts, term)
        for register, value in enumerate(self.regs):
            if term in value.roots:
                self.regs[register] = self._before(term, value, register, terms)
        for place, (size, value) in self.stack.items():
            if term in value.roots:
                self.stack[place] = (size, self._before(term, value, place, terms))
        for depth, frame in enumerate(self.frames):
            for index, value in enumerate(frame.saved):
                if term in value.roots:
                    self._rename_saved(depth, index, self._before(term, value, ("saved", depth, index), terms))

    def _rename_saved(self, depth: int, index: int, value: Term) -> None:
        frame = self.frames[depth]
        frame = frame._replace(saved=(*frame.saved[:index], value, *frame.saved[index + 1 :]))
        self.frames = (*self.frames[:depth], frame, *self.frames[depth + 1 :])

    def _before(self, term: Term, value: Term, place: object, terms: Terms) -> Term:
        """Return a new name for what a place holds of a term; what has that name already is renamed first.

        The counter of an earlier round is still a number of that loop, and an address in the arena lies there; nothing
        is known of anything else.
        """
        if low_half(value) is term and term.kind is TermKind.INDEX:
            site, start, end = term.parts
            before = terms.make(TermKind.INDEX, ("before", site, place), start, end)
        else:
            before = terms.make(TermKind.UNKNOWN, "before", term, place)
        self.remake(before, terms)
        base = pointer(value)[0]
        in_arena = base.kind is TermKind.PURE and base.name == calls.ARENA
        return terms.make(TermKind.PURE, calls.ARENA, (before,)) if in_arena else before

    def trim(self, dead: Term) -> None:
        """Drop what nothing reads any more, so that paths that differ in nothing else become one."""
        mask = self.code.live[self.index]
        regs = self.regs
        for register in range(REGISTERS - 1):
            if not mask >> register & 1:
                regs[register] = dead
        if self.stack:
            masks = [self._caller_mask(frame) for frame in self.frames]
            masks.append(mask & ALL_STACK)
            self.stack = {
                place: held
                for place, held in self.stack.items()
                if place[0] < len(masks) and masks[place[0]] & stack_bits(place[1], place[1] + held[0])
            }
        roots: set[Term] = set()
        for value in regs:
            roots |= value.roots
        for _size, value in self.stack.values():
            roots |= value.roots
        for frame in self.frames:
            for value in frame.saved:
                roots |= value.roots
        for pending in self.marks.pending:
            roots.add(pending.result)
        self.facts = living(self.facts, frozenset(roots))

    @staticmethod
    def _caller_mask(frame: Frame) -> int:
        """What the caller reads of its stack after the call, and what the call itself may read."""
        call = frame.code.live[max(frame.back - 1, 0)]
        after = frame.code.live[frame.back] if frame.back < len(frame.code.ops) else 0
        return (call | after) & ALL_STACK

    @property
    def key(self) -> tuple[object, ...]:
        return tuple(self.regs), self.frames, frozenset(self.stack.items()), frozenset(self.facts.items())
