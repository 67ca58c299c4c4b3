"""verifier.logic.checks on small compiled policies: every rule broken and repaired, with the real clang."""

import gc
from dataclasses import dataclass, field

import pytest

from schedagent.core.policies.policy import Standing
from schedagent.core.rules import LOGIC, OVERHEAD, PROVING, RULES, SOURCE, FindingClass
from schedagent.core.verification import Severity
from tests.support.small_policy import check, compiled
from verifier.logic.checks import check_logic

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


@dataclass(frozen=True)
class Case:
    """A change of the small policy, the rule it breaks, and a text of the line the finding must name."""

    rule: int
    at: str
    changes: dict[str, str | None]
    severity: Severity = ERROR
    cleared_by: str = ""
    repaired: dict[str, str | None] | None = field(default=None)

    def __str__(self) -> str:
        return f"rule{self.rule}-{'-'.join(self.changes)}"


WAITING = """
struct {
    __uint(type, BPF_MAP_TYPE_QUEUE);
    __uint(max_entries, 64);
    __type(value, s32);
} waiting SEC(".maps");
"""
FEED = """
struct task_struct *p;
s32 pid;

if (bpf_map_pop_elem(&waiting, &pid))
    return;
p = bpf_task_from_pid(pid);
if (!p)
    return;
scx_bpf_dsq_insert(p, GLOBAL, SLICE, 0);
bpf_task_release(p);
"""
STORE = """
s32 pid = p->pid;

if (bpf_map_push_elem(&waiting, &pid, 0))
    scx_bpf_dsq_insert(p, GLOBAL, SLICE, enq_flags);
"""
CREATE = "return scx_bpf_create_dsq(SHARED, -1);"
KICK = """
cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
if (cpu >= 0)
    scx_bpf_kick_cpu(cpu, IDLE);
"""
RECORDS = """
struct {
    __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
    __uint(map_flags, 1);
    __type(key, int);
    __type(value, u64);
} records SEC(".maps");
"""
CLAIM = """
s32 cpu;
scx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags);
cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
"""

PER_CPU = {
    "enqueue": "s32 cpu = scx_bpf_task_cpu(p);\nscx_bpf_dsq_insert(p, cpu, SLICE, enq_flags);\n"
    "scx_bpf_kick_cpu(cpu, IDLE);",
    "dispatch": "scx_bpf_dsq_move_to_local(cpu);",
    "init": """
        s32 cpu, error;

        bpf_for(cpu, 0, scx_bpf_nr_cpu_ids()) {
            error = scx_bpf_create_dsq(cpu, -1);
            if (error)
                return error;
        }
        return 0;
        """,
}
VTIME = {
    "enqueue": """
        u64 vtime = p->scx.dsq_vtime;
        s32 cpu;

        if ((s64)(vtime - now + SLICE) < 0)
            vtime = now - SLICE;
        scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, vtime, enq_flags);
        """
    + KICK,
    "stopping": "p->scx.dsq_vtime += SLICE * 100 / p->scx.weight;",
    "before": "u64 now;",
}
TWO_QUEUES = {
    "enqueue": "s32 cpu;\nscx_bpf_dsq_insert(p, enq_flags & 1 ? SHARED : 100, SLICE, 0);\n" + KICK,
    "init": "s32 error = scx_bpf_create_dsq(SHARED, -1);\nreturn error ?: scx_bpf_create_dsq(100, -1);",
}
FIRST = "if (!scx_bpf_dsq_move_to_local(SHARED))"

