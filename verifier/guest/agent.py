"""The guest agent: PID 1 of the micro-VM, already running inside the snapshot, doing one typed job at a time.

It runs as real-time task, so that no policy under test can starve it; its children go back to the normal class,
which is what sched_ext policies schedule. Everything it imports lands in the
initramfs, so keep it little.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from kernel_bpf.load import linux
from kernel_bpf.load.btf import kernel_constants
from kernel_bpf.load.libbpf import libbpf
from kernel_bpf.load.queue_counts import WATCHDOG_LIMIT, kernel_layout
from kernel_bpf.load.sched_ext import CONSTANT_PREFIX, LoadedPolicy
from schedagent.core.errors import BpfError, SchedagentError
from schedagent.core.terminal.printable import printable
from verifier.guest import costs
from verifier.guest.loader import LoadedHere, LoaderProgram, Scheduler
from verifier.guest.output import Output
from verifier.guest.recorder import Recorder
from verifier.guest.tree import HOST, ROOT, forget_setup, fresh_tree, mount_host, setup_tree
from verifier.guest.usage import Accounting, Group, Idleness, Layer, memory_bytes
from verifier.microvm import jobs
from verifier.microvm.clock.place import ClockPlace, find_clocks
from verifier.proving import prove, strangers
from verifier.proving.coverage import Copy
from verifier.proving.ground import Clock, Conditions
from verifier.proving.identity import Worn

CGROUP = Path("/sys/fs/cgroup/workload")
GROUP = Group(CGROUP)
DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
"""Programs expect these in /dev; elsewhere udev makes them."""

MODULES = Path("/modules")
PORTS = Path("/sys/class/virtio-ports")
PORT_WAIT_S = 5.0

SOFT_WATCHDOG = Path("/proc/sys/kernel/soft_watchdog")
RCU_STALLS = Path("/sys/module/rcupdate/parameters/rcu_cpu_stall_suppress")

TRIAL_WATCHDOG_MS = 5000
"""Longest timeout_ms of a policy in a trial, and that of one which leaves it to its loader: rule 26."""

_PRIORITY = 50
_ANOTHER_DATE_S = 333 * 86400 + 5 * 3600
"""Another year, month, day of the week and hour."""

_LEAP_LIMIT_S, _CALM_S, _CATCH_UP_S = 1.0, 0.03, 0.05
_CALIBRATION_ROUNDS = 60_000
_LOOK_S = 0.25
_SETTLE_ROUNDS = 5
_KILL_LIMIT_S = 10.0
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1  # linux/sockios.h, linux/if.h


def main() -> None:
    """Set up the machine, announce that it is ready, then answer jobs until the host ends the machine."""
    mount_system()
    raise_loopback()
    for module in sorted(MODULES.iterdir()):
        linux.load_module(module)
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(_PRIORITY))
    port = open_port()
    warm_up()
    kernel_constants(CONSTANT_PREFIX)  # once, before the snapshot: emulated, it takes seconds
    HOST_SIDE.begin(port)
    gc.freeze()
    send(port, {"answer": {"ready": True}})
    for line in HOST_SIDE.lines:
        send(port, respond(line))
        reap()


class HostSide:
    """The host at the other end of the port, as a job sees it: what only it can do may be wished for.

    Attributes:
        lines: what it sends.
    """

    def __init__(self) -> None:
        self.lines: Iterator[bytes] = iter(())
        self._port = -1
        self._place = ClockPlace()

    def begin(self, port: int) -> None:
        """Talk through this port; look up, once and before the snapshot, where the kernel keeps its clocks."""
        self._port, self.lines, limit_offset = port, lines(port), 0
        with suppress(BpfError):
            limit_offset = kernel_layout().offsets.get(WATCHDOG_LIMIT, 0)  # emulated, it takes seconds
        self._place = find_clocks(limit_offset)
        if RCU_STALLS.exists():
            RCU_STALLS.write_text("1")  # time that leaps would look like one

    def move_clock(self, ahead_s: int) -> bool:
        """Have the clocks set ahead, and the wall clock by more; return whether CLOCK_MONOTONIC shows it."""
        if not self._place.known:
            return False
        with no_soft_watchdog():
            time.sleep(_CALM_S)  # what is on its way to a CPU would be taken for a task that waits since long ago
            before_s = time.monotonic()
            if not self._granted(ahead_s):
                return False
            deadline_s = time.monotonic() + _LEAP_LIMIT_S
            while time.monotonic() < min(before_s + ahead_s, deadline_s):
                time.sleep(0.001)
            time.clock_settime(time.CLOCK_REALTIME, time.time() + _ANOTHER_DATE_S)
            time.sleep(_CATCH_UP_S)
            self._granted(ahead_s, ran=True)
        return time.monotonic() >= before_s + ahead_s

    def _granted(self, ahead_s: int, *, ran: bool = False) -> bool:
        wish = jobs.MoveClock(asdict(self._place), int(time.time()), ahead_s, ran)
        send(self._port, {"wish": wish.to_json()})
        return bool(json.loads(next(self.lines))["granted"])


@contextmanager
def no_soft_watchdog() -> Iterator[None]:
    """Switch off what takes time that leaps for a CPU that hangs, and ejects the policy for that (scx_softlockup())."""
    there = SOFT_WATCHDOG.exists()
    if there:
        SOFT_WATCHDOG.write_text("0")
    try:
        yield
    finally:
        if there:
            SOFT_WATCHDOG.write_text("1")


HOST_SIDE = HostSide()


def warm_up() -> None:
    """Load what the first job would otherwise load; also shows the image builder which files the agent needs."""
    libbpf()
    traceback.format_exc()
    printable("\033")  # a codec that is imported where it is needed: what it escapes are words of others


def mount_system() -> None:
    """Mount the kernel's own file systems."""
    linux.mount("proc", "/proc", "proc")
    linux.mount("sysfs", "/sys", "sysfs")
    linux.mount("devtmpfs", "/dev", "devtmpfs")
    for name, target in DEVICE_LINKS.items():
        Path("/dev", name).symlink_to(target)
    linux.mount("tmpfs", "/tmp", "tmpfs")
    linux.mount("cgroup2", "/sys/fs/cgroup", "cgroup2")
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+cpu")
    CGROUP.mkdir(exist_ok=True)


