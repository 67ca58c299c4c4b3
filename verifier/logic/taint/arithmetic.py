"""How values are computed with and compared: what stays free of charge, and what becomes an input.

`blame(kinds)` makes labels of kinds: the caller knows where in the code it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from verifier.logic.taint import kernel
from verifier.logic.taint.values import (
    CLOCKS,
    COUNTS,
    DURATIONS,
    FREE,
    LARGE_MACHINE,
    LARGE_NODES,
    MASK64,
    PLACES,
    SHOWN_EVENTS,
    SHOWN_NS,
    Area,
    Kind,
    Target,
    Value,
    constant,
    magnitude,
    shifted,
    signed,
)

Blame = Callable[[int], int]
"""Kinds that were used for what they are not meant for -> labels."""

_FREE_FLAGS = 0x0420_003F
"""PF_VCPU, PF_IDLE, PF_EXITING, PF_POSTCOREDUMP, PF_IO_WORKER, PF_WQ_WORKER, PF_KTHREAD and PF_NO_SETAFFINITY of
include/linux/sched.h: what kind of task it is, and no user's doing."""

_MEASURED = CLOCKS | DURATIONS | Kind.BIRTH
_WORD = 32
_ANY_STEP = 1e-6
"""So small a step that a counter may not be compared with anything."""


def compute(name: str, bits: int, left: Value, right: Value, blame: Blame) -> Value:
    """The result of an ALU operation that is no move."""
    if left.const is not None and right.const is not None and not left.kinds and not right.kinds:
        number = _fold(name, bits, left.const, right.const)
        if number is not None:
            return constant(number)._replace(labels=left.labels | right.labels)
    if name in ("add", "sub") and (left.points or right.points):
        return _moved(name, left, right, blame)
    if left.points or right.points:
        left, right = _number(left, blame), _number(right, blame)
    if name == "add":
        return _add(left, right, blame)
    if name == "sub":
        return _subtract(left, right, blame)
    if not left.kinds and not right.kinds and name not in ("add", "sub"):
        return _plain(name, left, right)
    return _OPERATIONS.get(name, _other)(left, right, blame)


def moved_word(value: Value, blame: Blame) -> Value:
    """The lower 32 bits of a value."""
    if value.points:
        return _number(value, blame)
    lost = value.kinds & (Kind.TIME | Kind.BIRTH | Kind.RUNTIME | Kind.KEY)
    const = None if value.const is None else value.const & 0xFFFFFFFF
    size = float(const) if const is not None else value.size
    return value._replace(
        const=const, size=size, kinds=value.kinds & ~lost, labels=value.labels | (blame(lost) if lost else 0)
    )


def compare(name: str, left: Value, right: Value, blame: Blame) -> int:
    """The labels of a condition."""
    labels = left.labels | right.labels
    if left.points and right.points:
        known = (left.kinds | right.kinds) & Kind.TASK
        if _is_identity(left, right):
            known |= Kind.ADDRESS
        return labels | (blame(known) if known else 0)
    kinds = left.kinds | right.kinds
    if not kinds:
        return labels
    if left.points or right.points:
        return labels
    wrong = kinds & Kind.ADDRESS
    wrong |= _wrong_clocks(name, left, right) | _wrong_durations(left, right)
    wrong |= _wrong_numbers(name, left, right) | _wrong_numbers(_TURNED.get(name, name), right, left)
    return labels | (blame(wrong) if wrong else 0)


def _is_identity(left: Value, right: Value) -> bool:
    """Whether two pointers into the kernel are compared, other than tasks and their masks: whose this is.

    What is an input by itself has its label, and may be a number that only looks like a pointer.
    """
    names = [area.name for value in (left, right) for area, _offset, _base in value.points if area.kind == "kernel"]
    return any(name and "cpus_" not in name and kernel.of_field(name) == ("", Kind.NONE) for name in names)


def used_as(value: Value, allowed: int, blame: Blame) -> int:
    """The labels of a value that decides something for which only some kinds are meant."""
    wrong = value.kinds & ~(allowed | PLACES | COUNTS | Kind.TASK)
    if value.kinds & DURATIONS and value.scale > SHOWN_NS:
        wrong |= value.kinds & DURATIONS
    return value.labels | (blame(wrong) if wrong else 0)


# --- arithmetic


def _number(value: Value, blame: Blame) -> Value:
    """A pointer that is computed with as a number."""
    return value._replace(points=frozenset(), labels=value.labels | blame(Kind.ADDRESS)) if value.points else value


