"""One QEMU process: start it (by booting or from a snapshot), talk to its guest agent, end it.

QEMU runs without privileges, in its own seccomp sandbox, without a network device, and dies with us. Every file
reaches it as an open descriptor (/dev/fd/N), so it needs no access to any folder.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from schedagent.core import errors
from schedagent.core.errors import SchedagentError, SetupError, VmLost
from schedagent.core.process import proc
from verifier.microvm import jobs
from verifier.microvm.clock.debugger import PORT_ID, Debugger
from verifier.microvm.clock.move import move_clocks, rest_watchdog
from verifier.microvm.clock.place import ClockPlace
from verifier.microvm.topology import Topology

log = logging.getLogger(__name__)

KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off tsc=reliable no_timer_check delayacct"
)
"""`oops=panic panic=-1` with -no-reboot turns every kernel fault into the end of QEMU, which we see at once.
`mitigations=off` only saves time under emulation and is the same for every arm of a comparison."""

SHAPED_CPU = "max,vendor=GenuineIntel"
"""For a guest of a certain shape: the kernel asks AMD's CPUs for shared caches by a leaf that emulation lacks."""

KVM_DEVICE = Path("/dev/kvm")

CONSOLE_TAIL_CHARS = 3000
CONSOLE_LIMIT_BYTES = 16 << 20
"""QEMU may write no longer file than this once it runs what others wrote: a guest cannot fill the host's disk."""

MESSAGE_LIMIT_BYTES = 256 << 20
"""No honest answer comes near it; the observation of 100 000 tasks takes a tenth."""

MOST_WISHES = 1000
"""So often may a job have the clocks moved."""

BOOT_TIMEOUT_S = 120.0
SAVE_TIMEOUT_S = 120.0
RESTORE_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class MachineSpec:
    """What a machine is made of; two machines of one spec can share a snapshot.

    Args:
        kernel, initrd: files.
        cpus: virtual CPUs.
        memory_mib: guest memory.
        kvm: use KVM instead of emulation; only where a probe boot proved that it works.
        hostfs: give it the host's root file system, read-only over 9p.
        disks: raw images, each a virtio disk; what the guest writes to them is gone with the machine.
        arguments: the kernel's command line.
        topology: how the CPUs are arranged; None for CPUs that share nothing.
    """

    kernel: Path
    initrd: Path
    cpus: int
    memory_mib: int
    kvm: bool
    hostfs: bool
    disks: tuple[Path, ...] = ()
    arguments: str = KERNEL_ARGUMENTS
    topology: Topology | None = None


class GuestFault(VmLost):
    """The guest agent itself failed at a job, which is no verdict on the policy."""


