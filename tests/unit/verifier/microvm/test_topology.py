"""The shape of a guest as text, as groups of CPUs, and as words for QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from verifier.microvm.machine import MachineSpec, qemu_argv
from verifier.microvm.topology import SHAPED, Topology


@pytest.mark.parametrize("text", ["1x1x1x2", "2x2x1x2", "1x4x2x1", "8x1x1x4"])
def test_a_topology_is_written_as_it_is_read(text):
    assert str(Topology.parse(text)) == text


@pytest.mark.parametrize("text", ["", "flat", "2x2x2", "2x2x1x2x1", "0x1x1x1", "2x2x1x2\n", "-1x1x1x1", "02x1x1x1"])
def test_what_is_no_topology_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"is no topology: .*2x2x1x2"):
        Topology.parse(text)


@pytest.mark.parametrize("text", ["1x1x33x1", "1x1x1x1", "9x1x1x1", "1x1x1x9", "99x99x99x99"])
def test_more_than_a_guest_is_given_is_refused(text):
    with pytest.raises(ValueError, match="at most"):
        Topology.parse(text)


def test_cpus_are_numbered_node_by_node_and_cache_by_cache():
    assert SHAPED.cpus == 8
    assert SHAPED.node_cpus() == [range(4), range(4, 8)]
    assert SHAPED.llc_cpus() == [range(2), range(2, 4), range(4, 6), range(6, 8)]
    assert Topology(1, 2, 3, 1).llc_cpus() == [range(3), range(3, 6)]


def test_qemu_is_given_a_socket_for_each_cache_and_memory_for_each_node():
    words = " ".join(SHAPED.qemu_arguments(1025))
    assert words == (
        "-smp 8,sockets=4,dies=1,cores=1,threads=2 -m 1024M"
        " -object memory-backend-ram,id=node0,size=512M -numa node,nodeid=0,memdev=node0,cpus=0-3"
        " -object memory-backend-ram,id=node1,size=512M -numa node,nodeid=1,memdev=node1,cpus=4-7"
    )


def test_only_an_emulated_shaped_machine_has_another_cpu_model():
    spec = MachineSpec(Path("vmlinuz"), Path("initrd"), 8, 512, False, False, topology=SHAPED)
    emulated = " ".join(qemu_argv(spec, 3, 4, 5, 6, None))
    assert "vendor=GenuineIntel" in emulated
    assert "sockets=4" in emulated
    assert "vendor=" not in " ".join(qemu_argv(spec, 3, 4, 5, 6, 9))
