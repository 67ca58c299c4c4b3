"""kernel_bpf.build.syntax, with the real clang and a hand-written vmlinux.h."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel_bpf.build import syntax
from kernel_bpf.build.syntax import Macro, Node, Tree, parse_source
from kernel_bpf.build.target import KernelTarget
from schedagent.core.errors import CompileError
from tests.support.paths import FIXTURES

TINY = FIXTURES / "tiny_kernel"
TARGET = KernelTarget("tiny", "0" * 40, TINY / "none", TINY)


def parse(text: str, **options) -> Tree:
    return parse_source(text.encode(), "x.bpf.c", TARGET, **options)


def named(tree: Tree, kind: str, name: str = "") -> list[Node]:
    return [node for node in tree.walk() if node.kind == kind and (not name or node.name == name)]


def test_places_are_told_although_clang_leaves_out_what_repeats():
    text = '#include "vmlinux.h"\nint a,\n  b; int c;\nint f(void)\n{\n\treturn c +\n\t       a;\n}\n'
    tree = parse(text)
    places = {node.name: (node.place.file, node.place.line, node.place.column) for node in named(tree, "VarDecl")}
    assert places == {"a": ("x.bpf.c", 2, 5), "b": ("x.bpf.c", 3, 3), "c": ("x.bpf.c", 3, 10)}
    [plus] = named(tree, "BinaryOperator")
    whole = text.encode()[plus.begin.offset : plus.end.offset + plus.end.length]
    assert (whole, plus.begin.line, plus.end.line) == (b"c +\n\t       a", 6, 7)
    assert named(tree, "DeclRefExpr", "a")[0].refers_to.id == named(tree, "VarDecl", "a")[0].id
    assert {node.place.file for node in named(tree, "RecordDecl", "sched_ext_ops")} == {"kernel/vmlinux.h"}


def test_what_a_macro_writes_stands_where_it_is_used():
    tree = parse("#define TWICE(x) ((x) * 2)\nint f(int a)\n{\n\treturn TWICE(a);\n}\n")
    [product] = named(tree, "BinaryOperator")
    assert (product.begin.line, product.spelled.line) == (4, 1)
    assert named(tree, "DeclRefExpr", "a")[0].spelled.line == 4


def test_macros_without_parameters(tmp_path):
    (tmp_path / "own.h").write_text("\n\n#define FROM_HEADER 1\n")
    tree = parse(
        '#include "vmlinux.h"\n#include "own.h"\n#define A  (1 <<\\\n 3)\n#define F(x) x\n', include_dirs=[tmp_path]
    )
    assert tree.macros == (
        Macro("__VMLINUX_H__", "", "kernel/vmlinux.h", 1),
        Macro("FROM_HEADER", "1", "include1/own.h", 3),
        Macro("A", "(1 << 3)", "x.bpf.c", 3),
    )


def test_parts_that_are_not_there_are_empty_nodes():
    tree = parse("void f(void)\n{\n\tfor (;;)\n\t\t;\n}\n")
    [loop] = named(tree, "ForStmt")
    assert [child.kind for child in loop.children] == ["", "", "", "", "NullStmt"]


@pytest.mark.parametrize(
    "directive", ['#line 7 "/etc/shadow"', "#line 7", '#line 3 "/etc/shadow"', '# 3 "/etc/shadow" 1']
)
def test_line_directives_do_not_hide_the_true_place(directive):
    tree = parse(f"int a;\n{directive}\nint b;\n")
    assert [(node.place.file, node.place.line) for node in named(tree, "VarDecl")] == [("x.bpf.c", 1), ("x.bpf.c", 3)]
    assert tree.renamed is not None
    assert (tree.renamed.file, tree.renamed.line) == ("x.bpf.c", 3)


@pytest.mark.parametrize("expression", ["__INT_MAX__", "__ATOMIC_RELAXED", "__LINE__", "GLUE(1, 2)"])
def test_what_the_compiler_defines_is_no_renamed_place(expression):
    assert parse(f"#define GLUE(a, b) a##b\nint x = {expression};\n").renamed is None


def test_headers_are_no_renamed_places(tmp_path):
    (tmp_path / "own.h").write_text("int a;\n")
    assert parse('#include "vmlinux.h"\n#include "own.h"\nint b;\n', include_dirs=[tmp_path]).renamed is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("int x = y;\n", "x.bpf.c:1:9: error: use of undeclared identifier 'y'"),
        ("int f(int a) { return " + "- " * 100_000 + "a; }\n", "clang crashed"),
        ("#define A(x) x x x x x x x x x x\nvoid f(void) { A(A(A(A(A(;)))))\n }", "more than"),
        ("int x;\0", "is zero"),
    ],
)
def test_what_cannot_be_looked_at_is_a_compile_error(monkeypatch, text, told):
    monkeypatch.setattr(syntax, "TREE_LIMIT_BYTES", 4 << 20)
    with pytest.raises(CompileError, match=told):
        parse(text)


def test_tree_deeper_than_python_can_read_is_a_compile_error():
    with pytest.raises(CompileError, match="nested too deeply"):
        parse("int f(int a) { return " + "- " * 700 + "a; }\n")


@pytest.fixture
def large_kernel(tmp_path) -> KernelTarget:
    """A kernel whose header is worth precompiling, with prototypes as bpftool writes them."""
    folder = tmp_path / "large"
    folder.mkdir()
    header = (TINY / "vmlinux.h").read_text().removesuffix("#endif\n")
    kfunc = "#ifndef BPF_NO_KFUNC_PROTOTYPES\nextern void scx_bpf_kfunc(u64 id);\n#endif\n"
    (folder / "vmlinux.h").write_text(header + kfunc + "/* " + "-" * (1 << 20) + " */\n#endif\n")
    return KernelTarget("large", "1" * 40, folder / "none", folder)


def parse_large(text: str, target: KernelTarget, cache: Path) -> Tree:
    return parse_source(text.encode(), "x.bpf.c", target, cache_dir=cache)


def test_precompiled_types_are_left_out_and_kept(tmp_path, large_kernel, monkeypatch):
    text = '#include "vmlinux.h"\nint f(struct task_struct *p)\n{\n\treturn p->pid;\n}\n'
    first = parse_large(text, large_kernel, tmp_path)
    assert {node.place.file for node in first.declarations} == {"x.bpf.c"}
    assert named(first, "MemberExpr")[0].name == "pid"
    [kept] = (tmp_path / "pch").iterdir()
    made = kept.stat().st_ino
    parse_large(text, large_kernel, tmp_path)
    assert [path.stat().st_ino for path in (tmp_path / "pch").iterdir()] == [made]
    (large_kernel.header_dir / "vmlinux.h").write_bytes((large_kernel.header_dir / "vmlinux.h").read_bytes() + b"\n")
    parse_large(text, large_kernel, tmp_path)
    assert len(list((tmp_path / "pch").iterdir())) == 2


def test_kfuncs_that_the_source_declares_itself_do_not_clash(tmp_path, large_kernel):
    text = '#define BPF_NO_KFUNC_PROTOTYPES\n#include "vmlinux.h"\nextern int scx_bpf_kfunc(void);\n'
    tree = parse_large(text, large_kernel, tmp_path)
    assert {node.place.file for node in tree.declarations} == {"x.bpf.c"}


@pytest.mark.parametrize(
    "text", ["struct task_struct {\n\tlong pid;\n};\n", "int x;\n"], ids=["own types", "no header"]
)
def test_sources_without_the_kernels_header(tmp_path, large_kernel, text):
    tree = parse_large(text, large_kernel, tmp_path)
    assert tree.declarations[-1].place.file == "x.bpf.c"


def test_damaged_precompiled_header_is_made_anew(tmp_path, large_kernel):
    text = '#include "vmlinux.h"\nint x;\n'
    parse_large(text, large_kernel, tmp_path)
    [kept] = (tmp_path / "pch").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + b"x")
    tree = parse_large(text, large_kernel, tmp_path)
    assert {node.place.file for node in tree.declarations} == {"x.bpf.c"}
    assert kept.read_bytes() == whole