def _fold(name: str, bits: int, left: int, right: int) -> int | None:
    """An operation on two known numbers; None if it is none of the common ones."""
    mask = MASK64 if bits == 64 else 0xFFFFFFFF
    left, right = left & mask, right & mask
    operation = _FOLDED.get(name)
    if operation is not None:
        return operation(left, right) & mask
    distance = right % bits
    if name == "arsh":
        return ((left - (mask + 1) if left >> (bits - 1) else left) >> distance) & mask
    return {"lsh": left << distance & mask, "rsh": left >> distance}.get(name)


_FOLDED: Mapping[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "div": lambda left, right: left // right if right else 0,
    "mod": lambda left, right: left % right if right else left,
}


def _moved(name: str, left: Value, right: Value, blame: Blame) -> Value:
    """A pointer and a number, or the difference of two pointers."""
    if left.points and right.points:
        return Value(labels=left.labels | right.labels, fixed=False)
    base, step = (left, right) if left.points else (right, left)
    lost = step.kinds & (_MEASURED | Kind.PID | Kind.FLAGS)
    labels = base.labels | step.labels | (blame(lost) if lost else 0)
    if step.field:
        return base._replace(points=frozenset({Target(Area("kernel", step.field), 0)}), labels=labels)
    if step.const is None:
        points = frozenset(
            Target(area, None, offset if offset is not None else low) for area, offset, low in base.points
        )
        # numbers of CPUs index tables of constants, too: what is read there knows them
        return base._replace(points=points, labels=labels, kinds=base.kinds | step.kinds & PLACES)
    distance = signed(step.const) * (1 if name == "add" else -1)
    return base._replace(points=frozenset(shifted(target, distance) for target in base.points), labels=labels)


def _gain(name: str, left: Value, right: Value) -> float:
    """By what has been multiplied what was loaded."""
    if not left.origins or not right.origins:
        value, other = (left, right) if left.origins else (right, left)
        if other.const:
            shift = 2.0 ** (other.const % 64)
            factors = {"mul": other.const, "lsh": shift, "div": 1 / other.const, "rsh": 1 / shift, "arsh": 1 / shift}
            return value.gain * factors.get(name, 1.0)
        return value.gain
    if left.loaded is not None and left.loaded == right.loaded and name in ("add", "sub"):
        return left.gain + right.gain if name == "add" else abs(left.gain - right.gain)
    return max(left.gain, right.gain)


def _result(left: Value, right: Value, labels: int = 0, *, name: str = "") -> Value:
    loaded = None
    if name in ("mul", "div", "lsh", "rsh", "arsh") and not (left.origins and right.origins):
        loaded = left.loaded or right.loaded
    return Value(
        fixed=left.fixed and right.fixed,
        labels=left.labels | right.labels | labels,
        origins=left.origins | right.origins,
        changed=True,
        remembered=left.remembered or right.remembered,
        gain=_gain(name, left, right),
        loaded=loaded,
    )


def _plain(name: str, left: Value, right: Value) -> Value:
    """An operation on numbers without kinds."""
    grown = max(left.grown, right.grown)
    match name:
        case "mul":
            size = left.size * right.size
            grown = max(grown, 1.0)
        case "div" if right.const:
            size = left.size / right.const
        case "rsh" | "arsh" if right.const is not None:
            size = left.size / 2.0 ** (right.const % 64)
        case "lsh" if right.const is not None:
            size = left.size * 2.0 ** (right.const % 64)
            grown = max(grown, 1.0)
        case "and":
            size = min(left.size, right.size)
        case "mod":
            size = min(left.size, right.size)
        case "div":
            size = left.size / max(right.size, 1.0)
        case "rsh" | "arsh":
            size = left.size
        case _:
            size = left.size + right.size
    bounded = name in ("and", "mod")
    result = _result(left, right, name=name)
    gain = result.gain
    if name in ("or", "xor") and result.origins and not (left.is_constant or right.is_constant):
        grown, gain = max(grown, _ANY_STEP), 1.0  # a register of bits that makes the next out of the last
    return result._replace(size=size, grown=grown, gain=gain, origins=frozenset() if bounded else result.origins)


def _add(left: Value, right: Value, blame: Blame) -> Value:
    result = _result(left, right, name="add")
    kinds = left.kinds | right.kinds
    wrong = Kind.NONE
    if left.kinds & CLOCKS and right.kinds & CLOCKS:
        wrong |= kinds & CLOCKS
    wrong |= kinds & (Kind.BIRTH | Kind.PID | Kind.FLAGS)
    if kinds & (CLOCKS & ~Kind.COUNT):
        kinds &= ~(DURATIONS | PLACES | COUNTS)
    if kinds & Kind.COUNT and kinds & DURATIONS:
        wrong |= Kind.COUNT
    for value, other in ((left, right), (right, left)):
        numbers = value.kinds & COUNTS
        if numbers and other.const is not None and signed(other.const) < -1:
            wrong |= numbers
    return _sum(result, left, right, kinds & ~wrong, blame(wrong) if wrong else 0)


