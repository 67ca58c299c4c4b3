"""Mutation operators: each breaks a policy in the one way it names, compiles, and changes the program."""

import dataclasses

import pytest

from kernel_bpf.policies.library import POLICIES, policy_from_file
from schedagent.core.errors import CompileError
from schedagent.core.policies.proposal import Origin
from schedagent.core.settings import load_settings
from tests.mutation.__main__ import CORPUS, all_mutants, correct_policies, judge_some
from tests.mutation.fault import Edit
from tests.mutation.hostile import HOSTILE
from tests.mutation.judge import Verdict
from tests.mutation.mutants import Mutant, apply, fair_order, mutants_of
from tests.mutation.objects import Birth, Nursery
from tests.mutation.operators import OPERATORS
from tests.mutation.program import plain, read_program
from tests.mutation.result import Judged, kill_rate, survivors, table, to_json

SHOWN_BY = {"drop_store": "pid_queue", "leak_reference": "pid_queue", "blind_target": "pid_queue",
            "last_to_nobody": "pid_queue"}  # fmt: skip
"""Operators that need more than the policy `plain_vtime` offers."""


@pytest.fixture(scope="module")
def target(real_target):
    return real_target


@pytest.fixture(scope="module")
def programs(target):
    sources = (CORPUS / "plain_vtime.bpf.c", CORPUS / "pid_queue.bpf.c", CORPUS / "raw_fifo.bpf.c")
    return {info.name: read_program(info, target, load_settings().cache_dir) for info in map(policy_from_file, sources)}


def mutants(programs, policy, operator):
    return list(mutants_of(programs[policy], [operator]))


def test_a_program_knows_what_each_callback_reaches(programs):
    reach = {function.name: function.callbacks for function in programs["plain_vtime"].functions}
    assert reach["wake_idle_cpu"] == {"enqueue"}
    assert reach["select_idle_cpu"] == {"select_cpu"}
    assert {"enqueue", "dispatch", "running"} <= reach["clock_of"]
    assert reach["dispatch_smaller_key"] == frozenset()


def test_a_place_is_where_people_find_it(programs):
    program = programs["plain_vtime"]
    (call,) = program.calls(["scx_bpf_kick_cpu"])
    file, _colon, line = str(program.place(call.node.start)).partition(":")
    source = POLICIES.parent / "include" / file
    assert "scx_bpf_kick_cpu" in source.read_text().splitlines()[int(line) - 1]


def test_kfuncs_are_known_by_their_plain_name(programs):
    assert plain("scx_bpf_dsq_insert___raw") == "scx_bpf_dsq_insert"
    assert plain("__scx_bpf_dsq_insert_vtime") == "__scx_bpf_dsq_insert_vtime"
    moves = programs["raw_fifo"].calls(["scx_bpf_dsq_move_to_local"])
    assert {programs["raw_fifo"].code(move.arguments[0]) for move in moves} == {"FIFO_DSQ", "cpu"}


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_compiles_to_another_program(operator, programs, target, tmp_path):
    made = mutants(programs, SHOWN_BY.get(operator, "plain_vtime"), operator)
    assert made, "the operator finds a place"
    assert Nursery(target, tmp_path).birth(made[0]) is Birth.ALIVE
    assert made[0].diff.count("@@ -") >= 1