class Channel:
    """JSON lines over a socket, with a deadline on every read."""

    def __init__(self, sock: socket.socket, what: str) -> None:
        self.sock = sock
        self.what = what
        self._pending = bytearray()

    def send(self, message: Mapping[str, Any], timeout_s: float = 30.0) -> None:
        """Send one message; raise VmLost if the other side is gone or does not read."""
        try:
            self.sock.settimeout(timeout_s)
            self.sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise VmLost(f"{self.what} is gone: {error}") from None

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return the next message; raise VmLost on a deadline, an end of file or nonsense."""
        deadline = time.monotonic() + timeout_s
        seen = 0
        while (end := self._pending.find(b"\n", seen)) < 0:
            seen = len(self._pending)
            if seen > MESSAGE_LIMIT_BYTES or time.monotonic() > deadline:
                raise VmLost(f"{self.what} gave no whole answer within {timeout_s:g} s, but {seen} bytes")
            self._pending += self._chunk(max(0.001, deadline - time.monotonic()), timeout_s)
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        try:
            message = json.loads(line)
        except ValueError:
            raise VmLost(f"{self.what} sent something that is not JSON: {line[:200]!r}") from None
        if not isinstance(message, dict):
            raise VmLost(f"{self.what} sent something that is not an object: {line[:200]!r}")
        return message

    def _chunk(self, left_s: float, timeout_s: float) -> bytes:
        try:
            self.sock.settimeout(left_s)
            chunk = self.sock.recv(1 << 20)
        except TimeoutError:
            raise VmLost(f"{self.what} gave no answer within {timeout_s:g} s") from None
        except OSError as error:
            raise VmLost(f"{self.what} is gone: {error}") from None
        if not chunk:
            raise VmLost(f"{self.what} ended without an answer")
        return chunk


class Machine:
    """A running micro-VM. Use as a context manager; leaving it kills QEMU."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        qmp: Channel,
        agent: Channel,
        console: IO[bytes],
        debugger: socket.socket,
    ) -> None:
        self._process = process
        self._qmp = qmp
        self._agent = agent
        self._console = console
        self._debugger = debugger
        self._debugged = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @classmethod
    def boot(cls, spec: MachineSpec, snapshot: IO[bytes] | None = None, timeout_s: float = BOOT_TIMEOUT_S) -> Self:
        """Boot the kernel and wait until the agent is ready; raise VmLost with the console's end if it never is.

        Args:
            snapshot: an open file that `save` will write to; QEMU must be allowed to write to it.
        """
        machine = cls._start(spec, [snapshot.fileno()] if snapshot else [], incoming=False)
        with machine._or_close():
            ready = machine._agent.receive(timeout_s)
            if ready != {"answer": {"ready": True}}:
                raise VmLost(f"the guest agent began with {ready!r}")
        return machine

    @classmethod
    def restore(cls, spec: MachineSpec, snapshot: Path) -> Self:
        """Continue from a snapshot of a machine of the same spec; the agent is then waiting for a job."""
        with snapshot.open("rb") as file:
            machine = cls._start(spec, [file.fileno()], incoming=True)
            with machine._or_close():
                problem = machine._migrate("migrate-incoming", file, RESTORE_TIMEOUT_S)
                if problem:
                    raise VmLost(f"QEMU could not read the machine's state: {problem}")
                machine.command("cont")
        return machine

    @classmethod
    def _start(cls, spec: MachineSpec, files: Sequence[int], incoming: bool) -> Self:
        """Start QEMU with `files` open, and wait until it answers."""
        with contextlib.ExitStack() as opened:
            kernel, initrd, *disks = (
                opened.enter_context(readable(path)).fileno() for path in (spec.kernel, spec.initrd, *spec.disks)
            )
            kvm = opened.enter_context(open_kvm()).fileno() if spec.kvm else None
            qmp_ours, qmp_theirs = socket.socketpair()
            agent_ours, agent_theirs = socket.socketpair()
            debugger_ours, debugger_theirs = socket.socketpair()
            console = tempfile.TemporaryFile(prefix="schedagent-console-")  # noqa: SIM115  closed in close()
            qmp, agent, debugger = (
                opened.enter_context(theirs).fileno() for theirs in (qmp_theirs, agent_theirs, debugger_theirs)
            )
            argv = [*launcher(spec.hostfs), *qemu_argv(spec, kernel, initrd, qmp, agent, kvm, disks)]
            argv += ["-chardev", f"socket,id={PORT_ID},fd={debugger}"]
            if incoming:
                argv = ["prlimit", f"--fsize={CONSOLE_LIMIT_BYTES}", *argv, "-incoming", "defer"]
            inherited = [kernel, initrd, qmp, agent, debugger, *disks, *files, *([] if kvm is None else [kvm])]
            start = functools.partial(proc.start, argv, output=console.fileno(), pass_fds=inherited)
            process = _qemu_parent(os.getpid()).submit(start)
            qmp_channel, agent_channel = Channel(qmp_ours, "QEMU"), Channel(agent_ours, "the guest agent")
            machine = cls(process.result(), qmp_channel, agent_channel, console, debugger_ours)
        with machine._or_close():
            machine._qmp.receive(RESTORE_TIMEOUT_S)  # greeting
            machine.command("qmp_capabilities")
            machine._pin_cpus()
        return machine

    @contextlib.contextmanager
    def _or_close(self) -> Iterator[None]:
        """Close the machine if the body fails, adding the console's end to a VmLost."""
        try:
            yield
        except VmLost as error:
            error.hint = error.hint or self.console_tail()
            self.close()
            raise
        except BaseException:
            self.close()
            raise

    def _pin_cpus(self) -> None:
        """Give each virtual CPU a host CPU of its own, as far as they go.

        A host that runs two of them on one CPU for a while (some hosts pack virtual CPUs on purpose) would otherwise
        look like a policy that serialises the guest.
        """
        host = sorted(os.sched_getaffinity(0))
        threads = [cpu["thread-id"] for cpu in self.command("query-cpus-fast")]
        if len(threads) > len(host):
            return
        for thread, cpu in zip(threads, host, strict=False):
            with contextlib.suppress(OSError):  # only a less steady measurement, which the calibration probe shows
                os.sched_setaffinity(thread, {cpu})

    def command(self, name: str, **arguments: Any) -> Any:
        """Run a QMP command and return its result; raise VmLost if QEMU refuses it."""
        self._qmp.send({"execute": name, "arguments": arguments})
        while True:
            reply = self._qmp.receive(RESTORE_TIMEOUT_S)
            if "error" in reply:
                raise VmLost(f"QEMU refused {name}: {reply['error'].get('desc')}")
            if "return" in reply:
                return reply["return"]

    def save(self, snapshot: IO[bytes]) -> None:
        """Stop the machine and write its state to the file that `boot` was given.

        Raises:
            SetupError: it could not be written, for example because the disk is full.
        """
        self.command("stop")
        problem = self._migrate("migrate", snapshot, SAVE_TIMEOUT_S)
        if problem:
            raise SetupError(
                f"QEMU could not write the machine's state: {problem}", "is the disk of the cache folder full?"
            )

    def _migrate(self, direction: str, snapshot: IO[bytes], timeout_s: float) -> str:
        """Move the machine's state in or out; return what went wrong, empty if nothing did.

        With mapped-ram every page has its place in the (sparse) file, so memory that was never used costs nothing:
        a 2 GiB guest is restored in half the time.
        """
        self.command("migrate-set-capabilities", capabilities=[{"capability": "mapped-ram", "state": True}])
        self.command(direction, uri=f"file:/dev/fd/{snapshot.fileno()}")
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            answer = self.command("query-migrate")
            if answer.get("status") == "completed":
                return ""
            if answer.get("status") == "failed":
                return str(answer.get("error-desc", "QEMU gave no reason"))
            time.sleep(0.005)
        raise VmLost(f"the machine's state could not be moved within {timeout_s:g} s")

    def call(self, job: jobs.Message, timeout_s: float) -> dict[str, Any]:
        """Give the agent a job and return the fields of its answer.

        Raises:
            VmLost: no answer in time, QEMU or the guest kernel died, or the agent failed (GuestFault).
            SchedagentError: the error the agent reported, by its own type.
        """
        with self._or_close():
            self._agent.send({"job": type(job).__name__, **job.to_json()})
            reply = self._agent.receive(timeout_s)
            for _ in range(MOST_WISHES):
                if "wish" not in reply:
                    break
                self._grant(reply["wish"])
                reply = self._agent.receive(timeout_s)
            if reply.get("error") == "GuestFault":
                raise GuestFault(f"the guest agent failed at {type(job).__name__}:\n{reply['message']}")
            answer = reply.get("answer", {})
            if not isinstance(answer, dict):
                raise GuestFault(f"the guest agent answered {type(job).__name__} with {reply!r}")
        if "error" in reply:
            raise guest_error(reply)
        return answer

    def _grant(self, fields: Any) -> None:
        """Grant a wish while the machine stands still, and let it continue; GuestFault if it makes no sense."""
        try:
            wish = jobs.MoveClock.from_json(fields)
            place = ClockPlace(**wish.place)
            numbers = (*asdict(place).values(), wish.wall_s, wish.ahead_s)
        except (TypeError, ValueError):
            raise GuestFault(f"the guest agent wished for {fields!r:.200}") from None
        if not all(type(number) is int and 0 <= number < 1 << 64 for number in numbers):
            raise GuestFault(f"the guest agent wished for {fields!r:.200}")
        if self._debugged:
            self.command("stop")
        else:  # which stops the machine as well
            self.command("human-monitor-command", **{"command-line": f"gdbserver chardev:{PORT_ID}"})
            self._debugged = True
        debugger = Debugger(self._debugger)
        if wish.ran:
            granted = rest_watchdog(debugger, place, wish.ahead_s)
        else:
            granted = move_clocks(debugger, place, wish.wall_s, wish.ahead_s)
        self.command("cont")
        self._agent.send({"granted": granted})

    def console_tail(self) -> str:
        """The end of the guest kernel's console and of what QEMU itself printed."""
        if self._console.closed:
            return ""
        self._console.seek(0)
        text = self._console.read().decode(errors="replace").replace("\r", "")
        return f"end of the console:\n{text[-CONSOLE_TAIL_CHARS:]}" if text.strip() else ""

    @property
    def pid(self) -> int:
        """Process id of QEMU."""
        return self._process.pid

    def close(self) -> None:
        """Kill QEMU and wait for it. May be called again."""
        self._process.kill()
        self._process.wait()
        for sock in (self._qmp.sock, self._agent.sock, self._debugger):
            sock.close()
        self._console.close()


