"""sched_ext control: load, attach, confirm, detach, exit info, and what the kernel itself says.

May import: the standard library, kernel_bpf.bpf_object and schedagent.core.errors (it also runs inside the micro-VM).
Kernel facts: kernel/sched/ext.c and Documentation/scheduler/sched-ext.rst.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from kernel_bpf.bpf_object import MAP_STRUCT_OPS, BpfObject
from schedagent.core.errors import BpfError, KernelRejected, PolicyError, SetupError

SYSFS = Path("/sys/kernel/sched_ext")
HISTORY_MAP = "task_history"
CLASSES_MAP = "task_class"

_POLL_S = 0.01
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

_EXIT_HEADER = struct.Struct("<iiq")
_EXIT_TEXTS = (128, 1024, 32768)
_EXIT_BYTES = _EXIT_HEADER.size + sum(_EXIT_TEXTS)
_EXIT_SECTION = ".data"
_EXIT_VARIABLE = "uei"


@dataclass(frozen=True)
class KernelState:
    """What sysfs says about sched_ext.

    Args:
        available: this kernel has sched_ext.
        state: disabled, enabling, enabled or disabling; empty if not available.
        ops: name of the loaded policy as the kernel shows it; empty if none.
        switch_all: whether every normal task is scheduled by it, not only those of policy SCHED_EXT.
        nr_rejected: tasks that were refused SCHED_EXT.
        enable_seq: how many policies were ever enabled since boot.
        hotplug_seq: how many CPUs came and went since boot.
        events: the loaded policy's event counters (SCX_EV_*), empty before 6.15.
    """

    available: bool
    state: str = ""
    ops: str = ""
    switch_all: bool = False
    nr_rejected: int = 0
    enable_seq: int = 0
    hotplug_seq: int = 0
    events: dict[str, int] = field(default_factory=dict)


def kernel_state(root: Path = SYSFS) -> KernelState:
    """Read the truth from sysfs; `root` is another tree only in tests."""
    state = _read(root / "state")
    if not state:
        return KernelState(available=False)
    return KernelState(
        available=True,
        state=state,
        ops=_read(root / "root/ops"),
        switch_all=_number(root / "switch_all") == 1,
        nr_rejected=_number(root / "nr_rejected"),
        enable_seq=_number(root / "enable_seq"),
        hotplug_seq=_number(root / "hotplug_seq"),
        events={name: int(count) for name, count in map(str.split, _read(root / "root/events").splitlines())},
    )


def _read(path: Path) -> str:
    """Return a sysfs file's text, empty if it is not there: root/ comes and goes with the policy."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    return int(_read(path) or 0)


@dataclass(frozen=True)
class ExitInfo:
    """Why a policy ended, as its own exit callback recorded it (struct scx_exit_info).

    Args:
        kind: enum scx_exit_kind; 64 and the like are orderly, 1024 and above are errors.
        kind_name: the same in words.
        code: exit_code; holds restart hints after CPU hotplug, or what BPF gave.
        reason, message: the kernel's text for the kind, and for this case.
        dump: state of the runqueues and tasks at the time of an error.
    """

    kind: int
    kind_name: str
    code: int
    reason: str
    message: str
    dump: str = field(default="", repr=False)

    @property
    def ejected(self) -> bool:
        """Whether the kernel threw the policy out because of an error."""
        return self.kind >= _FIRST_ERROR_KIND

    @classmethod
    def decode(cls, raw: bytes) -> Self | None:
        """Decode `struct user_exit_info` (bpf/include/common.bpf.h); None while the policy has not ended."""
        kind, _pad, code = _EXIT_HEADER.unpack_from(raw)
        if kind == 0:
            return None
        texts, offset = [], _EXIT_HEADER.size
        for size in _EXIT_TEXTS:
            texts.append(raw[offset : offset + size].split(b"\0", 1)[0].decode(errors="replace"))
            offset += size
        return cls(kind, _EXIT_KINDS.get(kind, f"kind {kind}"), code, *texts)

    def __str__(self) -> str:
        told = ": ".join(part for part in (self.reason, self.message) if part)
        return f"{self.kind_name} (kind {self.kind}, code {self.code:#x}): {told or 'no reason given'}"


