"""Rule 28 on time: the work of a callback is bounded as a product, however it is written."""

from __future__ import annotations

import pytest

from schedagent.core.policies.policy import Standing
from schedagent.core.rules import FindingClass
from schedagent.core.verification import Severity
from tests.support.small_policy import check, compiled
from verifier.logic.checks import check_logic
from verifier.logic.rules.work import INSTRUCTIONS_IN_ALL, INSTRUCTIONS_MAX, RARE_WORK_MAX, WORK_MAX
from verifier.logic.walk.loops import KERNEL_ROUNDS
from verifier.object.image import BpfImage, Function, Instruction, OpsStruct

ADD = "__sync_fetch_and_add(&sum, i);"
SUM = "u64 sum;\n"
TABLE = """
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, %d);
    __type(key, u32);
    __type(value, u64);
} table SEC(".maps");
"""
TIMER = """
struct beat { struct bpf_timer timer; };
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, struct beat);
} beats SEC(".maps");
static int on_beat(void *map, u32 *key, struct beat *beat)
{
    %s
    bpf_timer_start(&beat->timer, %s);
    return 0;
}
"""
START_TIMER = """
u32 zero = 0;
struct beat *beat = bpf_map_lookup_elem(&beats, &zero);

if (beat && !bpf_timer_init(&beat->timer, &beats, 1)) {
    bpf_timer_set_callback(&beat->timer, on_beat);
    bpf_timer_start(&beat->timer, 1000000, 0);
}
"""
CALLBACK = "static long often(u64 i, void *context)\n{\n\t%s\n\treturn 0;\n}\n"
LOOPS = "static __noinline void loops(u32 most)\n{\n\tint i;\n\n\tbpf_for(i, 0, 4096)\n\t\t" + ADD + "\n}\n"

ONCE = "int i;\nbpf_for(i, 0, %s)\n\t" + ADD
TWICE = "int i, j;\nbpf_for(i, 0, %s)\n\tbpf_for(j, 0, %s)\n\t\t" + ADD
LONG = TWICE % (4096, 4096)
INIT = "return scx_bpf_create_dsq(SHARED, -1);"
ALL = "static long all(void *map, u32 *key, u64 *value, void *context)\n{\n\t*value = 0;\n\treturn 0;\n}\n"
OVER_ALL = "bpf_for_each_map_elem(&table, all, NULL, 0);"
COUNTING = "u32 i;\nfor (%s) {\n\t" + ADD + "\n\t%s\n}"
BOUNDS = "u32 bounds[2] = { %d, %d };\n"
BY_TABLE = "int i;\nu32 most = bounds[p->pid & 1];\nbpf_for(i, 0, most)\n\t" + ADD
SPILLED = """
struct bpf_iter_num few, many, *volatile place = &many;

bpf_iter_num_new(&few, 0, 10);
bpf_iter_num_new(&many, 0, 1 << 22);
place = %s;
while (bpf_iter_num_next(place))
    __sync_fetch_and_add(&sum, 1);
bpf_iter_num_destroy(&few);
bpf_iter_num_destroy(&many);
"""
SHARED_END = """
struct bpf_iter_num odd, even, *volatile used;

if (sum & 1) {
    bpf_iter_num_new(&odd, 0, 10);
    while (bpf_iter_num_next(&odd))
        __sync_fetch_and_add(&sum, 1);
    used = &odd;
} else {
    bpf_iter_num_new(&even, 0, 20);
    while (bpf_iter_num_next(&even))
        __sync_fetch_and_add(&sum, 3);
    used = &even;
}
bpf_iter_num_destroy(used);
"""
BEGUN_AGAIN = """
static __noinline void again(struct bpf_iter_num *rounds)
{
    bpf_iter_num_destroy(rounds);
    bpf_iter_num_new(rounds, 0, 10);
}
"""

