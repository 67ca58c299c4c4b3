"""Task identities: how a policy learns from its loader which task is which, without matching names in BPF.

A process is known by a 64-bit hash, either of its command line or of its command name. The BPF side computes the
same hash when a process execs (`kernel_bpf/bpf/include/identity.bpf.h`) and looks it up in a map the loader filled;
the hash of the command line is tried first, then the hash of the name.
Arguments that start with ``/tmp/`` are left out, because compilers and the like draw them at random for each run.
"""

from __future__ import annotations

from collections.abc import Iterable

CMDLINE_LIMIT_BYTES = 512
"""How much of a command line is read; the rest is ignored on both sides."""

_FNV_OFFSET = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3
_MASK = (1 << 64) - 1
_RANDOM_PREFIX = b"/tmp/"


def fnv1a(text: bytes) -> int:
    """Return the 64-bit FNV-1a hash (parameters: IETF draft-eastlake-fnv, section 5)."""
    value = _FNV_OFFSET
    for byte in text:
        value = ((value ^ byte) * _FNV_PRIME) & _MASK
    return value


def comm_identity(comm: str) -> int:
    """Return the identity of a command name as the kernel keeps it: at most 15 bytes."""
    return fnv1a(b"comm:" + comm.encode()[:15])


def cgroup_identity(name: str) -> int:
    """Return the hash of a cgroup's name, the last part of its path, as `cgroup_name.bpf.h` computes it."""
    return fnv1a(name.encode()[:63])


def stable_arguments(cmdline: bytes) -> list[bytes]:
    """Split ``/proc/PID/cmdline`` bytes into the arguments that identify the process from run to run."""
    arguments = cmdline[:CMDLINE_LIMIT_BYTES].split(b"\0")[:-1]
    return [argument for argument in arguments if not argument.startswith(_RANDOM_PREFIX)]


def cmdline_identity(cmdline: bytes) -> int:
    """Return the identity of a command line as read from ``/proc/PID/cmdline`` (arguments end in NUL).

    It is the wrapping sum of the arguments' hashes, so BPF can compute it in one pass without look-back.
    An unfinished last argument (cut at CMDLINE_LIMIT_BYTES) is ignored.
    """
    return combine(fnv1a(argument) for argument in stable_arguments(cmdline))


def combine(hashes: Iterable[int]) -> int:
    """Return the wrapping 64-bit sum of argument hashes."""
    return sum(hashes) & _MASK
