"""A scheduler that loads its policy itself, in the guest: started, waited for, ended, and gone.

`scx_simple` and the like are programs that run as root for as long as their policy is in charge. The program is started
in a cgroup and a session of its own, in the tree that the workload sees, without a way out of that tree: its mount
namespace lacks the host's own tree, and its capabilities are those that loading a policy takes. sysfs decides whether
its policy is in charge, and whether it is gone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from kernel_bpf.load import linux
from kernel_bpf.load.exit_info import KernelLog
from kernel_bpf.load.sched_ext import KernelState, LoadedPolicy, kernel_state
from schedagent.core.terminal.foreign import quote
from verifier.guest.output import Output
from verifier.guest.usage import Group
from verifier.microvm import jobs
from verifier.proving.ground import end

CGROUP = Path("/sys/fs/cgroup/loader")
SYSRQ = Path("/proc/sysrq-trigger")

STOP_LIMIT_S = 10.0
"""For a program to end, and its policy to be gone, after SIGINT: an emulated CPU frees a policy in a second or two."""

LEAVE_LIMIT_S = 1.0
"""For what the program has started, after the program itself has ended."""

KILL_LIMIT_S = 20.0
LAST_WORDS_CHARS = 400

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "LANG": "C.UTF-8"}

CAPABILITIES = (linux.CAP_DAC_READ_SEARCH, linux.CAP_IPC_LOCK, linux.CAP_SYS_NICE, linux.CAP_SYS_RESOURCE,
                linux.CAP_PERFMON, linux.CAP_BPF)  # fmt: skip
"""What loading and steering a policy takes. Not among them: what would lead out of the tree (SYS_PTRACE, SYS_CHROOT,
SYS_ADMIN, MKNOD), or into the kernel or the machine (SYS_MODULE, SYS_RAWIO, SYS_BOOT)."""

KERNEL_CONFIG = Path("/boot", f"config-{os.uname().release}")

_POLL_S = 0.01
_LONG_POLL_S = 0.05


class Scheduler(Protocol):
    """What puts a policy in charge for one run of the workload."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes of its own."""
        ...

    def attach(self) -> str:
        """Put its policy in charge; return why that did not happen, empty if it did."""
        ...

    def enabled(self) -> bool:
        """Whether its policy is in charge."""
        ...

    def drain(self) -> None:
        """Take what it printed."""
        ...

    def cpu_ns(self) -> int:
        """CPU time that it has used itself since its policy was in charge."""
        ...

    def end(self) -> tuple[str, str]:
        """Take its policy out of charge: why the kernel had ejected it, and what else went wrong; empty for nothing."""
        ...

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        ...


class LoadedHere:
    """A policy that the guest agent itself loads.

    Args:
        policy: loaded, and not attached.
    """

    pids: tuple[int, ...] = ()

    def __init__(self, policy: LoadedPolicy) -> None:
        self._policy = policy
        self.enabled = policy.enabled
        self.close = policy.close

    def attach(self) -> str:
        """Attach it; raise KernelRejected if the kernel does not enable it."""
        self._policy.attach()
        return ""

    def drain(self) -> None:
        """It prints nothing."""

    def cpu_ns(self) -> int:
        """The agent sleeps meanwhile."""
        return 0

    def end(self) -> tuple[str, str]:
        """Detach it."""
        return end(self._policy), ""


