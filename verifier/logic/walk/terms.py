"""Symbolic values of registers and stack slots.

A Term records where a value comes from, not only what it is: `SCX_DSQ_LOCAL_ON | prev_cpu` stays recognisable. Terms
are interned, so equal terms are one object and comparing them is free. Arithmetic keeps sums with constant factors in
one normal form (LINEAR), which is the shape of DSQ ids (base + index) and of addresses (pointer + offset).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum

from verifier.logic.walk.calls import ARENA, BOOLEANS

MASK64 = (1 << 64) - 1
MASK32 = (1 << 32) - 1
_DEEPEST = 16
_IDENTITY_FIELDS = frozenset({"task_struct.pid", "task_struct.tgid", "task_struct.scx.tid"})


class TermKind(StrEnum):
    """What a term is; in brackets what its parts are."""

    CONST = "const"  # (value: unsigned 64 bits, label: enumerator or tunable it comes from)
    ARGUMENT = "argument"  # (index, name): what the kernel gave the callback
    CONTEXT = "context"  # (): the array of arguments
    STACK = "stack"  # (depth of the frame, offset)
    MAP = "map"  # (name,)
    FUNCTION = "function"  # (name,): address of a function of this object
    GLOBAL = "global"  # (section,): where a data section starts
    ADDRESS = "address"  # (base, field): address of a field of a kernel struct
    FIELD = "field"  # (base, field, size): what it holds
    LOAD = "load"  # (site, address, size): what other memory held
    CALL = "call"  # (function, site, arguments): what that call returned
    PURE = "pure"  # (function, arguments): as CALL, but equal arguments give equal results
    INDEX = "index"  # (site, start, end): counter of bpf_for
    ITERATOR = "iterator"  # (function, site, arguments, fresh): an open-coded iterator on the stack
    LINEAR = "linear"  # (constant, ((term, factor), ...))
    ZEXT = "zext"  # (term,): its low 32 bits
    SEXT = "sext"  # (term,): the same, signed
    OP = "op"  # (operator, left, right)
    UNKNOWN = "unknown"  # (place,): anything


_COMPOSITE = frozenset(
    {TermKind.LINEAR, TermKind.ZEXT, TermKind.SEXT, TermKind.OP, TermKind.PURE, TermKind.ADDRESS, TermKind.FIELD}
)
_ETERNAL = frozenset(
    {
        TermKind.CONST,
        TermKind.ARGUMENT,
        TermKind.CONTEXT,
        TermKind.STACK,
        TermKind.MAP,
        TermKind.FUNCTION,
        TermKind.GLOBAL,
    }
)


class Term:
    """One symbolic value; made by Terms only.

    Args:
        roots: the changing values it is made of: what is known of it is dropped when one of them is replaced.
        depth: of the tree of its parts.
    """

    __slots__ = ("depth", "is_const", "kind", "number", "parts", "roots")

    depth: int
    roots: frozenset[Term]

    def __init__(self, kind: TermKind, parts: tuple, number: int) -> None:  # type: ignore[type-arg]
        self.kind = kind
        self.is_const = kind is TermKind.CONST
        self.parts = parts
        self.number = number
        inner = list(children(self))
        self.depth = 1 + max((term.depth for term in inner), default=0)
        if kind in _ETERNAL:
            self.roots = frozenset()
        elif kind in _COMPOSITE:
            self.roots = frozenset().union(*(term.roots for term in inner))
        else:
            self.roots = frozenset({self})

    @property
    def value(self) -> int:
        """The number of a CONST, unsigned."""
        return int(self.parts[0])

    @property
    def name(self) -> str:
        """First part of a CALL, PURE, MAP, FUNCTION, GLOBAL or ITERATOR; the field's name of a FIELD or ADDRESS."""
        return str(
            self.parts[1] if self.kind in (TermKind.FIELD, TermKind.ADDRESS, TermKind.ARGUMENT) else self.parts[0]
        )

    def __repr__(self) -> str:
        return describe(self)


def children(term: Term) -> Iterator[Term]:
    """Yield the terms that a term is made of directly; the place that names an UNKNOWN is no such part."""
    if term.kind is TermKind.UNKNOWN:
        return
    for part in term.parts:
        if isinstance(part, Term):
            yield part
        elif isinstance(part, tuple):
            for item in part:
                inner = item[0] if isinstance(item, tuple) else item
                if isinstance(inner, Term):
                    yield inner


def inside(term: Term) -> Iterator[Term]:
    """Yield a term and everything that it is made of."""
    seen, waiting = {term}, [term]
    while waiting:
        part = waiting.pop()
        yield part
        for inner in children(part):
            if inner not in seen:
                seen.add(inner)
                waiting.append(inner)


