"""What is known on one path: the branches taken so far, as ranges of terms and as decided conditions.

A branch whose outcome follows from earlier ones is not explored a second way: that keeps false alarms rare.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from verifier.logic.walk.calls import CPU_ARGUMENTS, MOST_CPUS, ONLY_ERROR, RESULT_RANGES
from verifier.logic.walk.terms import MASK32, MASK64, Term, TermKind, Terms, fits_32_bits, linear, low_half, signed


class Condition(NamedTuple):
    """`left operator right`, the operator one of eq, ult (unsigned <) and slt (signed <)."""

    operator: str
    bits: int
    left: Term
    right: Term


class Range(NamedTuple):
    """Bounds of a value read as unsigned and as signed, all inclusive."""

    low: int
    high: int
    signed_low: int
    signed_high: int

    @property
    def empty(self) -> bool:
        return self.low > self.high or self.signed_low > self.signed_high


def union(bounds: Range, other: Range) -> Range:
    """Return the interval that holds all values of two."""
    return Range(min(bounds.low, other.low), max(bounds.high, other.high),
                 min(bounds.signed_low, other.signed_low), max(bounds.signed_high, other.signed_high))  # fmt: skip


Fact = tuple[int, Term] | Condition


class Facts(dict[Fact, "Range | bool"]):
    """(bits, term) -> its Range; Condition -> whether it holds. Never changed in place once it is shared."""

    __slots__ = ("_roots",)

    @property
    def roots(self) -> frozenset[Term]:
        """The changing values that any of the facts is about."""
        try:
            return self._roots  # type: ignore[has-type,no-any-return]
        except AttributeError:
            self._roots = frozenset().union(*(term.roots for key in self for term in terms_of(key)))
            return self._roots

    def share_roots(self, roots: frozenset[Term]) -> None:
        """Set what they are about, where that is known already."""
        self._roots = roots


_SWAPPED = {"gt": ("ult", True, False), "ge": ("ult", False, True), "lt": ("ult", False, False)}
_SWAPPED |= {"le": ("ult", True, True), "sgt": ("slt", True, False), "sge": ("slt", False, True)}
_SWAPPED |= {"slt": ("slt", False, False), "sle": ("slt", True, True)}
_SWAPPED |= {"eq": ("eq", False, False), "ne": ("eq", False, True)}


def jump_condition(terms: Terms, jump: str, bits: int, left: Term, right: Term) -> tuple[Condition, bool]:
    """Return the normal form of a jump's condition, and whether the jump is taken when it does *not* hold."""
    if jump == "set":
        left, right, jump = terms.alu("and", left, right, bits), terms.const(0), "ne"
    operator, swap, negated = _SWAPPED[jump]
    if swap:
        left, right = right, left
    if operator == "eq" and (left.is_const or (not right.is_const and left.number > right.number)):
        left, right = right, left
    bits, left, right = _narrowed(terms, operator, bits, left, right)
    if operator == "eq" and right.is_const and left.kind is TermKind.LINEAR:
        left, right = _solved(terms, bits, left, right)
    return Condition(operator, bits, left, right), negated


def _narrowed(terms: Terms, operator: str, bits: int, left: Term, right: Term) -> tuple[int, Term, Term]:
    """Compare 32 bits where that is equivalent, so that one question has one form."""
    if (bits == 64 and operator != "slt" and fits_32_bits(left) and fits_32_bits(right)) or (
        bits == 64 and operator != "ult" and _sign_extended(left) and _sign_extended(right)
    ):
        bits = 32
    if bits == 64:
        return bits, left, right
    return 32, _low_const(terms, left), _low_const(terms, right)


def _sign_extended(term: Term) -> bool:
    if term.is_const:
        return -(1 << 31) <= signed(term.value) < 1 << 31
    return term.kind is TermKind.SEXT


def _low_const(terms: Terms, term: Term) -> Term:
    return terms.const(term.value & MASK32, term.parts[1]) if term.is_const else low_half(term)


def _solved(terms: Terms, bits: int, left: Term, right: Term) -> tuple[Term, Term]:
    """Turn `x + c == d` into `x == d - c`."""
    constant, addends = linear(left)
    if len(addends) != 1 or addends[0][1] != 1:
        return left, right
    return addends[0][0], terms.const((right.value - constant) & ((1 << bits) - 1))


