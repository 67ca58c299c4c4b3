"""Rules 27 and 28: by name what a policy calls, sets, keeps and reads; in one sum the memory that it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schedagent.core.policies.policy import Standing
from schedagent.core.policies.renamed import advice, advice_on
from schedagent.core.rules import FindingClass
from schedagent.core.verification import Severity
from tests.support.small_policy import SIGNATURES, check, compiled
from verifier.logic.checks import check_logic
from verifier.logic.rules.allowed import is_known_kfunc
from verifier.logic.rules.memory import COUNTED_TASKS, MAPS_MAX, MEMORY_MAX, map_bytes
from verifier.logic.rules.reads import is_readable, reader, reads_user_memory
from verifier.object.image import MapInfo

WELL: dict[str, str | None] = {}
FLAVOURS = """
struct mm_struct___x { u64 arg_start; u64 env_start; } __attribute__((preserve_access_index));
struct cred___x { u32 uid; u64 securebits; } __attribute__((preserve_access_index));
struct task_struct___x {
    char comm[16];
    u64 stack_canary;
    u32 wakee_flips;
    struct mm_struct___x *mm;
    struct cred___x *cred;
} __attribute__((preserve_access_index));
#define X(p) ((struct task_struct___x *)(p))
u64 seen;
char kept[64] = "x";
"""
NUMBERS = "__type(key, u32); __type(value, u64);"
DECLARED = "struct {{ __uint(type, {}); __uint(max_entries, {}); " + NUMBERS + ' }} m{} SEC(".maps");\n'
DELETE = "exit_kind = bpf_map_delete_elem(&kept_map, %s);"
MAP = 'struct { __uint(type, %s); __uint(max_entries, 64); %s } kept_map SEC(".maps");'
PRINT = """
static char text[] = "%s\\n";
unsigned long long values[1] = { %s };