def _subtract(left: Value, right: Value, blame: Blame) -> Value:
    result = _result(left, right, name="sub")
    wrong = (left.kinds | right.kinds) & (Kind.BIRTH | Kind.PID | Kind.FLAGS)
    first, second = left.kinds & CLOCKS, right.kinds & CLOCKS
    kinds = (left.kinds | right.kinds) & ~CLOCKS
    if first and second:
        shared = first & second
        if (first | second) & Kind.KEY:
            shared |= (first | second) & ~Kind.COUNT
        if not shared & ~Kind.COUNT and not Kind.COUNT & first & second:
            wrong |= first | second
        kinds |= Kind.COUNT if shared == Kind.COUNT else Kind.SPAN
    elif first:
        kinds = first | left.kinds & (PLACES | COUNTS)
    elif second and not (second == Kind.KEY and left.kinds & DURATIONS):
        wrong |= second
        kinds &= ~second
    elif second:
        kinds |= Kind.SPAN
    if left.kinds & COUNTS and right.const is not None and signed(right.const) > 1:
        wrong |= left.kinds & COUNTS
    if right.kinds & COUNTS and left.is_constant:
        wrong |= right.kinds & COUNTS
    if wrong & Kind.BIRTH:
        kinds &= ~CLOCKS
    return _sum(result, left, right, kinds & ~wrong, blame(wrong) if wrong else 0)


def _sum(result: Value, left: Value, right: Value, kinds: int, labels: int) -> Value:
    measured = CLOCKS if (left.kinds | right.kinds) & CLOCKS else DURATIONS  # what is added to a clock is in its units
    scale = max((value.scale for value in (left, right) if value.kinds & measured), default=1.0)
    return _grown(result, left, right)._replace(kinds=kinds, scale=scale, size=left.size + right.size,
        labels=result.labels | labels,
    )  # fmt: skip


def _grown(result: Value, left: Value, right: Value) -> Value:
    """What was loaded and has something added is still what was loaded."""
    for value, other in ((left, right), (right, left)):
        if value.loaded is not None and not other.origins:
            return result._replace(loaded=value.loaded, grown=value.grown + max(other.size, 1e-9))
    return result._replace(grown=left.grown + right.grown)


def _multiply(left: Value, right: Value, blame: Blame) -> Value:
    if right.kinds and not left.kinds:
        left, right = right, left
    result = _result(left, right, name="mul")
    wrong = (left.kinds | right.kinds) & (CLOCKS & ~Kind.COUNT | Kind.BIRTH | Kind.PID | Kind.FLAGS)
    kinds = (left.kinds | right.kinds) & ~wrong
    if kinds & Kind.COUNT and right.const is None:
        wrong |= Kind.COUNT
        kinds &= ~Kind.COUNT
    if kinds & COUNTS and not (left.is_constant or right.is_constant):
        kinds &= ~COUNTS
    factor = float(magnitude(right.const)) if right.const else 1.0
    return result._replace(kinds=kinds, scale=left.scale / factor, size=left.size * factor,
        labels=result.labels | (blame(wrong) if wrong else 0),
    )  # fmt: skip


def _divide(left: Value, right: Value, blame: Blame) -> Value:
    result = _result(left, right, name="div")
    wrong = (left.kinds | right.kinds) & (CLOCKS & ~Kind.COUNT | Kind.BIRTH | Kind.PID | Kind.FLAGS)
    wrong |= right.kinds & Kind.COUNT
    kinds = left.kinds & ~wrong
    divisor = float(right.const) if right.const else 1.0
    shrunk = float(right.const or max(right.size, 1.0))
    if right.kinds & DURATIONS and left.is_constant and left.size * right.scale > SHOWN_NS:
        wrong |= right.kinds & DURATIONS  # events per time: 0 where they are rarer than the proof can show
    if left.kinds & COUNTS:
        if right.is_constant:
            wrong |= left.kinds & COUNTS
        kinds &= ~COUNTS
    if right.kinds & COUNTS and left.is_constant:
        wrong |= right.kinds & COUNTS
    if kinds & Kind.COUNT and right.const is None:
        wrong |= Kind.COUNT
    scale = left.scale * divisor if kinds & (DURATIONS | Kind.COUNT) else 1.0
    if kinds & DURATIONS and right.const is None:
        scale = max(scale, 1.0)  # a weight takes back what a factor gave: units do not shrink each time round
    if kinds & DURATIONS and scale > SHOWN_NS:
        wrong |= kinds & DURATIONS
    return result._replace(kinds=kinds & ~wrong, scale=scale, size=left.size / shrunk,
        labels=result.labels | (blame(wrong) if wrong else 0),
    )  # fmt: skip