TESTS_CPU = "bpf_cpumask_test_cpu"
_EITHER = "one of several masks"
_TRUE = Range(1, 1, 1, 1)
_MOST_MASKS = 6
"""Of which it is remembered that a CPU is in one of them."""

_LARGEST_OFFSET = 1 << 29
"""More than the variables of any object take, and nearer to 0 than any address of the kernel's memory on x86-64."""


def decide(facts: Facts, condition: Condition) -> bool | None:
    """Return whether a condition holds, None if the path does not decide it."""
    if condition.left is condition.right:
        return condition.operator == "eq"
    known = facts.get(condition)
    if isinstance(known, bool):
        return known
    left, right = range_of(facts, condition.bits, condition.left), range_of(facts, condition.bits, condition.right)
    if condition.operator == "eq":
        return _same(condition, left, right)
    if condition.operator == "ult":
        return _below(left.low, left.high, right.low, right.high)
    return _below(left.signed_low, left.signed_high, right.signed_low, right.signed_high)


def _same(condition: Condition, left: Range, right: Range) -> bool | None:
    """Whether two values are equal, by their ranges; an address that cannot be NULL, less an offset, is not 0."""
    nearly_null = condition.right.is_const and -_LARGEST_OFFSET < signed(condition.right.value) <= 0
    if condition.bits == 64 and nearly_null and _never_null(condition.left):
        return False
    if _is_no_error_of(condition.left, condition.right):
        return False
    if left.low == left.high == right.low == right.high:
        return True
    disjoint = left.high < right.low or right.high < left.low
    return False if disjoint or left.signed_high < right.signed_low or right.signed_high < left.signed_low else None


def _is_no_error_of(result: Term, number: Term) -> bool:
    """Whether a number is negative, and not the one negative number that a call returns."""
    call = low_half(result)
    if not number.is_const or call.kind is not TermKind.CALL or call.name not in ONLY_ERROR:
        return False
    value = signed(number.value, 32)
    return value < 0 and value != ONLY_ERROR[call.name]


def _below(low: int, high: int, other_low: int, other_high: int) -> bool | None:
    return True if high < other_low else False if low >= other_high else None


def _never_null(term: Term) -> bool:
    """Whether a value is an address, or one with an index added: the kernel refuses one that could leave its object."""
    if term.kind is TermKind.LINEAR:
        return any(factor == 1 and atom.kind is TermKind.GLOBAL for atom, factor in term.parts[1])
    return term.kind in (
        TermKind.STACK,
        TermKind.MAP,
        TermKind.GLOBAL,
        TermKind.FUNCTION,
        TermKind.CONTEXT,
        TermKind.ADDRESS,
    )


def assume(facts: Facts, condition: Condition, holds: bool) -> Facts | None:
    """Return the facts with one more, or None if that contradicts them."""
    more = Facts(facts)
    more[condition] = holds
    about = condition.left.roots | condition.right.roots
    more.share_roots(facts.roots if about <= facts.roots else facts.roots | about)
    for key, bound in _bounds(facts, condition, holds):
        if bound.empty:
            return None
        more[key] = bound
    return more


def _bounds(facts: Facts, condition: Condition, holds: bool) -> Iterable[tuple[tuple[int, Term], Range]]:
    """Yield the ranges that follow for the sides that are no constants."""
    bits = condition.bits
    left, right = range_of(facts, bits, condition.left), range_of(facts, bits, condition.right)
    if condition.operator == "eq":
        pairs = (_equal(left, right), _equal(right, left)) if holds else (_unequal(left, right), _unequal(right, left))
    elif condition.operator == "ult":
        pairs = _ordered_unsigned(left, right) if holds else _ordered_unsigned(right, left, 0)[::-1]
    else:
        pairs = _ordered_signed(left, right) if holds else _ordered_signed(right, left, 0)[::-1]
    for term, bound in zip((condition.left, condition.right), pairs, strict=True):
        if not term.is_const:
            yield (bits, term), _joined_signs(bound, bits)


def _equal(bounds: Range, other: Range) -> Range:
    return Range(max(bounds.low, other.low), min(bounds.high, other.high),
                 max(bounds.signed_low, other.signed_low), min(bounds.signed_high, other.signed_high))  # fmt: skip


