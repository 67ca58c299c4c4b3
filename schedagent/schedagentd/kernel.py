"""The kernel as the roll-out sees it: a small protocol, and the real one behind it."""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kernel_bpf.load.exit_info import ExitInfo
from kernel_bpf.load.running import live_patches, running_build_id, running_release
from kernel_bpf.load.sched_ext import KernelState, LoadedPolicy, kernel_state
from kernel_bpf.observe import tasks
from kernel_bpf.observe.core_scheduling import CoreScheduling
from kernel_bpf.observe.real_time import holders
from kernel_bpf.observe.schedulers import Scheduler, other_schedulers
from kernel_bpf.observe.tasks import Sums, TaskSample, Watch
from schedagent.core.deployment import Order, Tree, Where
from schedagent.core.errors import BpfError, SchedagentError
from schedagent.core.terminal import foreign
from schedagent.schedagentd import protection
from schedagent.schedagentd.limits import CgroupLimit, cgroup_limits

PINS = Path("/sys/fs/bpf/schedagent")
"""One folder for each pinned deployment, by its number; beside it an empty one that names the end of its lease."""
_LEASE = "lease"
"""LEASE_NUMBER_SECONDS, by the boot clock. deploy/systemd/schedagentd-lease.service goes by it, without a program of
ours: pins whose lease is not there or is over are removed."""
DETACHING_S = 5.0
"""So long may it take to detach what has a time, before the kernel does it by ending this process."""
_LONGEST_LINE, _LONGEST_QUOTE = 1000, 2000


@dataclass(frozen=True)
class KernelIdentity:
    """What a token names of a kernel.

    Args:
        live_patches: those at work, see kernel_bpf.load.running.live_patches.
    """

    release: str
    build_id: str
    live_patches: tuple[str, ...] = ()


class Loaded(Protocol):
    """A policy that is attached."""

    @property
    def enable_seq(self) -> int:
        """Number of this enabling since boot."""

    def enabled(self) -> bool:
        """Whether this very policy is in charge."""

    def exit_info(self) -> ExitInfo | None:
        """Why it ended; None while it has not, or if nothing recorded it."""

    def pin(self, lease_until: float) -> None:
        """Let it outlive this process, until its lease (boot clock) is over; raise BpfError if that cannot be had."""

    def prolong(self, lease_until: float) -> None:
        """Give what is pinned a new lease; raise BpfError if that cannot be had."""

    def end_within(self, seconds: float) -> None:
        """Let the kernel end this process, and with it what is not pinned, unless it is detached or left by then."""

    def detach(self) -> ExitInfo | None:
        """Take it away, confirmed by sysfs; raise BpfError if that cannot be confirmed."""

    def leave(self) -> None:
        """Let go of it, because this process ends; what is pinned stays in charge."""


class Watching(Protocol):
    """Samples the tasks of a scope."""

    def sample(self) -> TaskSample:
        """Count up to now."""


class Kernel(Protocol):
    """What the roll-out needs of a machine."""

    def identity(self) -> KernelIdentity:
        """Which kernel it is, live patches included; raise SetupError if it does not show that."""

    def exposed(self) -> tuple[str, ...]:
        """What this process lacks that keeps it at work under a policy, in words; empty if nothing."""

    def state(self) -> KernelState:
        """What sysfs shows of sched_ext."""

    def core_scheduled(self) -> int | None:
        """A thread that is core-scheduled, None if there is none."""

    def core_scheduled_in_turn(self) -> int | None:
        """The same, of the threads whose turn it is: all are looked at after some calls."""

    def schedulers(self) -> tuple[Scheduler, ...]:
        """Programs that load sched_ext policies and run now."""

    def real_time_holders(self) -> tuple[str, ...]:
        """Real-time tasks that hold a CPU now, each as 'PID "COMMAND" on CPU N'."""

    def load(self, number: int, order: Order, content: bytes, partial: bool) -> Loaded:
        """Load and attach, confirmed by sysfs; raise SchedagentError if that failed: nothing is loaded then."""

    def adopt(self, number: int, order: Order, content: bytes, enable_seq: int) -> Loaded:
        """Take over what an earlier process pinned; raise SchedagentError if it is not there."""

    def pinned(self) -> tuple[int, ...]:
        """Numbers of the deployments of which something is pinned."""

    def remove_pins(self, number: int) -> None:
        """Unpin what an earlier process pinned; without another holder that ends it. Raise BpfError if it cannot."""

    def move_in(self, where: Where) -> int:
        """Move a scope's tasks to SCHED_EXT."""

    def move_out(self) -> int:
        """Move all tasks back."""

    def has_cgroup(self, cgroup: str) -> bool:
        """Whether there is this cgroup."""

    def cgroup_limits(self) -> tuple[CgroupLimit, ...]:
        """The limits that are set on cgroups; raise Refused if that cannot be known."""

    def owns_cpus(self, cgroup: str) -> bool:
        """Whether a cgroup has CPUs on which only its own tasks run, the kernel's own threads aside."""

    def tree_of(self, pid: int) -> Tree | None:
        """The process tree that begins with a process; None if there is no such process."""

    def watch(self, where: Where, starvation_s: float, brief: bool = False) -> Watching:
        """Begin to sample a scope; if briefly, then of the whole machine no thread by itself, which takes its time."""


