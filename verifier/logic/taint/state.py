"""What a function holds at one place of it: its registers and its own stack."""

from __future__ import annotations

from verifier.logic.taint.values import Target, Value, join, together

Stack = dict[tuple[int, int], Value]
"""(offset, bytes) -> what is there."""

_MOST_WITHIN = 4
_STEPS_OF_A_WALK = 8
"""Places of one area that a pointer may reach in a loop before it is taken to reach all of them."""


class State:
    """Registers and stack before an instruction; what is not there has no value yet.

    A block changes a copy of its own; no other state is ever changed.

    Attributes:
        regs: what each register holds.
        shared: the stack; not to be changed, other states may have the same one.
        touched: whether anybody looked at the stack of this copy, and so may have changed it.
        within: stacks that were joined into this one.
    """

    __slots__ = ("regs", "shared", "touched", "within")

    def __init__(self, regs: list[Value | None], stack: Stack) -> None:
        self.regs = regs
        self.shared = stack
        self.touched = False
        self.within: tuple[Stack, ...] = ()

    @property
    def stack(self) -> Stack:
        """The stack to work with."""
        if not self.touched:
            self.shared, self.touched = dict(self.shared), True
        return self.shared

    def copy(self) -> State:
        return State(list(self.regs), self.shared)


def of_stack(state: State, target: Target, size: int) -> Value | None:
    """What is in a part of the own stack."""
    if target.offset is not None:
        exact = state.stack.get((target.offset, size))
        if exact is not None:
            return exact
    loaded: Value | None = None
    low, high = (target.base, 0) if target.offset is None else (target.offset, target.offset + size)
    for (offset, width), value in state.stack.items():
        if offset < high and low < offset + width:
            part = value if width == size else value._replace(const=None, points=frozenset())
            loaded = join(loaded, part)
    return loaded


def to_stack(state: State, target: Target, size: int, value: Value) -> None:
    """Store a value in the own stack."""
    if target.offset is None:
        for key, held in list(state.stack.items()):
            if key[0] + key[1] > target.base:
                joined = join(held, value)
                assert joined is not None, "both are values"
                state.stack[key] = joined
        reach = (target.base, max(size, -target.base))  # to the end of the frame
        state.stack[reach] = join(state.stack.get(reach), value) or value
        return
    low, high = target.offset, target.offset + size
    for offset, width in [key for key in state.stack if low <= key[0] and key[0] + key[1] <= high]:
        del state.stack[(offset, width)]
    state.stack[(target.offset, size)] = value


def joined(before: State | None, after: State, live: int, *, widen: bool) -> State | None:
    """The state for both, registers that are not read any more left out; None if that is the one before."""
    if before is None:
        return State([value if live >> number & 1 else None for number, value in enumerate(after.regs)], after.shared)
    regs = _joined_registers(before.regs, after.regs, live, widen=widen)
    stack = before.shared
    if not any(each is after.shared for each in before.within):
        stack = _joined_stacks(before.shared, after.shared, widen=widen)
        before.within = (after.shared, *before.within[: _MOST_WITHIN - 1])
    if regs is before.regs and stack is before.shared:
        return None
    both = State(regs, stack)
    both.within = before.within
    return both


def _widened(held: Value | None, value: Value) -> Value | None:
    """What holds for both where a loop comes by again: a pointer that still grows has walked through its area."""
    both = join(held, value, widen=True)
    if held is None or both is None or len(both.points) <= max(len(held.points), _STEPS_OF_A_WALK):
        return both
    return both._replace(points=together(both.points, _STEPS_OF_A_WALK))


def _joined_registers(
    before: list[Value | None], after: list[Value | None], live: int, *, widen: bool
) -> list[Value | None]:
    regs = before
    for number, (held, value) in enumerate(zip(before, after, strict=True)):
        if value is held or value is None or not live >> number & 1:
            continue
        both = _widened(held, value) if widen else join(held, value)
        if both != held:
            regs = list(before) if regs is before else regs
            regs[number] = both
    return regs


def _joined_stacks(before: Stack, after: Stack, *, widen: bool) -> Stack:
    stack = before
    if after is before:
        return stack
    for place, value in after.items():
        held = before.get(place)
        if value is held:
            continue
        both = _widened(held, value) if widen else join(held, value)
        if both is not None and both != held:
            stack = dict(before) if stack is before else stack
            stack[place] = both
    return stack