scx_bpf_error_bstr(text, values, sizeof(values));
"""

REFUSED = {
    "kfunc of an allowed prefix": {
        "before": "void scx_bpf_sub_kill___x(u64 id) __ksym;",
        "tick": "scx_bpf_sub_kill___x(1);",
    },
    "cast to any type": {
        "before": "void *bpf_rdonly_cast(const void *p, u32 id) __ksym;\nint *seen;",
        "tick": "exit_kind = *(int *)bpf_rdonly_cast((void *)p->scx.slice, 1);",
    },
    "iterator over tasks": {
        "before": "struct bpf_iter_task { u64 x[3]; };\nint bpf_iter_task_new(struct bpf_iter_task *it, "
        "struct task_struct *p, u32 flags) __ksym;",
        "tick": "struct bpf_iter_task it;\nbpf_iter_task_new(&it, NULL, 0);",
    },
    "helper that prints": {"tick": 'static char text[] = "x";\nbpf_trace_printk(text, 2);'},
    "helper that formats": {
        "before": "char buffer[64];",
        "tick": 'static const char text[] = "%s";\nu64 v = p->scx.slice;\nbpf_snprintf(buffer, 64, text, &v, 8);',
    },
    "registers of a task": {
        "before": "struct pt_regs;\nlong seen;",
        "tick": "seen = bpf_task_pt_regs(bpf_get_current_task_btf());",
    },
    "user memory": {"before": FLAVOURS, "tick": "bpf_probe_read_user(kept, 16, (void *)4096);"},
    "user memory when a program starts": {
        "before": FLAVOURS + 'SEC("tp_btf/sched_process_exec")\nint identify_exec(u64 *ctx)\n{\n'
        "\tbpf_probe_read_user(kept, 16, (void *)X(ctx[0])->mm->arg_start);\n\treturn 0;\n}\n"
    },
    "any tracing program": {"before": 'SEC("tp_btf/sched_switch")\nint look(u64 *ctx) { return 0; }\n'},
    "a function entry": {"before": 'SEC("fentry/do_exit")\nint look(u64 *ctx) { return 0; }\n'},
    "a raw tracepoint": {"before": 'SEC("raw_tp/sched_process_exec")\nint look(u64 *ctx) { return 0; }\n'},
    "a ring buffer": {"before": MAP % ("27", ""), "tick": DELETE % "p"},
    "a perf buffer": {"before": MAP % ("4", "__type(key, u32); __type(value, u32);"), "tick": DELETE % "&exit_kind"},
    "an arena": {"before": MAP % ("33", "__uint(map_flags, 1 << 10);"), "tick": DELETE % "p"},
    "programs to jump to": {
        "before": MAP % ("3", "__type(key, u32); __type(value, u32);"),
        "tick": DELETE % "&exit_kind",
    },
    "a map that user space cannot read": {
        "before": MAP % ("1", "__type(key, u32); __type(value, u32); __uint(map_flags, 16);")
    },
    "a variable of the kernel": {
        "before": "extern const void init_task __ksym;\nu64 seen;",
        "tick": "seen = (u64)&init_task;",
    },
    "a field of another part": {"before": FLAVOURS, "tick": "seen = X(p)->stack_canary;"},
    "the environment": {"before": FLAVOURS, "tick": "seen = BPF_CORE_READ(X(p), mm, env_start);"},
    "credentials beyond ids": {"before": FLAVOURS, "tick": "seen = BPF_CORE_READ(X(p), cred, securebits);"},
    "an offset without a name": {"before": FLAVOURS, "tick": "seen = *(u64 *)((char *)p + 1000);"},
    "beyond a field": {"before": FLAVOURS, "tick": "seen = *(u64 *)((char *)&p->scx.weight + 64);"},
    "memory at any address": {"before": FLAVOURS, "tick": "bpf_probe_read_kernel(&seen, 8, (void *)p->scx.slice);"},
    "a task at any address": {"before": FLAVOURS, "tick": "bpf_probe_read_kernel(&seen, 8, &X(p->scx.slice)->comm);"},
    "more than a field": {"before": FLAVOURS, "tick": "bpf_probe_read_kernel(kept, 64, X(p)->comm);"},
    "more than a field, by a variable": {
        "before": FLAVOURS,
        "tick": "bpf_probe_read_kernel(kept, p->pid & 63, X(p)->comm);",
    },
    "a text at any address": {"before": FLAVOURS, "tick": "bpf_probe_read_kernel_str(kept, 64, (void *)p->scx.slice);"},
    "printing what was kept": {"before": FLAVOURS, "tick": PRINT % ("%s", "(u64)kept")},
    "printing a text of the kernel": {"before": FLAVOURS, "tick": PRINT % ("%pks", "p->scx.slice")},
    "printing a text of a program": {"before": FLAVOURS, "tick": PRINT % ("%pus", "p->scx.slice")},
    "printing with what may change": {
        "before": FLAVOURS,
        "running": "kept[0] = '%';\nkept[1] = 's';",
        "tick": "unsigned long long values[1] = { p->scx.slice };\nscx_bpf_error_bstr(kept, values, 8);",
    },
    "writing to the ops struct": {"before": "extern struct sched_ext_ops t;", "tick": "t.timeout_ms = 1;"},
}

FLAG = ".timeout_ms = 5000, .flags = %s,"
REFUSED_OPS = {
    "partial switch": FLAG % "8",
    "partial switch with others": FLAG % "(SCX_OPS_ENQ_LAST | 8)",
    "immediate": FLAG % "0x80",
    "no flag of today": FLAG % "(1ULL << 40)",
    "the kernel's own": FLAG % "(1ULL << 56)",
    "an enormous batch": ".timeout_ms = 5000, .dispatch_max_batch = 1 << 20,",
}

ACCEPTED = {
    "a field by its name": {"before": FLAVOURS, "tick": "seen = p->pid;"},
    "the name of a task": {"before": FLAVOURS, "tick": "bpf_probe_read_kernel_str(kept, 16, X(p)->comm);"},
    "the ids of a user": {"before": FLAVOURS, "tick": "seen = BPF_CORE_READ(X(p), cred, uid);"},
    "own memory": {"before": FLAVOURS, "tick": "bpf_probe_read_kernel(&seen, 8, kept);"},
    "an index into a table": {"before": FLAVOURS, "tick": "seen = kept[p->pid & 63];"},
    "numbers in a text": {"before": FLAVOURS, "tick": PRINT % ("%d tasks, %llu %%", "p->scx.slice")},
    "a program that sees tasks end": {"before": 'SEC("tp_btf/sched_process_exit")\nint look(u64 *ctx) { return 0; }\n'},
    "a program for a loader": {"before": 'SEC("syscall")\nint look(u64 *ctx) { return 0; }\n'},
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("standing", [Standing.DERIVED, Standing.FOREIGN], ids=str)
def test_what_is_not_on_a_list_is_refused(what, standing, images):
    found = check_logic(images(what, REFUSED[what]), frozenset(), standing=standing).errors
    assert 27 in {finding.rule for finding in found}, found


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Each policy is compiled once."""
    known = {}

    def image(what, changes):
        if what not in known:
            known[what] = compiled(tmp_path_factory.mktemp("policy"), **changes)
        return known[what]

    return image


