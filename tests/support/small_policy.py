"""Small policies for the tests of the logic checks: one that breaks nothing, and any part of it replaced."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import KernelTarget
from schedagent.core.policies.policy import READABLE
from schedagent.core.verification import Finding, Severity
from tests.support.paths import FIXTURES
from verifier.logic.checks import LogicReport, check_logic
from verifier.object.image import BpfImage
from verifier.object.reader import read_object

KERNEL = FIXTURES / "logic_kernel"
TARGET = KernelTarget("logic", "0" * 40, KERNEL, KERNEL)

START = """\
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

char _license[] SEC("license") = "GPL";

struct scx_dump_ctx;

#define ENUM(type, name) bpf_core_enum_value(enum type, name)
#define LOCAL		 ENUM(scx_dsq_id_flags, SCX_DSQ_LOCAL)
#define LOCAL_ON	 ENUM(scx_dsq_id_flags, SCX_DSQ_LOCAL_ON)
#define GLOBAL		 ENUM(scx_dsq_id_flags, SCX_DSQ_GLOBAL)
#define IDLE		 ENUM(scx_kick_flags, SCX_KICK_IDLE)
#define PREEMPT		 ENUM(scx_kick_flags, SCX_KICK_PREEMPT)
#define CALLBACK(args...) BPF_PROG(args)
#define SHARED 7
#define SLICE  5000000ULL

int exit_kind;
"""

PARTS = {
    "select_cpu": """
        SEC("struct_ops/t_select_cpu")
        s32 CALLBACK(t_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
        {
            return prev_cpu;
        }
        """,
    "enqueue": """
        SEC("struct_ops/t_enqueue")
        void CALLBACK(t_enqueue, struct task_struct *p, u64 enq_flags)
        {
            s32 cpu;

            scx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags);
            cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
            if (cpu >= 0)
                scx_bpf_kick_cpu(cpu, IDLE);
        }
        """,
    "dispatch": """
        SEC("struct_ops/t_dispatch")
        void CALLBACK(t_dispatch, s32 cpu, struct task_struct *prev)
        {
            scx_bpf_dsq_move_to_local(SHARED);
        }
        """,
    "init": """
        SEC("struct_ops.s/t_init")
        s32 CALLBACK(t_init)
        {
            return scx_bpf_create_dsq(SHARED, -1);
        }
        """,
    "exit": """
        SEC("struct_ops/t_exit")
        void CALLBACK(t_exit, struct scx_exit_info *info)
        {
            exit_kind = info->kind;
        }
        """,
}

SIGNATURES = {
    "select_cpu": ("s32", "struct task_struct *p, s32 prev_cpu, u64 wake_flags"),
    "enqueue": ("void", "struct task_struct *p, u64 enq_flags"),
    "dispatch": ("void", "s32 cpu, struct task_struct *prev"),
    "tick": ("void", "struct task_struct *p"),
    "running": ("void", "struct task_struct *p"),
    "stopping": ("void", "struct task_struct *p, bool runnable"),
    "update_idle": ("void", "s32 cpu, bool idle"),
    "init_task": ("s32", "struct task_struct *p, struct scx_init_task_args *args"),
    "exit_task": ("void", "struct task_struct *p, struct scx_exit_task_args *args"),
    "cgroup_init": ("s32", "struct cgroup *cgrp, struct scx_cgroup_init_args *args"),
    "init": ("s32", ""),
    "exit": ("void", "struct scx_exit_info *info"),
    "cpu_offline": ("void", "s32 cpu"),
    "cgroup_set_weight": ("void", "struct cgroup *cgrp, u32 weight"),
    "dump": ("void", "struct scx_dump_ctx *to"),
}
SLEEPABLE = ("init", "init_task", "cgroup_init", "cpu_offline", "cgroup_set_weight")


@dataclass(frozen=True)
class Checked:
    """What the checks said of a source, with the source to find lines in."""

    source: str
    report: LogicReport

    def found(self, rule: int, severity: Severity = Severity.ERROR) -> list[Finding]:
        return [each for each in self.report.findings if each.rule == rule and each.severity is severity]

    def line_of(self, text: str) -> int:
        """The number of the only line that holds a text."""
        (line,) = (number for number, line in enumerate(self.source.splitlines(), 1) if text in line)
        return line


def callback(member: str, body: str, section: str = "") -> str:
    """One callback with this body."""
    result, parameters = SIGNATURES[member]
    section = section or ("struct_ops.s" if member in SLEEPABLE else "struct_ops")
    arguments = f"t_{member}, {parameters}" if parameters else f"t_{member}"
    return f'SEC("{section}/t_{member}")\n{result} CALLBACK({arguments})\n{{\n{textwrap.dedent(body)}\n}}\n'


def source_of(before: str = "", ops: str = ".timeout_ms = 5000,", license: str = "GPL", **bodies: str | None) -> str:
    """The policy with some callbacks' bodies replaced (None: left out), and text before them."""
    parts = {member: textwrap.dedent(text) for member, text in PARTS.items()}
    for member, body in bodies.items():
        if body is None:
            parts.pop(member)
        else:
            parts[member] = body if "SEC(" in body else callback(member, body)
    members = "".join(f"\t.{member} = (void *)t_{member},\n" for member in parts)
    struct = f'SEC(".struct_ops.link")\nstruct sched_ext_ops t = {{\n{members}\t{ops}\n\t.name = "t",\n}};\n'
    start = START.replace('"GPL"', f'"{license}"')
    return "\n".join((start, textwrap.dedent(before), *parts.values(), struct))


def compiled_object(folder: Path, **changes: str | None) -> bytes:
    """Compile a changed policy."""
    path = folder / "t.bpf.c"
    path.write_text(source_of(**changes))  # type: ignore[arg-type]
    return compile_policy(path, "t", TARGET).object_bytes


def compiled(folder: Path, **changes: str | None) -> BpfImage:
    """Compile a changed policy and read it."""
    return read_object(compiled_object(folder, **changes))


def check(folder: Path, features: frozenset[str] = frozenset(), **changes: str | None) -> Checked:
    """Compile a changed policy and check it; it may go by what it likes, as the rules of paths are what is tested."""
    report = check_logic(compiled(folder, **changes), features, reads=READABLE)
    return Checked((folder / "t.bpf.c").read_text(), report)
