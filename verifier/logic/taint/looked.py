"""What an object compares its inputs with: names, users, numbers and times, for the proving ground to wear.

    looked = constants(image)
    looked.names        # ("sshd",)
    looked.uids         # (1000,)

The object may be hostile: what comes from here is bounded in number and size, names are printable ASCII, and numbers
are no claim about the object, only a proposal of what to try. Where it is not clear what a number is compared with, it
is proposed for every input that the object reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from verifier.object.image import BpfImage, Function, Instruction, Ref

COMM_BYTES = 16
"""TASK_COMM_LEN of include/linux/sched.h, the closing NUL included."""

LIMIT = 32
"""Most values of one kind: the proving ground has a few dozen tasks to give them to."""

_WORD = re.compile(rb"[\x21-\x7e][\x20-\x7e]{0,14}")
_TEXT = re.compile(rb"[\x21-\x7e][\x20-\x7e]{0,254}(?=\0|\Z)")
_LD_IMM64 = 0x18
_JUMPS = frozenset({1, 2, 3, 5, 6, 7, 10, 11, 12, 13})
_EQUALITIES = frozenset({1, 5})
_LARGEST_ID = (1 << 32) - 1
_LONGEST_S = 10 * 365 * 86400
_MOST_CPUS = 8192
_SECTIONS = (".rodata", ".data")


@dataclass(frozen=True)
class Looked:
    """What the tasks and the machine of the proving ground should look like, on both sides of each comparison.

    Args:
        inputs: which inputs of core.policies.policy.READABLE the object reads in any way.
        names: command names (comm) of at most 15 characters.
        texts: other text of its data: parts of command lines, names of cgroups; at most 255 characters.
        uids, gids, pids: numbers that user, group or process ids are compared with.
        cgroups: cgroup ids (inode numbers), in so far as they are compared with constants.
        nices: nice values, -20 to 19.
        cpus: numbers that the number or count of CPUs or nodes is compared with.
        counts: numbers that counters are compared with.
        seconds: times, in s, that a clock or an age is compared with.
    """

    inputs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    pids: tuple[int, ...] = ()
    cgroups: tuple[int, ...] = ()
    nices: tuple[int, ...] = ()
    cpus: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    seconds: tuple[int, ...] = ()


_SOURCES = {
    "comm": ("task_struct.comm", "bpf_get_current_comm"),
    "uid": ("cred.uid", "cred.euid", "cred.suid", "cred.fsuid", "bpf_get_current_uid_gid"),
    "gid": ("cred.gid", "cred.egid", "cred.sgid", "cred.fsgid", "group_info.", "bpf_get_current_uid_gid"),
    "pid": ("task_struct.pid", "task_struct.tgid", "bpf_get_current_pid_tgid", "bpf_get_ns_current_pid_tgid",
            "bpf_task_from_pid", "bpf_task_from_vpid"),
    "parent": ("task_struct.real_parent", "task_struct.parent", "task_struct.group_leader"),
    "cgroup": ("kernfs_node.", "cgroup.", "css_set.", "bpf_get_current_cgroup_id", "bpf_cgroup_from_id",
               "bpf_get_current_ancestor_cgroup_id", "bpf_task_under_cgroup"),
    "namespace": ("nsproxy.", "pid_namespace.", "uts_namespace.", "user_namespace."),
    "nice": ("task_struct.static_prio", "task_struct.normal_prio", "task_struct.prio"),
    "arguments": ("mm_struct.arg_", "linux_binprm.", "bpf_probe_read_user", "bpf_probe_read_user_str"),
    "cpus": ("scx_bpf_nr_cpu_ids", "bpf_get_smp_processor_id", "scx_bpf_task_cpu", "bpf_cpumask_weight",
             "task_struct.nr_cpus_allowed"),
    "nodes": ("scx_bpf_nr_node_ids", "scx_bpf_cpu_node", "bpf_get_numa_node_id"),
    "time since boot": ("bpf_ktime_get_ns", "bpf_ktime_get_boot_ns", "bpf_ktime_get_coarse_ns", "scx_bpf_now",
                        "bpf_jiffies64", "jiffies"),
    "wall clock": ("bpf_ktime_get_tai_ns",),
    "random numbers": ("bpf_get_prandom_u32",),
}  # fmt: skip


def constants(image: BpfImage) -> Looked:
    """Return what the proving ground should wear for this object."""
    marks = {mark for function in image.functions.values() for mark in _marks(function)}
    inputs = tuple(name for name, sources in _SOURCES.items() if _any(marks, sources))
    numbers = tuple(sorted({number for function in image.functions.values() for number in _numbers(function)}))
    ids = tuple(number for number in numbers if 0 <= number <= _LARGEST_ID)[:LIMIT]
    words = list(_texts(image))
    return Looked(
        inputs=inputs,
        names=tuple(dict.fromkeys((*_names(image), *(word for word in words if len(word) < COMM_BYTES))))[:LIMIT],
        texts=tuple(words)[:LIMIT],
        uids=ids if "uid" in inputs else (),
        gids=ids if "gid" in inputs else (),
        pids=tuple(number for number in ids if number) if "pid" in inputs else (),
        cgroups=ids if "cgroup" in inputs else (),
        nices=_nices(numbers) if "nice" in inputs else (),
        cpus=tuple(number for number in ids if 1 < number <= _MOST_CPUS) if {"cpus", "nodes"} & {*inputs} else (),
        seconds=_seconds(numbers),
        counts=tuple(number for number in ids if number > 1),
    )


def _any(marks: set[str], sources: tuple[str, ...]) -> bool:
    return any(mark.startswith(source) for mark in marks for source in sources)


def _marks(function: Function) -> Iterator[str]:
    """Yield the names of everything that a function refers to."""
    for instruction in function.instructions:
        if instruction.ref is not None and instruction.ref.kind in (Ref.FIELD, Ref.HELPER, Ref.KFUNC, Ref.KSYM):
            yield instruction.ref.name


def _numbers(function: Function) -> Iterator[int]:
    """Yield the constants of comparisons, and the wide ones that are loaded for them."""
    for instruction in function.instructions:
        if instruction.ref is not None:
            continue
        if _is_comparison(instruction) or (instruction.opcode & 7) in (4, 7):
            yield instruction.imm
        elif instruction.opcode == _LD_IMM64:
            yield instruction.imm - (1 << 64) if instruction.imm >> 63 else instruction.imm


def _is_comparison(instruction: Instruction) -> bool:
    return instruction.opcode & 7 in (5, 6) and not instruction.opcode & 8 and instruction.opcode >> 4 in _JUMPS


def _nices(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Nice values, and priorities as the kernel counts them: nice 0 is 120."""
    shown = {number for number in numbers if -20 <= number <= 19} | {n - 120 for n in numbers if 100 <= n < 140}
    return tuple(sorted(shown))[:LIMIT]