def signed(value: int, bits: int = 64) -> int:
    """Read the low bits of a number as a signed one."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def low_half(term: Term) -> Term:
    """Drop extensions that do not change the low 32 bits."""
    while term.kind in (TermKind.ZEXT, TermKind.SEXT):
        term = term.parts[0]
    return term


def fits_32_bits(term: Term) -> bool:
    """Whether the value is certainly below 2^32."""
    return term.kind is TermKind.ZEXT or _fits(term, 4)


def _fits(term: Term, size: int) -> bool:
    """Whether a constant or a loaded value has no more bytes than that."""
    if term.is_const:
        return term.value >> (8 * size) == 0
    return term.kind in (TermKind.LOAD, TermKind.FIELD) and bool(term.parts[2] <= size)


def _is_bool(term: Term) -> bool:
    return term.kind in (TermKind.CALL, TermKind.PURE) and term.parts[0] in BOOLEANS


class Terms:
    """The table that interns terms, with the arithmetic on them."""

    def __init__(self) -> None:
        self._known: dict[tuple[TermKind, tuple], Term] = {}  # type: ignore[type-arg]
        self._consts: dict[int, Term] = {}

    def make(self, kind: TermKind, *parts: object) -> Term:
        """Return the one term of this kind and these parts."""
        key = (kind, parts)
        term = self._known.get(key)
        if term is None:
            term = self._known[key] = Term(kind, parts, len(self._known))
            if term.depth > _DEEPEST:
                term = self._known[key] = self._cut(term)
        return term

    def _cut(self, term: Term) -> Term:
        """Return what stands for a term that is nested too deep; an address in the arena still lies there."""
        anything = self.make(TermKind.UNKNOWN, "too deep", term.number)
        in_arena = any(
            factor == 1 and atom.kind is TermKind.PURE and atom.name == ARENA for atom, factor in linear(term)[1]
        )
        return self.make(TermKind.PURE, ARENA, (anything,)) if in_arena else anything

    def const(self, value: int, label: str = "") -> Term:
        """Return a number, known under a name if `label` is given."""
        value &= MASK64
        if label:
            return self.make(TermKind.CONST, value, label)
        term = self._consts.get(value)
        if term is None:
            term = self._consts[value] = self.make(TermKind.CONST, value, "")
        return term

    def zext(self, term: Term) -> Term:
        """Return the low 32 bits, zero-extended."""
        if term.is_const:
            return term if term.value <= MASK32 else self.const(term.value & MASK32, term.parts[1])
        if fits_32_bits(term):
            return term
        return self.make(TermKind.ZEXT, low_half(term))

    def sext(self, term: Term) -> Term:
        """Return the low 32 bits, sign-extended."""
        if term.is_const:
            return self.const(signed(term.value, 32), term.parts[1])
        return self.make(TermKind.SEXT, low_half(term))

    def narrow(self, term: Term, size: int) -> Term:
        """Return the low bytes of a value, as many as a store of that size writes."""
        if size == 8 or _fits(term, size):
            return term
        return self.zext(term) if size == 4 else self.alu("and", term, self.const((1 << (8 * size)) - 1))

    def extend(self, term: Term, width: int) -> Term:
        """Return the low 8, 16 or 32 bits, sign-extended."""
        return self.sext(term) if width == 32 else self.make(TermKind.OP, "sx", term, self.const(width))

    def alu(self, operator: str, left: Term, right: Term, bits: int = 64) -> Term:
        """Apply a BPF ALU operator: add sub mul div or and lsh rsh mod xor arsh sdiv smod."""
        if bits == 32:
            return self.zext(self._alu32(operator, low_half(left), low_half(right)))
        if left.is_const and right.is_const:
            label = left.parts[1] or right.parts[1]
            return self.const(fold(operator, left.value, right.value, 64), label.lstrip("."))
        return self._alu64(operator, left, right)

    def _alu32(self, operator: str, left: Term, right: Term) -> Term:
        if left.is_const and right.is_const:
            return self.const(fold(operator, left.value, right.value, 32), left.parts[1] or right.parts[1])
        if operator in ("add", "sub", "mul"):  # the low half depends on low halves only
            return self._alu64(operator, left, right)
        if operator == "lsh" and right.is_const:
            return self.scale(left, 1 << (right.value & 31))
        if operator in ("and", "or", "xor"):
            return self._bitwise(operator, left, right)
        return self.make(TermKind.OP, f"{operator}32", left, right)

    def _alu64(self, operator: str, left: Term, right: Term) -> Term:
        if operator in ("add", "sub"):
            return self._add(left, right) if operator == "add" else self._combine(left, right, -1)
        if operator in ("and", "or", "xor"):
            return self._bitwise(operator, left, right)
        if operator == "mul" and left.is_const:
            left, right = right, left
        if right.is_const and (operator == "mul" or (operator == "lsh" and right.value != 32)):
            return self.scale(left, right.value if operator == "mul" else 1 << (right.value & 63))
        if right.is_const and operator in ("rsh", "arsh"):
            return self._shift_right(operator, left, right)
        return self.make(TermKind.OP, operator, left, right)

    def _add(self, left: Term, right: Term) -> Term:
        for base, offset in ((left, right), (right, left)):
            named = offset.is_const and offset.parts[1].startswith(".")  # the relocated offset of a kernel field
            if named and base.kind is not TermKind.STACK:
                return self.make(TermKind.ADDRESS, base, offset.parts[1][1:])
        return self._combine(left, right, 1)

    def _shift_right(self, operator: str, left: Term, right: Term) -> Term:
        """Recognise `x << 32 >> n`, which is how 32-bit values are extended and scaled."""
        if left.kind is TermKind.OP and left.parts[0] == "lsh" and left.parts[2].is_const and left.parts[2].value == 32:
            extended = self.zext(left.parts[1]) if operator == "rsh" else self.sext(left.parts[1])
            if right.value <= 32:
                return self.scale(extended, 1 << (32 - right.value))
        return self.make(TermKind.OP, operator, left, right)

    def _bitwise(self, operator: str, left: Term, right: Term) -> Term:
        left, right = self._ordered(left, right)
        if right.is_const:
            if operator == "and" and (right.value == MASK64 or (right.value == 1 and _is_bool(left))):
                return left
            if operator == "and" and right.value == MASK32:
                return self.zext(left)
            if right.value == 0:
                return right if operator == "and" else left
        elif left is right:
            return left if operator != "xor" else self.const(0)
        return self.make(TermKind.OP, operator, left, right)

    @staticmethod
    def _ordered(left: Term, right: Term) -> tuple[Term, Term]:
        """Bring operands of a commutative operator into one order, a constant last."""
        if left.is_const or (not right.is_const and left.number > right.number):
            return right, left
        return left, right

    def scale(self, term: Term, factor: int) -> Term:
        """Return term * factor."""
        constant, addends = linear(term)
        if not addends:
            return self.const(constant * factor, term.parts[1])
        return self._linear(constant * factor, {atom: each * factor for atom, each in addends})

    def _combine(self, left: Term, right: Term, sign: int) -> Term:
        """Return left + sign * right."""
        if left.kind is TermKind.STACK and right.is_const:
            return self.make(TermKind.STACK, left.parts[0], left.parts[1] + sign * signed(right.value))
        constant, addends = linear(left)
        more, others = linear(right)
        sums = dict(addends)
        for atom, factor in others:
            sums[atom] = sums.get(atom, 0) + sign * factor
        return self._linear(constant + sign * more, sums)

    def _linear(self, constant: int, sums: dict[Term, int]) -> Term:
        addends = [(atom, factor & MASK64) for atom, factor in sums.items() if factor & MASK64]
        constant &= MASK64
        if not addends:
            return self.const(constant)
        if constant == 0 and len(addends) == 1 and addends[0][1] == 1:
            return addends[0][0]
        addends.sort(key=lambda addend: addend[0].number)
        return self.make(TermKind.LINEAR, constant, tuple(addends))


def linear(term: Term) -> tuple[int, tuple[tuple[Term, int], ...]]:
    """Split a term into a constant and addends (term, factor), all modulo 2^64."""
    if term.is_const:
        return term.parts[0], ()
    return term.parts if term.kind is TermKind.LINEAR else (0, ((term, 1),))


def pointer(term: Term) -> tuple[Term, int]:
    """Split an address into the pointer it starts from and a constant offset; an index in between is dropped."""
    constant, addends = linear(term)
    bases = [atom for atom, factor in addends if factor == 1 and atom.kind is not TermKind.ZEXT]
    return (bases[0] if bases else term), signed(constant)


def fold(operator: str, left: int, right: int, bits: int) -> int:
    """Compute what BPF computes; division by zero gives 0, and a remainder by zero the dividend (BPF's rules)."""
    mask = (1 << bits) - 1
    left, right = left & mask, right & mask
    match operator:
        case "add" | "sub" | "mul":
            return _arithmetic(operator, left, right) & mask
        case "or" | "and" | "xor":
            return {"or": left | right, "and": left & right, "xor": left ^ right}[operator]
        case "lsh" | "rsh":
            right &= bits - 1
            return (left << right) & mask if operator == "lsh" else left >> right
        case "arsh":
            return (signed(left, bits) >> (right & (bits - 1))) & mask
    return _divide(operator, left, right, bits) & mask


def _arithmetic(operator: str, left: int, right: int) -> int:
    return left + right if operator == "add" else left - right if operator == "sub" else left * right


def _divide(operator: str, left: int, right: int, bits: int) -> int:
    if right == 0:
        return 0 if operator in ("div", "sdiv") else left
    if operator in ("div", "mod"):
        return left // right if operator == "div" else left % right
    dividend, divisor = signed(left, bits), signed(right, bits)
    quotient = abs(dividend) // abs(divisor) * (1 if (dividend < 0) == (divisor < 0) else -1)
    return quotient if operator == "sdiv" else dividend - quotient * divisor


def is_callback_task(term: Term | None) -> bool:
    return term is not None and term.kind is TermKind.ARGUMENT and term.parts[1] == "p"


def identifies_task(term: Term) -> bool:
    """Whether a value leads back to the callback's task: the pointer, its pid, or a number made of it."""
    return any(
        is_callback_task(part)
        or (part.kind is TermKind.FIELD and part.name in _IDENTITY_FIELDS and is_callback_task(part.parts[0]))
        for part in _made_of(term)
    )


def _made_of(term: Term) -> list[Term]:
    """A term without what it was only reached through: not the pointer behind a field, nor a call's arguments."""
    parts, waiting = [], [term]
    while waiting:
        part = waiting.pop()
        parts.append(part)
        if part.kind in (TermKind.ZEXT, TermKind.SEXT):
            waiting.append(part.parts[0])
        elif part.kind is TermKind.OP and part.parts[0] in ("or", "lsh", "lsh32"):
            waiting += part.parts[1:3]
        elif part.kind is TermKind.LINEAR:
            waiting += [atom for atom, _factor in part.parts[1]]
    return parts


_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "mod": "%", "and": "&", "or": "|", "xor": "^", "lsh": "<<"}
_SIGNS |= {"rsh": ">>", "arsh": ">>", "sdiv": "/", "smod": "%"}