CASES = (
    Case(1, "s32 CALLBACK(t_select_cpu", {"select_cpu": "if (!prev_cpu)\n\treturn -1;\nreturn prev_cpu;"}),
    Case(1, "return prev_cpu + 1", {"select_cpu": "return prev_cpu + 1;"}, repaired={"select_cpu": "return prev_cpu;"}),
    Case(1, "return scx_bpf_nr", {"select_cpu": "return scx_bpf_nr_cpu_ids();"}),
    Case(
        1,
        "return scx_bpf_select_cpu_and",
        {"select_cpu": "return scx_bpf_select_cpu_and(p, prev_cpu, wake_flags, p->cpus_ptr, 0);"},
        repaired={
            "select_cpu": "s32 cpu = scx_bpf_select_cpu_and(p, prev_cpu, wake_flags, p->cpus_ptr, 0);\n"
            "return cpu >= 0 ? cpu : prev_cpu;"
        },
    ),
    Case(
        1,
        "return (prev_cpu",
        {"select_cpu": "return (prev_cpu + 1) % scx_bpf_nr_cpu_ids();"},
        repaired={
            "select_cpu": "s32 cpu = (prev_cpu + 1) % scx_bpf_nr_cpu_ids();\n"
            "return bpf_cpumask_test_cpu(cpu, p->cpus_ptr) ? cpu : prev_cpu;"
        },
    ),
    Case(1, "s32 CALLBACK(t_select_cpu", {"select_cpu": "return 0;"}, WARNING, "affinity"),
    Case(2, "scx_bpf_dsq_insert(p, SHARED", {"init": "return scx_bpf_create_dsq(SHARED + 1, -1);"}),
    Case(2, "scx_bpf_dsq_insert(p, 0", {"enqueue": "scx_bpf_dsq_insert(p, 0, SLICE, enq_flags);"}),
    Case(2, "create_dsq(1ULL << 63", {"init": "return scx_bpf_create_dsq(1ULL << 63 | 9, -1);"}),
    Case(
        2,
        "scx_bpf_dsq_insert(p, 4096",
        {**PER_CPU, "enqueue": "scx_bpf_dsq_insert(p, 4096 + scx_bpf_task_cpu(p), SLICE, enq_flags); s32 cpu;" + KICK},
        repaired=PER_CPU,
    ),
    Case(3, "insert_vtime(p, GLOBAL", {"enqueue": "scx_bpf_dsq_insert_vtime(p, GLOBAL, SLICE, scx_bpf_now(), 0);"}),
    Case(
        3,
        "__scx_bpf_dsq_insert_vtime(p",
        {
            "enqueue": "struct dsq_insert_vtime_args args = {\n"
            "\t.dsq_id = LOCAL, .slice = SLICE, .vtime = scx_bpf_now()\n};\n"
            "__scx_bpf_dsq_insert_vtime(p, &args);"
        },
    ),
    Case(
        4,
        "scx_bpf_dsq_insert(p, SHARED",
        {
            "enqueue": "s32 cpu;\nif (p->pid & 1)\n\tscx_bpf_dsq_insert_vtime(p, SHARED, SLICE, scx_bpf_now(), 0);\n"
            "else\n\tscx_bpf_dsq_insert(p, SHARED, SLICE, 0);\n" + KICK
        },
    ),
    Case(
        5,
        "SLICE, 2)",
        {
            "enqueue": "if (p->pid & 1)\n\tscx_bpf_dsq_insert(p, LOCAL, SLICE, 1);\n"
            "scx_bpf_dsq_insert(p, GLOBAL, SLICE, 2);"
        },
        repaired={
            "enqueue": "if (p->pid & 1) {\n\tscx_bpf_dsq_insert(p, LOCAL, SLICE, 1);\n\treturn;\n}\n"
            "scx_bpf_dsq_insert(p, GLOBAL, SLICE, 2);"
        },
    ),
    Case(
        5,
        "insert((void *)bpf_get_current",
        {"enqueue": "scx_bpf_dsq_insert((void *)bpf_get_current_task_btf(), GLOBAL, SLICE, 0);"},
    ),
    Case(5, "SLICE, 9)", {"running": "scx_bpf_dsq_insert(p, GLOBAL, SLICE, 9);"}),
    Case(
        6,
        "LOCAL_ON | 3",
        {"enqueue": "scx_bpf_dsq_insert(p, LOCAL_ON | 3, SLICE, 0);"},
        repaired={
            "enqueue": "if (bpf_cpumask_test_cpu(3, p->cpus_ptr))\n\tscx_bpf_dsq_insert(p, LOCAL_ON | 3, SLICE, 0);\n"
            "else\n\tscx_bpf_dsq_insert(p, GLOBAL, SLICE, 0);"
        },
    ),
    Case(
        6,
        "LOCAL_ON | cpu, SLICE, 1",
        {
            "enqueue": "u64 cpu = bpf_get_prandom_u32() % scx_bpf_nr_cpu_ids();\n"
            "scx_bpf_dsq_insert(p, LOCAL_ON | cpu, SLICE, 1);"
        },
        repaired={
            "enqueue": "s32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);\n"
            "scx_bpf_dsq_insert(p, cpu >= 0 ? LOCAL_ON | cpu : GLOBAL, SLICE, 0);\n"
            "if (cpu >= 0)\n\tscx_bpf_kick_cpu(cpu, IDLE);"
        },
    ),
    Case(
        7,
        "scx_bpf_dsq_insert(p, bpf_get_smp",
        {**PER_CPU, "enqueue": "scx_bpf_dsq_insert(p, bpf_get_smp_processor_id(), SLICE, enq_flags); s32 cpu;" + KICK},
        repaired={
            **PER_CPU,
            "enqueue": "s32 cpu = bpf_cpumask_first(p->cpus_ptr);\nscx_bpf_dsq_insert(p, cpu, SLICE, 0);\n"
            "scx_bpf_kick_cpu(cpu, IDLE);",
        },
    ),
    Case(
        7,
        "SLICE, 5)",
        {"before": WAITING, "enqueue": STORE, "dispatch": FEED.replace("GLOBAL, SLICE, 0", "LOCAL, SLICE, 5")},
        repaired={"before": WAITING, "enqueue": STORE, "dispatch": FEED},
    ),
    Case(
        7,
        "pick_idle_cpu(&p->cpus_mask",
        {
            "enqueue": "s32 cpu;\nscx_bpf_dsq_insert(p, SHARED, SLICE, 0);\n"
            "cpu = scx_bpf_pick_idle_cpu(&p->cpus_mask, 0);\nif (cpu >= 0)\n\tscx_bpf_kick_cpu(cpu, IDLE);"
        },
        WARNING,
        "migration disabled",
    ),
    Case(
        8,
        "move_to_local(GLOBAL",
        {"dispatch": "scx_bpf_dsq_move_to_local(SHARED);\nscx_bpf_dsq_move_to_local(GLOBAL);"},
    ),
    Case(8, "move_to_local(8)", {"dispatch": "scx_bpf_dsq_move_to_local(SHARED);\nscx_bpf_dsq_move_to_local(8);"}),
    Case(
        9,
        "SLICE, 0);",
        {
            "before": WAITING,
            "enqueue": STORE.replace("SLICE, enq_flags", "SLICE, 1"),
            "dispatch": f"int i;\nbpf_for(i, 0, 64) {{{FEED}}}",
        },
        repaired={
            "before": WAITING,
            "enqueue": STORE,
            "dispatch": f"int i;\nbpf_for(i, 0, 64) {{ if (!scx_bpf_dispatch_nr_slots()) return; {FEED}}}",
        },
    ),
    Case(
        10,
        "IDLE | PREEMPT",
        {"tick": "scx_bpf_kick_cpu(scx_bpf_task_cpu(p), IDLE | PREEMPT);"},
        repaired={"tick": "scx_bpf_kick_cpu(scx_bpf_task_cpu(p), PREEMPT);"},
    ),
    Case(
        11,
        "cpuperf_set(0, p->scx.weight",
        {"running": "scx_bpf_cpuperf_set(0, p->scx.weight);"},
        repaired={
            "running": "u32 perf = p->scx.weight;\n"
            "scx_bpf_cpuperf_set(0, perf > 1024 ? 1024 : perf < 256 ? 256 : perf);"
        },
    ),
    Case(11, "cpuperf_set(0, 2048", {"running": "scx_bpf_cpuperf_set(0, 2048);"}),
    Case(11, "cpuperf_set(0, 100)", {"running": "scx_bpf_cpuperf_set(0, 100);"}),
    Case(
        12,
        "pick_idle_cpu(p->cpus_ptr",
        {"update_idle": "exit_kind = cpu;"},
        repaired={"update_idle": "exit_kind = cpu;", "ops": ".timeout_ms = 5000, .flags = SCX_OPS_KEEP_BUILTIN_IDLE,"},
    ),
    Case(
        13,
        "pick_idle_cpu(p->cpus_ptr",
        {"ops": ".timeout_ms = 5000, .flags = SCX_OPS_BUILTIN_IDLE_PER_NODE,"},
        repaired={
            "ops": ".timeout_ms = 5000, .flags = SCX_OPS_BUILTIN_IDLE_PER_NODE,",
            "enqueue": "scx_bpf_dsq_insert(p, SHARED, SLICE, 0);\n"
            "s32 cpu = scx_bpf_pick_idle_cpu_node(p->cpus_ptr, 0, 0);\nif (cpu >= 0)\n\tscx_bpf_kick_cpu(cpu, IDLE);",
        },
    ),
    Case(
        14,
        "select_cpu_dfl((void *)",
        {
            "select_cpu": "bool idle = false;\n"
            "return scx_bpf_select_cpu_dfl((void *)bpf_get_current_task_btf(), prev_cpu, wake_flags, &idle);"
        },
        repaired={"select_cpu": "bool idle = false;\nreturn scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &idle);"},
    ),
    Case(
        15,
        "if (cpu >= 0)",
        {"ops": ".timeout_ms = 5000, .flags = SCX_OPS_ENQ_LAST,"},
        repaired={
            "ops": ".timeout_ms = 5000, .flags = SCX_OPS_ENQ_LAST,",
            "enqueue": "s32 cpu;\nif (enq_flags & ENUM(scx_enq_flags, SCX_ENQ_LAST)) {\n"
            "\tscx_bpf_dsq_insert(p, LOCAL, SLICE, 0);\n\treturn;\n}\nscx_bpf_dsq_insert(p, SHARED, SLICE, 0);\n"
            + KICK,
        },
    ),
    Case(16, "t_tick(", {"tick": 'SEC("struct_ops.s/t_tick")\nint t_tick(u64 *ctx) { return 0; }\n'}),
    Case(
        17,
        "bpf_task_storage_get(&records",
        {
            "before": RECORDS,
            "init_task": "if (!bpf_task_storage_get(&records, p, NULL, 1))\n\treturn -12;\nreturn 0;",
        },
        repaired={"before": RECORDS, "init_task": "bpf_task_storage_get(&records, p, NULL, 1);\nreturn 0;"},
    ),
    Case(
        18,
        "if (p->pid & 1)",
        {"enqueue": "if (p->pid & 1)\n\treturn;\nscx_bpf_dsq_insert(p, GLOBAL, SLICE, 0);"},
        repaired={"enqueue": "scx_bpf_dsq_insert(p, p->pid & 1 ? GLOBAL : LOCAL, SLICE, 0);"},
    ),
    Case(
        18,
        "bpf_map_push_elem(",
        {"before": WAITING, "enqueue": "s32 pid = p->pid;\nbpf_map_push_elem(&waiting, &pid, 0);", "dispatch": FEED},
        repaired={"before": WAITING, "enqueue": STORE, "dispatch": FEED},
    ),
    Case(18, "if (bpf_map_push_elem(", {"before": WAITING, "enqueue": STORE}),
    Case(19, "scx_bpf_dsq_insert(p, SHARED", {"dispatch": "exit_kind = cpu;"}),
    Case(
        19,
        "scx_bpf_dsq_insert(p, SHARED",
        {"dispatch": "if (cpu == 0)\n\tscx_bpf_dsq_move_to_local(SHARED);"},
        repaired={"dispatch": "if (cpu < scx_bpf_nr_cpu_ids())\n\tscx_bpf_dsq_move_to_local(SHARED);"},
    ),
    Case(19, "scx_bpf_dsq_insert(p, cpu", {**PER_CPU, "dispatch": "scx_bpf_dsq_move_to_local(0);"}, repaired=PER_CPU),
    Case(
        20,
        "scx_bpf_dsq_insert(p, SHARED",
        {"enqueue": "scx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags);"},
        WARNING,
        "work conservation",
    ),
    Case(
        20,
        "cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);",
        {"enqueue": CLAIM},
        repaired={"enqueue": f"{CLAIM}\nif (cpu >= 0)\n\tscx_bpf_kick_cpu(cpu, IDLE);"},
    ),
    Case(21, "SCX_SLICE_INF, 0)", {"enqueue": "scx_bpf_dsq_insert(p, GLOBAL, SCX_SLICE_INF, 0);"}),
    Case(
        21,
        "SCX_SLICE_INF, 0)",
        {
            "enqueue": "scx_bpf_dsq_insert(p, GLOBAL, SCX_SLICE_INF, 0);",
            "tick": "scx_bpf_kick_cpu(scx_bpf_task_cpu(p), PREEMPT);",
        },
        WARNING,
        "starvation",
    ),
    Case(
        22,
        "SLICE, p->scx.dsq_vtime",
        {**VTIME, "enqueue": "s32 cpu;\nscx_bpf_dsq_insert_vtime(p, SHARED, SLICE, p->scx.dsq_vtime, 0);\n" + KICK},
        WARNING,
        "sleeper's return",
        repaired=VTIME,
    ),
    Case(22, "insert_vtime(p, SHARED", {**VTIME, "stopping": "p->scx.dsq_vtime += SLICE;"}, WARNING, "weights"),
    Case(
        22,
        "if (vtime < now",
        {
            **VTIME,
            "enqueue": "s32 cpu;\nu64 vtime = p->scx.dsq_vtime;\nif (vtime < now - SLICE)\n\tvtime = now - SLICE;\n"
            "scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, vtime, 0);\n" + KICK,
        },
        repaired=VTIME,
    ),
    Case(24, "GLOBAL, 99999,", {"enqueue": "scx_bpf_dsq_insert(p, GLOBAL, 99999, 0);"}),
    Case(24, "GLOBAL, 100000001,", {"enqueue": "scx_bpf_dsq_insert(p, GLOBAL, 100000001, 0);"}),
    Case(24, "GLOBAL, 0,", {"enqueue": "scx_bpf_dsq_insert(p, GLOBAL, 0, 0);"}),
    Case(
        24,
        "GLOBAL, slice_ns,",
        {"before": "const volatile u64 slice_ns = 50;", "enqueue": "scx_bpf_dsq_insert(p, GLOBAL, slice_ns, 0);"},
        repaired={
            "before": "const volatile u64 slice_ns = 50;",
            "enqueue": "scx_bpf_dsq_insert(p, GLOBAL, slice_ns < 100000 ? 100000 : slice_ns, 0);",
        },
    ),
    Case(
        24,
        "GLOBAL, SLICE / ",
        {"enqueue": "scx_bpf_dsq_insert(p, GLOBAL, SLICE / (scx_bpf_dsq_nr_queued(SHARED) + 1U), 0);"},
    ),
    Case(26, "", {"ops": ""}),
    Case(26, "", {"ops": ".timeout_ms = 30000,"}),
    Case(26, "", {"exit": None}),
    Case(26, "exit_kind = 1;", {"exit": "exit_kind = 1;"}),
    Case(27, "bpf_send_signal(9)", {"tick": "bpf_send_signal(9);"}),
    Case(
        27,
        "bpf_probe_read_user(",
        {"tick": "u64 word;\nbpf_probe_read_user(&word, 8, (void *)4096);\nexit_kind = word;"},
    ),
    Case(27, "crash_kexec_now();", {"tick": "crash_kexec_now();"}),
    Case(27, "int drops(", {"before": 'SEC("xdp")\nint drops(void *ctx) { return 1; }\n'}),
    Case(
        27,
        "",
        {
            "before": 'SEC("struct_ops/cc_init")\nint cc_init(u64 *ctx) { return 0; }\nSEC(".struct_ops")\n'
            'struct tcp_congestion_ops cc = { .init = (void *)cc_init, .name = "cc" };\n'
        },
    ),
    Case(27, "", {"license": "Proprietary"}),
    Case(28, "bpf_for(i, 0, 1 << 30)", {"tick": "int i;\nbpf_for(i, 0, 1 << 30) exit_kind += i;"}),
    Case(
        29,
        "move_to_local(100)",
        {**TWO_QUEUES, "dispatch": f"{FIRST}\n\tscx_bpf_dsq_move_to_local(100);"},
        WARNING,
        "starvation",
        repaired={
            **TWO_QUEUES,
            "dispatch": f"if (exit_kind++ & 1 && scx_bpf_dsq_move_to_local(100))\n\treturn;\n{FIRST}\n"
            "\tscx_bpf_dsq_move_to_local(100);",
        },
    ),
    Case(
        32,
        "scx_bpf_dsq_insert(p, victim ? GLOBAL : LOCAL",
        {
            "enqueue": "u32 victim = *(volatile u32 *)((char *)p + 640);\n"
            "scx_bpf_dsq_insert(p, victim ? GLOBAL : LOCAL, SLICE, enq_flags);"
        },
    ),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_broken_rule_is_found_with_its_line(case, tmp_path):
    checked = check(tmp_path, **case.changes)
    found = checked.found(case.rule, case.severity)
    assert found, checked.report.findings
    line = checked.line_of(case.at) if case.at else 0
    assert line in {finding.line for finding in found}
    assert {finding.cleared_by for finding in found} == {case.cleared_by}


@pytest.mark.parametrize("case", [case for case in CASES if case.repaired is not None], ids=str)
def test_repaired_policy_is_silent(case, tmp_path):
    assert check(tmp_path, **case.repaired).report.findings == ()


def test_plain_policy_is_silent_and_summed_up(tmp_path):
    report = check(tmp_path).report
    assert report.findings == ()
    assert report.summary == "5 callbacks, 6 paths, 1 DSQs or families created, all drained; nothing found"
    assert not any(walk.exhausted or walk.joined for walk in report.callbacks)
    assert [walk.member for walk in report.callbacks][:2] == ["init", "exit"], "before any budget can be spent"


class Asked(dict):
    """Notes whether cycles are collected when it is looked at."""

    def items(self):
        self["collected"] = int(gc.isenabled())
        return super().items()


@pytest.mark.parametrize("before", [gc.enable, gc.disable])
def test_cycles_are_collected_again_after_the_checks(before, tmp_path):
    image, enums = compiled(tmp_path), Asked()
    before()
    try:
        check_logic(image, frozenset(), enums)
        assert gc.isenabled() is (before is gc.enable)
    finally:
        gc.enable()
    assert enums["collected"] == 0


def test_every_rule_of_the_gate_has_a_case():
    tested = {case.rule for case in CASES} | {31}  # which is only noted: test_limits.py
    assert tested == {number for number, rule in RULES.items() if LOGIC in rule.gates}
    assert not tested & {
        number for number, rule in RULES.items() if rule.gates and set(rule.gates) <= {SOURCE, PROVING, OVERHEAD}
    }


def test_finding_tells_the_path(tmp_path):
    checked = check(
        tmp_path,
        enqueue="s32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);\nif (cpu < 0)\n\treturn;\n"
        "scx_bpf_dsq_insert(p, LOCAL_ON | cpu, SLICE, 0);",
    )
    (finding,) = checked.found(18)
    assert [step.text for step in finding.path] == [
        "calls scx_bpf_pick_idle_cpu()",
        "scx_bpf_pick_idle_cpu(p->cpus_ptr, ...) < 0",
    ]
    assert [step.line for step in finding.path] == [checked.line_of("pick_idle_cpu("), checked.line_of("if (cpu < 0)")]
    assert str(finding).startswith(f"t.bpf.c:{checked.line_of('if (cpu < 0)')}: rule 18 (in enqueue): ")


def test_branches_for_other_kernels_are_not_followed(tmp_path):
    before = "extern u32 scx_bpf_dispatch_nr_slots___x(void) __ksym __weak;"
    newer = {"before": before, "tick": "if (bpf_ksym_exists(scx_bpf_dispatch_nr_slots___x))\n\texit_kind = "
             "scx_bpf_dispatch_nr_slots___x();"}  # fmt: skip
    known = frozenset({"scx_bpf_create_dsq", "scx_bpf_dsq_insert", "scx_bpf_dsq_move_to_local", "scx_bpf_kick_cpu"})
    known |= {"scx_bpf_pick_idle_cpu", *(f"sched_ext_ops.{member}" for member in ("select_cpu", "enqueue", "dispatch"))}
    known |= {"sched_ext_ops.tick", "sched_ext_ops.init", "sched_ext_ops.exit"}
    assert check(tmp_path, known, **newer).report.findings == ()
    (missing,) = check(tmp_path, known, before=before, tick="exit_kind = scx_bpf_dispatch_nr_slots___x();").found(27)
    assert missing.message == "this kernel has no scx_bpf_dispatch_nr_slots()"
    (member,) = check(tmp_path, known - {"sched_ext_ops.tick"}, **newer).found(27)
    assert member.message == "this kernel's sched_ext_ops has no tick"


def test_maps_are_sized_and_not_pinned(tmp_path):
    def declared(text):
        return check(
            tmp_path, before=f'struct {{ __uint(type, BPF_MAP_TYPE_HASH); {text} }} table SEC(".maps");'
        ).report

    types = "__type(key, u64); __type(value, u64);"
    assert [f.rule for f in declared(types).findings] == [28]
    assert [f.rule for f in declared(f"{types} __uint(max_entries, 1 << 23);").findings] == [28]
    assert [f.rule for f in declared(f"{types} __uint(max_entries, 8); __uint(pinning, 1);").findings] == [27]
    assert declared(f"{types} __uint(max_entries, 1 << 19);").findings == ()


def test_path_that_ends_the_policy_loses_nothing(tmp_path):
    ending = 'static char text[] = "gone";\n\tscx_bpf_error_bstr(text, NULL, 0);'
    body = f"if (p->pid == 1) {{\n\t{ending}\n\treturn;\n}}\nscx_bpf_dsq_insert(p, GLOBAL, SLICE, 0);"
    assert check(tmp_path, enqueue=body).report.findings == ()


def test_subprograms_and_callbacks_are_followed(tmp_path):
    before = "static __noinline void put(struct task_struct *p, u64 dsq)\n{\n\tscx_bpf_dsq_insert(p, dsq, SLICE, 0);\n}"
    twice = check(tmp_path, before=before, enqueue="put(p, GLOBAL);\nif (p->pid & 1)\n\tput(p, LOCAL);")
    assert [finding.line for finding in twice.found(5)] == [twice.line_of("insert(p, dsq")]
    loop = (
        before + "\nstatic long one(u64 i, struct task_struct **task)\n{\n\tif (i < 3)\n\t\treturn 0;\n\treturn 1;\n}"
    )
    lost = check(tmp_path, before=loop, enqueue="bpf_loop(8, one, &p, 0);\nif (p->pid & 1)\n\tput(p, GLOBAL);")
    assert lost.found(18)


def test_enumerators_that_the_loader_fills_in_have_their_names(tmp_path):
    before = "const volatile u64 __SCX_DSQ_LOCAL;\nconst volatile u64 __SCX_SLICE_DFL;"
    body = "scx_bpf_dsq_insert(p, __SCX_DSQ_LOCAL, __SCX_SLICE_DFL, 0);"
    assert check(tmp_path, before=before, enqueue=body).report.findings == ()


def test_tunables_are_judged_by_what_the_loader_sets(tmp_path):
    before = "const volatile u64 slice_ns = 5000000;"
    image = compiled(tmp_path, before=before, enqueue="scx_bpf_dsq_insert(p, GLOBAL, slice_ns, 0);")
    assert check_logic(image, frozenset()).findings == ()
    (finding,) = check_logic(image, frozenset(), {}, {"slice_ns": 1_000_000_000, "unknown": 1}).findings
    assert (finding.rule, finding.message[:36]) == (24, "the slice is 1000000000 ns (slice_ns")


def test_numbers_of_the_target_go_before_those_of_the_object(tmp_path):
    image = compiled(tmp_path, tick="scx_bpf_kick_cpu(0, IDLE | 8);")
    assert check_logic(image, frozenset()).findings == ()
    (finding,) = check_logic(image, frozenset(), {"SCX_KICK_PREEMPT": 8}).findings
    assert finding.rule == 10


def test_task_that_may_use_every_cpu_may_wait_for_any(tmp_path):
    before = "u32 nr_cpus;"
    rest = "s32 cpu, best = 0;\nbpf_for(cpu, 0, nr_cpus) {\n\tif (!scx_bpf_dsq_nr_queued(cpu))\n\t\tbest = cpu;\n}\n"
    insert = "scx_bpf_dsq_insert(p, best, SLICE, 0);\nscx_bpf_kick_cpu(best, IDLE);"
    pinned = "if (p->nr_cpus_allowed < nr_cpus) {\n\tscx_bpf_dsq_insert(p, GLOBAL, SLICE, 0);\n\treturn;\n}\n"
    assert check(tmp_path, **{**PER_CPU, "before": before, "enqueue": pinned + rest + insert}).report.findings == ()
    untested = check(tmp_path, **{**PER_CPU, "before": before, "enqueue": rest + insert}).report
    assert {finding.rule for finding in untested.errors} == {7, 19}


SHARE = """
u64 nr = scx_bpf_dsq_nr_queued(SHARED), slice, key = scx_bpf_now();
s32 cpu;

if (nr > 100)
    nr = 100;
slice = SLICE / (nr + 1);
"""
MANY_WAYS = "".join(f"if (p->pid & {1 << bit})\n\tkey += later[{bit}];\n" for bit in range(5))
MANY_SHARES = "".join(
    f"if (p->pid & {1 << bit}) {{\n\tslice = SLICE / (nr + {bit + 2});\n\tkey += later[{bit}];\n}}\n"
    for bit in range(5)
)
LATER = "volatile u64 later[8];"
CLAMP = "if (slice < 100000)\n\tslice = 100000;\n"
INSERT_SHARE = "scx_bpf_dsq_insert_vtime(p, SHARED, slice, key, enq_flags);\n" + KICK


@pytest.mark.parametrize("clamp", [CLAMP, ""], ids=["clamped", "not"])
@pytest.mark.parametrize("ways", ["before", "after"])
def test_clamp_of_a_slice_outlives_the_joining_of_paths(clamp, ways, tmp_path):
    """Many paths meet between the clamp and the insert, or before both; without a clamp the slice is found."""
    body = MANY_SHARES + clamp if ways == "before" else clamp + MANY_WAYS
    checked = check(tmp_path, before=LATER, enqueue=SHARE + body + INSERT_SHARE)
    assert any(walk.joined for walk in checked.report.callbacks)
    assert {finding.rule for finding in checked.report.findings} == (set() if clamp else {24})


PICK = "s32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);\n"
STAY = "scx_bpf_dsq_insert(p, LOCAL, SLICE, 0);\n"
LEAVE = "scx_bpf_dsq_insert(p, SHARED, SLICE, 0);\n" + KICK
SEND = "scx_bpf_dsq_insert(p, LOCAL_ON | cpu, SLICE, 0);\n"
WAKE = "scx_bpf_kick_cpu(cpu, IDLE);\n"


def chosen(test, then, otherwise=LEAVE):
    return f"if ({test}) {{\n{then}}} else {{\n{otherwise}}}\n"


@pytest.mark.parametrize(
    ("enqueue", "severity", "says"),
    [
        (PICK + chosen("cpu >= 0", STAY), ERROR, "the claimed one"),
        (PICK + chosen("cpu > 0", SEND + WAKE), ERROR, "never kicks it"),
        (PICK + STAY + chosen("cpu >= 0", WAKE, ""), WARNING, "cannot fetch it"),
        (PICK + chosen("cpu >= 0", SEND), NOTE, "does not kick it"),
        (PICK + chosen("cpu != -16", SEND), NOTE, "does not kick it"),
        (PICK + chosen("cpu >= 0", SEND + WAKE, "scx_bpf_dsq_insert(p, SHARED, SLICE, 0);\n"), NOTE, "and not after"),
        (PICK + chosen("cpu >= 0", SEND + WAKE), None, ""),
        (PICK + chosen("cpu == scx_bpf_task_cpu(p)", STAY, chosen("cpu >= 0", SEND + WAKE)), None, ""),
        ("s32 cpu = scx_bpf_task_cpu(p);\n" + chosen("scx_bpf_test_and_clear_cpu_idle(cpu)", STAY), None, ""),
        (PICK + chosen("p->nr_cpus_allowed == 1 && cpu >= 0", STAY, chosen("cpu >= 0", SEND + WAKE)), None, ""),
    ],
)
def test_claimed_cpu_has_to_be_used(enqueue, severity, says, tmp_path):
    """By an insert into its local DSQ and a kick, or by a kick if the task waits where it looks."""
    findings = check(tmp_path, enqueue=enqueue).report.findings
    if severity is None:
        assert findings == ()
    else:
        assert [(finding.rule, finding.severity) for finding in findings] == [(20, severity)]
        assert says in findings[0].message


@pytest.mark.parametrize(
    ("body", "silent"),
    [
        (PICK + "if (cpu < 0)\n\treturn prev_cpu;\nreturn prev_cpu;", False),
        (PICK + "if (cpu < 0)\n\treturn prev_cpu;\nreturn cpu;", True),
        (PICK + "return cpu >= 0 ? cpu : prev_cpu;", True),
        ("s32 cpu;\nif (scx_bpf_test_and_clear_cpu_idle(prev_cpu) && p->pid & 1)\n\treturn prev_cpu;\n"
         "cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);\nreturn cpu >= 0 ? cpu : prev_cpu;", False),
        ("s32 cpu;\nif (p->pid & 1 && scx_bpf_test_and_clear_cpu_idle(prev_cpu))\n\treturn prev_cpu;\n"
         "cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);\nreturn cpu >= 0 ? cpu : prev_cpu;", True),
    ],
)  # fmt: skip
def test_claimed_cpu_is_what_select_cpu_returns(body, silent, tmp_path):
    findings = check(tmp_path, select_cpu=body).report.findings
    assert (findings == ()) is silent
    assert silent or [(finding.rule, finding.cleared_by) for finding in findings] == [(20, "work conservation")]


CREATE_RECORD = "bpf_task_storage_get(&records, p, NULL, 1)"
DELETE_RECORD = "bpf_task_storage_delete(&records, p)"
LOST = "u64 *record = bpf_task_storage_get(&records, p, NULL, 0);\ns32 cpu;\nif (!record)\n\treturn;\n" + LEAVE


@pytest.mark.parametrize(
    ("init_task", "lost"),
    [
        (f"if (!{CREATE_RECORD})\n\treturn -12;\nreturn 0;", False),
        (
            f"if (!{CREATE_RECORD})\n\treturn -12;\n"
            f"if (p->pid == 7) {{\n\t{DELETE_RECORD};\n\treturn -1;\n}}\nreturn 0;",
            False,
        ),
        (f"if (!{CREATE_RECORD})\n\treturn -12;\nif (p->pid == 7)\n\t{DELETE_RECORD};\nreturn 0;", True),
        (f"{CREATE_RECORD};\nreturn 0;", True),
        (f"if (args->fork)\n\treturn 0;\nif (!{CREATE_RECORD})\n\treturn -12;\nreturn 0;", True),
        ("bpf_task_storage_get(&records, p, NULL, 0);\nreturn 0;", True),
        (None, True),
    ],
)
def test_record_that_every_task_has_cannot_be_missing(init_task, lost, tmp_path):
    changes = {"init_task": init_task} if init_task else {}
    checked = check(tmp_path, before=RECORDS, enqueue=LOST, **changes)
    assert bool(checked.found(18)) is lost


FORGET = f"static __noinline int forget(struct task_struct *p) {{ return {DELETE_RECORD}; }}"


@pytest.mark.parametrize(
    ("forgets", "lost"),
    [({"tick": f"{DELETE_RECORD};"}, True), ({"exit_task": "forget(p);"}, False),
     ({"exit_task": "forget(p);", "tick": "forget(p);"}, True)],
)  # fmt: skip
def test_record_that_is_deleted_may_be_missing(forgets, lost, tmp_path):
    checked = check(
        tmp_path, before=RECORDS + FORGET, enqueue=LOST,
        init_task=f"if (!{CREATE_RECORD})\n\treturn -12;\nreturn 0;", **forgets,
    )  # fmt: skip
    assert bool(checked.found(18)) is lost


OWN_VTIME = {
    **VTIME,
    "before": "u64 now;\n" + RECORDS,
    "init_task": f"{CREATE_RECORD};\nreturn 0;",
    "stopping": "u64 *vtime = bpf_task_storage_get(&records, p, NULL, 0);\n"
    "if (vtime)\n\t*vtime += SLICE * 100 / p->scx.weight;",
}
OWN_KEY = """
u64 *own = bpf_task_storage_get(&records, p, NULL, 0);
u64 key = now;
s32 cpu;

if (own && %s)
    *own = now - SLICE;
if (own)
    key = *own;
scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, key, enq_flags);
"""


@pytest.mark.parametrize(
    ("test", "wrong"),
    [("*own < now - SLICE", True), ("(s64)(*own - (now - SLICE)) < 0", False), ("*own < 1000", False)],
)
def test_virtual_time_in_a_record_is_compared_as_such(test, wrong, tmp_path):
    checked = check(tmp_path, **{**OWN_VTIME, "enqueue": OWN_KEY % test + KICK})
    assert bool(checked.found(22)) is wrong


DOMAINS = """
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 8);
    __type(key, u32);
    __type(value, u64);
} domains SEC(".maps");
"""
OWN_MASK = "u64 *kept = bpf_task_storage_get(&records, p, NULL, 0);\n"
DOMAIN_MASK = "u32 zero = 0;\nu64 *kept = bpf_map_lookup_elem(&domains, &zero);\n"
SENT = "scx_bpf_dsq_insert(p, LOCAL_ON | %s, SLICE, 0);\n"
MASKED = (
    "const struct cpumask *mask;\ns32 cpu;\n\nif (!kept)\n\treturn prev_cpu;\nmask = (const struct cpumask *)*kept;\n"
)
IDLE_PREV = "if (%sscx_bpf_test_and_clear_cpu_idle(prev_cpu))\n\t" + SENT % "prev_cpu" + "return prev_cpu;"
IDLE_PICK = "cpu = scx_bpf_pick_idle_cpu(mask, 0);\nif (cpu < 0%s)\n\treturn prev_cpu;\n" + SENT % "cpu" + "return cpu;"


@pytest.mark.parametrize(
    ("select_cpu", "wrong"),
    [
        (OWN_MASK + MASKED + IDLE_PREV % "bpf_cpumask_test_cpu(prev_cpu, mask) && ", False),
        (OWN_MASK + MASKED + IDLE_PREV % "", True),
        (DOMAIN_MASK + MASKED + IDLE_PREV % "bpf_cpumask_test_cpu(prev_cpu, mask) && ", True),
        (OWN_MASK + MASKED + IDLE_PICK % "", False),
        (DOMAIN_MASK + MASKED + IDLE_PICK % "", True),
        (DOMAIN_MASK + MASKED + IDLE_PICK % " || !bpf_cpumask_test_cpu(cpu, p->cpus_ptr)", False),
    ],
)
def test_cpu_of_the_task_s_own_mask_may_be_inserted_to(select_cpu, wrong, tmp_path):
    """The mask is the task's if it lies in the task's own storage, not if it lies in a table of domains."""
    checked = check(tmp_path, before=RECORDS + DOMAINS, select_cpu=select_cpu)
    assert bool(checked.found(6)) is wrong


@pytest.mark.parametrize(("kick", "right"), [("cpu", True), ("scx_bpf_pick_idle_cpu(p->cpus_ptr, 0)", False)])
def test_kick_of_the_cpu_that_looks_where_the_task_waits(kick, right, tmp_path):
    enqueue = PER_CPU["enqueue"].replace("kick_cpu(cpu", f"kick_cpu({kick}")
    findings = check(tmp_path, **{**PER_CPU, "enqueue": enqueue}).report.findings
    assert [(finding.rule, finding.cleared_by) for finding in findings] == (
        [] if right else [(20, "work conservation")]
    )


@pytest.mark.parametrize(("mask", "own"), [(OWN_MASK, True), (DOMAIN_MASK, False)])
def test_cpu_of_another_mask_is_no_answer_of_select_cpu(mask, own, tmp_path):
    """The kernel then chooses one itself, so it is no error."""
    body = mask + MASKED + "cpu = scx_bpf_pick_idle_cpu(mask, 0);\nreturn cpu < 0 ? prev_cpu : cpu;"
    checked = check(tmp_path, before=RECORDS + DOMAINS, select_cpu=body)
    assert [finding.cleared_by for finding in checked.found(1, WARNING)] == ([] if own else ["affinity"])
    assert checked.report.errors == ()


@pytest.mark.parametrize(
    ("enqueue", "guard", "drained"),
    [
        ("if (scx_bpf_task_cpu(p) != 0)\n\tscx_bpf_dsq_insert(p, LOCAL, SLICE, 0);\n"
         "else\n\tscx_bpf_dsq_insert(p, SHARED, SLICE, 0);", "cpu == 0", True),
        ("scx_bpf_dsq_insert(p, SHARED, SLICE, 0);", "cpu == 0", False),
        ("if (scx_bpf_task_cpu(p) != 1)\n\tscx_bpf_dsq_insert(p, LOCAL, SLICE, 0);\n"
         "else\n\tscx_bpf_dsq_insert(p, SHARED, SLICE, 0);", "cpu == 0", False),
        ("scx_bpf_dsq_insert(p, SHARED, SLICE, 0);", "cpu < 512", True),
        ("scx_bpf_dsq_insert(p, SHARED, SLICE, 0);", "cpu <= 510", False),
    ],
)  # fmt: skip
def test_a_queue_that_one_cpu_drains_is_for_tasks_on_that_cpu(tmp_path, enqueue, guard, drained):
    dispatch = f"if ({guard})\n\tscx_bpf_dsq_move_to_local(SHARED);"
    assert (check(tmp_path, enqueue=enqueue, dispatch=dispatch).found(19) == []) is drained


KEPT = """
volatile s64 level;
struct load { u64 level; };
struct {
    __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
    __uint(map_flags, 1);
    __type(key, int);
    __type(value, struct load);
} loads SEC(".maps");
"""
USED = """
struct load *load = bpf_task_storage_get(&loads, p, NULL, 0);

if (load)
    scx_bpf_cpuperf_set(0, load->level >= 768 ? 1024 : load->level <= LEAST ? 512 : load->level);
"""
FROM_LOADER = "scx_bpf_cpuperf_set(0, level < 0 ? 1024 : level < 1024 ? level : 1024);"


@pytest.mark.parametrize(
    ("running", "classes"),
    [
        (USED.replace("LEAST", "256"), set()),
        (USED.replace("LEAST", "100"), {FindingClass.UNFAIR}),
        (USED.replace(">= 768", ">= 7680").replace("LEAST", "256"), {FindingClass.UNSAFE}),
        (FROM_LOADER, {FindingClass.UNFAIR}),
        ("level = p->scx.weight;\n" + FROM_LOADER, {FindingClass.UNSAFE}),
    ],
    ids=["kept within a share", "less than a share", "more than all", "what a loader sets", "what the policy sets"],
)
def test_how_fast_a_cpu_runs_is_known_however_wide_the_number(running, classes, tmp_path):
    image = compiled(tmp_path, before=KEPT, running=running)
    report = check_logic(image, frozenset(), standing=Standing.FOREIGN)
    slow = [finding for finding in report.findings if finding.rule == 11]
    assert {finding.finding_class for finding in slow} == classes
    assert all(finding.accepted_as for finding in slow if finding.finding_class is FindingClass.UNFAIR)
    assert bool(check(tmp_path, before=KEPT, running=running).found(11)) is bool(classes)


TIMED = """
struct clock { struct bpf_timer timer; };
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, struct clock);
} clocks SEC(".maps");

static int tick_over(void *map, int *key, struct clock *clock)
{
    struct task_struct *p = bpf_task_from_pid(1);

    if (p) {
        p->scx.slice = GIVEN;
        bpf_task_release(p);
    }
    return 0;
}
"""
START_CLOCK = """
u32 key = 0;
struct clock *clock = bpf_map_lookup_elem(&clocks, &key);

if (!clock)
    return -1;
bpf_timer_init(&clock->timer, &clocks, 1);
bpf_timer_set_callback(&clock->timer, tick_over);
bpf_timer_start(&clock->timer, 1000000, 0);
return scx_bpf_create_dsq(SHARED, -1);
"""
ENDLESS = "scx_bpf_dsq_insert(p, SHARED, -1ULL, enq_flags);"


@pytest.mark.parametrize(
    ("elsewhere", "preempted"),
    [
        ({"before": TIMED.replace("GIVEN", "SLICE"), "init": START_CLOCK}, True),
        ({"before": TIMED.replace("GIVEN", "-1ULL"), "init": START_CLOCK}, False),
        ({"tick": "p->scx.slice = SLICE;"}, True),
        ({"running": "p->scx.slice = SLICE;"}, False),
        ({}, False),
    ],
    ids=["by a timer", "a timer that gives more", "at a tick", "as it begins", "by nothing"],
)
def test_an_endless_slice_ends_where_a_running_task_is_given_another(elsewhere, preempted, tmp_path):
    checked = check(tmp_path, enqueue=ENDLESS, **elsewhere)
    assert bool(checked.found(21)) is not preempted
    assert bool(checked.found(21, Severity.WARNING)) is preempted


CREATED = """
s32 i, error = 0;

bpf_for(i, 0, scx_bpf_nr_cpu_ids()) {
    error = scx_bpf_create_dsq(i, -1);
    if (error)
        return error;
}
return scx_bpf_create_dsq(SHARED, -1);
"""
STOLEN = """
s32 i, other = -2;

bpf_for(i, 0, scx_bpf_nr_cpu_ids())
    if (scx_bpf_dsq_nr_queued(i) > 1)
        other = i;
if (LOOKED)
    scx_bpf_dsq_move_to_local((u64)other);
scx_bpf_dsq_move_to_local(SHARED);
"""


@pytest.mark.parametrize(("looked", "wrong"), [("other >= 0", False), ("1", True)])
def test_a_queue_that_was_looked_for_is_one_that_was_found(looked, wrong, tmp_path):
    checked = check(tmp_path, init=CREATED, dispatch=STOLEN.replace("LOOKED", looked))
    assert bool(checked.found(8)) is wrong


def test_a_number_less_a_small_one_is_no_bit_of_the_kernel_s(tmp_path):
    behind = (
        "u64 *next = (u64 *)&next_queue;\nscx_bpf_dsq_move_to_local(*next - 96);\nscx_bpf_dsq_move_to_local(SHARED);"
    )
    assert not check(tmp_path, before="u64 next_queue;", dispatch=behind).found(8)


FIELD_OF_RECORD = """
u64 *record = bpf_task_storage_get(&records, p, NULL, 0);

return record ? *(volatile u64 *)record & MASK : prev_cpu;
"""


@pytest.mark.parametrize(("mask", "severity"), [("0xfffffff", Severity.WARNING), ("3", Severity.ERROR)])
def test_a_cpu_in_a_bit_field_is_one_that_was_kept(mask, severity, tmp_path):
    checked = check(tmp_path, before=RECORDS, select_cpu=FIELD_OF_RECORD.replace("MASK", mask))
    assert [finding.severity for finding in checked.report.findings if finding.rule == 1] == [severity]


@pytest.mark.parametrize(("error", "lost"), [("-16", True), ("-1", False)])
def test_an_idle_cpu_is_picked_or_none_is(error, lost, tmp_path):
    enqueue = f"s32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);\nif (cpu == {error})\n\treturn;\n"
    checked = check(tmp_path, enqueue=enqueue + "scx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags);")
    assert bool(checked.found(18)) is lost


HOME = """
u32 home = LIMIT;

if ((u32)cpu * 4 <= 4 * (LIMIT - 1))
    home = homes[(u32)cpu & 511];
scx_bpf_dsq_move_to_local(home);
"""


@pytest.mark.parametrize(("limit", "wrong"), [("512", False), ("64", True)])
def test_a_cpu_beyond_those_that_are_counted_for_dispatches_nothing(limit, wrong, tmp_path):
    checked = check(tmp_path, before="const u32 homes[512] = { SHARED };", dispatch=HOME.replace("LIMIT", limit))
    assert bool(checked.found(8)) is wrong


LANES = """
s32 i, error;

bpf_for(i, 0, 8) {
    error = scx_bpf_create_dsq(i, -1);
    if (error)
        return error;
}
return 0;
"""
IN_TURN = """
s32 i;

bpf_for(i, 0, 8)
    scx_bpf_dsq_move_to_local(i);
"""
BY_FLAG = """
u64 lane = lanes[p->pid & 7] & 7;

if (fifo[lane & 7])
    scx_bpf_dsq_insert(p, LANE, SLICE, enq_flags);
else
    scx_bpf_dsq_insert_vtime(p, LANE, SLICE, p->scx.dsq_vtime, enq_flags);
"""


@pytest.mark.parametrize(("lane", "severity"), [("lane", Severity.WARNING), ("3", Severity.ERROR)])
def test_an_order_that_each_queue_of_a_family_has_for_itself_is_for_a_run_to_show(lane, severity, tmp_path):
    image = compiled(
        tmp_path, before="u64 lanes[8], fifo[8];", init=LANES, dispatch=IN_TURN, enqueue=BY_FLAG.replace("LANE", lane)
    )
    for standing, expected in ((Standing.FOREIGN, severity), (Standing.DERIVED, Severity.ERROR)):
        report = check_logic(image, frozenset(), standing=standing)
        assert [each.severity for each in report.findings if each.rule == 4] == [expected]


PERIODS = """
struct period { u64 ns, flags; };
struct period periods[1] = { { 1000000, 1 } };
"""
START_EACH = """
u32 key;

bpf_for(key, 0, 1) {
    struct clock *clock = bpf_map_lookup_elem(&clocks, &key);

    if (!clock)
        return -1;
    bpf_timer_init(&clock->timer, &clocks, 1);
    bpf_timer_set_callback(&clock->timer, tick_over);
    bpf_timer_start(&clock->timer, periods[key].ns, 0);
}
return scx_bpf_create_dsq(SHARED, -1);
"""


@pytest.mark.parametrize(("period", "short"), [("1000000", False), ("1000", True)])
def test_a_period_in_a_table_is_known(period, short, tmp_path):
    before = TIMED.replace("GIVEN", "SLICE") + PERIODS.replace("1000000", period)
    assert bool(check(tmp_path, before=before, init=START_EACH).found(28)) is short


SEEKS = "scx_bpf_dsq_insert(p, SHARED, SLICE, 0);\ns32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);\n"
SEEKS += "if (cpu < 0 && scx_bpf_test_and_clear_cpu_idle(0))\n\tcpu = 0;\nif (cpu >= 0)\n\tscx_bpf_kick_cpu(cpu, IDLE);"
PICKED_TWICE = "s32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 1);\n\n"
PICKED_TWICE += "if (cpu < 0)\n\tcpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);\nreturn cpu < 0 ? prev_cpu : cpu;"


@pytest.mark.parametrize(
    ("rule", "changes", "places"),
    [
        (12, {"update_idle": "exit_kind = cpu;"}, 4),
        (13, {"ops": ".timeout_ms = 5000, .flags = SCX_OPS_BUILTIN_IDLE_PER_NODE,"}, 3),
    ],
)
def test_a_flag_that_is_missing_is_one_fault_however_many_calls_need_it(rule, changes, places, tmp_path):
    checked = check(tmp_path, select_cpu=PICKED_TWICE, enqueue=SEEKS, **changes)
    (finding,) = checked.found(rule)
    assert finding.line == checked.line_of("s32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);")
    assert "in select_cpu (line " in finding.message
    assert finding.message.count("(line ") == places - 1


@pytest.mark.parametrize(("second", "short"), [("2000000", False), ("1000", True)])
def test_each_period_of_a_table_is_known(second, short, tmp_path):
    periods = PERIODS.replace("[1]", "[2]").replace("{ 1000000, 1 }", f"{{ 1000000, 1 }}, {{ {second}, 1 }}")
    before = TIMED.replace("GIVEN", "SLICE") + periods
    assert bool(check(tmp_path, before=before, init=START_EACH.replace("0, 1)", "0, 2)")).found(28)) is short


KEPT_MASK = (
    "if (!kept)\n\treturn prev_cpu;\nconst struct cpumask *mask = (const struct cpumask *)*kept;\nu64 key = 0;\n"
)
ONE_OF_TWO = "(later[7] ? bpf_cpumask_test_cpu(prev_cpu, mask) : bpf_cpumask_test_cpu(prev_cpu, p->cpus_ptr))"
TAKE_PREV = "if (%sscx_bpf_test_and_clear_cpu_idle(prev_cpu))\n\t" + SENT % "prev_cpu"
ANSWER = "later[6] = key;\nreturn prev_cpu;"


@pytest.mark.parametrize(
    "body",
    [
        f"bool in_it = {ONE_OF_TWO};\n" + MANY_WAYS + TAKE_PREV % "in_it && ",
        f"if (!{ONE_OF_TWO})\n\treturn prev_cpu;\n" + MANY_WAYS + TAKE_PREV % "",
    ],
    ids=["tested where they met", "tested before they met"],
)
@pytest.mark.parametrize(("mask", "wrong"), [(OWN_MASK, False), (DOMAIN_MASK, True)], ids=["own", "of a domain"])
def test_a_test_of_one_mask_or_another_outlives_the_joining_of_paths(body, mask, wrong, tmp_path):
    """All of the masks must be the task's own."""
    checked = check(tmp_path, before=LATER + RECORDS + DOMAINS, select_cpu=mask + KEPT_MASK + body + ANSWER)
    assert any(walk.joined for walk in checked.report.callbacks)
    assert bool(checked.found(6)) is wrong


@pytest.mark.parametrize(("flags", "absolute"), [("0", False), ("1", True)])
def test_the_flags_of_a_timer_in_a_table_are_known(flags, absolute, tmp_path):
    before = TIMED.replace("GIVEN", "SLICE") + PERIODS.replace("1000000, 1", f"1000000, {flags}")
    found = check(tmp_path, before=before, init=START_EACH.replace("].ns, 0)", "].ns, periods[key].flags)")).found(28)
    assert ["absolute time" in each.message for each in found] == [True] * absolute
