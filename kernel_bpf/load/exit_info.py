"""Why a policy ended, as its own exit callback recorded it: ours, and those written elsewhere.

The kernel gives the reason to nobody but the policy. By convention a policy copies `struct scx_exit_info` into a global
`struct user_exit_info`, whose members have the same names everywhere but lie where each project put them, so they are
found by name in the object's BTF. All of it is the policy's own word: what it says is shown as that, in one line, and
its dump is not read at all: it may hold whatever the policy came to know.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kernel_bpf.load.bpf_object import BpfObject
from kernel_bpf.load.btf import Variable
from schedagent.core.terminal.foreign import quote

NO_RECORD = "the policy records no exit information"

_STRUCT = "user_exit_info"
_SECTIONS = (".data", ".bss")
_REQUIRED = ("kind", "reason", "msg")
_LONGEST = {"kind": 8, "exit_code": 8, "reason": 128, "msg": 1024}
"""Bytes of a member that are read, however large the policy declares it: the kernel's own sizes (SCX_EXIT_MSG_LEN and
the like in kernel/sched/ext.c)."""
_LOG = Path("/dev/kmsg")
_LOG_RECORD_BYTES = 8192
"""CONSOLE_EXT_LOG_MAX of kernel/printk/internal.h: no record is longer."""
_MOST_LOG_RECORDS = 10_000
_FIRST_USER_PRIORITY = 8
"""What programs write to the log has a facility (devkmsg_write() in kernel/printk/printk.c); the kernel's own has 0."""
_DISABLED = re.compile(r'sched_ext: BPF scheduler "([^"]*)" disabled \((.*)\)')
_KINDS_BY_REASON = {
    "unregistered from user space": 64,
    "unregistered from BPF": 65,
    "unregistered from the main kernel": 66,
    "disabled by sysrq-S": 67,
    "runtime error": 1024,
    "scx_bpf_error": 1025,
    "runnable task stall": 1026,
}
"""scx_exit_reason() of kernel/sched/ext.c, whose words are logged (scx_disable_workfn() there)."""
_FIRST_ERROR_KIND = 1024
_EXIT_KINDS = {
    0: "none",
    1: "done",
    64: "unregistered",
    65: "unregistered by BPF",
    66: "unregistered by the kernel",
    67: "sysrq",
    68: "parent exited",
    69: "killed by parent",
    1024: "error",
    1025: "error raised by BPF",
    1026: "stall",
    1027: "error while re-enqueueing",
    1028: "error while rescuing",
}
"""enum scx_exit_kind (kernel/sched/ext_internal.h; the last two appeared in 7.x)."""

_UNREGISTERED, _HOTPLUG_KIND = 64, 66
_RESTART = 1 << 48
_HOTPLUG = 1 << 32
"""enum scx_exit_code: SCX_ECODE_ACT_RESTART and SCX_ECODE_RSN_HOTPLUG (kernel/sched/ext_internal.h, since 6.12)."""


@dataclass(frozen=True)
class ExitInfo:
    """Why a policy ended (struct scx_exit_info).

    Args:
        kind: enum scx_exit_kind; 64 and the like are orderly, 1024 and above are errors.
        kind_name: the same in words.
        code: exit_code; holds restart hints after CPU hotplug, or what BPF gave.
        reason, message: the kernel's text for the kind, and for this case.
        source: who says so.
    """

    kind: int
    kind_name: str
    code: int
    reason: str
    message: str
    source: str = "its own record"

    @property
    def is_orderly(self) -> bool:
        """Whether its loader took it away."""
        return self.kind == _UNREGISTERED

    @property
    def ejected(self) -> bool:
        """Whether the kernel threw the policy out because of an error."""
        return self.kind >= _FIRST_ERROR_KIND

    @property
    def asks_for_restart(self) -> bool:
        """Whether the loader is to load the policy again, as after a CPU came or went."""
        return not self.ejected and bool(self.code & _RESTART)

    @classmethod
    def decode(cls, members: Mapping[str, bytes]) -> Self | None:
        """Decode the members of a `struct user_exit_info`; None while the policy has not ended."""
        kind = int.from_bytes(members["kind"], "little", signed=True)
        if kind == 0:
            return None
        code = int.from_bytes(members.get("exit_code", b""), "little", signed=True)
        reason, message = (_text(members.get(name, b"")) for name in ("reason", "msg"))
        return cls(kind, _EXIT_KINDS.get(kind, f"kind {kind}"), code, reason, message)

    @property
    def what(self) -> str:
        """The kind, without any words of the policy's."""
        return f"{self.kind_name} (kind {self.kind})"

    @property
    def words(self) -> str:
        """What the policy's record says besides, quoted; empty if it says nothing."""
        reasons = ": ".join(part for part in (self.reason, self.message) if part)
        return quote(reasons) if reasons else ""

    def __str__(self) -> str:
        words = f"by {self.source}: {self.words}" if self.words else "no reason given"
        return f"{self.kind_name} (kind {self.kind}, code {self.code:#x}): {words}"


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