def describe(term: Term, levels: int = 6) -> str:
    """Write a term in a few characters of C, for messages; what is nested deeper than some levels is left out."""
    if levels == 0:
        return "..."
    levels -= 1
    parts = term.parts
    text = "a value"
    match term.kind:
        case TermKind.CONST:
            text = parts[1].lstrip(".") or number(parts[0])
        case TermKind.ARGUMENT:
            text = parts[1]
        case TermKind.FIELD | TermKind.ADDRESS:
            field = parts[1].partition(".")[2] or parts[1]
            text = f"{'&' if term.kind is TermKind.ADDRESS else ''}{describe(parts[0], levels)}->{field}"
        case TermKind.CALL | TermKind.PURE:
            text = f"{parts[0]}({_first_argument(term, levels)})"
        case TermKind.INDEX:
            text = "i"
        case TermKind.ZEXT | TermKind.SEXT:
            text = describe(parts[0], levels)
        case TermKind.OP:
            sign = _SIGNS.get(parts[0].removesuffix("32"), parts[0])
            text = f"({describe(parts[1], levels)} {sign} {describe(parts[2], levels)})"
        case TermKind.LINEAR:
            text = _describe_sum(parts[0], parts[1], levels)
        case TermKind.LOAD:
            text = _describe_load(parts[1], levels)
        case TermKind.MAP | TermKind.GLOBAL | TermKind.FUNCTION:
            text = f"&{parts[0]}"
    return text


