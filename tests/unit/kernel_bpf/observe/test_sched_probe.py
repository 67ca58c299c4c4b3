"""The scheduling probe without a kernel: what is shipped is what the source says, and how it is read."""

from __future__ import annotations

import hashlib
import struct

import pytest

from kernel_bpf.build.compile import find_clang
from kernel_bpf.build.probe import compile_probe
from kernel_bpf.load.probe_object import ProbeObject
from kernel_bpf.observe import sched_probe
from kernel_bpf.observe.sched_probe import BUCKETS, DIGEST, OBJECT, bounds_us, shipped_object
from schedagent.core.errors import SetupError

COMPILED_WITH = "19.1.7"


def test_the_shipped_object_is_the_one_whose_digest_the_loader_holds():
    assert hashlib.sha256(OBJECT.read_bytes()).hexdigest() == DIGEST
    assert shipped_object() == OBJECT.read_bytes()


def test_the_shipped_object_is_what_the_source_compiles_to():
    """Byte for byte with the clang that it was compiled with; another one may order instructions otherwise."""
    compiled = compile_probe()
    if COMPILED_WITH in find_clang()[1]:
        assert hashlib.sha256(compiled).hexdigest() == DIGEST, "run make probe after a change of the source"
    with (
        ProbeObject.open(compiled, "sched_probe") as fresh,
        ProbeObject.open(OBJECT.read_bytes(), "sched_probe") as shipped,
    ):
        assert [program.section for program in fresh.programs()] == [program.section for program in shipped.programs()]
        assert fresh.map_sizes() == shipped.map_sizes()


def test_a_changed_object_is_refused(tmp_path, monkeypatch):
    other = tmp_path / "sched_probe.o"
    other.write_bytes(OBJECT.read_bytes() + b"\0")
    monkeypatch.setattr(sched_probe, "OBJECT", other)
    with pytest.raises(SetupError, match="was changed"):
        shipped_object()
    monkeypatch.setattr(sched_probe, "OBJECT", tmp_path / "none.o")
    with pytest.raises(SetupError, match="cannot be read"):
        shipped_object()


def test_its_programs_only_observe():
    with ProbeObject.open(OBJECT.read_bytes(), "sched_probe") as probe:
        sections = {program.section.lstrip("?") for program in probe.programs()}
        assert all(section.startswith(("tp_btf/", "iter/task")) for section in sections), sections
        probe.check_memory()


def test_a_kernel_without_btf_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sched_probe, "KERNEL_BTF", tmp_path / "vmlinux")
    with pytest.raises(SetupError, match="this kernel has no BTF"):
        sched_probe.SchedProbe.attach(sched_probe.Scope())


def test_buckets_are_two_for_each_power_of_two_without_gaps():
    assert [bounds_us(bucket) for bucket in range(8)] == [
        *((0, 1), (1, 2), (2, 3), (3, 4), (4, 6), (6, 8), (8, 12), (12, 16)),
    ]
    for bucket in range(BUCKETS - 1):
        assert bounds_us(bucket)[1] == bounds_us(bucket + 1)[0]


def test_the_layouts_are_those_of_the_source():
    with ProbeObject.open(OBJECT.read_bytes(), "sched_probe") as probe:
        sizes = {size.name: (size.key_bytes, size.value_bytes, size.entries) for size in probe.map_sizes()}
    assert sizes["records"][1] == 16 + sched_probe._FIGURES.size
    assert sizes["commands"][:2] == (
        sched_probe._COMMAND_KEY.size,
        sched_probe._ENDED.size + sched_probe._FIGURES.size,
    )
    assert sizes["edges"][:2] == (sched_probe._EDGE_KEY.size, sched_probe._EDGE.size)
    assert sizes["events"][1:] == (sched_probe._EVENT.size, sched_probe.MOST_EVENTS)


def test_what_a_task_is_just_doing_counts_up_to_now():
    figures = sched_probe._FIGURES.pack(
        *(1000, 200, 0, 0, 50, 3, 1, 2, 0, 1), *[0] * (3 * BUCKETS), *(203, 5, 0, 0, 0, 9, 1, 7)
    )
    row = struct.pack("<IIIiIIQ16s", 7, 6, 0, -5, 0, 1, 400, b"worker\0junk")
    [task] = sched_probe._tasks(row + figures)
    assert (task.tid, task.tgid, task.comm, task.nice) == (7, 6, b"worker", -5)
    assert (task.figures.run_ns, task.figures.wait_ns) == (1400, 200)
    assert task.figures.calls == ((sched_probe.PAGE_FAULT, 9), (0, 7), (202, 5))