def _seconds(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """What may be a time in ns, in s."""
    seconds = {abs(number) // 10**9 for number in numbers if abs(number) >= 10**9}
    return tuple(sorted(second for second in seconds if 0 < second <= _LONGEST_S))[:LIMIT]


# --- names


def _names(image: BpfImage) -> Iterator[str]:
    """Yield the command names that code spells: in wide words, or byte by byte."""
    for function in image.functions.values():
        run = b""
        for instruction in function.instructions:
            if instruction.ref is not None:
                continue
            if instruction.opcode == _LD_IMM64:
                yield from _word(instruction.imm.to_bytes(8, "little"))
            elif _is_comparison(instruction) and instruction.opcode >> 4 in _EQUALITIES:
                if 0 <= instruction.imm < 256:
                    if 0x20 < instruction.imm < 0x7F:
                        run += bytes([instruction.imm])
                    continue
                yield from _word((instruction.imm & 0xFFFFFFFF).to_bytes(4, "little"))
            else:
                continue
        yield from _word(run[: COMM_BYTES - 1])


def _word(raw: bytes) -> Iterator[str]:
    word = raw.rstrip(b"\0")
    if len(word) > 1 and _WORD.fullmatch(word):
        yield word.decode("ascii")


def _texts(image: BpfImage) -> Iterator[str]:
    """Yield the strings of the data sections, formats of messages left out."""
    for variable in image.variables.values():
        if not variable.section.startswith(_SECTIONS) or not variable.content:
            continue
        for match in _TEXT.finditer(variable.content[:4096]):
            text = match[0].decode("ascii")
            if len(text) > 1 and "%" not in text:
                yield text
