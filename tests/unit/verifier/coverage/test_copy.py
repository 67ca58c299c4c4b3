"""The copy with probes: it is the same program, and every way through it passes a probe of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schedagent.core.errors import PolicyError
from tests.support.paths import FIXTURES
from tests.support.small_policy import compiled_object
from verifier.coverage.copy import COVERAGE_SECTION, with_probes
from verifier.coverage.probes import Side, place_probes
from verifier.logic.walk.code import Code, prepare
from verifier.object.image import BpfImage, Ref
from verifier.object.reader import read_object

OBJECTS = sorted((FIXTURES / "objects").glob("read_*.o"))
PROBE_LENGTH = 2
"""Operations of a probe: the map's address, and the store."""


def probes_of(code: Code) -> dict[int, int]:
    """Index of each probe's first operation -> its number."""
    numbers = {}
    for index, op in enumerate(code.ops):
        ref = op.raw.ref
        if ref is not None and ref.kind is Ref.VARIABLE and ref.name == COVERAGE_SECTION:
            store = code.ops[index + 1]
            assert (store.kind, store.dst, store.size, store.raw.imm) == ("store", op.dst, 1, 1)
            numbers[index] = store.raw.offset
    return numbers


def walked(code: Code, probes: dict[int, int], index: int) -> tuple[int, tuple[int, ...]]:
    """Go on over probes and jumps that the copy added; return where that ends, and the probes that were passed."""
    passed = []
    while True:
        if index in probes:
            passed.append(probes[index])
            index += PROBE_LENGTH
        elif code.ops[index].kind == "jump":
            index = code.ops[index].target
        else:
            return index, tuple(passed)


def assert_same(before: BpfImage, after: BpfImage, watched) -> None:
    """Step through both side by side, along every way: the same operations, and between them the right probes."""
    numbers = {(probe.function, probe.side, probe.index): place for place, probe in enumerate(watched.probes)}
    for name, function in before.functions.items():
        old, new = prepare(function, {}), prepare(after.functions[name], {})
        probes = probes_of(new)
        start, passed = walked(new, probes, 0)
        assert passed == (numbers[name, Side.ENTRY, 0],)
        waiting, seen = [(walked(old, {}, 0)[0], start)], set()
        while waiting:
            pair = waiting.pop()
            if pair in seen:
                continue
            seen.add(pair)
            left, right = old.ops[pair[0]], new.ops[pair[1]]
            assert (left.kind, left.name, left.dst, left.src, left.line) == (
                right.kind, right.name, right.dst, right.src, right.line,
            )  # fmt: skip
            assert (left.raw.ref, left.raw.opcode) == (right.raw.ref, right.raw.opcode)
            if left.kind != "branch" and left.kind != "may_goto":
                assert left.kind == "call" or (left.raw.imm, left.raw.offset) == (right.raw.imm, right.raw.offset)
            branches = left.kind in ("branch", "may_goto")
            sides = (Side.NOT_TAKEN, Side.TAKEN) if branches else (None,) * len(old.next_of(pair[0]))
            for side, after_old, after_new in zip(sides, old.next_of(pair[0]), new.next_of(pair[1]), strict=True):
                target, passed = walked(new, probes, after_new)
                assert passed == (() if side is None else (numbers[name, side, pair[0]],))
                waiting.append((walked(old, {}, after_old)[0], target))


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.stem)
def test_the_copy_of_whatever_can_be_read_is_the_same_program(path):
    content = path.read_bytes()
    image = read_object(content)
    probes = place_probes(image)
    after = read_object(with_probes(content, probes))
    assert_same(image, after, probes)
    assert (after.ops, after.maps) == (image.ops, image.maps)


SUBPROGRAM = """
static __noinline void helper(struct task_struct *p, u64 queue, u64 flags)
{
    scx_bpf_dsq_insert(p, queue + (flags & 1), SLICE, flags);
}
"""

LOOP = """
    struct task_struct *other;
    u32 i;

    bpf_for(i, 0, 8) {
        if (scx_bpf_dsq_nr_queued(i) > 3 || p->scx.weight == i)
            break;
    }
    if (i > 2 && enq_flags)
        scx_bpf_dsq_insert(p, LOCAL, SLICE, enq_flags);
    else
        scx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags);
"""


def test_loops_and_branches_that_meet_are_told_apart(tmp_path):
    content = compiled_object(tmp_path, enqueue=LOOP)
    image = read_object(content)
    probes = place_probes(image)
    assert sum(probe.function == "t_enqueue" for probe in probes.probes) > 8
    assert_same(image, read_object(with_probes(content, probes)), probes)


def reads(op, register: int) -> bool:
    """Whether an operation reads a register that it names itself; what calls read is not written in them."""
    reads_dst = op.kind in ("store", "atomic", "branch") or (op.kind == "alu" and op.name != "mov")
    reads_src = op.kind in ("load", "atomic") or (op.from_register and op.kind in ("alu", "branch", "store"))
    return (reads_dst and op.dst == register) or (reads_src and op.src == register)


@pytest.mark.parametrize("path", OBJECTS[:4], ids=lambda path: path.stem)
def test_a_probe_takes_a_register_that_nothing_reads(path):
    probes = place_probes(read_object(path.read_bytes()))
    for probe in probes.probes:
        code, waiting, seen = probes.codes[probe.function], [probe.target], set()
        while waiting:
            index = waiting.pop()
            op = code.ops[index]
            if index in seen:
                continue
            seen.add(index)
            assert not reads(op, probe.register), (probe, index)
            overwritten = op.kind in ("alu", "load", "imm64") and op.dst == probe.register
            if not overwritten and not (op.kind == "call" and probe.register < 6):
                waiting.extend(code.next_of(index))


def test_what_a_call_reads_is_taken_from_its_code_and_not_from_its_declaration(tmp_path):
    """A function that reads an argument which its BTF does not have would find the address of a probe in it."""
    image = read_object(compiled_object(tmp_path, before=SUBPROGRAM, enqueue="helper(p, SHARED, enq_flags);"))
    helper = replace(image.functions["helper"], parameters=())
    lying = replace(image, functions={**image.functions, "helper": helper})
    code = place_probes(lying).codes["t_enqueue"]
    call = next(index for index, op in enumerate(code.ops) if op.kind == "call")
    assert code.live[call] >> 1 & 1
    assert code.live[call] == place_probes(image).codes["t_enqueue"].live[call]


def test_an_object_that_is_none_is_refused():
    with pytest.raises(PolicyError):
        read_object(b"\x7fELF")
