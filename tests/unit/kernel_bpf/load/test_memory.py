"""What a policy's maps and data sections may take: counted before they are made, in whatever way it is a lot."""

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import KernelTarget
from kernel_bpf.load.bpf_object import LARGEST_READ, BpfObject
from kernel_bpf.load.exit_info import ExitRecord
from kernel_bpf.load.memory import MOST_BYTES, MOST_MAPS, MapKind, MapSize, check_memory, map_bytes
from schedagent.core.errors import BpfError, PolicyError
from tests.support.paths import FIXTURES

TINY = FIXTURES / "tiny_kernel"
MIB = 1 << 20
MAP = 'struct {{ __uint(type, {kind}); {fields} }} {name} __attribute__((section(".maps"), used));\n'
SIZED = "__uint(key_size, 4); __uint(value_size, {value}); __uint(max_entries, {entries});"
HEAD = """
#include "vmlinux.h"
#define __uint(name, val) int (*name)[val]
#define SEC(name) __attribute__((section(name), used))
"""
RECORD = "struct user_exit_info {{ int kind; {pad} char reason[{reason}]; char msg[{msg}]; }} uei;\n"


def sized(kind, value, entries, name="m"):
    return MAP.format(kind=kind, fields=SIZED.format(value=value, entries=entries), name=name)


GREEDY = {
    "bss": "char big[100 << 20];",
    "a section of its own": 'char big[100 << 20] SEC(".bss.mine");',
    "two sections": 'char a[20 << 20]; char b[20 << 20] SEC(".bss.mine");',
    "hash": sized(1, 64, 1 << 20),
    "many small elements": sized(1, 1, 1 << 20),
    "array": sized(2, 1 << 20, 100),
    "per-CPU array": sized(6, 1 << 20, 50),
    "per-CPU hash": sized(5, 1 << 10, 50_000),
    "LRU": sized(9, 64, 1 << 20),
    "queue": sized(22, 1 << 10, 100_000),
    "ring buffer": sized(27, 0, 128 << 20),
    "arena": sized(33, 0, 100_000),
    "storage of tasks": sized(29, 4096, 0),
    "storage of cgroups": sized(32, 32_000, 0),
    "trie": sized(11, 8, 1),
    "bloom filter": sized(30, 8, 1),
    "stack traces": sized(7, 8, 1),
    "many maps": "".join(sized(2, 4, 1, f"m{number}") for number in range(MOST_MAPS + 1)),
}
MODEST = {
    "hash": sized(1, 64, 1 << 17),
    "per-CPU array": sized(6, 4096, 100),
    "ring buffer": sized(27, 0, 1 << 20),
    "storage of tasks": sized(29, 512, 0),
    "bss": "char big[30 << 20];",
}


@pytest.fixture
def opened(tmp_path):
    """Compiles C and opens the object."""
    objects = []

    def compiled(text):
        source = tmp_path / "greedy.bpf.c"
        source.write_text(f"{HEAD}{text}")
        target = KernelTarget("tiny", "0" * 40, TINY, TINY)
        objects.append(BpfObject.open(compile_policy(source, "greedy", target).object_bytes, "greedy"))
        return objects[-1]

    yield compiled
    for policy in objects:
        policy.close()


@pytest.mark.parametrize("way", GREEDY)
def test_a_greedy_object_is_refused_before_it_is_loaded(opened, way):
    with pytest.raises(PolicyError, match=r"at most 64.0 MiB|whose memory is not known|at most 128 are accepted"):
        opened(GREEDY[way]).check_memory()


@pytest.mark.parametrize("way", MODEST)
def test_a_modest_one_is_not(opened, way):
    opened(MODEST[way]).check_memory()


def test_maps_of_maps_count_what_is_in_them():
    inner = MapSize("inner", MapKind.ARRAY, 4, MIB, 1)
    outer = MapSize("outer", MapKind.ARRAY_OF_MAPS, 4, 4, 100, inner)
    assert map_bytes(outer, 2) > 100 * MIB
    with pytest.raises(PolicyError, match="outer alone 100"):
        check_memory("greedy", [outer], 2)


def test_what_each_cpu_has_of_its_own_counts_for_each():
    per_cpu = MapSize("m", MapKind.PERCPU_ARRAY, 4, MIB, 1)
    check_memory("fine", [per_cpu], 8)
    with pytest.raises(PolicyError, match="at most 64"):
        check_memory("greedy", [per_cpu], 128)


@pytest.mark.parametrize("kind", MapKind)
def test_a_bound_of_every_kind_grows_with_what_is_declared(kind):
    inner = MapSize("inner", MapKind.ARRAY, 4, 8, 1)
    large = MapSize("m", kind, 4, 1 << 16, 1 << 16, inner)
    assert map_bytes(large, 4) >= (1 << 16)


def test_a_record_as_large_as_it_likes_is_found_and_only_a_little_of_it_would_be_read(opened):
    policy = opened(RECORD.format(pad="char pad[20 << 20];", reason=20 << 20, msg=20 << 20))
    record = ExitRecord.find(policy)
    reads = []

    class Counting:
        def read_variable(self, section, offset, size_bytes):
            reads.append(size_bytes)
            return b"\1" * size_bytes

    ended = record.read(Counting())
    assert sum(reads) <= LARGEST_READ
    assert (len(ended.reason), len(ended.message)) == (128, 1024)


@pytest.mark.parametrize(
    ("offset", "size_bytes"), [(0, LARGEST_READ + 1), (-1, 4), (0, -1), (1 << 20, 4), ((1 << 20) - 2, 4)]
)
def test_nothing_beside_a_section_or_too_much_of_it_is_read(opened, offset, size_bytes):
    policy = opened("char big[1 << 20];")
    with pytest.raises(BpfError, match="cannot be read of the 1048576 of"):
        policy.read_variable(".bss", offset, size_bytes)


def test_the_limit_leaves_the_supervisor_room():
    unit = (FIXTURES.parents[1] / "deploy/systemd/schedagentd.service").read_text()
    [limit] = [line for line in unit.splitlines() if line.startswith("MemoryMax=")]
    assert int(limit.removeprefix("MemoryMax=").removesuffix("M")) * MIB >= MOST_BYTES + 128 * MIB