@pytest.mark.parametrize("what", ACCEPTED)
def test_what_scheduling_needs_is_well(what, images):
    assert check_logic(images(what, ACCEPTED[what]), frozenset()).errors == ()


@pytest.mark.parametrize("what", REFUSED_OPS)
def test_flags_and_fields_that_change_what_a_proof_means_are_refused(what, images):
    image = images(what, {"ops": REFUSED_OPS[what]})
    for standing in Standing:
        assert 27 in {finding.rule for finding in check_logic(image, frozenset(), standing=standing).errors}


@pytest.mark.parametrize("flag", [0, 1, 2, 4, 0x10, 0x20, 0x40, 0x100])
def test_flags_that_say_what_reaches_a_policy_are_accepted(flag, images):
    image = images("plain", WELL)
    flagged = replace(image, ops=(replace(image.ops[0], numbers={**image.ops[0].numbers, "flags": flag}),))
    assert 27 not in {finding.rule for finding in check_logic(flagged, frozenset()).errors}


@pytest.mark.parametrize("member", ["sub_attach", "init_cids", "set_cmask"])
def test_callbacks_that_no_rule_is_about_are_refused(member, images):
    assert member not in SIGNATURES
    image = images("plain", WELL)
    callbacks = {**image.ops[0].callbacks, member: image.ops[0].callbacks["dispatch"]}
    other = replace(image, ops=(replace(image.ops[0], callbacks=callbacks),))
    assert f"{member} is a callback that no rule is about" in {
        each.message for each in check_logic(other, frozenset()).errors
    }


def test_names_of_kfuncs_count_in_all_their_forms():
    for name in ("scx_bpf_dsq_insert", "scx_bpf_dsq_insert___v2", "__scx_bpf_dsq_insert_vtime", "bpf_obj_new_impl"):
        assert is_known_kfunc(name)
    for name in ("scx_bpf_sub_kill", "scx_bpf_dsq_insert_everything", "bpf_iter_css_new", "scx_bpf_", "bpf_throw"):
        assert not is_known_kfunc(name)


def test_fields_are_readable_by_name():
    for name in ("task_struct.comm", "task_struct.comm[3]", "task_struct.scx.weight", "scx_exit_info.kind"):
        assert is_readable(name)
    for name in ("task_struct.stack", "task_struct.mm.env_start", "mm_struct.env_start", "file.f_inode", "task_struct"):
        assert not is_readable(name)


def test_only_the_program_of_our_header_reads_arguments(images):
    image = images("user memory when a program starts", REFUSED["user memory when a program starts"])
    assert reads_user_memory(image)
    assert not reads_user_memory(images("plain", WELL))
    assert reader(images("plain", WELL)) == ""

    def refused(accepted):
        report = check_logic(image, frozenset(), accepted_reader=lambda: accepted)
        return any("reads user memory" in finding.message for finding in report.errors)

    assert refused("")
    assert refused("another program's digest")
    assert not refused(reader(image))


# --- memory


def sized(kind, entries, key, value, inner=None):
    return MapInfo("m", kind, key, value, entries, 0, 0, inner)