TOO_MUCH = {
    "another iterator's address in the stack": {"before": SUM, "tick": SPILLED % "&many"},
    "loops within each other": {"before": SUM, "tick": LONG},
    "three short ones": {
        "before": SUM,
        "tick": f"int i, j, k;\nbpf_for(i, 0, 128)\n\tbpf_for(j, 0, 128)\n\t\tbpf_for(k, 0, 128)\n\t\t\t{ADD}",
    },
    "after an hour": {
        "before": SUM,
        "enqueue": "int i, j;\nif (scx_bpf_now() > 3600ULL * 1000000000)\n"
        f"\tbpf_for(i, 0, 1 << 23)\n\t\tbpf_for(j, 0, 1 << 23)\n\t\t\t{ADD}\n"
        "scx_bpf_dsq_insert(p, GLOBAL, SLICE, 0);",
    },
    "a loop in a subprogram": {"before": SUM + LOOPS, "tick": "int i;\nbpf_for(i, 0, 4096)\n\tloops(i);"},
    "a subprogram called many times": {
        "before": SUM + f"static __noinline void loops(void)\n{{\n\tint i;\n\n\tbpf_for(i, 0, 65536)\n\t\t{ADD}\n}}\n",
        "tick": "loops();\n" * 8,
    },
    "a loop in a callback": {
        "before": SUM + CALLBACK % f"int j;\n\tbpf_for(j, 0, 4096)\n\t\t{ADD}",
        "tick": "bpf_loop(4096, often, NULL, 0);",
    },
    "a callback in a loop": {
        "before": SUM + CALLBACK % ADD,
        "tick": "int i;\nbpf_for(i, 0, 4096)\n\tbpf_loop(4096, often, NULL, 0);",
    },
    "as often as a variable says": {
        "before": SUM + CALLBACK % ADD + "u32 often_enough;\n",
        "tick": "bpf_loop(often_enough++, often, NULL, 0);",
    },
    "as often as another callback says": {
        "before": SUM + "u32 bound = 10;\n",
        "running": "bound = p->pid;",
        "tick": ONCE % "bound",
    },
    "as often as a table says": {
        "before": SUM + TABLE % 8,
        "tick": "u32 key = 0;\nu64 *most = bpf_map_lookup_elem(&table, &key);\n"
        f"int i;\n\nif (most)\n\tbpf_for(i, 0, *most)\n\t\t{ADD}",
    },
    "as often as a task's number": {"before": SUM, "tick": ONCE % "p->pid"},
    "a variable beside a table of variables": {
        "before": SUM + "u32 counts[16] = {1}, bound = 10;\n",
        "running": "counts[p->pid & 31] = 1 << 22;",
        "tick": ONCE % "bound",
    },
    "a table of variables that reaches the next one": {
        "before": SUM + "struct { u32 counts[16], bound; } kept = { .bound = 10 };\n",
        "running": "u32 i = p->pid;\nif (i <= 16)\n\tkept.counts[i] = 1 << 22;",
        "tick": ONCE % "kept.bound",
    },
    "a table of bounds with one that is large": {"before": SUM + BOUNDS % (10, 1 << 22), "tick": BY_TABLE},
    "a table of bounds that is written to": {
        "before": SUM + BOUNDS % (10, 20),
        "running": "bounds[p->pid & 1] = 1 << 22;",
        "tick": BY_TABLE,
    },
    "a variable that a call fills": {
        "before": SUM + 'char name[16] = "x";\nu32 bound = 10;\n',
        "running": "bpf_probe_read_kernel_str(name, 64, name);",
        "tick": ONCE % "bound",
    },
    "over all of a large table": {"before": SUM + TABLE % 100000 + ALL, "tick": OVER_ALL},
    "a plain loop": {"before": SUM, "tick": COUNTING % ("i = 0; i < 500000; i++", "")},
    "a counter that is set back": {
        "before": SUM,
        "tick": COUNTING % ("i = 0; i < 100; i++", "if (sum & 1)\n\t\ti = 0;"),
    },
    "a counter that a subprogram sets back": {
        "before": SUM + "static __noinline void set_back(u32 *i)\n{\n\tif (sum & 1)\n\t\t*i = 0;\n}\n",
        "tick": COUNTING % ("i = 0; i < 100; i++", "set_back(&i);"),
    },
    "a round that does not count": {"before": SUM, "tick": COUNTING % ("i = 0; i < 100;", "if (sum & 1)\n\t\ti++;")},
    "a step over the end": {"before": SUM, "tick": COUNTING % ("i = 1000; i > 5; i -= 10", "")},
    "a timer's callback": {"before": SUM + TIMER % (LONG, "1000000, 0"), "init": START_TIMER + INIT},
    "too much even when it is loaded": {"before": SUM, "init": TWICE % ("1 << 20", "1 << 20") + INIT},
    "a program that is attached": {
        "before": SUM + 'SEC("tp_btf/sched_process_exit")\nint gone(u64 *ctx)\n{\n\tint i, j;\n\n'
        f"\tbpf_for(i, 0, 4096)\n\t\tbpf_for(j, 0, 4096)\n\t\t\t{ADD}\n\treturn 0;\n}}\n"
    },
}

