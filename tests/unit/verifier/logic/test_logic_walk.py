"""verifier.logic.walk.flow on hand-assembled instructions: what is followed, what is not, and that it always ends."""

import random
from dataclasses import replace

import pytest

from schedagent.core.policies.policy import Standing
from schedagent.core.rules import FindingClass
from schedagent.core.verification import Severity
from verifier.logic import checks as bytecode_checks
from verifier.logic.checks import check_logic
from verifier.logic.walk import calls, flow
from verifier.logic.walk.code import prepare
from verifier.logic.walk.flow import Walker
from verifier.logic.walk.state import State
from verifier.logic.walk.terms import TermKind, Terms, describe, linear, pointer
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


def test_a_narrow_stack_slot_holds_no_more_than_its_bytes():
    for store, load, result in ((0x63, 0x61, "4294967295"), (0x6B, 0x69, "65535"), (0x73, 0x71, "255")):
        rows = ((MOV, 6, 0, 0, -1), (store, 10, 6, -8, 0), (load, 0, 10, -8, 0), (EXIT, 0, 0, 0, 0))
        assert results(*rows) == [result]
    rows = ((STORE_IMM - 0x18, 10, 0, -8, -1), (LOAD - 0x18, 0, 10, -8, 0), (EXIT, 0, 0, 0, 0))
    assert results(*rows) == ["4294967295"]


def test_a_narrow_stack_slot_keeps_the_value_that_fits():
    rows = (*ARGUMENTS, (0x61, 6, 6, 8, 0), (0x63, 10, 6, -8, 0), (0x61, 0, 10, -8, 0), (EXIT, 0, 0, 0, 0))
    assert results(*rows) == ["p->+8"]


def test_sign_extending_loads_may_be_negative_and_others_not():
    jslt = 0xC5
    for load, outcomes in ((0x61, ["2"]), (0x81, ["1", "2"]), (0x89, ["1", "2"]), (0x91, ["1", "2"])):
        rows = (*ARGUMENTS, (load, 6, 6, 8, 0), (MOV, 0, 0, 0, 1), (jslt, 6, 0, 1, 0), (MOV, 0, 0, 0, 2))
        assert results(*rows, (EXIT, 0, 0, 0, 0)) == outcomes


def outcomes_of_comparing(*rows, **how):
    """ "1" where r8 may equal r9 behind these rows, "2" where it may not."""
    jeq = 0x1D
    rest = ((MOV, 0, 0, 0, 1), (jeq, 8, 9, 1, 0), (MOV, 0, 0, 0, 2), (EXIT, 0, 0, 0, 0))
    return results(*rows, *rest, **how)


def test_extensions_and_swaps_of_different_width_are_different_values():
    copies = (*ARGUMENTS, (MOV_REG, 8, 7, 0, 0), (MOV_REG, 9, 7, 0, 0))
    little, big, swap = 0xD4, 0xDC, 0xD7
    for (opcode, bits), (other, more) in (
        ((little, 16), (big, 16)),
        ((big, 16), (big, 32)),
        ((little, 64), (swap, 64)),
    ):
        assert outcomes_of_comparing(*copies, (opcode, 8, 0, 0, bits), (other, 9, 0, 0, more)) == ["1", "2"]
        assert outcomes_of_comparing(*copies, (opcode, 8, 0, 0, bits), (opcode, 9, 0, 0, bits)) == ["1"]
    assert outcomes_of_comparing(*copies, (MOV_REG, 8, 7, 8, 0), (MOV_REG, 9, 7, 16, 0)) == ["1", "2"]


def test_results_of_three_calls_at_one_place_are_three_values():
    subprogram = function(kfunc("scx_bpf_now"), (EXIT, 0, 0, 0, 0), name="again", section=".text", parameters=())
    again = (CALL, 0, 1, 0, 0, Reference(Ref.FUNCTION, "again"))
    rows = (again, (MOV_REG, 9, 0, 0, 0), again, (MOV_REG, 8, 9, 0, 0), (MOV_REG, 9, 0, 0, 0), again)
    rest = ((MOV, 0, 0, 0, 1), (0x1D, 8, 9, 1, 0), (MOV, 0, 0, 0, 2), (EXIT, 0, 0, 0, 0))
    walked = walk(function(*rows, *rest), subprogram)
    assert sorted(describe(path.result) for path in walked.exits) == ["1", "2"]


