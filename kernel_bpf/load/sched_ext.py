"""sched_ext control: load, attach, confirm, detach, and what the kernel itself shows.
Kernel facts: kernel/sched/ext.c and Documentation/scheduler/sched-ext.rst.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from kernel_bpf.load.bpf_object import BpfObject
from kernel_bpf.load.btf import Variable, kernel_constants
from kernel_bpf.load.exit_info import NO_RECORD, ExitInfo, ExitRecord, KernelLog
from kernel_bpf.load.memory import MOST_BYTES
from schedagent.core.errors import BpfError, KernelRejected, PolicyError, SetupError
from schedagent.core.terminal.foreign import quote

log = logging.getLogger(__name__)

SYSFS = Path("/sys/kernel/sched_ext")
HISTORY_MAP = "task_history"
CLASSES_MAP = "task_class"
OPS_STRUCT = "sched_ext_ops"
CONSTANT_PREFIX = "SCX_"
PARTIAL_FLAG = "SCX_OPS_SWITCH_PARTIAL"

_POLL_S = 0.01


@dataclass(frozen=True)
class KernelState:
    """What sysfs shows of sched_ext.

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


class LoadedPolicy:
    """A policy that the kernel's verifier has accepted; attach it, watch it, detach it.

    The kernel returns every task to the default scheduler when the link is closed or its owner dies.

    Example:
        with LoadedPolicy.load(elf, "fifo", {"slice_us": 5000}, {}, {}) as policy:
            policy.attach()
            ...
            assert policy.enabled()

    Attributes:
        untraced: its programs that could not be attached since this kernel cannot trace its functions.
    """

    def __init__(
        self,
        policy: BpfObject,
        ops: Variable,
        ops_name: str,
        record: ExitRecord | None,
        log: KernelLog | None = None,
    ) -> None:
        self.name = policy.name
        self.ops_name = ops_name
        self.untraced: list[str] = []
        self._object = policy
        self._ops = ops
        self._record = record
        self._log = log
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
        partial: bool = False,
        read_log: bool = False,
    ) -> Self:
        """Give a compiled policy to the kernel's verifier and fill its maps.

        Args:
            name: for messages; what root/ops will show is the object's own business (`ops_name`).
            tunables: values by name; those not named keep the source's default.
            history: identity -> expected CPU time in ns, for the map `task_history`.
            classes: identity -> class number, for the map `task_class`.
            watchdog_ms: upper limit of the policy's own timeout_ms; 0 for none.
            partial: let it schedule only tasks of policy SCHED_EXT, whatever its source has; else as the source has it.
            read_log: if it records no exit information, take that from the kernel's log.

        Raises:
            SetupError: this kernel has no sched_ext, or this process may not load BPF.
            TunableError: a tunable that does not exist or does not fit.
            PolicyError: not one sched_ext policy, a map it does not have, or more memory than a policy may take.
            KernelRejected: the kernel's verifier refused; carries the end of its log.
            BpfError: partial was asked for, and this kernel's BTF cannot be read.
        """
        if not kernel_state().available:
            raise SetupError(
                "this kernel has no sched_ext", "use the micro-VM, or a kernel with CONFIG_SCHED_CLASS_EXT=y"
            )
        policy = BpfObject.open(object_bytes, name)
        try:
            ops, record = _find_ops(policy), ExitRecord.find(policy)
            ops_name = policy.read_ops(ops, "name").split(b"\0", 1)[0].decode(errors="replace")
            if watchdog_ms:
                _limit_watchdog(policy, ops, watchdog_ms)
            if partial:
                _switch_partially(policy, ops)
            policy.set_tunables(_kernel_values(policy) | dict(tunables))
            policy.check_memory()
            policy.load()
            _check_given(policy)
            if record:
                record.read(policy)  # what cannot be read now could not be read when it matters
            for map_name, entries in ((HISTORY_MAP, history), (CLASSES_MAP, classes)):
                if entries:
                    policy.fill_map(map_name, entries)
        except BaseException:
            policy.close()
            raise
        return cls(policy, ops, ops_name, record, KernelLog.follow(ops_name) if read_log and not record else None)

    @classmethod
    def adopt(cls, object_bytes: bytes, name: str, folder: Path, enable_seq: int) -> Self:
        """Take over a policy that another process pinned.

        Args:
            object_bytes: what that process loaded.
            folder: where it was pinned.
            enable_seq: what `enable_seq` was there; distinguishes it from a later policy of the same name.

        Raises:
            PolicyError: the object is none.
            BpfError: something of it is not there.
        """
        policy = BpfObject.open(object_bytes, name)
        try:
            ops, record = _find_ops(policy), ExitRecord.find(policy)
            ops_name = policy.read_ops(ops, "name").split(b"\0", 1)[0].decode(errors="replace")
            policy.adopt(folder, record.sections if record else ())
        except BaseException:
            policy.close()
            raise
        adopted = cls(policy, ops, ops_name, record)
        adopted._enable_seq, adopted._attached = enable_seq, True
        return adopted

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
            self._attached = False  # what is closed is not asked again, even if it did not detach in time
            self._object.close()
            self._stop_reading()

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
        if self._log:
            self._log.skip()  # the kernel logs the end of a policy before it is disabled
        try:
            self.untraced = self._object.attach_programs()
            if self.untraced:
                log.warning("%s: this kernel cannot trace for %s", self.name, ", ".join(map(quote, self.untraced)))
            self._object.attach_struct_ops(self._ops.name)
        except BpfError as error:
            raise self._rejected(error.message, _busy_hint(error, before)) from None
        deadline = time.monotonic() + timeout_s
        while not self.enabled():
            state = kernel_state()
            if self.exit_info() or state.state == "disabled" or time.monotonic() > deadline:
                raise self._rejected(f"state is {state.state!r} and root/ops {state.ops!r} after attach")
            time.sleep(_POLL_S)

    @property
    def enable_seq(self) -> int:
        """Number of this very enabling since boot; -1 before `attach`."""
        return self._enable_seq

    def pin(self, folder: Path) -> None:
        """Let the attached policy outlive this process, which `adopt` of the next one takes over.

        Args:
            folder: a new one on a BPF file system, such as /sys/fs/bpf/schedagent/7.

        Raises:
            BpfError: it cannot be pinned there; nothing is.
        """
        try:
            folder.mkdir(mode=0o700, parents=True)
            self._object.pin(folder, self._record.sections if self._record else ())
        except OSError as error:
            raise BpfError(f"{self.name} cannot be pinned in {folder}: {error.strerror}", error.errno or 0) from None
        except BpfError:
            self._object.unpin()
            raise

    def unpin(self) -> None:
        """Let the policy end with this process; idempotent."""
        self._object.unpin()

    def leave(self) -> None:
        """Free what this process holds; a policy that is pinned stays in charge."""
        self._attached = False
        self._object.leave()
        self._object.close()
        self._stop_reading()

    def enabled(self) -> bool:
        """Whether this very policy schedules tasks now, by sysfs and by its own exit info.

        The kernel may append to the name; enable_seq distinguishes us from a later policy of the same name.
        """
        state = kernel_state()
        ours = state.ops.startswith(self.ops_name) and state.enable_seq == self._enable_seq
        return self._attached and state.state == "enabled" and ours and self.exit_info() is None

    def exit_info(self) -> ExitInfo | None:
        """Why the policy ended; None while it has not, or if neither it nor the kernel's log shows that."""
        if self._attached and self._record and self._exit is None:
            self._exit = self._record.read(self._object)
        elif self._attached and self._log:
            self._exit = self._log.read()  # the message follows the reason: it is read again
        return self._exit

    def detach(self, timeout_s: float = 10.0) -> ExitInfo | None:
        """Return every task to the default scheduler, wait until sysfs confirms it, and return how the policy ended.

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

    @property
    def records_exit(self) -> bool:
        """Whether the reason of its end is kept, by the policy or in the kernel's log; else sysfs alone shows it."""
        return self._record is not None or self._log is not None

    def read_section(self, section: str) -> bytes:
        """Return the present content of a data section; raise BpfError if there is none of this name."""
        return self._object.read_variable(section, 0, self._object.section_bytes(section))

    def translated(self) -> Iterator[bytes]:
        """Yield what the kernel's verifier left of each program; see BpfObject.translated."""
        return self._object.translated()

    def verifier_stats(self) -> dict[str, dict[str, int]]:
        """Figures of the kernel's verifier for each program; see BpfObject.verifier_stats."""
        return self._object.verifier_stats()

    def _stop_reading(self) -> None:
        if self._log:
            self._log.close()

    def _gone(self, state: KernelState) -> bool:
        """Whether no policy is loaded, or an enabled one that is not ours."""
        another = state.state == "enabled" and state.enable_seq != self._enable_seq
        return state.state == "disabled" or another

    def _rejected(self, why: str, hint: str = "") -> KernelRejected:
        """Undo a failed attach and build the error that gives the reason."""
        info = self.detach()
        ending = f"\nthe kernel ended it: {info}" if info else "" if self.records_exit else f"\n{NO_RECORD}"
        return KernelRejected(f"the kernel did not enable {self.name}: {why}{ending}", hint)