def guest_error(reply: Mapping[str, Any]) -> SchedagentError:
    """Turn an error the agent reported back into the exception it was."""
    kind = getattr(errors, str(reply["error"]), None)
    if not (isinstance(kind, type) and issubclass(kind, SchedagentError)):
        return GuestFault(f"the guest agent reported an unknown error {reply!r}")
    return kind(str(reply.get("message", "")), hint=str(reply.get("hint", "")))


def launcher(hostfs: bool) -> list[str]:
    """The setpriv command line that drops privileges and ties QEMU's life to ours.

    Started by root, QEMU becomes `nobody`; with `hostfs` it keeps the one capability of reading files that it does
    not own, because the workload's tree is root's.
    """
    argv = ["setpriv", "--no-new-privs", "--pdeathsig", "KILL"]
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        argv += [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
        kept = "-all,+dac_read_search" if hostfs else "-all"
        argv += [f"--inh-caps={kept}", f"--ambient-caps={kept}", f"--bounding-set={kept}"]
    return [*argv, "--"]


def kvm_arguments(kvm: int) -> list[str]:
    """Return the QEMU options for KVM through an open descriptor of /dev/kvm: QEMU itself needs no right to it."""
    return ["-add-fd", f"fd={kvm},set=1", "-accel", "kvm,device=/dev/fdset/1", "-cpu", "host"]


def open_kvm() -> IO[bytes]:
    """Open /dev/kvm; raise SetupError if this user may not."""
    try:
        return KVM_DEVICE.open("r+b", buffering=0)
    except OSError as error:
        raise SetupError(f"{KVM_DEVICE} cannot be opened: {error.strerror}", "run: schedagent doctor") from None


def readable(path: Path) -> IO[bytes]:
    """Open a file such that QEMU, which may run as `nobody`, can open its descriptor again through /dev/fd.

    Some distributions let only root read kernels; those are copied to memory.
    """
    file = path.open("rb")
    if os.geteuid() != 0 or os.fstat(file.fileno()).st_mode & 0o004:
        return file
    with file:
        copy = os.fdopen(os.memfd_create(path.name), "w+b")
        shutil.copyfileobj(file, copy)
        copy.flush()
        return copy


@functools.cache
def _qemu_parent(_pid: int) -> ThreadPoolExecutor:
    """The thread that starts every QEMU and lives as long as this process.

    The kernel sends the signal of `--pdeathsig` when the thread that started the child ends (prctl(2)), which must
    not be any thread that happens to open a machine. One for each process id, because fork() takes no threads along.
    """
    return ThreadPoolExecutor(1, "qemu-parent")


def qemu_argv(
    spec: MachineSpec, kernel: int, initrd: int, qmp: int, agent: int, kvm: int | None, disks: Sequence[int] = ()
) -> Sequence[str]:
    """The QEMU command line; the integers are inherited file descriptors, `kvm` is None for emulation."""
    accel = ["-accel", "tcg,thread=multi", "-cpu", "max"] if kvm is None else kvm_arguments(kvm)
    cpus_and_memory = ["-smp", str(spec.cpus), "-m", f"{spec.memory_mib}M"]
    if spec.topology:
        cpus_and_memory = spec.topology.qemu_arguments(spec.memory_mib)
        accel += ["-cpu", SHAPED_CPU] * (kvm is None)
    argv = [
        "qemu-system-x86_64", "-name", "schedagent", "-machine", "q35,usb=off,smbus=off,sata=off,vmport=off,i8042=off",
        *accel,
        *cpus_and_memory,
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-kernel", f"/dev/fd/{kernel}", "-initrd", f"/dev/fd/{initrd}", "-append", spec.arguments,
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
        "-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=agent,fd={agent}",
        "-device", "virtio-serial-pci", "-device", f"virtserialport,chardev=agent,name={jobs.PORT_NAME}",
    ]  # fmt: skip
    for disk in disks:
        argv += ["-drive", f"file=/dev/fd/{disk},format=raw,if=virtio,snapshot=on"]
    if spec.hostfs:
        argv += ["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]
        argv += ["-device", f"virtio-9p-pci,fsdev=host,mount_tag={jobs.HOST_TAG}"]
    return argv