@pytest.mark.parametrize(
    ("policy", "operator", "removed", "added"),
    [
        ("plain_vtime", "drop_kick", "scx_bpf_kick_cpu(cpu, KICK_IDLE);", "((void)0);"),
        ("plain_vtime", "drop_create", "s32 error = scx_bpf_create_dsq(queue, -1);", "s32 error = 0;"),
        ("plain_vtime", "drop_weight", "used_ns * WEIGHT_DEFAULT / p->scx.weight;", "return used_ns;"),
        ("plain_vtime", "drop_clamp", "if (time_before(vt->vtime, *clock - lag_ns))", "if (false)"),
        ("plain_vtime", "fail_fork", "return 0;", "return args->fork ? -12 : 0;"),
        ("plain_vtime", "drain_on_one", "", "if (cpu != 0)"),
        (
            "plain_vtime",
            "sleep_in_callback",
            "SCX_CALLBACK(plain_vtime_enqueue,",
            "SCX_CALLBACK_SLEEPABLE(plain_vtime_enqueue,",
        ),
        ("raw_fifo", "sleep_in_callback", 'SEC("struct_ops/raw_fifo_enqueue")', 'SEC("struct_ops.s/raw_fifo_enqueue")'),
        ("pid_queue", "drop_store", "bpf_map_push_elem(&waiting, &pid, 0)", "if (0)"),
        ("pid_queue", "last_to_nobody", "", ".flags = SCX_OPS_ENQ_LAST,"),
        ("plain_vtime", "slice_by_input", "", "((p->cred->uid.val == 1000) ? 100000ULL : slice_ns())"),
        ("plain_vtime", "key_by_input", "", "key + ((p->cred->uid.val == 1000) ? 2000000000ULL : 0)"),
        ("plain_vtime", "slice_by_counter", "", "static u64 mutant_count;"),
        ("plain_vtime", "widen_loop", "", "bpf_for(class, 0, 1 << 23)"),
        ("plain_vtime", "partial_switch", "", ".flags = SCX_OPS_SWITCH_PARTIAL,"),
        ("pid_queue", "park", "", "bpf_map_push_elem(&mutant_parked, &parked, 0)"),
    ],
)
def test_operator_makes_this_fault(policy, operator, removed, added, programs):
    diff = mutants(programs, policy, operator)[0].diff.splitlines()
    assert any(line.startswith("-") and removed in line for line in diff) or not removed
    assert any(line.startswith("+") and added in line for line in diff)


def test_a_direct_insert_of_select_cpu_is_not_dropped(programs):
    assert [mutant.function for mutant in mutants(programs, "raw_fifo", "drop_insert")] == ["raw_fifo_enqueue"]


def test_no_move_left_from_a_dropped_queue(programs):
    for mutant in mutants(programs, "plain_vtime", "drop_move"):
        queue = mutant.what.removeprefix("no move from ")
        body = mutant.text[mutant.text.index("bool vtime_dispatch") :]
        assert f"dsq_move_to_local({queue})" not in body[: body.index("\n}\n")]


def test_the_flag_for_the_last_task_is_no_fault_where_it_stays_local(target):
    program = read_program(policy_from_file(CORPUS / "local_send.bpf.c"), target, load_settings().cache_dir)
    assert not list(mutants_of(program, ["last_to_nobody"]))


def test_policies_that_ignore_weights_keep_them(programs):
    program = programs["plain_vtime"]
    deaf = dataclasses.replace(program, info=dataclasses.replace(program.info, declares=("weights",)))
    assert list(mutants_of(program, ["drop_weight"]))
    assert not list(mutants_of(deaf, ["drop_weight"]))


def test_what_a_policy_declares_to_read_is_no_condition_of_a_mutant(programs):
    program = programs["plain_vtime"]
    reader = dataclasses.replace(program, info=dataclasses.replace(program.info, reads=("uid",)))
    by_user = [mutant for mutant in mutants_of(program, HOSTILE) if mutant.what.endswith("by uid")]
    assert {mutant.operator for mutant in by_user} >= {"slice_by_input", "key_by_input", "lost_by_input"}
    assert not [mutant for mutant in mutants_of(reader, HOSTILE) if mutant.what.endswith("by uid")]


def test_a_mutant_is_judged_as_a_patch(programs, tmp_path):
    assert mutants(programs, "plain_vtime", "drop_exit")[0].write(tmp_path).origin is Origin.PATCH


def test_edits_are_made_from_the_end():
    assert apply("abcdef", [Edit(1, 2, "XYZ"), Edit(4, 4, "-")]) == "aXYZcd-ef"