class LoadedPolicy:
    """A policy that the kernel's verifier has accepted; attach it, watch it, detach it.

    The kernel returns every task to the default scheduler when the link is closed or its owner dies.

    Example:
        with LoadedPolicy.load(elf, "fifo", {"slice_us": 5000}, {}, {}) as policy:
            policy.attach()
            ...
            assert policy.enabled()
    """

    def __init__(self, policy: BpfObject, ops_map: int, exit_offset: int | None) -> None:
        self.name = policy.name
        self._object = policy
        self._ops_map = ops_map
        self._exit_offset = exit_offset
        self._enable_seq = -1
        self._attached = False
        self._exit: ExitInfo | None = None

    @classmethod
    def load(
        cls,
        object_bytes: bytes,
        name: str,
        tunables: Mapping[str, int],
        history: Mapping[int, int],
        classes: Mapping[int, int],
        watchdog_ms: int = 0,
    ) -> Self:
        """Give a compiled policy to the kernel's verifier and fill its maps.

        Args:
            tunables: values by name; those not named keep the source's default.
            history: identity -> expected CPU time in ns, for the map `task_history`.
            classes: identity -> class number, for the map `task_class`.
            watchdog_ms: upper limit of the policy's own timeout_ms; 0 for none.

        Raises:
            SetupError: this kernel has no sched_ext, or this process may not load BPF.
            TunableError: a tunable that does not exist or does not fit.
            PolicyError: not one sched_ext policy, or a map it does not have.
            KernelRejected: the kernel's verifier refused; carries the end of its log.
        """
        if not kernel_state().available:
            raise SetupError(
                "this kernel has no sched_ext", "use the micro-VM, or a kernel with CONFIG_SCHED_CLASS_EXT=y"
            )
        policy = BpfObject.open(object_bytes, name)
        try:
            ops_map, exit_offset = _find_ops_map(policy), _find_exit_info(policy)
            policy.set_tunables(tunables)
            if watchdog_ms:
                _limit_watchdog(policy, ops_map, watchdog_ms)
            policy.load()
            for map_name, entries in ((HISTORY_MAP, history), (CLASSES_MAP, classes)):
                if entries:
                    policy.fill_map(map_name, entries)
        except BaseException:
            policy.close()
            raise
        return cls(policy, ops_map, exit_offset)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detach and free; idempotent. `exit_info` still answers afterwards."""
        try:
            self.detach()
        finally:
            self._object.close()

    def attach(self, timeout_s: float = 10.0) -> None:
        """Put the policy in charge and wait until sysfs confirms it.

        The tracing programs come first, so that the policy knows of every exec from its first moment on.
        A link alone proves nothing: enabling may fail after it was made.

        Raises:
            KernelRejected: it did not become the enabled policy within `timeout_s`; nothing stays attached.
        """
        if self._attached:
            raise BpfError(f"{self.name} is attached already")
        before = kernel_state()
        self._enable_seq = before.enable_seq + 1
        self._attached = True
        try:
            self._object.attach_programs()
            self._object.attach_struct_ops(self._ops_map)
        except BpfError as error:
            raise self._rejected(error.message, _busy_hint(error, before)) from None
        deadline = time.monotonic() + timeout_s
        while not self.enabled():
            if self.exit_info() or time.monotonic() > deadline:
                state = kernel_state()
                raise self._rejected(f"state is {state.state!r} and root/ops {state.ops!r} after attach")
            time.sleep(_POLL_S)

    def enabled(self) -> bool:
        """Whether this very policy schedules tasks now, by sysfs and by its own exit info.

        The kernel may append to the name; enable_seq tells us from a later policy of the same name.
        """
        state = kernel_state()
        ours = state.ops.startswith(self.name) and state.enable_seq == self._enable_seq
        return self._attached and state.state == "enabled" and ours and self.exit_info() is None

    def exit_info(self) -> ExitInfo | None:
        """Why the policy ended; None while it has not, or if its source records nothing."""
        if self._exit is None and self._attached and self._exit_offset is not None:
            data = self._object.read_section(_EXIT_SECTION)
            self._exit = ExitInfo.decode(data[self._exit_offset :])
        return self._exit

    def detach(self, timeout_s: float = 10.0) -> ExitInfo | None:
        """Return every task to the default scheduler, wait until sysfs says so, and tell how the policy ended.

        Raises:
            BpfError: the policy is still in charge after `timeout_s`.
        """
        if not self._attached:
            return self._exit
        self._object.detach()
        deadline = time.monotonic() + timeout_s
        while not self._gone(state := kernel_state()):
            if time.monotonic() > deadline:
                raise BpfError(f"{self.name} did not detach within {timeout_s:g} s: state is {state.state!r}")
            time.sleep(_POLL_S)
        self.exit_info()
        self._attached = False
        return self._exit

    def verifier_stats(self) -> dict[str, dict[str, int]]:
        """Figures of the kernel's verifier for each program; see BpfObject.verifier_stats."""
        return self._object.verifier_stats()

    def _gone(self, state: KernelState) -> bool:
        """Whether no policy is loaded, or an enabled one that is not ours."""
        another = state.state == "enabled" and state.enable_seq != self._enable_seq
        return state.state == "disabled" or another

    def _rejected(self, why: str, hint: str = "") -> KernelRejected:
        """Undo a failed attach and build the error that tells why."""
        info = self.detach()
        told = f"\nthe kernel ended it: {info}" if info else ""
        return KernelRejected(f"the kernel did not enable {self.name}: {why}{told}", hint)


def _busy_hint(error: BpfError, state: KernelState) -> str:
    """Explain EBUSY: the kernel has room for one root policy."""
    if error.errno != errno.EBUSY or not state.ops:
        return ""
    return f"policy {state.ops!r} is loaded already; stop it first"


def _find_ops_map(policy: BpfObject) -> int:
    """Return the object's struct_ops map; raise PolicyError unless there is exactly one."""
    found = [(pointer, name) for pointer, name, kind in policy.maps() if kind == MAP_STRUCT_OPS]
    if len(found) != 1:
        names = ", ".join(name for _pointer, name in found) or "none"
        raise PolicyError(f"{policy.name} must define one struct_ops map, it has: {names}", "define one sched_ext_ops")
    return found[0][0]


def _limit_watchdog(policy: BpfObject, ops_map: int, limit_ms: int) -> None:
    """Set timeout_ms to the limit unless it is shorter; 0 stands for the kernel's own 30 s."""
    timeout_ms = policy.struct_ops_u32(ops_map, "sched_ext_ops", "timeout_ms")
    if timeout_ms is not None and not 0 < timeout_ms.value <= limit_ms:
        timeout_ms.value = limit_ms


def _find_exit_info(policy: BpfObject) -> int | None:
    """Return where `uei` lies in .data, None if the policy keeps none; raise PolicyError if its size is another."""
    variable = policy.variables(_EXIT_SECTION).get(_EXIT_VARIABLE)
    if variable is None:
        return None
    if variable.size_bytes != _EXIT_BYTES:
        raise PolicyError(
            f"{_EXIT_VARIABLE} of {policy.name} has {variable.size_bytes} bytes, not {_EXIT_BYTES}",
            "use struct user_exit_info of common.bpf.h",
        )
    return variable.offset
