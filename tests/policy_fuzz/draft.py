"""A policy before it is text: what each of its parts says, in C."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

_SIGNATURES = {
    "tick": ("void", "struct task_struct *p"),
    "runnable": ("void", "struct task_struct *p, u64 enq_flags"),
    "running": ("void", "struct task_struct *p"),
    "stopping": ("void", "struct task_struct *p, bool runnable"),
    "quiescent": ("void", "struct task_struct *p, u64 deq_flags"),
    "enable": ("void", "struct task_struct *p"),
    "init_task": ("s32", "struct task_struct *p, struct scx_init_task_args *args"),
}
"""Callbacks that blocks and faults add code to; each has the task as `p`."""


@dataclass(frozen=True)
class Draft:
    """One policy.

    Args:
        name: of file, ops struct and prefix.
        about: the blocks that it is made of, in words.
        includes: headers of ours.
        head: declarations, in order.
        classes: how many classes of queues init creates.
        queue, slice_ns: the DSQ id and the slice of a task `p`, expressions.
        key: the key of an insert in virtual time; empty for a FIFO.
        before, after: statements of enqueue around the insert.
        select_cpu: its statements; empty for none.
        serve: conditions of dispatch, each tried until one is true.
        first: statements of dispatch before them.
        callbacks: further callbacks and their statements.
        init: statements of init before the queues are created.
        tail: declarations that refer to what is above them.
        ops: further lines of the ops struct.
    """

    name: str
    about: tuple[str, ...] = ()
    includes: tuple[str, ...] = ("queues.bpf.h",)
    head: tuple[str, ...] = ()
    classes: int = 1
    queue: str = "task_queue(p, 0)"
    slice_ns: str = "SLICE_NS"
    key: str = ""
    before: str = ""
    after: str = "wake_idle_cpu(p);"
    select_cpu: str = ""
    serve: tuple[str, ...] = ()
    first: str = ""
    callbacks: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    init: str = ""
    tail: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()

    def adding(self, head: str = "", **callbacks: str) -> Draft:
        """The draft with a declaration behind its others, and statements at the end of callbacks."""
        merged = {member: self.callbacks.get(member, "") + code for member, code in callbacks.items()}
        heads = (*self.head, head) if head else self.head
        return replace(self, head=heads, callbacks=MappingProxyType({**self.callbacks, **merged}))

    def text(self) -> str:
        """The whole source."""
        members = [name for name, _code in self._callbacks()]
        ops = [f"\t.{member} = (void *){self.name}_{member},\n" for member in members]
        return "".join(
            (
                f"/* SPDX-License-Identifier: GPL-2.0-only */\n/*\n * {self.name}: {'; '.join(self.about)}.\n */\n",
                *(f'#include "{header}"\n' for header in self.includes),
                "\n#define SLICE_NS (20 * NSEC_PER_MSEC)\n",
                *(f"\n{declaration.strip()}\n" for declaration in self.head),
                *(f"\n{code}\n" for _name, code in self._callbacks()),
                *(f"\n{declaration.strip()}\n" for declaration in self.tail),
                f'\nSEC(".struct_ops.link")\nstruct sched_ext_ops {self.name} = {{\n',
                *ops,
                *(f"\t{line}\n" for line in self.ops),
                f'\t.timeout_ms = WATCHDOG_MS,\n\t.exit_dump_len = DUMP_BYTES,\n\t.name = "{self.name}",\n}};\n',
            )
        )

    def _callbacks(self) -> list[tuple[str, str]]:
        """The callbacks by name, each a whole function."""
        parts = []
        if self.select_cpu:
            parts.append(self._callback("select_cpu", "s32", _SELECT, self.select_cpu))
        parts += [
            self._callback("enqueue", "void", "struct task_struct *p, u64 enq_flags", self._enqueue()),
            self._callback("dispatch", "void", "s32 cpu, struct task_struct *prev", self._dispatch()),
        ]
        for member, code in self.callbacks.items():
            result, parameters = _SIGNATURES[member]
            parts.append(self._callback(member, result, parameters, code + ("return 0;" if result == "s32" else "")))
        create = f"{self.init}return create_queues({self.classes});"
        parts += [
            self._callback("init", "s32", "", create),
            self._callback("exit", "void", "struct scx_exit_info *ei", "record_exit(ei);"),
            self._callback("dump", "void", "struct scx_dump_ctx *dump", f"dump_queues({self.classes});"),
        ]
        return parts

    def _callback(self, member: str, result: str, parameters: str, code: str) -> tuple[str, str]:
        macro = "SCX_CALLBACK_SLEEPABLE" if member in ("init", "init_task") else "SCX_CALLBACK"
        arguments = f", {parameters}" if parameters else ""
        return member, f"{result} {macro}({self.name}_{member}{arguments})\n{{\n{code}\n}}"

    def _enqueue(self) -> str:
        if self.key:
            insert = f"dsq_insert_vtime(p, {self.queue}, {self.slice_ns}, {self.key}, enq_flags);"
        else:
            insert = f"dsq_insert(p, {self.queue}, {self.slice_ns}, enq_flags);"
        return f"{self.before}\n{insert}\n{self.after}"

    def _dispatch(self) -> str:
        tries = " ||\n    ".join(self.serve)
        keep = re.sub(r"\bp\b", "prev", self.slice_ns)
        return f"{self.first}\nif ({tries})\n\treturn;\nif (wants_cpu(prev))\n\ttask_set_slice(prev, {keep});"


_SELECT = "struct task_struct *p, s32 prev_cpu, u64 wake_flags"