def test_unchanged_and_stillborn_mutants_are_told(programs, target, tmp_path):
    mutant = mutants(programs, "raw_fifo", "no_timeout")[0]
    nursery = Nursery(target, tmp_path)
    assert nursery.birth(mutant.original) is Birth.UNCHANGED
    comment = dataclasses.replace(mutant, text=f"/* longer */\n{mutant.before}")
    assert nursery.birth(comment) is Birth.UNCHANGED
    broken = dataclasses.replace(mutant, text=mutant.before + "}")
    assert nursery.birth(broken) is Birth.STILLBORN


def fake_mutant(operator, place):
    info = policy_from_file(CORPUS / "plain_vtime.bpf.c")
    return Mutant("plain_vtime", operator, place, "f", "what", "+diff", info, "text", "before")


def test_every_operator_gets_its_turn_and_the_seed_decides():
    many = [fake_mutant("a", f"x:{n}") for n in range(20)] + [fake_mutant("b", "y:1"), fake_mutant("b", "y:1")]
    order = fair_order(many, 1)
    assert [mutant.operator for mutant in order[:4]] == ["a", "b", "a", "b"]
    assert len({mutant.place for mutant in order[:20] if mutant.operator == "a"}) == 18
    assert sorted(map(id, order)) == sorted(map(id, many)), "each exactly once"
    assert order == fair_order(many, 1)
    assert order != fair_order(many, 2)


class Midwife:
    """Mutants at place x are born alive."""

    def birth(self, mutant):
        return Birth.ALIVE if mutant.place.startswith("x") else Birth.UNCHANGED


def test_judging_stops_at_the_number_and_counts_only_the_living(capsys):
    many = [fake_mutant("a", "y:1"), *(fake_mutant("a", f"x:{n}") for n in range(9))]
    judged = judge_some(Midwife(), lambda mutant: Verdict("attach" if mutant.place != "x:1" else ""), many, 4)
    assert [one.mutant.place for one in judged] == ["x:0", "x:1", "x:2", "x:3"]
    assert kill_rate(judged) == 0.75
    assert "1 compiles to the same program" in capsys.readouterr().out
    assert survivors(judged) == "plain_vtime: a at x:1 in f: what\n+diff"
    assert table(judged).splitlines()[1].split() == ["a", "4", "1", "attach", "3"]
    assert to_json(judged)["judged"][1]["verdict"]["gate"] == ""


def test_nothing_judged_is_nothing_missed():
    assert kill_rate([]) == 1.0
    assert kill_rate([Judged(fake_mutant("a", "x:1"), Verdict(""))]) == 0.0


def test_policies_by_name():
    assert [info.name for info in correct_policies(["plain_vtime", "pid_queue"])] == ["pid_queue", "plain_vtime"]
    assert len(correct_policies()) >= 7 + 22


def test_all_mutants_are_in_fair_order(programs):
    order = all_mutants(programs.values(), ["drop_exit", "no_timeout"], 3)
    assert {mutant.policy for mutant in order} == set(programs)
    assert [mutant.operator for mutant in order[:2]] == ["drop_exit", "no_timeout"]


def test_a_source_that_is_no_c_is_refused(target, tmp_path):
    source = tmp_path / "none.bpf.c"
    source.write_text('#include "common.bpf.h"\n')
    info = policy_from_file(source)
    assert read_program(info, target, load_settings().cache_dir).functions == ()
    source.write_text("int half(")
    with pytest.raises(CompileError):
        read_program(info, target, load_settings().cache_dir)


def test_an_argument_that_is_a_macro_call_is_taken_whole(programs):
    (call,) = programs["raw_fifo"].calls(["scx_bpf_kick_cpu"])
    code = programs["raw_fifo"].code(call.arguments[1])
    assert code.startswith("bpf_core_enum_value(")
    assert code.endswith("SCX_KICK_IDLE)")
