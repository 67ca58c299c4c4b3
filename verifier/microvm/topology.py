"""The shape of a guest: how its CPUs share cores, caches and memory. What a policy goes by beyond the number of CPUs.

Every last-level cache is a socket of its own, and a node holds several: QEMU gives each socket its level 3 whatever the
CPU model, and x86 Linux takes the nodes from the tables of the firmware (ACPI SRAT), not from the sockets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_CPUS = 32
MOST_NODES = 8
MOST_THREADS = 8
_TEXT = re.compile(r"([1-9][0-9]?)x([1-9][0-9]?)x([1-9][0-9]?)x([1-9][0-9]?)")

FLAT_NAME = "flat"


@dataclass(frozen=True)
class Topology:
    """CPUs numbered node by node, cache by cache, core by core.

    Args:
        nodes: NUMA nodes, each with its share of the memory.
        llcs: last-level caches of a node.
        cores: cores that share a last-level cache.
        threads: hardware threads of a core.

    Raises:
        ValueError: more CPUs than a guest is given here, a single one, or none of something.
    """

    nodes: int
    llcs: int
    cores: int
    threads: int

    def __post_init__(self) -> None:
        counts = (self.nodes, self.llcs, self.cores, self.threads)
        most = self.cpus <= MOST_CPUS and self.nodes <= MOST_NODES and self.threads <= MOST_THREADS
        if min(counts) < 1 or self.cpus < 2 or not most:
            raise ValueError(
                f"{self} is no topology: 2 to {MOST_CPUS} CPUs, {MOST_NODES} nodes and {MOST_THREADS} threads at most"
            )

    def __str__(self) -> str:
        return f"{self.nodes}x{self.llcs}x{self.cores}x{self.threads}"

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Read NODESxLLCSxCORESxTHREADS; raise ValueError for anything else."""
        match = _TEXT.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r} is no topology: NODESxLLCSxCORESxTHREADS, for example {SHAPED}")
        return cls(*map(int, match.groups()))

    @property
    def cpus(self) -> int:
        return self.nodes * self.llcs * self.cores * self.threads

    def node_cpus(self) -> list[range]:
        """The CPUs of each node."""
        return _groups(self.cpus, self.nodes)

    def llc_cpus(self) -> list[range]:
        """The CPUs that share each last-level cache."""
        return _groups(self.cpus, self.nodes * self.llcs)

    def qemu_arguments(self, memory_mib: int) -> list[str]:
        """The words of QEMU's command line for CPUs and memory; the memory is divided among the nodes."""
        sockets = self.nodes * self.llcs
        smp = f"{self.cpus},sockets={sockets},dies=1,cores={self.cores},threads={self.threads}"
        share_mib = memory_mib // self.nodes
        words = ["-smp", smp, "-m", f"{share_mib * self.nodes}M"]
        for node, cpus in enumerate(self.node_cpus()):
            words += ["-object", f"memory-backend-ram,id=node{node},size={share_mib}M"]
            words += ["-numa", f"node,nodeid={node},memdev=node{node},cpus={cpus[0]}-{cpus[-1]}"]
        return words


def _groups(cpus: int, count: int) -> list[range]:
    size = cpus // count
    return [range(first, first + size) for first in range(0, cpus, size)]


SHAPED = Topology(nodes=2, llcs=2, cores=1, threads=2)
"""The smallest one that has two of everything."""