def _modulo(left: Value, right: Value, blame: Blame) -> Value:
    result = _result(left, right)._replace(origins=frozenset(), size=min(left.size, right.size))
    wrong = left.kinds & (_MEASURED & ~Kind.COUNT | Kind.PID | Kind.FLAGS)
    wrong |= right.kinds & (CLOCKS | Kind.BIRTH | Kind.PID | Kind.FLAGS)
    if left.kinds & Kind.COUNT and (not right.is_constant or right.size * left.scale > SHOWN_EVENTS):
        wrong |= Kind.COUNT if not right.kinds & COUNTS else Kind.NONE
    if left.kinds & COUNTS and right.is_constant:
        wrong |= left.kinds & COUNTS
    if right.kinds & COUNTS and left.is_constant:
        wrong |= right.kinds & COUNTS
    kinds = left.kinds & (PLACES | Kind.BITS)
    if right.kinds & (Kind.CPUS | Kind.ALLOWED):
        kinds |= Kind.CPU
    if right.kinds & Kind.NODES:
        kinds |= Kind.NODE
    return result._replace(kinds=kinds, labels=result.labels | (blame(wrong) if wrong else 0))


def _mask(left: Value, right: Value, blame: Blame) -> Value:
    if right.kinds and not left.kinds:
        left, right = right, left
    result = _result(left, right)._replace(origins=frozenset(), size=min(left.size, right.size))
    mask = right.const
    if left.kinds & DURATIONS and right.kinds & DURATIONS:
        return _other(left, right, blame)
    if mask == 0xFFFFFFFF and not left.kinds & (Kind.TIME | Kind.BIRTH | Kind.RUNTIME | Kind.KEY):
        return left._replace(labels=result.labels)
    wrong = (left.kinds | right.kinds) & (_MEASURED & ~Kind.COUNT | Kind.PID)
    if left.kinds & Kind.COUNT and (mask is None or mask * left.scale >= SHOWN_EVENTS):
        wrong |= Kind.COUNT
    wrong |= _wrong_flags(left, mask)
    if left.kinds & COUNTS and right.is_constant:
        wrong |= left.kinds & COUNTS
    kinds = (left.kinds | right.kinds) & (PLACES | Kind.BITS)
    return result._replace(kinds=kinds, labels=result.labels | (blame(wrong) if wrong else 0))


def _wrong_flags(value: Value, mask: int | None) -> int:
    """Whether other bits than the free ones are looked at; `scale` says how far the flags were shifted."""
    if not value.kinds & Kind.FLAGS:
        return Kind.NONE
    if mask is None or int(mask * value.scale) & 0xFFFFFFFF & ~_FREE_FLAGS:
        return Kind.FLAGS
    return Kind.NONE


def _shift_left(left: Value, right: Value, blame: Blame) -> Value:
    if right.const is None:
        return _other(left, right, blame)
    if right.const >= _WORD and not left.kinds & (Kind.TIME | Kind.RUNTIME | Kind.KEY | Kind.BIRTH | Kind.FLAGS):
        return left._replace(labels=left.labels | right.labels)  # the first half of an extension of 32 bits
    if left.kinds & Kind.FLAGS:
        return left._replace(scale=left.scale / 2.0**right.const)
    return _multiply(left, constant(1 << right.const % 64), blame)


def _shift_right(left: Value, right: Value, blame: Blame) -> Value:
    if right.const is None:
        return _other(left, right, blame)
    if left.kinds & Kind.FLAGS:
        return _shifted_flags(left, right.const, blame)
    if right.const == _WORD and not left.kinds & (CLOCKS & ~Kind.COUNT | DURATIONS | Kind.BIRTH):
        return left._replace(labels=left.labels | right.labels)
    if right.const in (31, 63) and left.kinds & DURATIONS:
        return FREE._replace(labels=compare("slt", left, constant(0), blame))  # the sign of a difference
    return _divide(left, constant(1 << right.const % 64), blame)


def _shifted_flags(value: Value, distance: int, blame: Blame) -> Value:
    if distance in (31, 63):
        bit = int(2.0**distance * value.scale)
        wrong = Kind.NONE if bit & ~_FREE_FLAGS == 0 else Kind.FLAGS
        return FREE._replace(labels=value.labels | (blame(wrong) if wrong else 0))
    return value._replace(scale=value.scale * 2.0**distance, changed=True)


