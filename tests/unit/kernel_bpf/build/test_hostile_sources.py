"""Sources written to read, fill, crash or confuse: each is refused, or compiles to nothing odd."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kernel_bpf.build import compile as compiler
from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.source import SOURCE_LIMIT_BYTES
from kernel_bpf.build.target import KernelTarget
from schedagent.core.errors import CompileError, UsageError
from tests.support.paths import FIXTURES

TINY = FIXTURES / "tiny_kernel"
TARGET = KernelTarget("tiny", "0" * 40, TINY / "none", TINY)
SECRET = "swordfish"


@pytest.fixture(autouse=True)
def tight_limits(monkeypatch):
    """What explodes shall do so in a second."""
    monkeypatch.setattr(compiler, "LIMITS", replace(compiler.LIMITS, cpu_s=1, output_bytes=4 << 20))


@pytest.fixture
def secret(tmp_path) -> Path:
    """A file that is both C and assembler and that nobody gave to the compiler, near the source."""
    path = tmp_path / "private" / "secret.h"
    path.parent.mkdir()
    path.write_text(f'char {SECRET}[] = "{SECRET}";\n')
    return path


def compiled(folder: Path, text: str | bytes, **options) -> tuple[bytes, str]:
    """Return object and message of clang, whichever there is."""
    source = folder / "hostile.bpf.c"
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        artifact = compile_policy(source, "hostile", TARGET, **options)
    except CompileError as error:
        return b"", str(error)
    return artifact.object_bytes, artifact.log


READERS = {
    "quoted include": '#include "%s"\n',
    "angle include": "#include <%s>\n",
    "computed include": '#define WHERE "%s"\n#include WHERE\n',
    "include_next": '#include_next "%s"\n',
    "import": '#import "%s"\n',
    "embed": 'const unsigned char x[] = {\n#embed "%s"\n};\n',
    "incbin at file scope": 'asm(".section .data\\n.incbin \\"%s\\"");\n',
    "incbin in a function": 'int f(void) { asm volatile(".incbin \\"%s\\""); return 0; }\n',
    "assembler's include": 'asm(".include \\"%s\\"");\n',
    "pragma dependency": '#pragma GCC dependency "%s"\n',
    "_Pragma dependency": '_Pragma("GCC dependency \\"%s\\"")\n',
    "clang module": '#pragma clang module build m\nmodule m { header "%s" }\n#pragma clang module contents\n'
    "#pragma clang module endbuild\n#pragma clang module import m\n",
    "source the compiler shows": '#line 1 "%s"\nint x = undeclared;\n',
}


@pytest.mark.parametrize("how", READERS)
def test_no_file_can_be_read(tmp_path, secret, how):
    for path in (str(secret), "private/secret.h", f"../{tmp_path.name}/private/secret.h"):
        object_bytes, said = compiled(tmp_path, READERS[how] % path)
        assert SECRET.encode() not in object_bytes
        assert SECRET not in said


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/self/maps", "/dev/zero"])
@pytest.mark.parametrize("how", ["quoted include", "embed", "incbin at file scope"])
def test_files_of_the_system_are_not_there(tmp_path, path, how):
    object_bytes, said = compiled(tmp_path, READERS[how] % path)
    assert object_bytes == b""
    assert "not found" in said or "Could not find" in said


def test_relative_paths_end_at_the_sandbox(tmp_path):
    for depth in range(0, 20, 4):
        _object, said = compiled(tmp_path, '#include "' + "../" * depth + 'etc/passwd"\n')
        assert "file not found" in said


def test_probing_for_files_finds_none(tmp_path, secret):
    places = [
        secret,
        "/etc/passwd",
        "/proc/self/status",
        "/dev/null",
        "/root/.profile",
        "/usr/bin/env",
        "/etc/hostname",
    ]
    probes = " || ".join(f'__has_include("{path}")' for path in places)
    object_bytes, said = compiled(tmp_path, f"#if {probes}\n#error found one\n#endif\nint x = 1;\n")
    assert object_bytes[:4] == b"\x7fELF", said


def test_neighbours_are_seen_only_when_their_folder_is_given(tmp_path):
    (tmp_path / "near.h").write_text("#define NEAR 1\n")
    text = '#include "near.h"\nint x = NEAR;\n'
    assert "file not found" in compiled(tmp_path, text)[1]
    assert compiled(tmp_path, text, include_dirs=[tmp_path])[0]


@pytest.mark.parametrize(
    ("folder", "told"), [("/", "every file"), ("/etc/passwd", "not there"), ("/none", "not there")]
)
def test_what_is_no_folder_of_headers(tmp_path, folder, told):
    source = tmp_path / "x.bpf.c"
    source.write_text('#include "etc/passwd"\n')
    with pytest.raises(UsageError, match=told):
        compile_policy(source, "x", TARGET, include_dirs=[Path(folder)])


def test_links_in_a_given_folder_lead_nowhere(tmp_path, secret):
    headers = tmp_path / "headers"
    headers.mkdir()
    (headers / "link.h").symlink_to(secret)
    (headers / "up").symlink_to("..")
    for name in ("link.h", "up/private/secret.h", "../private/secret.h"):
        object_bytes, said = compiled(tmp_path, f'#include "{name}"\n', include_dirs=[headers])
        assert "file not found" in said
        assert object_bytes == b""


DOUBLING = "\n".join(f"#define X{n} X{n - 1} + X{n - 1}" for n in range(1, 40))

BOMBS = {
    "macros that double": (f"#define X0 1\n{DOUBLING}\nint x = X39;\n", "clang was stopped"),
    "includes itself": ("#include __FILE__\n", "nested too deeply"),
    "includes itself twice": ("#include __FILE__\n" * 2, "nested too deeply"),
    "includes itself in breadth": (
        "#if __INCLUDE_LEVEL__ < 25\n#include __FILE__\n#include __FILE__\n#endif\n",
        "clang was stopped",
    ),
    "an object of a gigabyte": ("char x[1u << 30] = {1};\n", "more than 4 MiB of output"),
    "an alignment of a quarter": ("__attribute__((aligned(1 << 28))) char x = 1; char y = 2;\n", "MiB of output"),
    "padding by the assembler": ('asm(".section .data\\n.fill 1073741824, 1, 1");\n', "clang was stopped"),
    "repeats in the assembler": ('asm(".rept 1000000000\\n.quad 1\\n.endr");\n', "clang was stopped"),
    "warnings without end": (
        "#warning " + "a" * 5000 + "\n#if __INCLUDE_LEVEL__ < 20\n#include __FILE__\n#include __FILE__\n#endif\n",
        "clang was stopped",
    ),
    "brackets": ("int x = " + "(" * 100_000 + "1" + ")" * 100_000 + ";\n", "bracket nesting level"),
    "blocks": ("void f(void) {" + "{" * 100_000 + "}" * 100_000 + "}\n", "bracket nesting level"),
    "pointers to pointers": ("int " + "*" * 200_000 + "p;\n", "clang "),
    "signs": ("int f(int a) { return " + "- " * 100_000 + "a; }\n", "clang crashed"),
    "a sum": ("int f(int a) { return a" + "+a" * 60_000 + "; }\n", "clang crashed"),
    "clang's own crash": ("#pragma clang __debug crash\n", "clang crashed"),
    "clang's own error": ("#pragma clang __debug llvm_fatal_error\n", "fatal error"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_bombs_are_stopped(tmp_path, what):
    text, told = BOMBS[what]
    object_bytes, said = compiled(tmp_path, text)
    assert object_bytes == b""
    assert told in said
    assert len(said) < 60_000
    assert said.count("\n") < 70


@pytest.mark.parametrize(
    "text",
    [
        '__attribute__((constructor)) void g(void) {}\nint x = 1;\n',
        'int f(void) { return 0; }\nint g(void) __attribute__((alias("f")));\n',
        'static void *r(void) { return 0; }\nint g(void) __attribute__((ifunc("r")));\n',
        'int f(void) __attribute__((section("license")));\nint f(void) { return 0; }\n',
        'int x __attribute__((section(".BTF"))) = 1;\nint y __attribute__((section(".BTF.ext"))) = 2;\n',
        'int x __attribute__((section(".maps"))) = 1;\n',
        'int x __attribute__((section(".symtab"))) = 1;\nint y __attribute__((section(".strtab"))) = 1;\n',
        'int x __attribute__((section("../../etc/cron.d/x"))) = 1;\n',
        'int f(void) __asm__("../../x");\nint f(void) { return 0; }\n',
        "#pragma clang __debug dump f\n#pragma clang __debug diag_mapping\nint f(void) { return 0; }\n",
        '#pragma clang section text="struct_ops/x"\nint f(void) { return 0; }\n',
        '#pragma comment(lib, "c")\nint f(void) { return 0; }\n',
        "const char *const when = __DATE__ __TIME__ __TIMESTAMP__ __FILE__;\nint f(void) { return 0; }\n",
        '#define A(x) _Static_assert(x, "")\n' + "A(1);" * 20_000 + "\nint x;\n",
        "_Pragma(\"GCC push_options\")\nint x __attribute__((target(\"arch=native\")));\n",
        'asm(".symver f,f@X\\n.weakref a,b\\n.ident \\"x\\"");\nint f(void) { return 0; }\n',
    ],
)  # fmt: skip
def test_tricks_end_in_an_object_or_in_a_refusal(tmp_path, text):
    object_bytes, said = compiled(tmp_path, text)
    assert object_bytes[:4] == b"\x7fELF" or said
    assert str(tmp_path).encode() not in object_bytes
    assert list(tmp_path.iterdir()) == [tmp_path / "hostile.bpf.c"], "wrote a file"


@pytest.mark.parametrize(
    "text",
    [
        '#line 1 "\x1b[2Jx"\nint x = y;\n',
        "#error \x1b]0;title\x07\n",
        "#warning \u202e gnp.exe\n#error x\n",
        "int x = \x1b[31m;\n",
        '# 1 "\\033[31m/etc/passwd" 1\nint x = y;\n',
    ],
)
def test_nothing_reaches_a_terminal_that_steers_it(tmp_path, text):
    _object, said = compiled(tmp_path, text)
    assert "error" in said
    assert [letter for letter in said if not letter.isprintable() and letter not in "\n\t"] == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"x" * (SOURCE_LIMIT_BYTES + 1), "too long"),
        (b"int x;\0int y;\n", "byte 6 is zero"),
        (b"int x; // \xff\n", "not UTF-8 text: byte 10"),
        ("int x;\n".encode("utf-16"), "not UTF-8 text: byte 0"),
    ],
)
def test_what_is_no_source_never_reaches_clang(tmp_path, monkeypatch, content, told):
    monkeypatch.setattr(compiler, "_run_clang", lambda *_: pytest.fail("clang ran"))
    assert told in compiled(tmp_path, content)[1]


def test_huge_source_is_refused(tmp_path):
    source = tmp_path / "huge.bpf.c"
    with source.open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(CompileError, match="too long"):
        compile_policy(source, "huge", TARGET)


def make_link(path: Path) -> None:
    target = path.with_name("target.c")
    target.write_text(f"char {SECRET}[] = 1;\n")
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (make_link, "is a symbolic link"),
        (lambda path: path.symlink_to("/dev/zero"), "is a symbolic link"),
        (os.mkfifo, "is not a plain file"),
        (lambda path: path.mkdir(), "is not a plain file"),
    ],
    ids=["link", "link to a device", "pipe", "folder"],
)
def test_only_plain_files_are_sources(tmp_path, make, told):
    make(tmp_path / "odd.bpf.c")
    with pytest.raises(UsageError, match=told) as caught:
        compile_policy(tmp_path / "odd.bpf.c", "odd", TARGET)
    assert SECRET not in str(caught.value)


def test_device_is_no_source():
    with pytest.raises(UsageError, match="is not a plain file"):
        compile_policy(Path("/dev/zero"), "zero", TARGET)


@pytest.mark.parametrize("name", ["-o x.c", "a b$(id).c", "it's.c", "@file.c", "ü\n.c", "kernel", "policy.d", "%s.c"])
def test_odd_file_names_are_only_names(tmp_path, name):
    source = tmp_path / name
    source.write_text("int x = 1;\n")
    artifact = compile_policy(source, "odd", TARGET, cache_dir=tmp_path / "cache")
    assert artifact.object_bytes[:4] == b"\x7fELF"
