"""One QEMU process: start it (by booting or from a snapshot), talk to its guest agent, end it.

QEMU runs without privileges, in its own seccomp sandbox, without a network device, and dies with us. Every file
reaches it as an open descriptor (/dev/fd/N), so it needs no access to any folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pwd
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from schedagent.core import errors, proc
from schedagent.core.errors import SchedagentError, VmLost
from verifier.microvm import jobs

log = logging.getLogger(__name__)

KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off tsc=reliable no_timer_check delayacct"
)
"""`oops=panic panic=-1` with -no-reboot turns every kernel fault into the end of QEMU, which we see at once.
`mitigations=off` only saves time under emulation and is the same for every arm of a comparison."""

CONSOLE_TAIL_CHARS = 3000
BOOT_TIMEOUT_S = 120.0
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
    """

    kernel: Path
    initrd: Path
    cpus: int
    memory_mib: int
    kvm: bool
    hostfs: bool


class GuestFault(VmLost):
    """The guest agent itself failed at a job; nothing can be said about the policy."""


class Channel:
    """JSON lines over a socket, with a deadline on every read."""

    def __init__(self, sock: socket.socket, what: str) -> None:
        self.sock = sock
        self.what = what
        self._pending = b""

    def send(self, message: Mapping[str, Any], timeout_s: float = 30.0) -> None:
        """Send one message; raise VmLost if the other side is gone or does not read."""
        self.sock.settimeout(timeout_s)
        try:
            self.sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise VmLost(f"{self.what} is gone: {error}") from None

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return the next message; raise VmLost on a deadline, an end of file or nonsense."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            self.sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                chunk = self.sock.recv(1 << 20)
            except TimeoutError:
                raise VmLost(f"{self.what} gave no answer within {timeout_s:g} s") from None
            except OSError as error:
                raise VmLost(f"{self.what} is gone: {error}") from None
            if not chunk:
                raise VmLost(f"{self.what} ended without an answer")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            raise VmLost(f"{self.what} sent something that is not JSON: {line[:200]!r}") from None
        if not isinstance(message, dict):
            raise VmLost(f"{self.what} sent something that is not an object: {line[:200]!r}")
        return message


class Machine:
    """A running micro-VM. Use as a context manager; leaving it kills QEMU."""

    def __init__(self, process: subprocess.Popen[bytes], qmp: Channel, agent: Channel, console: IO[bytes]) -> None:
        self._process = process
        self._qmp = qmp
        self._agent = agent
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @classmethod
    def boot(cls, spec: MachineSpec, snapshot: IO[bytes] | None = None) -> Self:
        """Boot the kernel and wait until the agent is ready; raise VmLost with the console's end if it never is.

        Args:
            snapshot: an open file that `save` will write to; QEMU must be allowed to write to it.
        """
        machine = cls._start(spec, state=snapshot, incoming=False)
        with machine._or_close():
            ready = machine._agent.receive(BOOT_TIMEOUT_S)
            if ready != {"answer": {"ready": True}}:
                raise VmLost(f"the guest agent began with {ready!r}")
        return machine

    @classmethod
    def restore(cls, spec: MachineSpec, snapshot: Path) -> Self:
        """Continue from a snapshot of a machine of the same spec; the agent is then waiting for a job."""
        with snapshot.open("rb") as file:
            machine = cls._start(spec, state=file, incoming=True)
        with machine._or_close():
            machine._await_migration("inmigrate")
            machine.command("cont")
        return machine

    @classmethod
    def _start(cls, spec: MachineSpec, state: IO[bytes] | None, incoming: bool) -> Self:
        qmp_ours, qmp_theirs = socket.socketpair()
        agent_ours, agent_theirs = socket.socketpair()
        console = tempfile.TemporaryFile(prefix="schedagent-console-")  # noqa: SIM115  closed in close()
        with spec.kernel.open("rb") as kernel, spec.initrd.open("rb") as initrd, qmp_theirs, agent_theirs:
            files = [kernel.fileno(), initrd.fileno(), qmp_theirs.fileno(), agent_theirs.fileno()]
            argv = [*launcher(spec.hostfs), *qemu_argv(spec, *files)]
            if state:
                files.append(state.fileno())
            if state and incoming:
                argv += ["-incoming", f"file:/dev/fd/{state.fileno()}"]
            process = proc.start(argv, output=console.fileno(), pass_fds=files)
        machine = cls(process, Channel(qmp_ours, "QEMU"), Channel(agent_ours, "the guest agent"), console)
        with machine._or_close():
            machine._qmp.receive(RESTORE_TIMEOUT_S)  # greeting
            machine.command("qmp_capabilities")
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
        """Stop the machine and write its state to the file that `boot` was given."""
        self.command("stop")
        self.command("migrate", uri=f"file:/dev/fd/{snapshot.fileno()}")
        self._await_migration("postmigrate")

    def _await_migration(self, leaves: str) -> None:
        """Wait until a migration in or out is over: QEMU's run state tells."""
        deadline = time.monotonic() + RESTORE_TIMEOUT_S
        while time.monotonic() < deadline:
            status = self.command("query-status")["status"]
            if (leaves == "postmigrate") == (status == "postmigrate") and status != "inmigrate":
                return
            time.sleep(0.005)
        raise VmLost(f"the machine's state could not be moved within {RESTORE_TIMEOUT_S:g} s")

    def call(self, job: jobs.Message, timeout_s: float) -> dict[str, Any]:
        """Give the agent a job and return the fields of its answer.

        Raises:
            VmLost: no answer in time, QEMU or the guest kernel died, or the agent failed (GuestFault).
            SchedagentError: the error the agent reported, by its own type.
        """
        with self._or_close():
            self._agent.send({"job": type(job).__name__, **job.to_json()})
            reply = self._agent.receive(timeout_s)
            if reply.get("error") == "GuestFault":
                raise GuestFault(f"the guest agent failed at {type(job).__name__}:\n{reply['message']}")
        if "error" in reply:
            raise guest_error(reply)
        answer = reply.get("answer")
        if not isinstance(answer, dict):
            raise GuestFault(f"the guest agent answered {type(job).__name__} with {reply!r}")
        return answer

    def console_tail(self) -> str:
        """The end of the guest kernel's console and of what QEMU itself said."""
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
        for channel in (self._qmp, self._agent):
            channel.sock.close()
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


def qemu_argv(spec: MachineSpec, kernel: int, initrd: int, qmp: int, agent: int) -> Sequence[str]:
    """The QEMU command line; the integers are inherited file descriptors."""
    accel = ["-accel", "kvm", "-cpu", "host"] if spec.kvm else ["-accel", "tcg,thread=multi", "-cpu", "max"]
    argv = [
        "qemu-system-x86_64", "-name", "schedagent", "-machine", "q35,usb=off,smbus=off,sata=off,vmport=off,i8042=off",
        *accel,
        "-smp", str(spec.cpus), "-m", f"{spec.memory_mib}M",
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-kernel", f"/dev/fd/{kernel}", "-initrd", f"/dev/fd/{initrd}", "-append", KERNEL_ARGUMENTS,
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
        "-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=agent,fd={agent}",
        "-device", "virtio-serial-pci", "-device", f"virtserialport,chardev=agent,name={jobs.PORT_NAME}",
    ]  # fmt: skip
    if spec.hostfs:
        argv += ["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]
        argv += ["-device", f"virtio-9p-pci,fsdev=host,mount_tag={jobs.HOST_TAG}"]
    return argv