def _busy_hint(error: BpfError, state: KernelState) -> str:
    """Explain EBUSY: the kernel has room for one root policy."""
    if error.errno != errno.EBUSY or not state.ops:
        return ""
    return f"policy {state.ops!r} is loaded already; stop it first"


def _find_ops(policy: BpfObject) -> Variable:
    """Return the object's ops struct; raise PolicyError unless it has exactly one struct_ops, of the right type."""
    declared = list(policy.struct_ops().values())
    if len(declared) != 1 or declared[0].struct != OPS_STRUCT:
        names = ", ".join(f"{ops.struct} {ops.name}" for ops in declared) or "none"
        raise PolicyError(f"{policy.name} must define one struct {OPS_STRUCT}, it has: {names}", "define one")
    return declared[0]


def _limit_watchdog(policy: BpfObject, ops: Variable, limit_ms: int) -> None:
    """Set timeout_ms to the limit unless it is shorter; 0 stands for the kernel's own 30 s."""
    timeout_ms = int.from_bytes(policy.read_ops(ops, "timeout_ms"), "little")
    if not 0 < timeout_ms <= limit_ms:
        policy.write_ops(ops, "timeout_ms", limit_ms)


def _check_given(policy: BpfObject) -> None:
    """Refuse a loaded object that took more memory than was counted before."""
    given = policy.memory_bytes()
    if given > MOST_BYTES:
        raise PolicyError(
            f"the kernel gave {policy.name} {given >> 20} MiB of memory; at most {MOST_BYTES >> 20} are accepted"
        )


def _switch_partially(policy: BpfObject, ops: Variable) -> None:
    """Set SCX_OPS_SWITCH_PARTIAL, by the number that this kernel gives it."""
    known = kernel_constants(PARTIAL_FLAG)
    if PARTIAL_FLAG not in known:
        raise SetupError(f"this kernel's BTF does not know {PARTIAL_FLAG}", "deploy with full scope")
    flags = int.from_bytes(policy.read_ops(ops, "flags"), "little")
    policy.write_ops(ops, "flags", flags | known[PARTIAL_FLAG])


def _kernel_values(policy: BpfObject) -> dict[str, int]:
    """Values for the constants that an object expects from its loader: `const volatile u64 __SCX_X`, still 0.

    Objects of the scx project take the enum values of the kernel from such variables; what it does not have stays 0.
    """
    wanted = [
        name
        for name, variable in policy.tunables().items()
        if name.startswith(f"__{CONSTANT_PREFIX}") and variable.size_bytes == 8 and not policy.tunable_value(name)
    ]
    known = kernel_constants(CONSTANT_PREFIX) if wanted else {}
    return {name: known[name[2:]] for name in wanted if name[2:] in known}
