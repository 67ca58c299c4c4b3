"""verifier.logic.walk.flow on hand-assembled instructions: what is followed, what is not, and that it always ends."""

import random

import pytest

from schedagent.core.verification import Severity
from verifier.logic import checks as bytecode_checks
from verifier.logic.checks import check_logic
from verifier.logic.walk import calls, flow
from verifier.logic.walk.flow import Walker
from verifier.logic.walk.terms import TermKind, describe
from verifier.object.image import BpfImage, Function, Instruction, MapInfo, OpsStruct, Ref, Reference

MOV, MOV32, ADD, LSH, RSH, OR = 0xB7, 0xB4, 0x07, 0x67, 0x77, 0x47
MOV_REG, ADD_REG, OR_REG, MOV32_REG = 0xBF, 0x0F, 0x4F, 0xBC
LOAD, STORE, STORE_IMM = 0x79, 0x7B, 0x7A
JA, JEQ, JNE, JSLT32 = 0x05, 0x15, 0x55, 0xC6
CALL, EXIT, IMM64 = 0x85, 0x95, 0x18


def function(*rows, name="t_select_cpu", section="struct_ops/t_select_cpu", parameters=("ctx",)):
    """A function of (opcode, dst, src, offset, imm[, reference]) rows; a 16-byte one takes two slots."""
    instructions, slot = [], 0
    for row in rows:
        opcode, dst, src, offset, imm, *reference = row
        instructions.append(Instruction(slot, opcode, dst, src, offset, imm, *reference))
        slot += 2 if opcode == IMM64 else 1
    return Function(name, section, tuple(instructions), parameters, section != ".text")


def kfunc(name):
    return (CALL, 0, 2, 0, -1, Reference(Ref.KFUNC, name, name))


def image(*functions, member="select_cpu", maps=()):
    ops = OpsStruct("t", {member: functions[0].name}, {"timeout_ms": 5000}, "t", ".struct_ops.link")
    named = {each.name: each for each in functions}
    return BpfImage(named, {info.name: info for info in maps}, {}, (ops,), (), "GPL", {})


def walk(*functions, member="select_cpu", maps=()):
    walker = Walker(image(*functions, maps=maps), frozenset(), calls.FIXED_ENUMS)
    walker.enter(member, functions[0])
    return walker.walk


def results(*rows, **how):
    return sorted({describe(path.result) for path in walk(function(*rows), **how).exits})


ARGUMENTS = ((LOAD, 6, 1, 0, 0), (LOAD, 7, 1, 8, 0))


def test_arguments_are_known_by_name_and_arithmetic_keeps_their_shape():
    assert results(*ARGUMENTS, (MOV_REG, 0, 7, 0, 0), (EXIT, 0, 0, 0, 0)) == ["prev_cpu"]
    shifted = (*ARGUMENTS, (LSH, 7, 0, 0, 32), (RSH, 7, 0, 0, 29), (ADD, 7, 0, 0, 513), (MOV_REG, 0, 7, 0, 0))
    assert results(*shifted, (EXIT, 0, 0, 0, 0)) == ["(8 * prev_cpu + 513)"]


def test_a_question_that_was_answered_is_not_asked_again():
    found = walk(
        function(
            *ARGUMENTS,
            kfunc("scx_bpf_test_and_clear_cpu_idle"),
            (MOV_REG, 8, 0, 0, 0),
            (MOV, 9, 0, 0, 1),
            (JEQ, 8, 0, 1, 0),
            (MOV, 9, 0, 0, 2),
            (JNE, 8, 0, 1, 0),  # decided above: jumps only where r9 is 2
            (ADD, 9, 0, 0, 10),
            (MOV_REG, 0, 9, 0, 0),
            (EXIT, 0, 0, 0, 0),
        )
    )
    assert sorted(describe(path.result) for path in found.exits) == ["11", "2"]