def _unequal(bounds: Range, other: Range) -> Range:
    """Cut a single value off the ends of a range."""
    if other.low != other.high:
        return bounds
    low, high, signed_low, signed_high = bounds
    low += low == other.low
    high -= high == other.low
    signed_low += signed_low == other.signed_low
    signed_high -= signed_high == other.signed_low
    return Range(low, high, signed_low, signed_high)


def _ordered_unsigned(less: Range, more: Range, gap: int = 1) -> tuple[Range, Range]:
    """Return both ranges knowing less + gap <= more."""
    return (
        Range(less.low, min(less.high, more.high - gap), less.signed_low, less.signed_high),
        Range(max(more.low, less.low + gap), more.high, more.signed_low, more.signed_high),
    )


def _ordered_signed(less: Range, more: Range, gap: int = 1) -> tuple[Range, Range]:
    return (
        Range(less.low, less.high, less.signed_low, min(less.signed_high, more.signed_high - gap)),
        Range(more.low, more.high, max(more.signed_low, less.signed_low + gap), more.signed_high),
    )


def _joined_signs(bounds: Range, bits: int) -> Range:
    """Tighten the unsigned bounds by the signed ones, and the other way round."""
    half = 1 << (bits - 1)
    if bounds.signed_low >= 0 or bounds.high < half:
        low, high = max(bounds.low, bounds.signed_low, 0), min(bounds.high, bounds.signed_high)
        return Range(low, high, low, high)
    if bounds.signed_high < 0 or bounds.low >= half:
        low = max(bounds.low, bounds.signed_low + 2 * half if bounds.signed_low < 0 else 0)
        high = min(bounds.high, bounds.signed_high + 2 * half if bounds.signed_high < 0 else bounds.high)
        return Range(low, high, low - 2 * half, high - 2 * half)
    return bounds


def range_of(facts: Facts, bits: int, term: Term) -> Range:
    """Return what is known of a term's value as a number of that many bits."""
    known = facts.get((bits, term))
    if isinstance(known, Range):
        return known
    span_of = _SPANS.get(term.kind)
    span = span_of(facts, bits, term) if span_of is not None else None
    if span is None or span[1] > _ANYTHING[bits].high:
        return _ANYTHING[bits]
    half = 1 << (bits - 1)
    if span[1] < half:
        return Range(span[0], span[1], span[0], span[1])
    if span[0] >= half:
        return Range(span[0], span[1], span[0] - 2 * half, span[1] - 2 * half)
    return Range(span[0], span[1], -half, half - 1)


_ANYTHING = {bits: Range(0, (1 << bits) - 1, -(1 << bits - 1), (1 << bits - 1) - 1) for bits in range(1, 65)}


def _span_of_constant(_facts: Facts, bits: int, term: Term) -> tuple[int, int]:
    value = term.value & ((1 << bits) - 1)
    return value, value


def _span_of_argument(_facts: Facts, _bits: int, term: Term) -> tuple[int, int] | None:
    return (0, MOST_CPUS - 1) if term.parts[1] in CPU_ARGUMENTS else None


def _span_of_memory(_facts: Facts, _bits: int, term: Term) -> tuple[int, int] | None:
    size = term.parts[2]
    return (0, (1 << (8 * size)) - 1) if size < 8 else None


def _span_of_result(_facts: Facts, _bits: int, term: Term) -> tuple[int, int] | None:
    return RESULT_RANGES.get(term.parts[0])


def _span_of_low_half(facts: Facts, _bits: int, term: Term) -> tuple[int, int]:
    low_bits = range_of(facts, 32, term.parts[0])
    return low_bits.low, low_bits.high


def _span_of_index(_facts: Facts, _bits: int, term: Term) -> tuple[int, int] | None:
    """Return the bounds of a loop's counter; the kernel counts in an int, and nothing is claimed of a negative one."""
    _site, start, end = term.parts
    if not (start.is_const and end.is_const):
        return None
    first, behind = signed(start.value, 32), signed(end.value, 32)
    return (first, behind - 1) if 0 <= first < behind else None