def _first_argument(term: Term, levels: int) -> str:
    arguments = term.parts[-1]
    if not arguments or arguments[0].kind in (TermKind.STACK, TermKind.UNKNOWN, TermKind.CALL):
        return ""
    return describe(arguments[0], levels) + (", ..." if len(arguments) > 1 else "")


def _describe_sum(constant: int, addends: Iterable[tuple[Term, int]], levels: int) -> str:
    text = ""
    for atom, factor in addends:
        times = abs(signed(factor))
        sign = "-" if signed(factor) < 0 else "+"
        text += f" {sign} " + (f"{number(times)} * " if times != 1 else "") + describe(atom, levels)
    if constant:
        text += f" {'-' if signed(constant) < 0 else '+'} {number(abs(signed(constant)))}"
    return f"({text.removeprefix(' + ').strip()})"


def _describe_load(address: Term, levels: int) -> str:
    base, _offset = pointer(address)
    if base.kind is TermKind.GLOBAL:
        return f"a variable in {base.name}"
    return (
        f"what {describe(base, levels)} points at" if base.kind in (TermKind.CALL, TermKind.PURE) else "a loaded value"
    )


def number(value: int) -> str:
    """Write a number as a person would: small ones in decimal, negative ones signed, bit patterns in hex."""
    if value > MASK64 - (1 << 32):
        return str(signed(value))
    return hex(value) if value >> 40 else str(value)