def test_an_order_of_two_unknowns_is_remembered():
    less = 0xAD  # if dst < src
    rows = (*ARGUMENTS, (LOAD, 8, 1, 16, 0), (MOV, 0, 0, 0, 1), (less, 7, 8, 1, 0), (MOV, 0, 0, 0, 2))
    assert results(*rows, (less, 7, 8, 1, 0), (ADD, 0, 0, 0, 10), (EXIT, 0, 0, 0, 0)) == ["1", "12"]


def test_signed_test_bounds_the_value_on_both_sides():
    rows = (kfunc("scx_bpf_pick_idle_cpu"), (MOV32_REG, 6, 0, 0, 0), (MOV, 0, 0, 0, 1), (JSLT32, 6, 0, 3, 0))
    rest = ((MOV, 0, 0, 0, 2), (JSLT32, 6, 0, 1, -5), (MOV, 0, 0, 0, 3), (EXIT, 0, 0, 0, 0))
    assert results(*rows, *rest) == ["1", "3"]


def test_stack_slots_keep_what_was_stored():
    rows = ((STORE_IMM, 10, 0, -8, 41), (LOAD, 0, 10, -8, 0), (ADD, 0, 0, 0, 1), (EXIT, 0, 0, 0, 0))
    assert results(*rows) == ["42"]


def test_array_lookup_in_range_is_never_null_and_beyond_it_may_be():
    table = MapInfo("table", calls.ARRAY, 4, 8, 4, 0, 0)

    def lookup(index):
        return results(
            (STORE_IMM - 0x18, 10, 0, -4, index),
            (MOV_REG, 2, 10, 0, 0),
            (ADD, 2, 0, 0, -4),
            (IMM64, 1, 1, 0, 0, Reference(Ref.MAP, "table")),
            (CALL, 0, 0, 0, 1, Reference(Ref.HELPER, "bpf_map_lookup_elem")),
            (JEQ, 0, 0, 2, 0),
            (MOV, 0, 0, 0, 1),
            (EXIT, 0, 0, 0, 0),
            (MOV, 0, 0, 0, -1),
            (EXIT, 0, 0, 0, 0),
            maps=(table,),
        )

    assert lookup(3) == ["1"]
    assert lookup(4) == ["-1", "1"]


def test_loops_end_whether_they_count_or_not():
    counting = ((MOV, 6, 0, 0, 0), (ADD, 6, 0, 0, 1), (JNE, 6, 0, -2, 1 << 30), (MOV, 0, 0, 0, 7), (EXIT, 0, 0, 0, 0))
    found = walk(function(*counting))
    assert [describe(path.result) for path in found.exits] == ["7"]
    assert found.entries[0].steps < 30
    assert walk(function((JA, 0, 0, -1, 0), (EXIT, 0, 0, 0, 0))).entries[0].steps < 5


def diamonds(count):
    """Code with 2^count paths: every one leaves another number in r6."""
    rows = [*ARGUMENTS, (MOV, 6, 0, 0, 0)]
    for bit in range(count):
        rows += [kfunc("scx_bpf_test_and_clear_cpu_idle"), (JEQ, 0, 0, 1, 0), (ADD, 6, 0, 0, 1 << bit)]
    return function(*rows, (MOV_REG, 0, 6, 0, 0), (EXIT, 0, 0, 0, 0))


def test_many_paths_are_joined_and_what_they_brought_is_remembered():
    found = walk(diamonds(20))
    assert found.entries[0].joined
    assert not found.entries[0].exhausted
    assert found.entries[0].steps < 4000
    assert any(path.result.kind is TermKind.UNKNOWN and path.result in found.merged for path in found.exits)


def test_exhausted_budget_is_a_warning_that_an_oracle_must_clear(monkeypatch):
    monkeypatch.setattr(flow, "STEP_BUDGET", -400)  # beside four for each of some 60 instructions
    report = check_logic(image(diamonds(20), member="enqueue"), frozenset())
    assert [walk.exhausted for walk in report.callbacks] == [True]
    cleared_by = {f.cleared_by for f in report.findings if f.severity is Severity.WARNING and "budget" in f.message}
    assert cleared_by == {"starvation", "affinity", "work conservation"}