def _span_of_operation(facts: Facts, _bits: int, term: Term) -> tuple[int, int] | None:
    """Return the bounds of an operation with a constant: in its own width, whatever width is read of its result."""
    name, left, right = term.parts
    operator = name.removesuffix("32")
    width = 64 if name == operator else 32
    if not right.is_const:
        return _span_of_quotient(facts, width, left, right) if operator == "div" else None
    constant = right.value & ((1 << width) - 1)
    if operator == "and":
        return 0, right.value
    if operator == "mod" and constant:
        return 0, constant - 1
    operand = range_of(facts, width, left)
    if operator == "div" and constant:
        return operand.low // constant, operand.high // constant
    if operator == "rsh":
        shift = constant % width
        return operand.low >> shift, operand.high >> shift
    return None


def _span_of_quotient(facts: Facts, width: int, left: Term, right: Term) -> tuple[int, int]:
    """Return the bounds of a quotient; BPF makes 0 of a division by zero."""
    dividend, divisor = range_of(facts, width, left), range_of(facts, width, right)
    low = dividend.low // divisor.high if divisor.low else 0
    return low, dividend.high // max(1, divisor.low)


def _span_of_sum(facts: Facts, bits: int, term: Term) -> tuple[int, int] | None:
    constant, addends = linear(term)
    low = high = signed(constant)
    if any(factor >> 63 for _atom, factor in addends):
        return None  # something is taken away
    for atom, factor in addends:
        each = range_of(facts, bits, atom)
        if each.high * factor >> bits:
            return None
        low, high = low + each.low * factor, high + each.high * factor
    return (low, high) if low >= 0 and high < 1 << bits else None


_SPANS = {
    TermKind.CONST: _span_of_constant,
    TermKind.ARGUMENT: _span_of_argument,
    TermKind.LOAD: _span_of_memory,
    TermKind.FIELD: _span_of_memory,
    TermKind.CALL: _span_of_result,
    TermKind.PURE: _span_of_result,
    TermKind.INDEX: _span_of_index,
    TermKind.ZEXT: _span_of_low_half,
    TermKind.OP: _span_of_operation,
    TermKind.LINEAR: _span_of_sum,
}
"""What bounds follow from what a term is made of; None where there are none."""


def reach_of(facts: Facts, address: Term) -> tuple[int, int] | None:
    """Return the first and the last offset in a section of variables that an address with an index in it may be.

    None if it is none, or nothing bounds the index: the kernel keeps it in the section, and in no variable of it.
    """
    constant, addends = linear(address)
    if len(addends) == 1 or [factor for atom, factor in addends if atom.kind is TermKind.GLOBAL] != [1]:
        return None
    low = high = signed(constant)
    for atom, factor in addends:
        if atom.kind is not TermKind.GLOBAL:
            least, most = _index_range(facts, atom)
            ends = least * signed(factor), most * signed(factor)
            low, high = low + min(ends), high + max(ends)
    return (low, high) if low >= 0 and high < _LARGEST_OFFSET else None


def _index_range(facts: Facts, index: Term) -> tuple[int, int]:
    """Return the bounds of an index, be it an int of which the path knows that it is not negative."""
    if index.kind is not TermKind.SEXT and not fits_32_bits(index):
        known = range_of(facts, 64, index)
        return known.low, known.high
    known = range_of(facts, 32, low_half(index))
    return (known.low, known.high) if index.kind is not TermKind.SEXT or known.signed_low >= 0 else (0, MASK64)


def without(facts: Facts, replaced: Term) -> Facts:
    """Return the facts that do not depend on a value that was replaced."""
    if replaced not in facts.roots:
        return facts
    return Facts(
        (key, value) for key, value in facts.items() if not any(replaced in term.roots for term in terms_of(key))
    )


def living(facts: Facts, roots: frozenset[Term]) -> Facts:
    """Return the facts about values that are still held, or that can be read again."""
    if facts.roots <= roots:
        return facts
    still = Facts()
    about: set[Term] = set()
    for key, value in facts.items():
        needed = key.left.roots | key.right.roots if isinstance(key, Condition) else key[1].roots
        if needed <= roots or is_about_allowed_cpus(key) or is_test_of(key, value, roots):
            still[key] = value
            about |= needed
    still.share_roots(frozenset(about))
    return still


def is_about_allowed_cpus(key: Fact) -> bool:
    """Whether a fact is about how many CPUs a task may use: it stays true wherever the other number came from."""
    return any(term.kind is TermKind.FIELD and term.name == "task_struct.nr_cpus_allowed" for term in terms_of(key))