def raise_loopback() -> None:
    """Bring up the only network interface there is: many a test suite talks to itself over 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))


def open_port() -> int:
    """Open the virtio-serial port by its name; raise FileNotFoundError if the machine has none.

    A driver that was loaded as a module hears of its ports a moment later.
    """
    deadline = time.monotonic() + PORT_WAIT_S
    while time.monotonic() < deadline:
        for name in PORTS.glob("*/name"):
            if name.read_text().strip() == jobs.PORT_NAME:
                return os.open(f"/dev/{name.parent.name}", os.O_RDWR | os.O_CLOEXEC)
        time.sleep(0.01)
    raise FileNotFoundError(f"no virtio-serial port named {jobs.PORT_NAME}")


def lines(port: int) -> Iterator[bytes]:
    """Yield complete lines. A port whose host side is away reads as end of file: wait for it to come back."""
    pending = b""
    while True:
        chunk = os.read(port, 1 << 16)
        if not chunk:
            time.sleep(0.01)
            continue
        *complete, pending = (pending + chunk).split(b"\n")
        yield from complete


def send(port: int, message: dict[str, Any]) -> None:
    """Write one message, all of it."""
    rest = json.dumps(message).encode() + b"\n"
    while rest:
        rest = rest[os.write(port, rest) :]


def respond(line: bytes) -> dict[str, Any]:
    """Do the job a line asks for; an error becomes part of the answer, never the end of the agent."""
    try:
        fields = json.loads(line)
        kind = fields.pop("job")
        answer = HANDLERS[kind](jobs.JOBS[kind].from_json(fields))
        return {"answer": answer.to_json() if answer else {}}
    except SchedagentError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except Exception:  # noqa: BLE001  the process boundary: the host shows this traceback
        return {"error": "GuestFault", "message": traceback.format_exc(), "hint": ""}


def reap() -> None:
    """Collect every dead child: as PID 1 the agent inherits all orphans."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def hello(job: jobs.Hello) -> jobs.HelloAnswer:
    """Set the clock and say who this machine is."""
    time.clock_settime_ns(time.CLOCK_REALTIME, job.unix_time_ns)
    return jobs.HelloAnswer(os.uname().release, os.cpu_count() or 1, memory_bytes() >> 20)