def test_nothing_stays_known_of_a_buffer_that_was_filled_again():
    fill = (
        (MOV_REG, 1, 10, 0, 0),
        (ADD, 1, 0, 0, -8),
        (MOV, 2, 0, 0, 8),
        (MOV, 3, 0, 0, 0),
        (CALL, 0, 0, 0, 113, Reference(Ref.HELPER, "bpf_probe_read_kernel")),
        (LOAD, 6, 10, -8, 0),
    )
    rows = (*fill, (MOV, 0, 0, 0, 1), (JEQ, 6, 0, 1, 7), (EXIT, 0, 0, 0, 0), *fill, (MOV, 0, 0, 0, 2))
    assert results(*rows, (JEQ, 6, 0, 1, 7), (MOV, 0, 0, 0, 3), (EXIT, 0, 0, 0, 0)) == ["1", "2", "3"]


def test_an_address_in_the_arena_stays_one_when_what_it_was_loaded_from_is_loaded_again():
    terms = Terms()
    record = terms.make(TermKind.CALL, "bpf_task_storage_get", 7, ())
    data = terms.make(TermKind.LOAD, 9, record, 8)
    kept = terms.alu("add", terms.make(TermKind.PURE, calls.ARENA, (data,)), terms.const(16))
    state = State(prepare(function((EXIT, 0, 0, 0, 0)), {}), [kept, data])
    state.remake(data, terms)
    assert [pointer(value)[0].name == calls.ARENA for value in state.regs] == [True, False]
    assert kept not in state.regs


def test_an_address_in_the_arena_stays_one_however_often_it_was_looked_up():
    """A tree of nodes, each of which is found in a table of the one before."""
    terms = Terms()
    node = terms.make(TermKind.UNKNOWN, "root")
    index = terms.make(TermKind.OP, "and", terms.make(TermKind.UNKNOWN, "key"), terms.const(56))
    for step in range(40):
        address = terms.alu("add", terms.make(TermKind.PURE, calls.ARENA, (node,)), index)
        bases = [part for part, _factor in linear(address)[1] if part.kind is TermKind.PURE]
        assert [base.name for base in bases] == [calls.ARENA], step
        node = terms.make(TermKind.LOAD, ("find", step), address, 8)
    assert pointer(node)[0].kind in (TermKind.LOAD, TermKind.UNKNOWN)


def test_a_callback_of_a_loop_gets_another_number_in_every_round():
    rows = (
        (MOV, 1, 0, 0, 4),
        (IMM64, 2, 4, 0, 0, Reference(Ref.FUNCTION, "round")),
        (MOV, 3, 0, 0, 0),
        (MOV, 4, 0, 0, 0),
    )
    call = (CALL, 0, 0, 0, 181, Reference(Ref.HELPER, "bpf_loop"))
    caller = function(*rows, call, (MOV, 0, 0, 0, 0), (EXIT, 0, 0, 0, 0), name="t_enqueue")
    kick, seek = kfunc("scx_bpf_kick_cpu"), kfunc("scx_bpf_pick_idle_cpu")
    end = ((MOV, 0, 0, 0, 0), (EXIT, 0, 0, 0, 0))
    callback = function(
        (JEQ, 1, 0, 3, 0), seek, *end, kick, *end, name="round", section=".text", parameters=("i", "context")
    )
    exits = walk(caller, callback, member="enqueue").exits
    assert any(path.marks.kicked and path.marks.sought for path in exits)


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


@pytest.mark.parametrize("budget", ["STEP_BUDGET", "TOTAL_BUDGET"])
@pytest.mark.parametrize("member", ["enqueue", "tick", "cgroup_move", "dump"])
def test_what_cannot_be_followed_to_its_end_is_an_error_in_every_callback(member, budget, monkeypatch):
    monkeypatch.setattr(flow, budget, 100)
    found = {}
    for standing in Standing:
        report = check_logic(image(diamonds(20), member=member), frozenset(), standing=standing)
        assert [walk.exhausted for walk in report.callbacks] == [True]
        (finding,) = (each for each in report.findings if "can be followed" in each.message)
        found[standing] = finding.rule, finding.severity, finding.finding_class
    unsafe = 28, Severity.ERROR, FindingClass.UNSAFE
    assert found == {Standing.DERIVED: unsafe, Standing.FOREIGN: unsafe,
                     Standing.BUNDLED: (28, Severity.NOTE, FindingClass.UNSAFE)}  # fmt: skip