def is_test_of(key: Fact, known: Range | bool, roots: frozenset[Term]) -> bool:
    """Whether a fact says that a CPU made of these values is in a mask that the policy keeps.

    It outlives the mask's address, which nothing needs any more once it was tested.
    """
    term = key.left if isinstance(key, Condition) else key[1]
    if not _is_test(term) or (term.parts[1][1].kind is not TermKind.LOAD and not is_either(term.parts[1][1])):
        return False
    if isinstance(key, Condition):
        holds = key.operator == "eq" and key.right.is_const and key.right.value == 0 and known is False
    else:
        holds = isinstance(known, Range) and known.low > 0
    return holds and low_half(term.parts[1][0]).roots <= roots


def _is_test(term: Term) -> bool:
    return term.kind is TermKind.PURE and term.name == TESTS_CPU


def is_either(mask: Term) -> bool:
    """Whether a mask stands for several, of which at least one has what is said of it."""
    return mask.kind is TermKind.PURE and mask.name == _EITHER


def tests_of_both(terms: Terms, facts: Facts, others: Facts) -> Facts:
    """Return the tests of CPUs that two paths have in common although each looked into another mask.

    Each path may have looked into several: what both know is one of the first's or one of the second's, for any two.
    """
    both = Facts()
    ours = _tests(facts)
    theirs = _tests(others) if ours else {}
    for cpu in ours.keys() & theirs.keys():
        pairs = {masks | others_masks for masks in ours[cpu] for others_masks in theirs[cpu]}
        for masks in pairs:
            if 1 < len(masks) <= _MOST_MASKS and not any(fewer < masks for fewer in pairs):
                both[32, _test(terms, cpu, masks)] = _TRUE
    return both


def with_test(terms: Terms, facts: Facts, values: Iterable[Term]) -> Facts:
    """Return the facts with one more where a value is not 0 that may be any of these: if each of them is the test of
    one CPU, or 0, that CPU is in one of their masks.
    """
    cpus: set[Term] = set()
    masks: set[Term] = set()
    for value in map(low_half, values):
        if value.is_const and value.value == 0:
            continue
        if not _is_test(value):
            return facts
        cpus.add(value.parts[1][0])
        masks |= _masks_of(value)
    if len(cpus) != 1 or len(masks) > _MOST_MASKS:
        return facts
    test = _test(terms, cpus.pop(), frozenset(masks))
    more = Facts({**facts, (32, test): _TRUE})
    more.share_roots(facts.roots | test.roots)
    return more


def _test(terms: Terms, cpu: Term, masks: frozenset[Term]) -> Term:
    """Return the test of a CPU that one of several masks has."""
    known = sorted(masks, key=lambda mask: mask.number)
    mask = known[0] if len(known) == 1 else terms.make(TermKind.PURE, _EITHER, tuple(known))
    return terms.make(TermKind.PURE, TESTS_CPU, (cpu, mask))


def _masks_of(test: Term) -> frozenset[Term]:
    mask = test.parts[1][1]
    return frozenset(mask.parts[1]) if is_either(mask) else frozenset({mask})


def _tests(facts: Facts) -> dict[Term, set[frozenset[Term]]]:
    """Return each CPU that is in a mask, with the masks that it is in."""
    tests: dict[Term, set[frozenset[Term]]] = {}
    for key, known in facts.items():
        if isinstance(known, Range) and not isinstance(key, Condition) and known.low > 0 and _is_test(key[1]):
            tests.setdefault(key[1].parts[1][0], set()).add(_masks_of(key[1]))
    return {cpu: masks for cpu, masks in tests.items() if len(masks) <= _MOST_MASKS}


def joined(facts: Facts, others: Facts) -> Facts:
    """Return what is known where two paths meet: what both decided alike, and for each value an interval of both."""
    both = Facts()
    for key, known in facts.items():
        other = others.get(key)
        if known == other:
            both[key] = known
        elif isinstance(known, Range) and isinstance(other, Range):
            both[key] = union(known, other)
    return both


def terms_of(key: Fact) -> tuple[Term, ...]:
    return (key.left, key.right) if isinstance(key, Condition) else (key[1],)
