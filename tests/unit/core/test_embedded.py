"""core.policies.embedded: a scheduler's object inside its program."""

import struct
from pathlib import Path

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import KernelTarget
from schedagent.core.errors import PolicyError
from schedagent.core.policies.embedded import is_program, scheduler_inside
from tests.support.paths import FIXTURES

TINY = FIXTURES / "tiny_kernel"
TARGET = KernelTarget("tiny", "0" * 40, TINY / "none", TINY)
PROGRAM = Path("/bin/true")


@pytest.fixture(scope="module")
def scheduler() -> bytes:
    return compile_policy(TINY / "tiny.bpf.c", "tiny", TARGET).object_bytes


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> bytes:
    source = tmp_path_factory.mktemp("other") / "other.bpf.c"
    source.write_text("int x = 1;\n")
    return compile_policy(source, "other", TARGET).object_bytes


def program(folder: Path, *objects: bytes) -> Path:
    """A real program with objects behind it, as they lie in its .rodata: at any place, with anything between."""
    path = folder / "scx_tiny"
    path.write_bytes(PROGRAM.read_bytes() + b"\x7fELF nothing" + b"xyz".join(objects) + b"\0" * 100)
    return path


def test_the_scheduler_among_several_objects_is_taken(tmp_path, scheduler, other):
    path = program(tmp_path, other, scheduler, other)
    assert is_program(path)
    assert scheduler_inside(path) == (scheduler, 3)


@pytest.mark.parametrize(
    ("objects", "told"),
    [((), "holds no BPF object"), ("o", "none of them with"), ("ss", "2 BPF objects, and 2 of them")],
)
def test_what_holds_none_or_several_is_refused(tmp_path, scheduler, other, objects, told):
    with pytest.raises(PolicyError, match=told):
        scheduler_inside(program(tmp_path, *({"s": scheduler, "o": other}[each] for each in objects)))


@pytest.mark.parametrize("damage", ["section table", "section", "cut short"])
def test_a_damaged_object_is_none(tmp_path, scheduler, damage):
    broken = bytearray(scheduler)
    (table,) = struct.unpack_from("<Q", broken, 40)
    if damage == "section table":
        struct.pack_into("<Q", broken, 40, 1 << 60)
    elif damage == "section":
        struct.pack_into("<Q", broken, table + 64 + 24, 1 << 60)
    path = program(tmp_path, bytes(broken))
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(PolicyError, match="holds no BPF object"):
        scheduler_inside(path)


def test_an_empty_file_is_an_error_and_no_crash(tmp_path):
    path = tmp_path / "empty"
    path.touch()
    assert not is_program(path)
    with pytest.raises(PolicyError, match="cannot be read"):
        scheduler_inside(path)