def test_programs_that_were_never_looked_at_are_one_finding_and_prove_no_absence(monkeypatch):
    """Whether a queue is drained shows in all of dispatch only; what is not looked at is said once."""
    monkeypatch.setattr(flow, "TOTAL_BUDGET", 40)
    insert = (*ARGUMENTS, (MOV_REG, 1, 6, 0, 0), (MOV, 2, 0, 0, 7), (MOV, 3, 0, 0, 5_000_000), (MOV, 4, 0, 0, 0),
              kfunc("scx_bpf_dsq_insert"), (EXIT, 0, 0, 0, 0))  # fmt: skip
    callbacks = {"enqueue": "first", "select_cpu": "pad", "dispatch": "second", "tick": "third"}
    ops = OpsStruct("t", callbacks, {"timeout_ms": 5000}, "t", "")
    plain = function((MOV, 0, 0, 0, 0), (EXIT, 0, 0, 0, 0))
    named = {"first": function(*insert, name="first"), "pad": replace(diamonds(20), name="pad"),
             "second": replace(plain, name="second"), "third": replace(plain, name="third")}  # fmt: skip
    report = check_logic(BpfImage(named, {}, {}, (ops,), (), "GPL", {}), frozenset(), standing=Standing.FOREIGN)
    assert [each.message for each in report.findings if each.rule == 28 and not each.where] == [
        "the steps of all programs were used up before 2 of them: dispatch, tick"
    ]
    assert 19 not in {each.rule for each in report.findings}


def test_no_callback_uses_up_what_the_others_have(monkeypatch):
    monkeypatch.setattr(flow, "STEP_BUDGET", 100)
    padded = diamonds(20)
    ops = OpsStruct("t", {"init": "pad", "exit": "pad2", "tick": "plain"}, {"timeout_ms": 5000}, "t", "")
    named = {"pad": replace(padded, name="pad"), "pad2": replace(padded, name="pad2"),
             "plain": function((MOV, 0, 0, 0, 0), (EXIT, 0, 0, 0, 0), name="plain")}  # fmt: skip
    report = check_logic(BpfImage(named, {}, {}, (ops,), (), "GPL", {}), frozenset())
    assert {walk.member: walk.exhausted for walk in report.callbacks} == {"init": True, "exit": True, "tick": False}


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
    for _round in range(400):
        member = dice.choice(sorted(calls.CALLBACK_ARGUMENTS))
        rows, name = random_function(dice, f"t_{member}")
        rows = [row for row in rows if row[0] != IMM64] + [(EXIT, 0, 0, 0, 0)]
        subs, _name = random_function(dice, "sub", 12)
        entry = function(*rows, name=name)
        sub = function(*subs, (EXIT, 0, 0, 0, 0), name="sub", section=".text", parameters=("a", "b"))
        report = check_logic(image(entry, sub, member=member, maps=tables), frozenset())
        assert report.summary


def test_an_argument_before_the_first_is_none_of_a_callbacks():
    entry = function((0x79, 2, 1, -64, 0), (0xB7, 0, 0, 0, 0), (EXIT, 0, 0, 0, 0), name="t_enqueue")
    assert check_logic(image(entry, member="enqueue"), frozenset()).summary.startswith("1 callback")


def test_object_without_a_scheduler_is_refused():
    empty = BpfImage({}, {}, {}, (), ("cc",), "GPL", {})
    (finding,) = check_logic(empty, frozenset()).findings
    assert (finding.rule, finding.message) == (
        27,
        "it is BPF, and no scheduler: it defines cc, and no sched_ext_ops",
    )
    assert bytecode_checks.check_logic(empty, frozenset()).summary.startswith("0 callbacks")