def test_memory_of_a_map_counts_cpus_tasks_and_what_is_beside_each_element():
    assert map_bytes(sized(2, 100, 4, 8)) == 800
    assert map_bytes(sized(6, 1, 4, 8)) == 512 * 8
    assert map_bytes(sized(1, 10, 8, 8)) == 10 * (64 + 8 + 8)
    assert map_bytes(sized(29, 0, 4, 8)) == COUNTED_TASKS * (128 + 8)
    assert map_bytes(sized(12, 10, 4, 4, sized(2, 1000, 4, 8))) == 10 * (8 + 8000)


STORAGE = (
    'struct { __uint(type, 29); __uint(map_flags, 1); __type(key, int); __type(value, char[8192]); } m SEC(".maps");'
)
TOO_LARGE = {
    "one variable": ("u64 record[131073];", "its variables take"),
    "two sections": ('u64 first[70000];\nu64 second[70000] SEC(".data.mine");', "its variables take"),
    "a storage": (STORAGE, "MiB of memory"),
    "for each CPU": (DECLARED.format(6, 20000, 0), "MiB of memory"),
    "many maps": ("".join(DECLARED.format(2, 1, i) for i in range(MAPS_MAX + 1)), "maps; accepted"),
    "maps in all": ("".join(DECLARED.format(2, "1 << 21", i) for i in range(5)), "MiB of memory"),
}