@dataclass(frozen=True)
class ExitRecord:
    """Where a policy keeps its `struct user_exit_info`.

    Args:
        section: data section it lies in.
        variable: where in that section, and its members.
    """

    section: str
    variable: Variable

    @property
    def sections(self) -> tuple[str, ...]:
        """The data sections that hold it."""
        return (self.section,)

    @classmethod
    def find(cls, policy: BpfObject) -> Self | None:
        """Return the record of an opened object, None if it keeps none."""
        for section in _SECTIONS:
            for variable in policy.variables(section).values():
                if variable.struct == _STRUCT and all(name in variable.members for name in _REQUIRED):
                    return cls(section, variable)
        return None

    def read(self, policy: BpfObject) -> ExitInfo | None:
        """Read a loaded object's record, never more of it than a record needs; None while the policy has not ended.

        Raises:
            BpfError: it cannot be read.
        """
        kind = self._member(policy, "kind")
        if not any(kind):
            return None
        members = {name: self._member(policy, name) for name in _LONGEST if name in self.variable.members}
        members["kind"] = kind
        return ExitInfo.decode(members)

    def _member(self, policy: BpfObject, name: str) -> bytes:
        member = self.variable.members[name]
        size_bytes = min(member.size_bytes, _LONGEST[name])
        return policy.read_variable(self.section, self.variable.offset + member.offset, size_bytes)


class KernelLog:
    """What the kernel's log shows of a policy's end, for one that keeps no record: the guest's loader reads it then.

    schedagentd does not: the fewer texts it has to do with, the better. The log holds the reason, and for an error the
    message, but no exit code; a policy that the kernel itself unregisters ends for a CPU that came or went
    (handle_hotplug() in kernel/sched/ext.c), so that code is put in.
    """

    def __init__(self, descriptor: int, ops_name: str) -> None:
        self._descriptor = descriptor
        self._ops_name = ops_name
        self._reason = ""
        self._message = ""

    @classmethod
    def follow(cls, ops_name: str, log: Path = _LOG) -> Self | None:
        """Read from now on; None where the log cannot be read."""
        try:
            descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        following = cls(descriptor, ops_name)
        try:
            following.skip()
        except OSError:
            following.close()
            return None
        return following

    def skip(self) -> None:
        """Forget what was logged until now: it is about an earlier policy, which may have the same name."""
        os.lseek(self._descriptor, 0, os.SEEK_END)
        self._reason = self._message = ""

    def close(self) -> None:
        """Stop reading; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self) -> ExitInfo | None:
        """Return why the policy ended; None while the log does not show that."""
        for text in self._texts():
            self._take(text)
        kind = _KINDS_BY_REASON.get(self._reason)
        if kind is None:
            return None
        code = _RESTART | _HOTPLUG if kind == _HOTPLUG_KIND else 0
        return ExitInfo(kind, _EXIT_KINDS[kind], code, self._reason, self._message, "the kernel's log")

    def _take(self, text: str) -> None:
        disabled = _DISABLED.match(text)
        if disabled and disabled[1] == self._ops_name:
            self._reason, self._message = disabled[2], ""
        elif self._reason and not self._message and text.startswith(prefix := f"sched_ext: {self._ops_name}: "):
            self._message = text.removeprefix(prefix)

    def _texts(self) -> Iterator[str]:
        """Yield what was logged since, a record each: "priority,number,time,flags;text" and lines of properties."""
        for _record in range(_MOST_LOG_RECORDS if self._descriptor >= 0 else 0):
            try:
                record = os.read(self._descriptor, _LOG_RECORD_BYTES)
            except BlockingIOError:
                return
            except BrokenPipeError:  # records were overwritten before they were read: the oldest is next
                continue
            except OSError:
                return
            if not record:
                return
            head, _semicolon, text = record.decode(errors="replace").partition(";")
            priority = head.partition(",")[0]
            if priority.isdigit() and int(priority) < _FIRST_USER_PRIORITY:
                yield text.partition("\n")[0]
