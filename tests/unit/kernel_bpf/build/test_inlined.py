"""Where functions were inlined, by clang's own DWARF; hostile DWARF yields nothing, and soon."""

from __future__ import annotations

import random
import re

import pytest

from kernel_bpf.build import compile as compiler
from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.inlined import MOST_CALLS, inlined_calls
from schedagent.core.policies.policy import READABLE
from tests.support.small_policy import TARGET, source_of
from verifier.logic.checks import check_logic
from verifier.object.reader import read_object

WRAPPERS = """
static inline __attribute__((always_inline)) void put_raw(struct task_struct *p, u64 dsq, u64 flags)
{
    scx_bpf_dsq_insert_vtime(p, dsq, 5000000ULL, p->scx.dsq_vtime, flags);
}

static inline __attribute__((always_inline)) void put(struct task_struct *p, u64 dsq, u64 flags)
{
    put_raw(p, dsq, flags);
}
"""
ENQUEUE = """
if (enq_flags & 1) {
    put(p, LOCAL, enq_flags);
    return;
}
scx_bpf_kick_cpu(0, 0);
put(p, GLOBAL, 0);
scx_bpf_kick_cpu(1, 0);
"""


@pytest.fixture
def wrapped(tmp_path):
    """A policy that inserts by a wrapper of a header that calls another one, and the folder of the header."""
    headers = tmp_path / "headers"
    headers.mkdir()
    (headers / "wrappers.bpf.h").write_text(WRAPPERS)
    source = tmp_path / "t.bpf.c"
    source.write_text(source_of(before='#include "wrappers.bpf.h"\n', enqueue=ENQUEUE))
    return source, headers


def line_of(source, text):
    (line,) = (number for number, line in enumerate(source.read_text().splitlines(), 1) if text in line)
    return line


def test_a_finding_in_a_wrapper_is_shown_where_the_author_calls_it(wrapped):
    source, headers = wrapped
    artifact = compile_policy(source, "t", TARGET, include_dirs=[headers])
    image = read_object(artifact.object_bytes, artifact.inlined)
    findings = [each for each in check_logic(image, frozenset(), reads=READABLE).findings if each.rule == 3]
    calls = {line_of(source, "put(p, LOCAL"), line_of(source, "put(p, GLOBAL")}
    assert {(each.file, each.line) for each in findings} == {("t.bpf.c", line) for line in calls}
    for finding in findings:
        wrapper = finding.path[-1]
        assert wrapper.file.endswith("wrappers.bpf.h")
        assert "scx_bpf_dsq_insert_vtime" in wrapper.text
    without = check_logic(read_object(artifact.object_bytes), frozenset(), reads=READABLE).findings
    assert {each.file for each in without if each.rule == 3} == {findings[0].path[-1].file}, "BTF alone knows no call"


def test_the_calls_are_cached_with_the_object(wrapped, tmp_path, monkeypatch):
    source, headers = wrapped
    first = compile_policy(source, "t", TARGET, include_dirs=[headers], cache_dir=tmp_path / "cache")
    monkeypatch.setattr(compiler, "_run_clang", lambda *_: pytest.fail("clang ran again"))
    again = compile_policy(source, "t", TARGET, include_dirs=[headers], cache_dir=tmp_path / "cache")
    assert again.inlined == first.inlined != ()


@pytest.fixture
def with_dwarf(wrapped, monkeypatch):
    """The object as clang writes it, before libbpf's linker."""
    source, headers = wrapped
    kept = []
    monkeypatch.setattr(compiler, "inlined_calls", lambda content: kept.append(content) or ())
    compile_policy(source, "t", TARGET, include_dirs=[headers])
    return kept[0]


def test_the_calls_nest_and_lie_in_their_function(with_dwarf):
    calls = [call for call in inlined_calls(with_dwarf) if call.function == "t_enqueue"]
    inner = [call for call in calls if call.file.endswith("wrappers.bpf.h")]
    outer = [call for call in calls if call.file == "t.bpf.c" and call not in inner]
    assert inner
    assert outer
    for call in inner:
        around = [each for each in outer if each.start <= call.start and call.end <= each.end]
        assert around, "no call of the source leads to it"
        assert calls.index(around[0]) < calls.index(call)


def test_damaged_dwarf_yields_lines_or_nothing(with_dwarf):
    """Every byte may be anything; whatever comes of it, it is bounded, and the object is read without it as well."""
    dice = random.Random(13)
    sections = [match.start() for match in re.finditer(rb"\x11\x01\x25", with_dwarf)] or [0]
    for _round in range(60):
        damaged = bytearray(with_dwarf)
        for _byte in range(dice.choice((1, 8, 200))):
            near = dice.choice(sections) + dice.randrange(4000)
            place = near if dice.random() < 0.5 and near < len(damaged) else dice.randrange(64, len(damaged))
            damaged[place] = dice.randrange(256)
        calls = inlined_calls(bytes(damaged))
        assert len(calls) <= MOST_CALLS
        read_object(compile_free(), calls)


def compile_free():
    """Some sound object."""
    from tests.support.elf_parts import Parts

    return Parts.sound().build()


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + bytes(200), b"MZ" * 100])
def test_what_is_no_object_has_no_calls(content):
    assert inlined_calls(content) == ()