@pytest.mark.parametrize(
    "rows", [((JA, 0, 0, 5, 0),), ((0x8F, 0, 0, 0, 0),), ((0xFF, 0, 0, 0, 0),), ((MOV, 0, 0, 0, 0),), ()], ids=str
)
def test_senseless_code_is_an_error_and_no_crash(rows):
    report = check_logic(image(function(*rows)), frozenset())
    assert any("cannot be followed" in finding.message for finding in report.errors)


def test_recursion_ends():
    again = (CALL, 0, 1, 0, 0, Reference(Ref.FUNCTION, "again"))
    caller = function(again, (EXIT, 0, 0, 0, 0))
    callee = function(again, (EXIT, 0, 0, 0, 0), name="again", section=".text", parameters=())
    assert walk(caller, callee).entries[0].steps < 50


NAMES = sorted({*calls.ARITY, *calls.PURE, *calls.ONLY_READS, *calls.CALLBACK_ARGUMENT, "bpf_rbtree_add_impl"})
OPCODES = sorted(
    {0x18, 0x61, 0x69, 0x71, 0x79, 0x62, 0x6A, 0x72, 0x7A, 0x63, 0x7B, 0xC3, 0xDB}
    | {group | number << 4 | source for group in (4, 7) for number in range(14) for source in (0, 8)}
    | {
        group | number << 4 | source
        for group in (5, 6)
        for number in (1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13)
        for source in (0, 8)
    }
)


def random_function(dice, name, length=40):
    """Code of valid opcodes that means nothing; half of its calls are known to the checks."""
    rows = []
    for index in range(length):
        offset = dice.choice((-8, -16, -24, 0, 8, 16, dice.randrange(-600, 600)))
        opcode = dice.choice(OPCODES) if dice.random() < 0.7 else CALL
        reference = []
        if opcode == CALL:
            kind = dice.choice((Ref.KFUNC, Ref.HELPER, Ref.FUNCTION))
            reference = [Reference(kind, "sub" if kind is Ref.FUNCTION else dice.choice(NAMES))]
        elif opcode == IMM64:
            kind = dice.choice((Ref.MAP, Ref.VARIABLE, Ref.FUNCTION, Ref.ENUM, Ref.KFUNC, Ref.KSYM))
            reference = [Reference(kind, dice.choice(("table", "sub", ".rodata", "x.SCX_DSQ_LOCAL")), core_kind=11)]
        elif opcode & 7 in (5, 6):
            offset = dice.randrange(-index - 1, length - index) if opcode & 0xF0 else 0
        imm = dice.choice((0, 1, 3, 8, -1, 64, dice.randrange(-(1 << 31), 1 << 31)))
        rows.append((opcode, dice.randrange(11), dice.randrange(11), offset, imm, *reference))
    return rows, name


def test_nonsense_never_crashes_the_checks(monkeypatch):
    monkeypatch.setattr(flow, "STEP_BUDGET", 500)
    dice = random.Random(7)
    tables = (MapInfo("table", calls.QUEUE, 0, 8, 4, 0, 0),)
    for _round in range(80):
        member = dice.choice(sorted(calls.CALLBACK_ARGUMENTS))
        rows, name = random_function(dice, f"t_{member}")
        rows = [row for row in rows if row[0] != IMM64] + [(EXIT, 0, 0, 0, 0)]
        subs, _name = random_function(dice, "sub", 12)
        entry = function(*rows, name=name)
        sub = function(*subs, (EXIT, 0, 0, 0, 0), name="sub", section=".text", parameters=("a", "b"))
        report = check_logic(image(entry, sub, member=member, maps=tables), frozenset())
        assert report.summary


def test_object_without_a_scheduler_is_refused():
    empty = BpfImage({}, {}, {}, (), ("cc",), "GPL", {})
    (finding,) = check_logic(empty, frozenset()).findings
    assert (finding.rule, finding.message) == (
        27,
        "the object defines no sched_ext_ops, so it is no scheduler (it has: cc)",
    )
    assert bytecode_checks.check_logic(empty, frozenset()).summary.startswith("0 callbacks")