WELL = {
    "short loops within each other": {"before": SUM, "tick": TWICE % (100, 100)},
    "a loop over the CPUs": {
        "before": SUM + "u32 nr_cpus = 1;\n",
        "tick": ONCE % "nr_cpus",
        "init": "nr_cpus = scx_bpf_nr_cpu_ids();\nreturn scx_bpf_create_dsq(SHARED, -1);",
    },
    "a variable beside a table": {
        "before": SUM + "struct { u32 counts[16], bound; } kept = { .bound = 10 };\n",
        "running": "u32 i = p->pid;\nif (i < 16)\n\tkept.counts[i] = 1 << 22;",
        "tick": ONCE % "kept.bound",
    },
    "a table of bounds": {"before": SUM + BOUNDS % (10, 20), "tick": BY_TABLE},
    "a number that is clamped": {
        "before": SUM,
        "tick": "int most = p->pid;\nif (most > 100)\n\tmost = 100;\n" + ONCE % "most",
    },
    "a loop that counts": {"before": SUM, "tick": COUNTING % ("i = 0; i < 1000; i++", "")},
    "a loop that counts down": {"before": SUM, "tick": COUNTING % ("i = 1000; i > 0; i--", "")},
    "a loop that counts and may end before": {
        "before": SUM,
        "tick": COUNTING % ("i = 0; i < 1000; i += 3", "if (sum & 1)\n\t\tbreak;"),
    },
    "a callback": {"before": SUM + CALLBACK % ADD, "tick": "bpf_loop(1000, often, NULL, 0);"},
    "a small table": {"before": SUM + TABLE % 100 + ALL, "tick": OVER_ALL},
    "much when it is loaded": {"before": SUM, "init": ONCE % "1 << 20" + INIT},
    "loops one after the other": {
        "before": SUM,
        "tick": f"int i;\nbpf_for(i, 0, 10000)\n\t{ADD}\nbpf_for(i, 0, 10)\n\t{ADD}\nbpf_for(i, 0, 1000)\n\t{ADD}",
    },
    "a timer": {"before": SUM + TIMER % (ADD.replace("i", "1"), "1000000, 0"), "init": START_TIMER + INIT},
    "an iterator whose address waits in the stack": {"before": SUM, "tick": SPILLED % "&few"},
    "an end that two loops share": {"before": SUM, "tick": SHARED_END},
}


@pytest.mark.parametrize("how", TOO_MUCH)
def test_too_much_work_is_an_error_however_it_is_written(how, tmp_path):
    found = [each for each in check(tmp_path, **TOO_MUCH[how]).report.findings if "may do work" in each.message]
    assert [(each.rule, each.severity, each.finding_class) for each in found] == [
        (28, Severity.ERROR, FindingClass.UNSAFE)
    ]
    assert found[0].line


@pytest.mark.parametrize("how", WELL)
def test_bounded_work_is_well(how, tmp_path):
    assert check(tmp_path, **WELL[how]).found(28) == []


@pytest.mark.parametrize(
    "tick",
    [
        "struct bpf_iter_num rounds;\nbpf_iter_num_new(&rounds, 0, 10);\nwhile (bpf_iter_num_next(&rounds))\n"
        "\tagain(&rounds);\nbpf_iter_num_destroy(&rounds);",
        SPILLED % "sum & 1 ? &few : &many",
    ],
    ids=["a caller's", "one of two"],
)
def test_an_iterator_that_is_not_known_is_an_error(tick, tmp_path):
    found = check(tmp_path, before=SUM + BEGUN_AGAIN, tick=tick).found(28)
    assert any("on an iterator that is not a local variable" in each.message for each in found)