@dataclass(frozen=True)
class PinnablePolicy:
    """A loaded policy that knows where it would be pinned."""

    policy: LoadedPolicy
    folder: Path
    detach_s: float

    @property
    def enable_seq(self) -> int:
        return self.policy.enable_seq

    def enabled(self) -> bool:
        return self.policy.enabled()

    def exit_info(self) -> ExitInfo | None:
        return self.policy.exit_info()

    def pin(self, lease_until: float) -> None:
        self.prolong(lease_until)
        self.policy.pin(self.folder)

    def prolong(self, lease_until: float) -> None:
        _lease(self.folder, int(lease_until))

    def end_within(self, seconds: float) -> None:
        end_this_process_within(seconds)

    def detach(self) -> ExitInfo | None:
        self.end_within(DETACHING_S if signal.getitimer(signal.ITIMER_REAL)[0] else 0)
        try:
            return self.policy.detach(self.detach_s)
        finally:
            self.leave()
            _remove(self.folder)

    def leave(self) -> None:
        self.policy.leave()
        self.end_within(0)


@dataclass(frozen=True)
class HostKernel:
    """The kernel of this machine.

    Args:
        watchdog_ms: no policy may let a task wait longer than this.
        detach_s: how long to wait for sysfs to confirm that a policy is gone.
        cookies: what looks for core-scheduled threads.
    """

    watchdog_ms: int
    pins: Path = PINS
    detach_s: float = 2.0
    cookies: CoreScheduling = field(default_factory=CoreScheduling)

    def identity(self) -> KernelIdentity:
        return KernelIdentity(running_release(), running_build_id(), live_patches())

    def exposed(self) -> tuple[str, ...]:
        return protection.lacking()

    def state(self) -> KernelState:
        return kernel_state()

    def core_scheduled(self) -> int | None:
        return self.cookies.anywhere()

    def core_scheduled_in_turn(self) -> int | None:
        return self.cookies.turn()

    def schedulers(self) -> tuple[Scheduler, ...]:
        return tuple(other_schedulers())

    def real_time_holders(self) -> tuple[str, ...]:
        return holders()

    def load(self, number: int, order: Order, content: bytes, partial: bool) -> Loaded:
        with protection.ordinary():  # the kernel's verifier works for seconds; nothing of ours is in charge
            policy = LoadedPolicy.load(
                content,
                order.policy,
                dict(order.tunables),
                dict(order.history),
                dict(order.classes),
                self.watchdog_ms,
                partial,
            )
        try:
            policy.attach()
            if kernel_state().switch_all == partial:
                raise BpfError(
                    f"{order.policy} took {'all tasks' if partial else 'only some tasks'}, against its stage"
                )
        except BaseException:
            policy.close()
            raise
        return PinnablePolicy(policy, self._folder(number), self.detach_s)

    def adopt(self, number: int, order: Order, content: bytes, enable_seq: int) -> Loaded:
        policy = LoadedPolicy.adopt(content, order.policy, self._folder(number), enable_seq)
        return PinnablePolicy(policy, self._folder(number), self.detach_s)

    def pinned(self) -> tuple[int, ...]:
        if not self.pins.is_dir():
            return ()
        return tuple(sorted(int(path.name) for path in self.pins.iterdir() if path.name.isdecimal()))

    def remove_pins(self, number: int) -> None:
        _remove(self._folder(number))

    def move_in(self, where: Where) -> int:
        return tasks.move_in(where, tasks.cgroup_root())

    def move_out(self) -> int:
        return tasks.move_out()

    def cgroup_limits(self) -> tuple[CgroupLimit, ...]:
        return cgroup_limits()

    def has_cgroup(self, cgroup: str) -> bool:
        return (tasks.cgroup_root() / cgroup.lstrip("/") / "cgroup.procs").exists()

    def owns_cpus(self, cgroup: str) -> bool:
        return tasks.owns_cpus(tasks.cgroup_root() / cgroup.lstrip("/"))

    def tree_of(self, pid: int) -> Tree | None:
        return tasks.tree_of(pid)

    def watch(self, where: Where, starvation_s: float, brief: bool = False) -> Watching:
        if brief and where == "":
            return Sums()
        return Watch(where, starvation_s, tasks.cgroup_root(), rotates=True)

    def _folder(self, number: int) -> Path:
        return self.pins / str(number)


def end_this_process_within(seconds: float) -> None:
    """Let the kernel end this process after a time (0: no more), whatever it is doing by then."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _lease(folder: Path, until_s: int) -> None:
    """Note until when the pins in a folder have a lease; they are never without one."""
    lease = folder.with_name(f"{_LEASE}_{folder.name}_{until_s}")
    try:
        lease.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in folder.parent.glob(f"{_LEASE}_{folder.name}_*"):
            if old != lease:
                old.rmdir()
    except OSError as error:
        raise BpfError(f"the lease {lease} cannot be noted: {error.strerror}", error.errno or 0) from None


def _remove(folder: Path) -> None:
    """Remove a folder of pins, the files in it, and its lease."""
    try:
        with suppress(FileNotFoundError):
            for file in folder.iterdir():
                file.unlink(missing_ok=True)
            folder.rmdir()
        for lease in folder.parent.glob(f"{_LEASE}_{folder.name}_*"):
            lease.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise BpfError(f"the pins in {folder} cannot be removed: {error.strerror}", error.errno or 0) from None


def one_line(error: SchedagentError) -> str:
    """The first line of an error's message, printable, of a long one the end: what comes after it is not ours."""
    return foreign.one_line(error.message.partition("\n")[0][-_LONGEST_LINE:], _LONGEST_LINE)


def further_lines(error: SchedagentError) -> str:
    """The rest of an error's message, quoted as one printable line, of a long one the end; empty if there is none.

    A log of the kernel's verifier may have megabytes, and quotes the policy's source.
    """
    theirs = error.message.partition("\n")[2]
    return foreign.quote(theirs[-_LONGEST_QUOTE:], _LONGEST_QUOTE) if theirs else ""