def kill_workload() -> None:
    """Kill whatever the workload left behind and wait until it is gone; raise TimeoutError if it stays."""
    (CGROUP / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + _KILL_LIMIT_S
    while "populated 1" in (CGROUP / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the workload's processes were still there {_KILL_LIMIT_S:g} s after they were killed")
        reap()
        time.sleep(0.01)
    reap()


def spawn(job: jobs.RunWorkload | jobs.RunSetup, command: str, output: int) -> int:
    """Fork the shell for `command` inside the fresh tree, as the user who asked; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        (CGROUP / "cgroup.procs").write_text("0")
        if isinstance(job, jobs.RunWorkload) and command == job.command and (job.batch or job.slice_us):
            linux.set_fair_class(batch=job.batch, slice_ns=1000 * job.slice_us)
        os.setsid()
        os.chroot(ROOT)
        os.setgroups(job.groups)
        os.setgid(job.gid)
        os.setuid(job.uid)
        os.chdir(job.directory)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, a shell's children must not
            signal.signal(ignored, signal.SIG_DFL)
        os.execvpe(job.shell[0], [*job.shell, "-c", command], job.environment)
    except OSError as error:
        os.write(output, f"schedagent: cannot start the command in {job.shell[0]}: {error}\n".encode())
    finally:
        os._exit(126)


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        status: its exit status, negative for a signal; None if it was given up.
        at_ns: when (CLOCK_MONOTONIC).
        rusage: of the shell and of all that it waited for; None if it was given up.
        waited: whether it was given up because it did nothing for too long.
    """

    status: int | None
    at_ns: int
    rusage: resource.struct_rusage | None = None
    waited: bool = False


class Watch:
    """What the agent looks after while a command runs.

    Args:
        healthy: whether it makes sense to continue; asked a few times a second.
        look: called as often.
        idle_limit_s: see RunWorkload.
    """

    def __init__(
        self,
        output: Output,
        healthy: Callable[[], bool] = lambda: True,
        look: Callable[[], None] = lambda: None,
        idle_limit_s: float = 0.0,
    ) -> None:
        self._output = output
        self._healthy = healthy
        self._look = look
        self._idleness = Idleness(GROUP, idle_limit_s)
        self._looked_s = time.monotonic()

    def look(self) -> bool:
        """Empty the pipe, see to the rest less often, and return whether the command may continue."""
        self._output.drain()
        if time.monotonic() - self._looked_s < _LOOK_S:
            return True
        self._looked_s = time.monotonic()
        self._look()
        return self._healthy()

    @property
    def idle(self) -> bool:
        """Whether the command has waited for too long."""
        return self._idleness.reached()

    @property
    def pause_s(self) -> float:
        """How long nobody needs to look."""
        return self._output.pause_s


def wait(pid: int, timeout_s: float, watch: Watch) -> Ended:
    """Wait until `pid` ends; give up if it does not end in time, does not stay healthy, or does nothing for long."""
    deadline = time.monotonic() + timeout_s
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        while not poller.poll(watch.pause_s * 1000):
            if time.monotonic() > deadline or not watch.look():
                return Ended(None, time.monotonic_ns())
            if watch.idle:
                return Ended(None, time.monotonic_ns(), waited=True)
        ended_ns = time.monotonic_ns()
    finally:
        os.close(pidfd)
    _pid, status, rusage = os.wait4(pid, 0)
    return Ended(os.waitstatus_to_exitcode(status), ended_ns, rusage)


def calibrate() -> int:
    """Time a fixed piece of work on every CPU at once, under the default scheduler; return the mean in ns.

    A machine that something else disturbs answers with a longer time.
    """
    gate, opened = os.pipe()
    children = [start_probe(cpu, gate, opened) for cpu in sorted(os.sched_getaffinity(0))]
    os.close(gate)
    os.close(opened)  # all of them read end of file now, and start
    durations_ns = []
    for pid, reader in children:
        with os.fdopen(reader, "rb") as file:
            durations_ns.append(int(file.read()))
        os.waitpid(pid, 0)
    return sum(durations_ns) // len(durations_ns)


def start_probe(cpu: int, gate: int, opened: int) -> tuple[int, int]:
    """Fork a process that waits for the gate, works on `cpu` and writes how long it took, in ns, to a pipe."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    try:
        os.close(opened)
        os.sched_setaffinity(0, {cpu})
        os.read(gate, 1)
        start_ns = time.monotonic_ns()
        value = 1
        for _ in range(_CALIBRATION_ROUNDS):
            value = (value * 48271) % 2147483647
        os.write(writer, str(time.monotonic_ns() - start_ns).encode())
    finally:
        os._exit(0)


def load(policy: jobs.PolicyLoad, watchdog_ms: int = TRIAL_WATCHDOG_MS) -> LoadedPolicy:
    """Give a policy to the kernel's verifier; see LoadedPolicy.load.

    What its own loader may supply, we do: a timeout, and the reason of its end.
    """
    history, classes = dict(policy.history), dict(policy.classes)
    return LoadedPolicy.load(
        policy.object_bytes, policy.name, policy.tunables, history, classes, watchdog_ms, read_log=True
    )


def run_setup(job: jobs.RunSetup) -> jobs.SetupAnswer:
    """Run the setup command, and keep the files it wrote beneath all runs that follow, unless it failed."""
    with setup_tree(kill_workload), closing(Output(job.uid, job.gid)) as output:
        ended = wait(spawn(job, job.command, output.writer), job.timeout_s, Watch(output))
        answer = jobs.SetupAnswer(ended.status, output.printed().text)
    if answer.status != 0:
        forget_setup()
    return answer


def run_workload(job: jobs.RunWorkload) -> jobs.RunAnswer:
    """Calibrate, prepare, attach, run, detach, clean up; each time on a pristine tree."""
    calibration_ns = calibrate()
    with fresh_tree(kill_workload) as layers, closing(Output(job.uid, job.gid)) as output:
        if job.prepare:
            ended = wait(spawn(job, job.prepare, output.writer), job.timeout_s, Watch(output))
            printed = output.printed()
            if ended.status != 0:
                return jobs.RunAnswer(0, 0, None, ended.status, calibration_ns, printed.text, "", None)
        answer = run_measured(job, output, layers, calibration_ns)
        if not job.cleanup:
            return answer
        ended = wait(spawn(job, job.cleanup, output.writer), job.timeout_s, Watch(output))
        return replace(answer, cleanup_status=ended.status, cleanup_output=output.printed().text)


def settle() -> None:
    """Fork, run, wake and reap a little, in every arm, before the clock starts.

    Attaching a policy patches the kernel's code, which an emulator then has to translate again: without this the
    first tasks of a workload pay for it, and the default scheduler in disguise looks some 4 % slower than itself.
    What is left of that (1.5 %) is paid by both arms if the default's runs attach a policy and detach it again.
    """
    for _ in range(_SETTLE_ROUNDS):
        children = [start_nap() for _ in range(2)]
        for child in children:
            os.waitpid(child, 0)


def start_nap() -> int:
    """Fork a process that sleeps for a millisecond and ends; return its pid."""
    pid = os.fork()
    if pid == 0:
        time.sleep(0.001)
        os._exit(0)
    return pid


def scheduler_of(job: jobs.RunWorkload) -> Scheduler | None:
    """What puts the run's policy in charge; None for the default scheduler."""
    if job.loader:
        return LoaderProgram(job.loader, ROOT, HOST)
    return LoadedHere(load(job.policy)) if job.policy else None


def run_measured(job: jobs.RunWorkload, output: Output, layers: Sequence[Layer], calibration_ns: int) -> jobs.RunAnswer:
    """The timed part of a run, under its scheduler."""
    scheduler = scheduler_of(job)
    try:
        failure = scheduler.attach() if scheduler else ""
        if scheduler and not job.attached:
            if not failure:
                scheduler.end()
            scheduler.close()
            scheduler, failure = None, ""
        if failure:
            return jobs.RunAnswer(0, 0, None, 0, calibration_ns, "", "", None, loader=jobs.LoaderAnswer(failure))
        return run_under(scheduler, job, output, layers, calibration_ns)
    finally:
        if scheduler:
            scheduler.close()


def look_after(accounting: Accounting, layers: Sequence[Layer], scheduler: Scheduler | None) -> None:
    """See now and then to what fills up while the command runs."""
    accounting.look()
    for layer in layers:
        layer.look()
    if scheduler:
        scheduler.drain()


def run_under(
    scheduler: Scheduler | None, job: jobs.RunWorkload, output: Output, layers: Sequence[Layer], calibration_ns: int
) -> jobs.RunAnswer:
    """Run the command under a scheduler that is in charge, which is ended before it is reckoned what was used."""
    recorder = Recorder() if job.observe else None
    with closing(Accounting(GROUP)) as accounting:
        settle()
        if recorder:
            recorder.start()
        look = partial(look_after, accounting, layers, scheduler)
        accounting.start(scheduler.pids if scheduler else ())
        watch = Watch(output, scheduler.enabled if scheduler else lambda: True, look, job.idle_limit_s)
        start_ns = time.monotonic_ns()
        pid = spawn(job, job.command, output.writer)
        ended = wait(pid, job.timeout_s, watch)
        ending = accounting.end(shell_ended=ended.status is not None)
        beside_ns = scheduler.cpu_ns() if scheduler else 0
        look()
        printed = output.printed()
        observation = recorder.stop(pid).to_json() if recorder else None
        ending = accounting.watch(ending, output.drain)
        ejected, failure = scheduler.end() if scheduler else ("", "")
        usage = accounting.usage(ending, ended.rusage, printed.total_bytes, layers)
    return jobs.RunAnswer(
        wall_ns=ended.at_ns - start_ns,
        cpu_ns=ending.cpu_ns,
        exit_status=ended.status,
        prepare_status=0,
        calibration_ns=calibration_ns,
        output=printed.text,
        policy_exit=ejected,
        observation=observation,
        usage=asdict(usage),
        busy=list(ending.left.busy),
        waited=ended.waited,
        loader=jobs.LoaderAnswer(failure, beside_ns) if job.loader and scheduler else None,
    )


def copy_of(job: jobs.Prove) -> Copy | None:
    """The copy with probes, which knows tasks of our own besides those that the loader names; None if there is none."""
    if not job.copy_base64:
        return None
    known = strangers.identities()
    expected = {identity: strangers.EXPECTED_NS[number] for identity, number in known.items()}
    policy = replace(
        job.policy,
        object_base64=job.copy_base64,
        history=[*job.policy.history, *(expected.items() if "history" in job.copy_inputs else ())],
        classes=[*job.policy.classes, *(known.items() if "classes" in job.copy_inputs else ())],
    )
    loaded = partial(load, policy, prove.WATCHDOG_MS)
    return Copy(loaded, job.copy_section, strangers=bool(job.copy_inputs), hotplug=job.copy_hotplug)


class Cell:
    """What this machine keeps of one policy between two jobs: loading it takes an emulated CPU a second or so."""

    def __init__(self) -> None:
        self._loaded: tuple[jobs.PolicyLoad, LoadedPolicy] | None = None

    def load_policy(self, job: jobs.LoadPolicy) -> jobs.LoadAnswer:
        """Load, for the proof that may follow, and return the figures of the kernel's verifier."""
        policy = load(job.policy, prove.WATCHDOG_MS)
        self._loaded = (job.policy, policy)
        return jobs.LoadAnswer(policy.verifier_stats())

    def run_prove(self, job: jobs.Prove) -> jobs.ProveAnswer:
        """Take a policy through the phases of the proving ground."""
        worn = Worn(**{trait: tuple(values) for trait, values in job.worn.items()})
        conditions = Conditions(worn, job.reads, Clock(HOST_SIDE.move_clock), job.stretch)
        loaded = partial(self._load, job.policy, watchdog_ms=int(prove.WATCHDOG_MS * job.stretch))
        proof = prove.prove(loaded, job.seconds, job.phases, conditions, copy_of(job))
        marks = proof.marks
        return jobs.ProveAnswer(
            exit_text=proof.exit_text,
            results=[result.to_json() for result in proof.results],
            events=proof.events,
            seconds=proof.seconds,
            stalled_s=proof.stalled_s,
            undecided=proof.undecided,
            passed=list(marks.passed),
            kept=list(marks.kept),
            entered=None if marks.entered is None else sorted(marks.entered.items()),
            unmeasured=marks.why,
            queues_unmeasured=marks.why_queues,
        )

    def _load(self, policy: jobs.PolicyLoad, watchdog_ms: int = prove.WATCHDOG_MS) -> LoadedPolicy:
        """Load afresh, unless the policy was loaded with this watchdog and not yet used."""
        if self._loaded and self._loaded[0] == policy and watchdog_ms == prove.WATCHDOG_MS:
            loaded, self._loaded = self._loaded[1], None
            return loaded
        return load(policy, watchdog_ms)


CELL = Cell()
HANDLERS: dict[str, Callable[[Any], jobs.Message | None]] = {
    "Hello": hello,
    "MountHost": lambda job: mount_host(job.hidden),
    "RunSetup": run_setup,
    "RunWorkload": run_workload,
    "LoadPolicy": CELL.load_policy,
    "Prove": CELL.run_prove,
    "MeasureCosts": lambda _job: costs.measure(),
}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