@pytest.mark.parametrize(("start", "well"), [("1000000, 0", True), ("1000, 0", False), ("sum, 0", False),
                                             ("1000000, 1", False)])  # fmt: skip
def test_timers_have_a_shortest_period(start, well, tmp_path):
    before = SUM + TIMER % ("sum++;", start)
    found = check(tmp_path, before=before, init=START_TIMER + INIT).found(28)
    assert bool(found) is not well


def test_foreign_policies_are_bounded_too_and_ours_are_known(tmp_path):
    image = compiled(tmp_path, **TOO_MUCH["loops within each other"])
    rules = {
        standing: {each.rule for each in check_logic(image, frozenset(), standing=standing).errors}
        for standing in Standing
    }
    assert rules == {Standing.DERIVED: {28}, Standing.FOREIGN: {28}, Standing.BUNDLED: set()}


def test_long_callbacks_and_objects_are_refused(tmp_path):
    long = "".join(f"\tsum += p->pid * {2 * i + 3};\n\tsum ^= sum >> 7;\n" for i in range(INSTRUCTIONS_MAX // 6))
    messages = [each.message for each in check(tmp_path, before=SUM, tick=long).found(28)]
    assert any("instructions with all that it calls" in message for message in messages)
    assert INSTRUCTIONS_IN_ALL >= 2 * INSTRUCTIONS_MAX


def test_may_goto_is_as_many_rounds_as_the_kernel_allows():
    rows = ((0x05, 0, 0), (0xE5, 0, 1), (0x05, 0, -2), (0x95, 0, 0))  # goto +0; 1: may_goto +1; goto 1b; exit
    code = tuple(Instruction(slot, opcode, dst, 0, offset, 0) for slot, (opcode, dst, offset) in enumerate(rows))
    tick = Function("tick", "struct_ops/tick", code, ("ctx",), True)
    ops = OpsStruct("t", {"tick": "tick"}, {"timeout_ms": 5000}, "t", ".struct_ops.link")
    report = check_logic(BpfImage({"tick": tick}, {}, {}, (ops,), (), "GPL", {}), frozenset())
    (finding,) = (each for each in report.findings if "may do work" in each.message)
    assert f"{KERNEL_ROUNDS + 1:,}" in finding.message
    assert WORK_MAX < RARE_WORK_MAX


UNKNOWN = {"before": SUM, "tick": "s32 i;\n\nbpf_for(i, 0, (s32)sum)\n\tsum += i * sum;"}
QUEUED = {
    "before": SUM
    + """
    struct bpf_iter_scx_dsq { u64 opaque[6]; };
    int bpf_iter_scx_dsq_new(struct bpf_iter_scx_dsq *it, u64 id, u64 flags) __ksym;
    struct task_struct *bpf_iter_scx_dsq_next(struct bpf_iter_scx_dsq *it) __ksym;
    void bpf_iter_scx_dsq_destroy(struct bpf_iter_scx_dsq *it) __ksym;
    """,
    "tick": """
    struct bpf_iter_scx_dsq it;
    struct task_struct *queued;
    s32 i;

    bpf_for(i, 0, 64) {
        bpf_iter_scx_dsq_new(&it, SHARED, 0);
        while ((queued = bpf_iter_scx_dsq_next(&it)))
            sum += queued->pid * sum;
        bpf_iter_scx_dsq_destroy(&it);
    }
    """,
}


@pytest.mark.parametrize("work", [UNKNOWN, QUEUED], ids=["no bound but the kernel's", "along a queue"])
def test_work_of_a_foreign_policy_that_may_be_little_is_for_a_run_to_clear(work, tmp_path):
    image = compiled(tmp_path, **work)
    severity = {
        standing: [each.severity for each in check_logic(image, frozenset(), standing=standing).findings
                   if "may do work" in each.message]
        for standing in (Standing.DERIVED, Standing.FOREIGN)
    }  # fmt: skip
    assert severity == {Standing.DERIVED: [Severity.ERROR], Standing.FOREIGN: [Severity.WARNING]}