@pytest.mark.parametrize(("before", "told"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_memory_is_bounded_in_one_total(before, told, tmp_path):
    found = check(tmp_path, before=before).found(28)
    assert any(told in finding.message for finding in found), found


def test_a_section_without_variables_counts_too(images):
    image = images("plain", WELL)
    assert sum(image.sections.values()) >= 4
    assert check_logic(image, frozenset()).errors == ()
    larger = replace(image, sections={**image.sections, ".bss.hidden": MEMORY_MAX})
    assert {finding.rule for finding in check_logic(larger, frozenset()).errors} == {28}


def test_objects_must_be_taken_out_again(tmp_path):
    before = """
    extern void *bpf_obj_new_impl(u64 id, void *meta) __ksym;
    extern void bpf_obj_drop_impl(void *object, void *meta) __ksym;
    struct thing { u64 number; };
    """
    make = "struct thing *thing = bpf_obj_new_impl(bpf_core_type_id_local(struct thing), NULL);\n"
    assert check(tmp_path, before=before, tick=make + "exit_kind = !!thing;").found(28)
    dropped = make + "if (thing)\n\tbpf_obj_drop_impl(thing, NULL);"
    assert not check(tmp_path, before=before, tick=dropped).found(28)


UNUSUAL = {
    "a helper that prints": {"tick": 'bpf_printk("%d", p->pid);'},
    "a program that sees switches": {"before": 'SEC("tp_btf/sched_switch")\nint look(u64 *ctx) { return 0; }\n'},
    "another field of a task": {"before": FLAVOURS, "tick": "seen = X(p)->wakee_flips;"},
    "a ring buffer": {
        "before": 'struct {\n__uint(type, 27);\n__uint(max_entries, 4096);\n} ring SEC(".maps");',
        "tick": "bpf_ringbuf_output(&ring, &exit_kind, 4, 0);",
    },
    "a program that sees who calls a driver": {
        "before": 'SEC("kprobe/nvidia_open")\nint look(u64 *ctx) { return 0; }\n'
    },
    "a kfunc that prints": {
        "before": "int bpf_stream_vprintk_impl(int to, const char *text, const void *values, u32 size, void *) __ksym;",
        "tick": 'bpf_stream_vprintk_impl(1, "x", NULL, 0, NULL);',
    },
    "a program that sees programs start": {
        "before": 'SEC("tracepoint/syscalls/sys_enter_execve")\nint look(u64 *ctx) { return 0; }\n'
    },
    "whether it may be interrupted": {
        "before": "extern const int __preempt_count __ksym;",
        "tick": "exit_kind = *(int *)bpf_this_cpu_ptr(&__preempt_count);",
    },
    "a lock of its own": {
        "before": "typedef struct { int counter; } __attribute__((preserve_access_index)) atomic_t;\natomic_t held;",
        "tick": "exit_kind = ((volatile atomic_t *)&held)->counter;",
    },
    "an arena": {"before": 'struct {\n__uint(type, 33);\n__uint(max_entries, 4);\n} pages SEC(".maps");'},
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_what_only_our_policies_do_without_is_house(what, tmp_path):
    image = compiled(tmp_path, **UNUSUAL[what])
    classes = {
        standing: {each.finding_class for each in check_logic(image, frozenset(), standing=standing).errors}
        for standing in (Standing.DERIVED, Standing.FOREIGN)
    }
    assert classes == {Standing.DERIVED: {FindingClass.UNSAFE}, Standing.FOREIGN: {FindingClass.HOUSE}}


@pytest.mark.parametrize("what", ["a secret of a task", "credentials beyond ids"])
def test_secrets_of_tasks_stay_secrets(what, images):
    changes = REFUSED.get(what) or {"before": FLAVOURS, "tick": "seen = X(p)->stack_canary;"}
    found = check_logic(images(what, changes), frozenset(), standing=Standing.FOREIGN).errors
    assert FindingClass.UNSAFE in {each.finding_class for each in found if each.rule == 27}


def test_a_function_that_nobody_calls_is_not_judged(tmp_path):
    unused = "__weak int of_a_header(u64 *where) { return bpf_probe_write_user(where, where, 8); }"
    assert check_logic(compiled(tmp_path, before=unused), frozenset()).errors == ()


def test_a_large_arena_is_for_a_run_to_clear(tmp_path):
    large = 'struct {\n__uint(type, 33);\n__uint(max_entries, 1 << 20);\n} pages SEC(".maps");'
    report = check_logic(compiled(tmp_path, before=large), frozenset(), standing=Standing.FOREIGN)
    assert [(each.rule, each.cleared_by) for each in report.findings if each.severity is Severity.WARNING] == [
        (28, "memory growth")
    ]


def test_what_is_taken_besides_an_arena_is_said_without_it(tmp_path):
    large = 'struct {\n__uint(type, 33);\n__uint(max_entries, 1 << 20);\n} pages SEC(".maps");\n'
    image = compiled(tmp_path, before=large + "".join(DECLARED.format(2, "1 << 21", i) for i in range(5)))
    (error,) = (each for each in check_logic(image, frozenset(), standing=Standing.FOREIGN).errors if each.rule == 28)
    assert "it may take 80 MiB of memory besides its arena" in error.message


def test_the_kernel_s_configuration_may_be_printed(images):
    configured = {
        "before": 'extern const char CONFIG_LOCALVERSION[64] SEC(".kconfig") __weak;',
        "tick": PRINT % ("%s", "(u64)CONFIG_LOCALVERSION"),
    }
    report = check_logic(images("configured", configured), frozenset(), standing=Standing.FOREIGN)
    assert not [each for each in report.errors if each.rule == 27]


@pytest.mark.parametrize(
    ("old", "new"), [("scx_bpf_dispatch", "scx_bpf_dsq_insert"), ("scx_bpf_consume", "scx_bpf_dsq_move_to_local")]
)
def test_a_kfunc_that_is_gone_is_answered_with_the_new_name(old, new):
    assert advice(old) == f"{old}() is gone since 6.18: use {new}()"
    assert advice_on(f"x.c:1:1: error: call to undeclared function '{old}'; ISO C99") == advice(old)
    assert advice(new) == ""


@pytest.mark.parametrize(
    "traced", ["kprobe/tty_write", "kprobe/input_event", "kretprobe/vfs_read", "fentry/tcp_sendmsg"]
)
def test_watching_what_people_type_or_send_is_unsafe_whoever_wrote_it(traced, tmp_path):
    image = compiled(tmp_path, before=f'SEC("{traced}")\nint look(u64 *ctx) {{ return 0; }}\n')
    for standing in (Standing.DERIVED, Standing.FOREIGN):
        assert FindingClass.UNSAFE in {
            each.finding_class for each in check_logic(image, frozenset(), standing=standing).errors
        }