def _other(left: Value, right: Value, blame: Blame) -> Value:
    """or, xor, neg, byte swaps, shifts by what varies."""
    kinds = left.kinds | right.kinds
    if left.kinds & DURATIONS and right.kinds & DURATIONS and not kinds & ~DURATIONS:
        # compilers ask of several differences at once whether one is negative
        scale = max(left.scale, right.scale)
        return _result(left, right)._replace(kinds=kinds, scale=scale, size=left.size + right.size)
    wrong = kinds & (_MEASURED | Kind.PID | Kind.FLAGS)
    if left.is_constant or right.is_constant:
        wrong |= kinds & COUNTS
    return _result(left, right)._replace(kinds=kinds & (PLACES | Kind.BITS), size=left.size + right.size,
        labels=left.labels | right.labels | (blame(wrong) if wrong else 0),
    )  # fmt: skip


_OPERATIONS = {
    "mul": _multiply,
    "div": _divide,
    "mod": _modulo,
    "and": _mask,
    "lsh": _shift_left,
    "rsh": _shift_right,
    "arsh": _shift_right,
}


# --- comparisons

_TURNED = {"gt": "lt", "lt": "gt", "ge": "le", "le": "ge", "sgt": "slt", "slt": "sgt", "sge": "sle", "sle": "sge"}
_EQUAL = ("eq", "ne")


def _wrong_clocks(name: str, left: Value, right: Value) -> int:
    wrong = (left.kinds | right.kinds) & Kind.BIRTH
    first, second = left.kinds & CLOCKS, right.kinds & CLOCKS
    if name in _EQUAL:
        for value, other in ((left, right), (right, left)):
            if other.const == 0 and value.origins and value.grown == 0 and not value.changed:
                return Kind.NONE  # was it ever set?
    if not first and not second:
        return wrong
    if first and second:
        shared = first & second
        if (first | second) & Kind.KEY:
            shared |= first | second
        limit = SHOWN_EVENTS if shared == Kind.COUNT else SHOWN_NS
        if not shared or left.extent + right.extent > limit:
            wrong |= first | second
        return wrong
    clock, other = (left, right) if first else (right, left)
    kinds = first | second
    if kinds == Kind.COUNT and (other.is_constant or not other.kinds & DURATIONS):
        return wrong | (Kind.COUNT if other.size * clock.scale > SHOWN_EVENTS else Kind.NONE)
    if kinds == Kind.KEY and other.kinds & DURATIONS:
        return wrong | (kinds if left.extent + right.extent > SHOWN_NS else Kind.NONE)
    return wrong | kinds


def _wrong_durations(left: Value, right: Value) -> int:
    kinds = (left.kinds | right.kinds) & DURATIONS
    if not kinds or (left.kinds | right.kinds) & CLOCKS:
        return Kind.NONE
    scale = max(value.scale for value in (left, right) if value.kinds & DURATIONS)
    return kinds if max(left.size, right.size) * scale > SHOWN_NS else Kind.NONE


def _wrong_numbers(name: str, value: Value, other: Value) -> int:
    """Numbers of CPUs, nodes and processes on the left of a comparison."""
    kinds = value.kinds & (COUNTS | PLACES | Kind.PID | Kind.FLAGS)
    if not kinds:
        return Kind.NONE
    wrong = Kind.NONE
    number = None if other.const is None else signed(other.const)
    if kinds & Kind.PID and not (number == 0 and not value.changed):
        wrong |= Kind.PID
    if kinds & Kind.FLAGS:
        wrong |= _wrong_flags(value, other.const if name == "set" else None)
    if not other.fixed or other.points or other.kinds:
        return wrong
    if number is None:
        return wrong | kinds & (COUNTS | PLACES)
    cut = _highest_cut(name, number)
    low = 0 if not value.changed else -1
    if name in _EQUAL and number == 1 and not value.changed:
        kinds &= ~Kind.CPU  # the proof has a first and a last CPU
    for kind, shown, large in (
        (Kind.CPUS, 0, LARGE_MACHINE), (Kind.NODES, 0, LARGE_NODES), (Kind.ALLOWED, 1, LARGE_MACHINE),
        (Kind.CPU, low, LARGE_MACHINE), (Kind.NODE, -1, LARGE_NODES),
    ):  # fmt: skip
        if kinds & kind and number < large and cut > shown:
            wrong |= kind
    return wrong


def _highest_cut(name: str, number: int) -> int:
    """The largest n for which the comparison may tell n from n + 1."""
    if name in ("lt", "slt", "ge", "sge"):
        return number - 1
    return number
