"""verifier.source.checks on small sources, each with one mistake, and on what must not be taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel_bpf.build import syntax
from kernel_bpf.build.syntax import parse_source
from kernel_bpf.build.target import KernelTarget
from kernel_bpf.policies.library import load_library
from schedagent.core.errors import CompileError
from schedagent.core.policies.policy import Standing, Tunable
from schedagent.core.rules import FindingClass
from schedagent.core.settings import load_settings
from schedagent.core.verification import Finding, Severity
from tests.support.paths import FIXTURES
from verifier.source.checks import check_assembler, check_source, check_sources, check_tree

TINY = FIXTURES / "tiny_kernel"
TARGET = KernelTarget("tiny", "0" * 40, TINY / "none", TINY)
NAMES = ("SCX_DSQ_LOCAL", "SCX_ENQ_WAKEUP", "scx_bpf_dsq_insert", "sched_ext_ops.exit")

PRELUDE = """\
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
struct sched_ext_entity { u64 slice; };
struct task { char comm[16]; struct sched_ext_entity scx; };
void scx_bpf_dsq_insert___v2(struct task_struct *p, u64 dsq, u64 slice, u64 flags) __ksym __weak;
s32 scx_bpf_create_dsq(u64 dsq, s32 node) __ksym;
static __always_inline void insert(struct task_struct *p, u64 dsq, u64 slice)
{
	scx_bpf_dsq_insert___v2(p, dsq, slice, 0);
}
"""
LICENSE = 'char _license[] SEC("license") = "GPL";\n'
OPS = 'SEC(".struct_ops.link")\nstruct sched_ext_ops x = { .timeout_ms = 5000, .exit = (void *)0 };\n'
FIRST_LINE = PRELUDE.count("\n") + 1


def findings(body: str, *, license_text: str = LICENSE, ops: str = OPS, tunables=(), include_dirs=()) -> list[Finding]:
    text = PRELUDE + body + license_text + ops
    tree = parse_source(text.encode(), "x.bpf.c", TARGET, include_dirs=include_dirs)
    return list(check_tree(tree, NAMES, {tunable.name: tunable for tunable in tunables}))


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1, [str(finding) for finding in found]
    return found[0]


def enqueue(body: str) -> str:
    return f"void f(struct task_struct *p, struct task *t)\n{{\n{body}\n}}\n"


def test_sound_policy_has_no_findings():
    assert findings(enqueue("insert(p, 0, 5000000);")) == []


# -- rule 24

SLICE_NS = Tunable("turn", "u64", "ns", 100_000, 100_000_000, 5_000_000, "longer turns")
TURN = "const volatile u64 turn = 5000000;\n"


@pytest.mark.parametrize(
    "use",
    [
        "insert(p, 0, turn);",
        "scx_bpf_dsq_insert___v2(p, 0, turn, 0);",
        "t->scx.slice = turn;",
        "u64 slice = turn;\ninsert(p, 0, slice);",
        "insert(p, 0, (u32)turn * 2);",
    ],
)
def test_slice_of_a_tunable_without_a_range(use):
    found = only(findings(TURN + enqueue(use)))
    assert (found.rule, found.severity, found.where, found.line) == (24, Severity.ERROR, "f", FIRST_LINE)
    assert "range is documented nowhere" in found.message
    assert findings(TURN + enqueue(use.replace("* 2", "* 1")), tunables=[SLICE_NS]) == []


@pytest.mark.parametrize(
    "use",
    [
        "insert(p, 0, turn > 100000 ? turn : 100000);",
        "u64 slice = turn;\nif (slice < 100000)\n\tslice = 100000;\ninsert(p, 0, slice);",
        "insert(p, 0, clamped(turn));",
        "insert(p, turn, 5000000);",
        "u64 deadline = turn * 1000;\ninsert(p, 0, deadline ? 5000000 : 6000000);",
    ],
)
def test_clamped_slices_and_other_uses_are_well(use):
    clamp = "u64 clamped(u64 ns)\n{\n\treturn ns < 100000 ? 100000 : ns;\n}\n"
    assert findings(TURN + clamp + enqueue(use)) == []


@pytest.mark.parametrize(
    ("minimum", "maximum", "told"),
    [(100, 100_000, None), (50, 100_000, "minimum of 50"), (100, 200_000, "maximum of 200000")],
)
def test_documented_range_must_keep_the_bounds(minimum, maximum, told):
    microseconds = Tunable("turn", "u64", "us", minimum, maximum, 5000, "longer turns")
    found = findings(TURN + enqueue("insert(p, 0, turn * 1000ULL);"), tunables=[microseconds])
    if told is None:
        assert found == []
    else:
        assert told in only(found).message
        assert only(found).rule == 24


def test_slice_of_two_tunables_is_left_to_the_compiled_object_if_both_are_documented():
    other = Tunable("factor", "u64", "none", 1, 1000, 1, "longer turns")
    body = TURN + "const volatile u64 factor = 1;\n" + enqueue("insert(p, 0, turn * factor);")
    assert findings(body, tunables=[SLICE_NS, other]) == []
    assert "tunable factor is used" in only(findings(body, tunables=[SLICE_NS])).message


def test_constants_of_headers_are_no_tunables(tmp_path):
    (tmp_path / "enums.h").write_text("const volatile u64 turn __weak;\n")
    assert findings('#include "enums.h"\n' + enqueue("insert(p, 0, turn);"), include_dirs=[tmp_path]) == []


# -- rule 2


@pytest.mark.parametrize("body", ["0x8000000000000002ULL", "(1ULL << 63 | 2)", "0"])
def test_copied_constant(body):
    found = only(findings(f"#define SCX_DSQ_LOCAL {body}\n"))
    assert (found.rule, found.severity, found.file, found.line) == (2, Severity.ERROR, "x.bpf.c", FIRST_LINE)
    assert "bpf_core_enum_value() for SCX_DSQ_LOCAL" in found.message


def test_copied_constant_in_a_header(tmp_path):
    (tmp_path / "mine.h").write_text("#define SCX_ENQ_WAKEUP 1\n")
    found = only(findings('#include "mine.h"\n', include_dirs=[tmp_path]))
    assert (found.file, found.line) == ("include1/mine.h", 1)


@pytest.mark.parametrize(
    "definition",
    [
        "#define SCX_DSQ_LOCAL __SCX_DSQ_LOCAL",
        "#define SCX_MINE 5",
        "#define SCX_DSQ_LOCAL(x) 5",
        "#define SCX_DSQ_LOCAL bpf_core_enum_value(enum scx_dsq_id_flags, SCX_DSQ_LOCAL)",
        "enum scx_dsq_id_flags { SCX_DSQ_LOCAL = 2 };",
        "enum flags { SCX_DSQ_LOCAL = 2 };\nint f(void) { return bpf_core_enum_value(enum flags, SCX_DSQ_LOCAL); }",
        "enum flags___new { SCX_DSQ_LOCAL = 2 };\nint f(void) { return SCX_DSQ_LOCAL; }",
    ],
)
def test_what_is_no_copy(definition):
    assert findings(definition + "\n") == []


def test_use_of_an_own_enumerator():
    found = only(findings("enum flags { SCX_DSQ_LOCAL = 2 };\nint f(void) { return SCX_DSQ_LOCAL; }\n"))
    assert (found.rule, found.line) == (2, FIRST_LINE + 1)


@pytest.mark.parametrize(
    "use",
    [
        "insert(p, 0x8000000000000002ULL, 5000000);",
        "scx_bpf_create_dsq(1ULL << 63 | 7, -1);",
        "u64 q = 1ULL << 63;\ninsert(p, q, 5000000);",
    ],
)
def test_builtin_dsq_by_number(use):
    found = only(findings(enqueue(use)))
    assert (found.rule, found.where) == (2, "f")
    assert "has bit 63 set" in found.message


# -- rule 27


@pytest.mark.parametrize("text", ["", 'char _license[] SEC("license") = "Proprietary";\n'])
def test_license(text):
    assert only(findings("", license_text=text)).rule == 27


@pytest.mark.parametrize("text", ["GPL", "Dual BSD/GPL", "GPL v2"])
def test_licenses_of_the_kernel(text):
    assert findings("", license_text=f'const char l[] SEC("license") = "{text}";\n') == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('asm(".globl x");', "assembler outside of functions"),
        ("__attribute__((constructor)) void f(void) {}", "attribute constructor"),
        ("void g(void) {}\nvoid f(void) __attribute__((alias(\"g\")));", "attribute alias"),
        ("void f(void) __asm__(\"scx_bpf_kick_cpu\");", "attribute asm label"),
        ('SEC(".maps") void f(void) {}', "a function in section '.maps'"),
        ('SEC(".text.hidden") void f(void) {}', "a function in section '.text.hidden'"),
        ('int y SEC("struct_ops/enqueue");', "a variable in section 'struct_ops/enqueue'"),
        ('int y SEC(".BTF");', "a variable in section '.BTF'"),
        ('int y SEC(".maps");', "section '.maps' holds maps"),
    ],
)  # fmt: skip
def test_disguises(body, told):
    found = only(findings(body + "\n"))
    assert (found.rule, found.severity) == (27, Severity.ERROR)
    assert told in found.message
    assert found.line >= FIRST_LINE


@pytest.mark.parametrize(
    "body",
    [
        'SEC("struct_ops/x") int f(void *ctx) { asm volatile("" ::: "memory"); return 0; }',
        'SEC("tp_btf/sched_switch") int f(void *ctx) { return 0; }',
        'struct { __uint(type, BPF_MAP_TYPE_HASH); } m SEC(".maps");',
        'int a SEC(".data"), b SEC(".bss"), c SEC(".data.mine");\nconst int d SEC(".rodata") = 1;',
        "extern const int CONFIG_HZ __kconfig;",
        "__noinline __weak int g(void) { return 0; }",
    ],
)
def test_usual_sections_and_attributes_are_well(body):
    assert findings(body + "\n") == []


def assembler(body: str, include_dirs=()) -> list[Finding]:
    text = PRELUDE + body + LICENSE + OPS
    return list(check_assembler(parse_source(text.encode(), "x.bpf.c", TARGET, include_dirs=include_dirs)))


@pytest.mark.parametrize(
    "body",
    [
        'asm volatile("r0 = 5");',
        '__asm__("" ::: "memory");',
        'asm goto("goto %l[out]" :::: out);\nout:;',
        '#define WRITTEN asm volatile("r0 = 5")\nWRITTEN;',
        '#define PASTED(a, b) a##b\nPASTED(as, m) volatile("r0 = 5");',
        'int y = 1;\nbarrier_var(*({ asm("r0 = 5"); &y; }));',
    ],
)
def test_assembler_is_found_whoever_spells_it(body):
    found = only(assembler(f"void f(void)\n{{\n{body}\n}}\n"))
    assert (found.rule, found.severity) == (27, Severity.ERROR)
    assert found.file == "x.bpf.c"
    assert found.line > FIRST_LINE


def test_assembler_in_headers_of_the_author_s_is_found_and_in_libbpf_s_is_not(tmp_path):
    (tmp_path / "mine.h").write_text('static inline void hidden(void)\n{\n\tasm volatile("r0 = 5");\n}\n')
    assert only(assembler('#include "mine.h"\n', include_dirs=(tmp_path,))).file == "include1/mine.h"
    assert assembler("void f(int y)\n{\n\tbarrier();\n\tbarrier_var(y);\n}\n") == []


# -- style


@pytest.mark.parametrize(
    "use",
    [
        "if (t->comm[0] == 'a')\n\treturn;",
        'if (!bpf_strncmp(t->comm, 3, "abc"))\n\treturn;',
        "char name[16];\nbpf_probe_read_kernel_str(name, sizeof(name), t->comm);\nif (name[0] == 'm')\n\treturn;",
        'char name[16];\n__builtin_memcpy(name, t->comm, 16);\nif (!bpf_strncmp(name, 3, "abc"))\n\treturn;',
    ],
)
def test_tasks_told_apart_by_name(use):
    found = only(findings(enqueue(use)))
    assert (found.severity, found.rule, found.cleared_by) == (Severity.WARNING, 29, "starvation")
    assert found.where == "f"


def test_callback_that_tells_tasks_apart_by_name():
    program = 'SEC("struct_ops/x_enqueue")\nvoid BPF_PROG(x_enqueue, struct task *t)\n{\n%s\n}\n'
    found = only(findings(program % "if (t->comm[0] == 'a')\n\treturn;"))
    assert (found.where, found.line) == ("x_enqueue", FIRST_LINE + 3)


def test_a_name_that_is_only_shown_is_well():
    assert findings(enqueue('bpf_printk("%s", t->comm);\nif (t->scx.slice == 0)\n\treturn;')) == []


# -- the whole


def test_lying_line_directives_are_refused(tmp_path):
    (tmp_path / "features.txt").write_text("")
    (tmp_path / "vmlinux.h").write_bytes((TINY / "vmlinux.h").read_bytes())
    target = KernelTarget("tiny", "0" * 40, TINY / "none", tmp_path)
    text = (PRELUDE + LICENSE + OPS).encode()
    assert check_source(text, "x.bpf.c", target) == ()
    with pytest.raises(CompileError, match="a #line directive renames this place"):
        check_source(text + b'#line 1 "/etc/shadow"\nint y;\n', "x.bpf.c", target)


def test_errors_come_first_and_nothing_twice():
    body = TURN + enqueue("insert(p, 0, turn);\ninsert(p, 1, turn);\nif (t->comm[0] == 'a')\n\treturn;")
    found = findings(body, license_text="")
    assert [(finding.rule, finding.severity) for finding in found] == [
        (27, Severity.ERROR),
        (24, Severity.ERROR),
        (29, Severity.WARNING),
    ]


@pytest.fixture(scope="module")
def newest(real_target: KernelTarget) -> tuple[KernelTarget, Path]:
    return real_target, load_settings().cache_dir


@pytest.mark.parametrize("name", sorted(load_library()))
def test_bundled_policies_have_no_findings(name, newest):
    target, cache_dir = newest
    policy = load_library()[name]
    text = policy.source.read_bytes()
    assert check_source(text, policy.source.name, target, tunables=policy.tunables, cache_dir=cache_dir) == ()


@pytest.fixture
def target(tmp_path):
    """The tiny kernel, with a list of its features."""
    (tmp_path / "features.txt").write_text("")
    (tmp_path / "vmlinux.h").write_bytes((TINY / "vmlinux.h").read_bytes())
    return KernelTarget("tiny", "0" * 40, TINY / "none", tmp_path)


ASSEMBLER = b'char _license[] SEC("license") = "GPL";\nint f(void)\n{\n\tasm volatile("");\n\treturn 0;\n}\n'
HEAD = b'#include "vmlinux.h"\n#include <bpf/bpf_helpers.h>\n'


def test_assembler_is_refused_of_a_derived_policy_and_noted_of_a_foreign_one(target):
    found = {
        standing: [each.finding_class for each in check_source(HEAD + ASSEMBLER, "x.bpf.c", target, standing=standing)]
        for standing in Standing
    }
    assert found == {
        Standing.DERIVED: [FindingClass.UNSAFE],
        Standing.FOREIGN: [FindingClass.HOUSE],
        Standing.BUNDLED: [],
    }


def test_one_of_several_sources_has_the_licence(target):
    rest = HEAD + b"int g(void)\n{\n\treturn 0;\n}\n"
    licensed = HEAD + b'char _license[] SEC("license") = "GPL";\n'
    assert check_sources([("x.bpf.c", licensed), ("y.bpf.c", rest)], target) == ()
    assert [each.file for each in check_sources([("x.bpf.c", rest), ("y.bpf.c", rest)], target)] == [
        "x.bpf.c",
        "y.bpf.c",
    ]


def test_a_tree_too_large_to_be_read_is_a_note_on_what_a_person_brings(target, monkeypatch):
    monkeypatch.setattr(syntax, "TREE_LIMIT_BYTES", 64 << 10)
    monkeypatch.setattr(syntax, "_precompile", lambda *_arguments: None)
    sources = [("x.bpf.c", HEAD + b'char _license[] SEC("license") = "GPL";\n')]
    (note,) = check_sources(sources, target, standing=Standing.FOREIGN)
    assert (note.severity, note.finding_class) == (Severity.NOTE, FindingClass.HOUSE)
    with pytest.raises(CompileError, match="clang was stopped"):
        check_sources(sources, target)
