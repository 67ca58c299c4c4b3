"""verifier.logic.walk.facts and .terms against numbers: what is claimed of a path must hold for every run of it.

A random program runs twice, side by side: on terms, as in the walk, and on numbers, as on a CPU. The numbers decide
which way every branch goes, so they are a witness for all facts gathered on the way.
"""

import itertools
import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.logic.walk.calls import BOOLEANS, RESULT_RANGES
from verifier.logic.walk.facts import (
    Condition,
    Facts,
    assume,
    decide,
    joined,
    jump_condition,
    living,
    range_of,
    terms_of,
    without,
)
from verifier.logic.walk.terms import TermKind, Terms, low_half

EDGES = sorted(
    {(base + delta) % 2**64 for base in (0, 2**8, 2**16, 2**31, 2**32, 2**63) for delta in (-2, -1, 0, 1, 2)}
)
NUMBERS = st.sampled_from(EDGES) | st.integers(0, 100) | st.integers(0, 2**32 - 1) | st.integers(0, 2**64 - 1)
IMMEDIATES = st.integers(-70, 70) | st.sampled_from((-(2**31), 2**31 - 1, 1000)) | st.integers(-(2**31), 2**31 - 1)
SIZES = (1, 2, 4, 8)
REGISTERS = 4
NR_CPUS_ALLOWED = "task_struct.nr_cpus_allowed"


# --- the CPU


