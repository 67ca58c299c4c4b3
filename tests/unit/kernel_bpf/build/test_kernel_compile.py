"""kernel_bpf.build.compile, with the real clang and a hand-written vmlinux.h."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kernel_bpf.build import compile as compiler
from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import KernelTarget
from schedagent.core.errors import CompileError, SetupError, UsageError
from schedagent.core.policies.renamed import advice
from tests.support.paths import FIXTURES

TINY = FIXTURES / "tiny_kernel"
TARGET = KernelTarget("tiny", "0" * 40, TINY / "none", TINY)


def copy_source(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(TINY / "tiny.bpf.c", folder))


def forbid_clang(monkeypatch):
    def refuse(*_arguments):
        raise AssertionError("clang ran although the object was cached")

    monkeypatch.setattr(compiler, "_run_clang", refuse)


def test_compiles_to_a_bpf_object_without_warnings():
    artifact = compile_policy(TINY / "tiny.bpf.c", "tiny", TARGET)
    assert artifact.object_bytes[:4] == b"\x7fELF"
    assert artifact.log == ""
    assert (artifact.name, artifact.btf_build_id) == ("tiny", "0" * 40)


def test_same_bytes_wherever_the_files_lie_and_no_path_inside(tmp_path):
    headers = tmp_path / "headers"
    headers.mkdir()
    shutil.copy(TINY / "vmlinux.h", headers)
    moved = KernelTarget("tiny", "0" * 40, headers, headers)
    first = compile_policy(copy_source(tmp_path / "a"), "tiny", TARGET)
    second = compile_policy(copy_source(tmp_path / "much/longer name"), "tiny", moved)
    assert first.object_bytes == second.object_bytes
    for path in (tmp_path, TINY, compiler.BPF_INCLUDE, "/usr/"):
        assert str(path).encode() not in first.object_bytes


def test_error_names_file_and_line(tmp_path):
    source = tmp_path / "broken.bpf.c"
    source.write_text('#include "vmlinux.h"\nint f(void)\n{\n\treturn missing;\n}\n')
    with pytest.raises(CompileError) as caught:
        compile_policy(source, "broken", TARGET)
    assert "broken.bpf.c:4:9: error: use of undeclared identifier 'missing'" in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "value", "told"),
    [
        ("cpu_s", 1, "more than 1 s of CPU time"),
        ("memory_bytes", 400 << 20, "more than 400 MiB of memory"),
    ],
)
def test_source_that_explodes_is_stopped(tmp_path, monkeypatch, limit, value, told):
    source = tmp_path / "slow.bpf.c"
    doubling = "\n".join(f"#define X{n} X{n - 1} + X{n - 1}" for n in range(1, 40))
    source.write_text(f"#define X0 1\n{doubling}\nint x = X39;\n")
    monkeypatch.setattr(compiler, "LIMITS", replace(compiler.LIMITS, **{limit: value}))
    with pytest.raises(CompileError, match=told):
        compile_policy(source, "slow", TARGET)


def test_missing_source_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.bpf\.c cannot be read"):
        compile_policy(tmp_path / "gone.bpf.c", "gone", TARGET)


def test_no_clang_is_a_setup_error(monkeypatch):
    compiler.find_clang.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(SetupError, match="no clang"):
        compiler.find_clang()
    monkeypatch.undo()
    assert "clang" in compiler.find_clang()[1]


def test_cache_answers_the_second_time(tmp_path, monkeypatch):
    source = copy_source(tmp_path / "source")
    first = compile_policy(source, "tiny", TARGET, cache_dir=tmp_path / "cache")
    forbid_clang(monkeypatch)
    assert compile_policy(source, "tiny", TARGET, cache_dir=tmp_path / "cache") == first


def test_cache_notices_a_changed_source_and_a_changed_header(tmp_path):
    source = copy_source(tmp_path / "source")
    header = tmp_path / "include" / "extra.h"
    header.parent.mkdir()
    header.write_text("#define EXTRA 1\n")
    source.write_text('#include "extra.h"\n' + source.read_text() + "const volatile u32 extra = EXTRA;\n")

    def compiled() -> bytes:
        folders = [header.parent]
        return compile_policy(source, "t", TARGET, include_dirs=folders, cache_dir=tmp_path / "cache").object_bytes

    before = compiled()
    header.write_text("#define EXTRA 2\n")
    with_header = compiled()
    assert with_header != before
    source.write_text(source.read_text().replace("slice_us = 5000", "slice_us = 6000"))
    assert compiled() != with_header


def test_damaged_cache_entry_is_compiled_anew(tmp_path):
    source = copy_source(tmp_path / "source")
    cache = tmp_path / "cache"
    first = compile_policy(source, "tiny", TARGET, cache_dir=cache)
    (entry,) = (cache / "objects").iterdir()
    whole = entry.read_bytes()
    for damaged in (whole[:-9], whole[:-9] + b"x" * 9, whole[:5], b""):
        entry.write_bytes(damaged)
        assert compile_policy(source, "tiny", TARGET, cache_dir=cache) == first
        assert entry.read_bytes() == whole


def test_unwritable_cache_costs_only_time(tmp_path, caplog):
    blocked = tmp_path / "cache"
    blocked.write_text("a file where the folder should be")
    artifact = compile_policy(TINY / "tiny.bpf.c", "tiny", TARGET, cache_dir=blocked)
    assert artifact.object_bytes
    assert "cannot keep the compiled policy" in caplog.text


LIBC = ("errno.h", "string.h", "stdint.h", "limits.h", "inttypes.h", "sys/types.h", "linux/errno.h", "asm/types.h")


def test_headers_of_libc_that_need_no_library_are_there(tmp_path):
    source = tmp_path / "libc.bpf.c"
    includes = "".join(f"#include <{name}>\n" for name in LIBC)
    source.write_text(f"{includes}uint64_t most = UINT64_MAX - ENOMEM - INT_MAX;\n")
    assert compile_policy(source, "libc", TARGET).log == ""


def test_headers_of_the_author_come_before_ours(tmp_path):
    (tmp_path / "common.bpf.h").write_text("#define OF_THE_AUTHOR 1\n")
    source = tmp_path / "own.bpf.c"
    source.write_text(
        '#include <common.bpf.h>\nint x = OF_THE_AUTHOR;\nchar l[] __attribute__((section("license"))) = "GPL";\n'
    )
    assert compile_policy(source, "own", TARGET, include_dirs=[tmp_path]).log == ""


def test_folder_of_links_stands_for_the_folder_that_they_lead_to(tmp_path):
    for name in ("real", "linked"):
        (tmp_path / name).mkdir()
    (tmp_path / "real/types.h").touch()
    (tmp_path / "linked/types.h").symlink_to("../real/types.h")
    assert compiler._where_it_lies(tmp_path / "linked") == tmp_path / "real"
    assert compiler._where_it_lies(tmp_path / "real") == tmp_path / "real"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            "void f(void) { scx_bpf_consume(7); }",
            advice("scx_bpf_consume"),
        ),
        ('#include "intf.h"\n', "give the folder of the header, be it that of the source, with --include DIR"),
        ("int f(void) { return missing; }", ""),
    ],
)
def test_what_clang_does_not_know_is_answered_with_what_to_do(tmp_path, text, hint):
    source = tmp_path / "unknown.bpf.c"
    source.write_text(text)
    (tmp_path / "intf.h").touch()
    with pytest.raises(CompileError) as caught:
        compile_policy(source, "unknown", TARGET)
    assert caught.value.hint == hint