class LoaderProgram:
    """One start of such a program, used once.

    Args:
        start: the program.
        root: the tree that it is to see.
        host: where the host's own tree is mounted, which it is not to see.
    """

    def __init__(self, start: jobs.LoaderStart, root: Path, host: Path) -> None:
        self._start = start
        self._root = root
        self._host = host
        self._output = Output(0, 0)
        self._seq = kernel_state().enable_seq + 1
        self._log: KernelLog | None = None
        self._status: int | None = None
        CGROUP.mkdir(exist_ok=True)
        self._cpu_ns = Group(CGROUP).cpu_ns()
        self._pid = self._spawn()

    # --- its life

    @property
    def pids(self) -> tuple[int, ...]:
        """The program; what it starts descends from it."""
        return (self._pid,)

    def attach(self) -> str:
        """Wait until its policy is in charge; return why it is not, empty if it is."""
        deadline = time.monotonic() + self._start.attach_timeout_s
        while not self._in_charge(state := kernel_state()):
            self.drain()
            if self._ended():
                return f"{self._ending} before its policy was in charge{self._words()}"
            if time.monotonic() > deadline:
                limit = f"after {self._start.attach_timeout_s:g} s"
                return f"its program put no policy in charge: {limit} sched_ext is {state.state!r}{self._words()}"
            time.sleep(_POLL_S)
        self._log = KernelLog.follow(state.ops)
        self._cpu_ns = Group(CGROUP).cpu_ns()
        return ""

    def enabled(self) -> bool:
        """Whether it lives, and its policy is in charge."""
        return not self._ended() and self._in_charge(kernel_state())

    def drain(self) -> None:
        """Take what it printed; all but the beginning and the end is thrown away."""
        self._output.drain()

    def cpu_ns(self) -> int:
        """CPU time that it, and all that it started, has used since its policy was in charge."""
        return Group(CGROUP).cpu_ns() - self._cpu_ns

    def end(self) -> tuple[str, str]:
        """End it as Ctrl-C does.

        Returns:
            Why the kernel had ejected its policy; and what else went wrong with the program. Empty for nothing.
        """
        in_charge, died = self._in_charge(kernel_state()), self._ended()
        if died and in_charge:
            return "", f"{self._ending} and left its policy behind{self._words()}"
        ejection = "" if in_charge else self._ejection()
        if died or ejection:
            return ejection, "" if ejection else f"{self._ending} during the run{self._words()}"
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGINT)
        if not self._wait(lambda: self._ended() and self._gone(), STOP_LIMIT_S):
            what = f"{self._left()} kept its policy" if self._ended() else "its program was still running"
            return "", f"{STOP_LIMIT_S:g} s after SIGINT {what}{self._words()}"
        if not self._wait(lambda: not Group(CGROUP).pids(), LEAVE_LIMIT_S):
            return "", f"{self._left()} outlived it{self._words()}"
        return ("", "") if in_charge else ("no longer enabled, and the kernel gave no reason", "")

    def close(self) -> None:
        """Kill what is left of it, and wait until its policy is gone, whatever it did to keep it.

        Raises:
            TimeoutError: something stays; the machine is of no use any more.
        """
        (CGROUP / "cgroup.kill").write_text("1")
        clean = self._wait(lambda: self._ended() and not Group(CGROUP).pids() and self._gone(), KILL_LIMIT_S / 2)
        if not clean:  # a link that it pinned, or handed to somebody else, outlives it
            SYSRQ.write_text("S")
            clean = self._wait(lambda: not Group(CGROUP).pids() and self._gone(), KILL_LIMIT_S / 2)
        self._output.close()
        if self._log:
            self._log.close()
        if not clean:
            raise TimeoutError(f"a loader, or its policy, was still there {KILL_LIMIT_S:g} s after it was killed")
        CGROUP.rmdir()

    # --- what is seen of it

    def _in_charge(self, state: KernelState) -> bool:
        return state.state == "enabled" and state.enable_seq == self._seq and bool(state.ops)

    @staticmethod
    def _gone() -> bool:
        return kernel_state().state == "disabled"

    def _ended(self) -> bool:
        """Whether the program itself has ended; its status is kept then."""
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None

    @property
    def _ending(self) -> str:
        if self._status is not None and self._status < 0:
            return f"its program was ended by signal {-self._status}"
        return f"its program ended with exit status {self._status}"

    def _ejection(self) -> str:
        """Return why the kernel ejected its policy; empty if it did not, or says no error."""
        if self._log is None:
            return ""
        self._wait(self._gone, LEAVE_LIMIT_S)
        info = self._log.read()
        return f"{info.kind_name}: {quote(info.reason)}: {quote(info.message)}" if info and info.ejected else ""

    def _left(self) -> str:
        """Name what the program has left behind."""
        count = len(Group(CGROUP).pids())
        return f"{count} processes that its program had started" if count else "something outside its program"

    def _words(self) -> str:
        """Return the end of what it printed, as the end of a sentence."""
        lines = jobs.readable(self._output.printed().text).strip()[-LAST_WORDS_CHARS:]
        return f"; it printed last: {quote(lines)}" if lines else "; it printed nothing"

    def _wait(self, done: Callable[[], bool], limit_s: float) -> bool:
        deadline = time.monotonic() + limit_s
        while not done():
            self.drain()
            if time.monotonic() > deadline:
                return False
            time.sleep(_LONG_POLL_S)
        return True

    # --- its start

    def _spawn(self) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            (CGROUP / "cgroup.procs").write_text("0")
            os.setsid()
            show_config(self._root, KERNEL_CONFIG)
            enclose(self._root, self._host)
            os.chdir("/")
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(self._output.writer, 1)
            os.dup2(self._output.writer, 2)
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, its children must not
                signal.signal(ignored, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            linux.keep_capabilities(CAPABILITIES)
            os.execve(self._start.argv[0], self._start.argv, ENVIRONMENT)
        except OSError as error:
            os.write(self._output.writer, f"it cannot be started: {error.strerror}\n".encode())
        finally:
            os._exit(126)


def show_config(root: Path, config: Path) -> None:
    """Put the configuration of the running kernel where libbpf looks for it (/boot/config-RELEASE, for __kconfig)."""
    if config.exists():
        place = root / config.relative_to("/")
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(config.read_bytes())


def enclose(root: Path, host: Path) -> None:
    """Give this process the tree below `root` with what loaders use, in a mount namespace that lacks `host`."""
    linux.unshare(linux.CLONE_NEWNS)
    for kind, place in (("tracefs", "sys/kernel/tracing"), ("bpf", "sys/fs/bpf"), ("cgroup2", "sys/fs/cgroup")):
        with suppress(OSError):  # a kernel without it
            linux.mount(kind, root / place, kind)
    for place in ("proc/sys", "sys/fs/cgroup"):  # what it set there would stay, and it would leave its cgroup
        linux.mount_read_only(root / place)
    linux.unmount(host)
    os.chroot(root)