def as_signed(number, bits):
    return int.from_bytes((number % 2**bits).to_bytes(bits // 8, "little"), "little", signed=True)


def _signed_quotient(left, right):
    """C's division: towards zero."""
    return abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)


def computed(name, left, right, bits):
    """The result of an ALU instruction by the rules of Documentation/bpf/standardization/instruction-set.rst."""
    left, right = left % 2**bits, right % 2**bits
    shift = right % bits
    s_left, s_right = as_signed(left, bits), as_signed(right, bits)
    results = {
        "add": lambda: left + right,
        "sub": lambda: left - right,
        "mul": lambda: left * right,
        "div": lambda: left // right if right else 0,
        "mod": lambda: left % right if right else left,
        "sdiv": lambda: _signed_quotient(s_left, s_right) if right else 0,
        "smod": lambda: s_left - s_right * _signed_quotient(s_left, s_right) if right else left,
        "or": lambda: left | right,
        "and": lambda: left & right,
        "xor": lambda: left ^ right,
        "lsh": lambda: left << shift,
        "rsh": lambda: left >> shift,
        "arsh": lambda: s_left >> shift,
    }
    return results[name]() % 2**bits


OPERATORS = ("add", "sub", "mul", "div", "mod", "sdiv", "smod", "or", "and", "xor", "lsh", "rsh", "arsh")
ORDERS = {"eq": operator.eq, "ne": operator.ne, "gt": operator.gt, "ge": operator.ge, "lt": operator.lt}
ORDERS |= {"le": operator.le, "set": lambda left, right: left & right != 0}
JUMP_OF = {"eq": "eq", "ult": "lt", "slt": "slt"}
JUMPS = (*ORDERS, "sgt", "sge", "slt", "sle")


def taken(jump, bits, left, right):
    if jump in ORDERS:
        return ORDERS[jump](left % 2**bits, right % 2**bits)
    return ORDERS[jump[1:]](as_signed(left, bits), as_signed(right, bits))


def meaning(term, held):
    """The number that a term stands for, given the numbers of what came from outside."""
    parts = term.parts
    if term in held:
        return held[term]
    if term.kind is TermKind.CONST:
        return term.value
    if term.kind is TermKind.ZEXT:
        return meaning(parts[0], held) % 2**32
    if term.kind is TermKind.SEXT:
        return as_signed(meaning(parts[0], held), 32) % 2**64
    if term.kind is TermKind.LINEAR:
        return (parts[0] + sum(meaning(atom, held) * factor for atom, factor in parts[1])) % 2**64
    assert term.kind is TermKind.OP
    bits = 32 if parts[0].endswith("32") else 64
    return computed(parts[0].removesuffix("32"), meaning(parts[1], held), meaning(parts[2], held), bits)


# --- both side by side


class Run:
    """A program on its way: each register as a term and as the number that it holds in this run."""

    def __init__(self, *sources, terms=None):
        self.terms = terms or Terms()
        self.facts = Facts()
        self.registers = [self.read(place, *source) for place, source in enumerate(sources)]
        self.held = dict(self.registers)

    def read(self, place, kind, number, *how):
        """A value from outside, with a number that such a value can have."""
        make = self.terms.make
        if kind == "load":
            (size,) = how
            return make(TermKind.LOAD, place, make(TermKind.MAP, "m"), size), number % 2 ** (8 * size)
        if kind == "field":
            (size,) = how
            return make(TermKind.FIELD, make(TermKind.ARGUMENT, 0, "p"), f"task_struct.{place}", size), number % 2 ** (
                8 * size
            )
        if kind == "call":
            (name,) = how
            low, high = RESULT_RANGES.get(name, (0, 1))
            return make(TermKind.CALL, name, place, ()), low + number % (high - low + 1)
        if kind == "index":  # the kernel counts in an int, and the object reads its 4 bytes
            start, count = how
            current = start + number % count
            return self._index(place, start, start + count), current % 2**32
        if kind == "const":
            return self.terms.const(number), number
        return make(TermKind.UNKNOWN, place), number

    def _index(self, place, start, end):
        return self.terms.make(TermKind.INDEX, place, self.terms.const(start), self.terms.const(end))

    def step(self, kind, *how):
        getattr(self, kind)(*how)
        self.check()

    def alu(self, name, bits, target, source):
        (left, left_number), (right, right_number) = self.registers[target], self.registers[source]
        self.registers[target] = (
            self.terms.alu(name, left, right, bits),
            computed(name, left_number, right_number, bits),
        )

    def alu_const(self, name, bits, target, immediate):
        left, number = self.registers[target]
        self.registers[target] = (
            self.terms.alu(name, left, self.terms.const(immediate), bits),
            computed(name, number, immediate, bits),
        )

    def copy(self, target, source):
        self.registers[target] = self.registers[source]

    def zext(self, target):
        term, number = self.registers[target]
        self.registers[target] = self.terms.zext(term), number % 2**32

    def sext(self, target):
        term, number = self.registers[target]
        self.registers[target] = self.terms.sext(term), as_signed(number, 32) % 2**64

    def jump(self, name, bits, left, right):
        self._branch(name, bits, self.registers[left], self.registers[right])

    def jump_const(self, name, bits, left, number):
        self._branch(name, bits, self.registers[left], (self.terms.const(number), number % 2**64))

    def jump_near(self, name, bits, left, distance):
        """Compare with a constant close to what the register holds: at its bounds mistakes show."""
        self.jump_const(name, bits, left, self.registers[left][1] + distance)

    def _branch(self, name, bits, left, right):
        question, negated = jump_condition(self.terms, name, bits, left[0], right[0])
        holds = taken(name, bits, left[1], right[1]) != negated
        assert decide(self.facts, question) in (None, holds), f"{question} decided wrongly"
        facts = assume(self.facts, question, holds)
        assert facts is not None, f"{question} is {holds}, which was called a contradiction"
        assert decide(facts, question) is holds
        self.facts = facts

    def claims(self, facts):
        """What is claimed of a path holds for the numbers of this run."""
        for fact, known in facts.items():
            if isinstance(fact, Condition):
                left, right = (meaning(term, self.held) for term in (fact.left, fact.right))
                assert taken(JUMP_OF[fact.operator], fact.bits, left, right) is known
            else:
                bits, term = fact
                number = meaning(term, self.held)
                assert known.low <= number % 2**bits <= known.high, (fact, known, number)
                assert known.signed_low <= as_signed(number, bits) <= known.signed_high, (fact, known, number)

    def check(self):
        """Every claim holds for the numbers of this run."""
        self.claims(self.facts)
        for term, number in self.registers:
            assert meaning(term, self.held) == number, f"{term!r} does not mean {number}"
            for bits, claimed in ((64, term), (32, term), (32, low_half(term))):
                bounds = range_of(self.facts, bits, claimed)
                assert not bounds.empty
                assert bounds.low <= number % 2**bits <= bounds.high, (bits, claimed, number, bounds)
                assert bounds.signed_low <= as_signed(number, bits) <= bounds.signed_high, (bits, claimed, number)


def run(sources, program):
    path = Run(*sources)
    path.check()
    for step in program:
        path.step(*step)
    return path


SOURCES = st.one_of(
    st.tuples(st.just("unknown"), NUMBERS),
    st.tuples(st.just("const"), NUMBERS),
    st.tuples(st.just("load"), NUMBERS, st.sampled_from(SIZES)),
    st.tuples(st.just("field"), NUMBERS, st.sampled_from(SIZES)),
    st.tuples(st.just("call"), NUMBERS, st.sampled_from(sorted({*RESULT_RANGES, *BOOLEANS}))),
    st.tuples(st.just("index"), NUMBERS, st.integers(-20, 20), st.integers(1, 30)),
)
PLACE = st.integers(0, REGISTERS - 1)
WIDTH = st.sampled_from((32, 64))
STEPS = st.one_of(
    st.tuples(st.just("alu"), st.sampled_from(OPERATORS), WIDTH, PLACE, PLACE),
    st.tuples(st.just("alu_const"), st.sampled_from(OPERATORS), WIDTH, PLACE, IMMEDIATES),
    st.tuples(st.sampled_from(("zext", "sext")), PLACE),
    st.tuples(st.just("copy"), PLACE, PLACE),
    st.tuples(st.just("jump"), st.sampled_from(JUMPS), WIDTH, PLACE, PLACE),
    st.tuples(st.just("jump_const"), st.sampled_from(JUMPS), WIDTH, PLACE, IMMEDIATES | NUMBERS),
    st.tuples(st.just("jump_near"), st.sampled_from(JUMPS), WIDTH, PLACE, st.integers(-2, 2)),
)


UNKNOWN = ("unknown", 0)
FAULTS = {
    "the upper half shifted down, read as 32 bits": (
        [("unknown", 5 << 32)],
        [("alu_const", "rsh", 64, 0, 32), ("jump_const", "eq", 32, 0, 5)],
    ),
    "a 64-bit quotient, read as 32 bits": (
        [("unknown", 1 << 32)],
        [("alu_const", "div", 64, 0, 2), ("jump_const", "eq", 32, 0, 1 << 31)],
    ),
    "a 64-bit quotient above what the low half alone can give": (
        [("unknown", 3 << 32)],
        [("alu_const", "div", 64, 0, 1000), ("jump_const", "gt", 32, 0, (2**32 - 1) // 1000)],
    ),
    "a 32-bit shift right by a register that holds 33": (
        [("unknown", 8), ("const", 33)],
        [("alu", "rsh", 32, 0, 1), ("jump_const", "eq", 64, 0, 4)],
    ),
    "a 32-bit shift left by a register that holds 33": (
        [("unknown", 8), ("const", 33)],
        [("alu", "lsh", 32, 0, 1), ("jump_const", "eq", 64, 0, 16)],
    ),
    "a 32-bit shift left by more than 31, not known before": (
        [("unknown", 8), ("unknown", 33)],
        [("alu", "lsh", 32, 0, 1), ("jump_const", "eq", 64, 0, 16)],
    ),
    "a 32-bit quotient by a register whose upper half is not empty": (
        [("unknown", 8), ("const", (1 << 32) + 2)],
        [("alu", "div", 32, 0, 1), ("jump_const", "eq", 64, 0, 4)],
    ),
    "a counter below zero, read without its sign": (
        [("index", 1, -5, 3)],
        [("jump_const", "lt", 64, 0, 1 << 32)],
    ),
}


@pytest.mark.parametrize(("sources", "program"), FAULTS.values(), ids=FAULTS)
def test_what_was_claimed_wrongly_once(sources, program):
    run(sources, program)


@settings(max_examples=1000, deadline=None)
@given(st.tuples(*[SOURCES] * REGISTERS), st.lists(STEPS, max_size=14))
def test_what_is_claimed_of_a_path_holds_in_every_run_of_it(sources, program):
    run(sources, program)


@settings(max_examples=500, deadline=None)
@given(
    st.tuples(*[SOURCES] * REGISTERS),
    st.lists(NUMBERS, min_size=REGISTERS, max_size=REGISTERS),
    st.lists(STEPS, max_size=8),
    *[st.lists(STEPS, max_size=5)] * 2,
)
def test_what_is_claimed_where_two_paths_meet_holds_in_the_runs_of_both(sources, numbers, start, left, right):
    """Two runs of one program, with other numbers from outside and other branches at its end."""
    one = Run(*sources)
    changed = [(kind, number, *how) for (kind, _number, *how), number in zip(sources, numbers, strict=True)]
    other = Run(*changed, terms=one.terms)
    for path, program in ((one, start + left), (other, start + right)):
        for step in program:
            path.step(*step)
    met = joined(one.facts, other.facts)
    one.claims(met)
    other.claims(met)
    assert met == joined(other.facts, one.facts)


def test_where_two_paths_meet_the_interval_of_a_value_is_that_of_both():
    terms = Terms()
    variable, unseen = terms.make(TermKind.UNKNOWN, "x"), terms.make(TermKind.UNKNOWN, "y")

    def below(number, *, more=()):
        facts = Facts()
        for term, limit in ((variable, number), *more):
            facts = assume(facts, Condition("ult", 64, term, terms.const(limit)), True)
        return facts

    met = joined(below(10), below(20, more=[(unseen, 5)]))
    assert range_of(met, 64, variable) == (0, 19, 0, 19)
    assert range_of(met, 64, unseen) == range_of(Facts(), 64, unseen)
    assert not any(isinstance(key, Condition) for key in met), "they decided different questions"
    assert joined(below(10), below(10)) == below(10)


FEW = [0, 1, 3, 31, 33, 2**31, 2**32 - 1, 2**32 + 2, 2**63, 2**64 - 1]
OPERANDS = [("unknown", FEW), ("const", FEW), ("load", [0, 200])]


def size_of(kind):
    return (1,) if kind == "load" else ()


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", OPERATORS)
def test_arithmetic_on_terms_means_what_the_cpu_computes(name, bits):
    """Every pair of edge numbers, each known or not; the result is looked at in both widths."""
    for (left, lefts), (right, rights) in itertools.product(OPERANDS, repeat=2):
        for numbers in itertools.product(lefts, rights):
            sources = [(left, numbers[0], *size_of(left)), (right, numbers[1], *size_of(right))]
            path = run(sources, [("alu", name, bits, 0, 1)])
            path.step("zext", 0)


@pytest.mark.parametrize("bits", [0, 1, 16, 29, 31, 32, 33, 63])
@pytest.mark.parametrize("name", ["rsh", "arsh"])
def test_shifting_left_by_32_and_back_means_what_the_cpu_computes(name, bits):
    """How clang extends and scales 32-bit values; the walk turns it into a factor."""
    for number in EDGES:
        run([("unknown", number)], [("alu_const", "lsh", 64, 0, 32), ("alu_const", name, 64, 0, bits)])


# --- comparisons alone, with numbers of four bits, of which all can be tried

TINY = 4
ALL = range(2**TINY)


def tiny(name, left, right):
    def read(number):
        return (number ^ 8) - 8 if name == "slt" else number

    return operator.eq(left, right) if name == "eq" else read(left) < read(right)


def hull(numbers):
    """The tightest bounds of a set of numbers, read as unsigned and as signed."""
    signs = [(number ^ 8) - 8 for number in numbers]
    return min(numbers), max(numbers), min(signs), max(signs)


def comparisons(terms, variable):
    """Every comparison of a variable with a constant, either way round, true or false; with those that satisfy it."""
    for name, constant, swapped, holds in itertools.product(("eq", "ult", "slt"), ALL, (False, True), (False, True)):
        sides = (terms.const(constant), variable) if swapped else (variable, terms.const(constant))
        fitting = frozenset(n for n in ALL if tiny(name, *((constant, n) if swapped else (n, constant))) is holds)
        yield Condition(name, TINY, *sides), holds, fitting


def test_one_comparison_gives_the_tightest_bounds():
    terms = Terms()
    variable = terms.make(TermKind.UNKNOWN, "x")
    for question, holds, fitting in comparisons(terms, variable):
        facts = assume(Facts(), question, holds)
        assert (facts is None) == (not fitting), question
        if facts is not None:
            assert range_of(facts, TINY, variable) == hull(fitting), (question, holds)


def test_two_comparisons_contradict_only_where_no_number_satisfies_both():
    terms = Terms()
    variable = terms.make(TermKind.UNKNOWN, "x")
    every = [known for known in comparisons(terms, variable) if known[2]]
    for (first, first_holds, fitting), (second, second_holds, others) in itertools.product(every, repeat=2):
        facts = assume(Facts(), first, first_holds)
        both, decided = fitting & others, decide(facts, second)
        if decided is not None:
            assert both == (fitting if decided is second_holds else frozenset())
        narrowed = assume(facts, second, second_holds)
        if narrowed is None:
            assert not both
        elif both:
            low, high, signed_low, signed_high = hull(both)
            bounds = range_of(narrowed, TINY, variable)
            assert bounds.low <= low <= high <= bounds.high
            assert bounds.signed_low <= signed_low <= signed_high <= bounds.signed_high


def test_two_variables_bound_each_other():
    """One bound on each of two variables, then a comparison of the two: every pair that satisfies all is inside."""
    terms = Terms()
    left, right = terms.make(TermKind.UNKNOWN, "x"), terms.make(TermKind.UNKNOWN, "y")
    lefts, rights = ([k for k in comparisons(terms, side) if len(k[2]) in (1, 3, 9, 14)] for side in (left, right))
    for (first, holds, xs), (second, also, ys), name in itertools.product(lefts, rights, ("eq", "ult", "slt")):
        facts = assume(assume(Facts(), first, holds), second, also)
        question = Condition(name, TINY, left, right)
        decided = decide(facts, question)
        for outcome in (False, True):
            pairs = [(x, y) for x in xs for y in ys if tiny(name, x, y) is outcome]
            assert not pairs or decided in (None, outcome)
            narrowed = assume(facts, question, outcome)
            assert not pairs or narrowed is not None
            for variable, numbers in zip((left, right), zip(*pairs, strict=True), strict=False):
                low, high, signed_low, signed_high = hull(numbers)
                bounds = range_of(narrowed, TINY, variable)
                assert bounds.low <= low <= high <= bounds.high
                assert bounds.signed_low <= signed_low <= signed_high <= bounds.signed_high


# --- what is known at all: a claim of nothing would pass all of the above


@pytest.mark.parametrize(
    ("sources", "program", "bits", "bounds"),
    [
        ([("load", 7, 1)], [], 64, (0, 255, 0, 255)),
        ([("call", 3, "scx_bpf_task_cpu")], [], 32, (0, 8191, 0, 8191)),
        ([("index", 2, 3, 10)], [], 64, (3, 12, 3, 12)),
        ([UNKNOWN], [("alu_const", "and", 64, 0, 7)], 64, (0, 7, 0, 7)),
        ([UNKNOWN], [("alu_const", "mod", 32, 0, 10)], 64, (0, 9, 0, 9)),
        ([UNKNOWN], [("alu_const", "rsh", 64, 0, 60)], 32, (0, 15, 0, 15)),
        ([UNKNOWN], [("alu_const", "rsh", 32, 0, 28)], 64, (0, 15, 0, 15)),
        ([("load", 7, 2)], [("alu_const", "div", 64, 0, 256)], 32, (0, 255, 0, 255)),
        ([("load", 7, 1)], [("alu_const", "mul", 64, 0, 4), ("alu_const", "add", 64, 0, 3)], 64, (3, 1023, 3, 1023)),
        ([UNKNOWN], [("zext", 0)], 64, (0, 2**32 - 1, 0, 2**32 - 1)),
        ([UNKNOWN], [("jump_const", "slt", 32, 0, 0)], 32, (0, 2**31 - 1, 0, 2**31 - 1)),
        ([("unknown", -5 % 2**64)], [("jump_const", "sge", 64, 0, -8), ("jump_const", "slt", 64, 0, 0)], 64,
         (2**64 - 8, 2**64 - 1, -8, -1)),
    ],
)  # fmt: skip
def test_ranges_that_the_rules_rely_on(sources, program, bits, bounds):
    path = run(sources, program)
    assert range_of(path.facts, bits, path.registers[0][0]) == bounds


def test_one_question_has_one_form():
    """A jump and its opposite, 32 bits of what was extended, a sum and its bare part: asked again, it is decided."""
    sources = [("unknown", 6), ("unknown", 9)]
    for first, again in (
        ([("jump", "lt", 64, 0, 1)], [("jump", "ge", 64, 0, 1), ("jump", "gt", 64, 1, 0)]),
        ([("zext", 0), ("zext", 1), ("jump", "lt", 64, 0, 1)], [("jump", "lt", 32, 0, 1)]),
        ([("sext", 0), ("sext", 1), ("jump", "slt", 64, 0, 1)], [("jump", "slt", 32, 0, 1)]),
        ([("jump_const", "eq", 64, 0, 7), ("alu_const", "add", 64, 0, 3)], [("jump_const", "ne", 64, 0, 10)]),
    ):
        path = run(sources, first)
        known = path.facts
        for step in again:
            path.step(*step)
        assert dict(path.facts) == dict(known)


def test_address_is_not_null_but_its_low_half_may_be():
    terms = Terms()
    address, zero = terms.make(TermKind.MAP, "m"), terms.const(0)
    assert decide(Facts(), jump_condition(terms, "eq", 64, address, zero)[0]) is False
    assert decide(Facts(), jump_condition(terms, "eq", 32, address, zero)[0]) is None
    variable = terms.alu("add", terms.make(TermKind.GLOBAL, ".bss"), terms.const(512))
    assert decide(Facts(), jump_condition(terms, "eq", 64, variable, zero)[0]) is False
    element = terms.alu("add", variable, terms.make(TermKind.ARGUMENT, 0, "cpu"))
    assert decide(Facts(), jump_condition(terms, "eq", 64, terms.alu("add", element, terms.const(8)), zero)[0]) is False


# --- values that change, and values that nobody holds any more


@settings(max_examples=300, deadline=None)
@given(st.tuples(*[SOURCES] * REGISTERS), st.lists(STEPS, max_size=10), NUMBERS)
def test_nothing_stays_claimed_of_a_value_that_was_replaced(sources, program, number):
    """Whatever the first source holds next, the rest of what was known is true."""
    path = Run(*sources)
    ((source, _before), *_others) = path.registers
    for step in program:
        path.step(*step)
    kind, _number, *how = sources[0]
    if kind not in ("const", "field"):  # a field changes by stores, which the walk looks after itself
        path.held[source] = path.read(0, kind, number, *how)[1]
    path.facts = without(path.facts, source)
    path.registers = [(term, meaning(term, path.held)) for term, _before in path.registers]
    path.check()


def test_what_does_not_depend_on_the_replaced_value_stays_known():
    path = run([("unknown", 3), ("unknown", 4)], [("jump_const", "lt", 64, place, 10) for place in (0, 1)])
    (first, second) = path.held
    assert set(without(path.facts, first)) == {key for key in path.facts if first not in terms_of(key)}
    assert range_of(without(path.facts, first), 64, second).high == 9


def test_only_facts_about_values_still_held_are_kept_and_those_about_the_task_s_cpus():
    path = run([("unknown", 3), ("unknown", 4)], [("jump", "lt", 64, 0, 1), ("jump_const", "lt", 64, 1, 10)])
    first, second = path.held
    allowed = path.terms.make(TermKind.FIELD, path.terms.make(TermKind.ARGUMENT, 0, "p"), NR_CPUS_ALLOWED, 4)
    facts = assume(path.facts, Condition("ult", 32, first, allowed), True)
    left = living(facts, frozenset({second}))
    assert {term for key in left for term in terms_of(key) if not term.is_const} == {first, second, allowed}
    assert Condition("ult", 64, first, second) not in left
    assert left[Condition("ult", 32, first, allowed)] is True
    assert left.roots == Facts(left).roots
