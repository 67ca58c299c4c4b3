"""A policy's life around its work: CPUs that come and go, loading again and again, and an end by force.

Each phase leaves the machine under the default scheduler. That a task continues is read
from the CPU time which the kernel charges it with. Kernel facts: handle_hotplug(), scx_tick() and scx_disable_workfn()
in kernel/sched/ext.c, dl_server_apply_params() in kernel/sched/deadline.c.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kernel_bpf.load import linux
from kernel_bpf.load.bpf_object import count_loaded
from kernel_bpf.load.exit_info import NO_RECORD
from kernel_bpf.load.sched_ext import LoadedPolicy, kernel_state
from schedagent.core.errors import BpfError, PolicyError
from schedagent.core.terminal.foreign import quote
from verifier.proving import work
from verifier.proving.crew import REAP_LIMIT_S, Crew, Task
from verifier.proving.ground import Load
from verifier.proving.oracle import OracleInfo, OracleResult

RUN_AGAIN_BOUND_S = 2.0
RECOVERY_LIMIT_S = 10.0
WATCHDOG_MS = 700
FEWEST_ROUNDS = 2
ROUND_S = 0.35
"""What attaching, detaching and seeing every task run takes an emulated machine, about."""

CPU_HOTPLUG = OracleInfo(
    "CPU hotplug",
    25,
    RUN_AGAIN_BOUND_S,
    "s",
    "the longest time until every task had run again after a CPU went, after it came back, and after the policy ended",
    "With half a dozen busy tasks on one CPU and slices of at most 100 ms each waits some 0.6 s; 2 s is the starvation"
    " bound. The policy may stay, or be ended by the kernel with a restart code; an error or a stall fails it.",
)
RELOAD_LOOP = OracleInfo(
    "reload loop",
    25,
    RUN_AGAIN_BOUND_S,
    "s",
    "the longest time until every task had run again after the policy was attached or detached, while tasks are forked",
    "Each swap passes through the kernel's bypass mode, which takes milliseconds; 2 s is the starvation bound. Every"
    " load must be confirmed, every end must be orderly, and no BPF program or map may stay behind.",
)
PROVOKED_STALL = OracleInfo(
    "provoked stall",
    26,
    RUN_AGAIN_BOUND_S,
    "s",
    "the time from the end of a stall to the moment at which every task has run under the default scheduler",
    "Real-time tasks hold every CPU for longer than the watchdog allows, so the kernel ejects the policy; its exit and"
    " dump callbacks run then, and what they need delays everybody. The kernel's own part takes about 0.2 s.",
)
ORACLES = (CPU_HOTPLUG, RELOAD_LOOP, PROVOKED_STALL)


@dataclass(frozen=True)
class Wait:
    """A wait for every task to run again.

    Args:
        after: what happened before it, for people.
        seconds: how long it took; more than the bound if it gave up.
        between_s: longest time between two looks: the watcher may be what was late.
        stuck: the tasks that had not run by then, and what they did.
    """

    after: str
    seconds: float
    between_s: float = 0.0
    stuck: tuple[str, ...] = ()

    @property
    def known(self) -> str:
        """Who was late."""
        looks = f"up to {self.between_s:.2f} s between two looks"
        return f"these had not run: {'; '.join(self.stuck)}; {looks}" if self.stuck else f"all had run; {looks}"


_CPUS = Path("/sys/devices/system/cpu")
_DEBUGFS = Path("/sys/kernel/debug")
_RT_RUNTIME = Path("/proc/sys/kernel/sched_rt_runtime_us")
_POLL_S = 0.005
_HOG_PRIORITY = 10


def cpu_hotplug(
    policy: LoadedPolicy,
    seconds: float,
    stretch: float = 1.0,
    start: Callable[[Crew], Sequence[Task]] | None = None,
) -> list[OracleResult]:
    """Take a CPU away from busy tasks and give it back, under a policy that is attached; end the policy.

    Args:
        stretch: see ground.Conditions.
        start: starts the tasks, the first of them pinned to the CPU that goes away; start_tasks if None.
    """
    waits: list[Wait] = []
    bound_s = RUN_AGAIN_BOUND_S * stretch
    with Crew(REAP_LIMIT_S * stretch) as crew:
        tasks = (start or start_tasks)(crew)
        until_all_ran(tasks, "its start", bound_s)
        refused = go_and_come(tasks, waits, seconds / 4, bound_s)
        problem, ending = judge_hotplug_end(policy)
        policy.close()
        waits.append(until_all_ran(tasks, "the policy's end", bound_s))
    detail = f"CPU {last_cpu()} went and came back; {ending}; {figures(waits)}"
    return [judge(CPU_HOTPLUG.stretched(stretch), waits, refused or problem, detail)]


def go_and_come(tasks: Sequence[Task], waits: list[Wait], pause_s: float, bound_s: float = RUN_AGAIN_BOUND_S) -> str:
    """Take the CPU away and give it back; return why the kernel refused, empty if it did not."""
    try:
        for online in ("0", "1"):
            switch_cpu(online)
            if online == "1":  # a task pinned to a CPU that goes away may run anywhere afterwards
                os.sched_setaffinity(tasks[0].pid, {last_cpu()})
            waits.append(until_all_ran(tasks, "the CPU came back" if online == "1" else "the CPU went", bound_s))
            time.sleep(pause_s)
    except OSError as error:
        return f"the CPU could not be switched: {error.strerror}"
    finally:
        switch_cpu("1")
    return ""


def judge_hotplug_end(policy: LoadedPolicy) -> tuple[str, str]:
    """Say what is wrong with how the policy took it, empty if nothing is, and what it did."""
    if policy.enabled():
        return "", "the policy stayed enabled"
    info = policy.detach()
    if info is None:
        return "", "the kernel ended the policy, which records no reason"
    if info.asks_for_restart:
        return "", f"the kernel ended the policy and asks for a restart (code {info.code:#x})"
    return f"the policy did not survive it: {info}", "the policy ended"


def reload_loop(load: Load, seconds: float) -> list[OracleResult]:
    """Attach and detach several times while tasks run and are forked; then look for what stayed behind.

    Each round is a load of its own, with fresh maps: an object that is attached again finds there what it left. They
    are loaded first, and side by side, since that is work for one CPU each.
    """
    held, rounds = count_loaded(), max(FEWEST_ROUNDS, int(seconds / ROUND_S))
    with ExitStack() as stack:
        try:
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                loading = [pool.submit(lambda: stack.enter_context(load())) for _ in range(rounds)]
            result = swap_all([loaded.result() for loaded in loading])
        except (BpfError, PolicyError) as error:
            return [judge(RELOAD_LOOP, [], error.message, "it did not load or attach again")]
    problem = leftovers(held)
    return [RELOAD_LOOP.fail(result.measured, f"{problem}; {result.detail}") if problem and result.ok else result]


def swap_all(policies: Sequence[LoadedPolicy]) -> OracleResult:
    """Put one after the other in charge, beside busy tasks and a fork storm."""
    waits: list[Wait] = []
    problem = ""
    with Crew() as crew:
        storm = crew.start("fork storm", work.fork_storm)
        tasks = [*start_tasks(crew), storm]
        for number, policy in enumerate(policies, 1):
            problem = problem or swap_once(policy, tasks, waits, number)
    if storm.record.errno:
        problem = problem or f"a fork was refused: {os.strerror(storm.record.errno)}"
    detail = f"{len(waits) // 2} times in and out, {storm.record.events} forks; {figures(waits)}"
    return judge(RELOAD_LOOP, waits, problem, detail)


def swap_once(policy: LoadedPolicy, tasks: Sequence[Task], waits: list[Wait], number: int) -> str:
    """Put the policy in charge and take it out again; return what went wrong, empty if nothing did."""
    policy.attach()
    waits.append(until_all_ran(tasks, f"attach {number}"))
    in_charge = policy.enabled()
    info = policy.detach()
    waits.append(until_all_ran(tasks, f"detach {number}"))
    if (info and info.ejected) or not in_charge:
        return f"the policy did not stay enabled: {info or 'it records no reason'}"
    return ""


def leftovers(held: tuple[int, int]) -> str:
    """Say which BPF programs and maps are more than `held`; the kernel frees them some time after their last user."""
    deadline = time.monotonic() + RUN_AGAIN_BOUND_S
    while True:
        now = count_loaded()
        if now[0] <= held[0] and now[1] <= held[1]:
            return ""
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    return f"{max(0, now[0] - held[0])} BPF programs and {max(0, now[1] - held[1])} maps stayed behind"


def provoked_stall(load: Load, seconds: float) -> list[OracleResult]:
    """Hold every CPU with real-time tasks until the kernel ejects the policy; then see all tasks continue."""
    with ExitStack() as stack, Crew() as crew:
        policy = stack.enter_context(load(watchdog_ms=WATCHDOG_MS))
        tasks = start_tasks(crew)
        policy.attach()
        until_all_ran(tasks, "its start")
        lasted_s, ended = hold_cpus(policy, WATCHDOG_MS / 1000 + max(seconds, 2.0))
        released = time.monotonic()
        if ended and not until_disabled():
            stack.pop_all()  # to detach it now would wait for as long as its callbacks take
            return [PROVOKED_STALL.fail(RECOVERY_LIMIT_S, "ejected, but its exit and dump callbacks do not end")]
        disabled_s = time.monotonic() - released
        info = policy.detach()
        detached_s = time.monotonic() - released
        wait = until_all_ran(tasks, "the stall")
        wait = replace(wait, seconds=time.monotonic() - released)
    problem = "" if ended else f"the kernel did not eject it, although no task ran for {lasted_s:.1f} s"
    if info and not info.ejected:
        problem = problem or f"the policy ended otherwise: {info}"
    exit_text = f"{info.kind_name}: {quote(info.message)}" if info else NO_RECORD
    detail = (
        f"CPUs held for {lasted_s:.2f} s (watchdog {WATCHDOG_MS / 1000:g} s); {exit_text}; disabled after"
        f" {disabled_s:.2f} s, detached after {detached_s:.2f} s; {figures([wait])}"
    )
    return [judge(PROVOKED_STALL, [wait], problem, detail)]


def until_disabled() -> bool:
    """Wait until the kernel is done with ejecting; return False if that takes longer than RECOVERY_LIMIT_S."""
    deadline = time.monotonic() + RECOVERY_LIMIT_S
    while kernel_state().state != "disabled":
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def hold_cpus(policy: LoadedPolicy, limit_s: float) -> tuple[float, bool]:
    """Let real-time tasks use every CPU until the policy is no longer enabled; return how long, and whether it ended.

    The agent's own priority is higher, and so is that of the kernel thread which ejects policies.
    """
    with no_deadline_servers(), Crew() as hogs:
        start = time.monotonic()
        for cpu in sorted(os.sched_getaffinity(0)):
            hog = hogs.start(f"real-time task on CPU {cpu}", work.hog)
            os.sched_setaffinity(hog.pid, {cpu})
            os.sched_setscheduler(hog.pid, os.SCHED_FIFO, os.sched_param(_HOG_PRIORITY))
        while (enabled := policy.enabled()) and time.monotonic() - start < limit_s:
            time.sleep(_POLL_S)
        return time.monotonic() - start, not enabled


@contextmanager
def no_deadline_servers() -> Iterator[None]:
    """Switch off what gives other classes a share of a CPU that real-time tasks use.

    Since 6.8 that is a deadline server for the fair class, since 7.0 one for sched_ext, too (debugfs sched/*_server);
    before, it was the limit in sched_rt_runtime_us.
    """
    if not (_DEBUGFS / "sched").is_dir():
        linux.mount("debugfs", _DEBUGFS, "debugfs")
    knobs = [(path, "0") for path in _DEBUGFS.glob("sched/*_server/cpu*/runtime")]
    knobs += [(_RT_RUNTIME, "-1")] if _RT_RUNTIME.exists() else []
    before = [(path, path.read_text().strip()) for path, _value in knobs]
    try:
        for path, value in knobs:
            path.write_text(value)
        yield
    finally:
        for path, value in before:
            path.write_text(value)


def judge(oracle: OracleInfo, waits: Sequence[Wait], problem: str, detail: str) -> OracleResult:
    """Compare the longest wait with the bound; a problem fails the oracle whatever the figures say."""
    longest_s = max((wait.seconds for wait in waits), default=0.0)
    return oracle.fail(longest_s, f"{problem}; {detail}") if problem else oracle.judge(longest_s, detail)


def figures(waits: Sequence[Wait]) -> str:
    """The waits, for people; of those past the bound all that is known."""
    late = [wait for wait in waits if wait.seconds > RUN_AGAIN_BOUND_S]
    within = "all tasks ran again within " + ", ".join(f"{wait.seconds:.2f}" for wait in waits) + " s"
    return "; ".join([within, *(f"{wait.seconds:.2f} s after {wait.after}: {wait.known}" for wait in late)])


def until_all_ran(tasks: Sequence[Task], after: str, bound_s: float = RUN_AGAIN_BOUND_S) -> Wait:
    """Wait until each task has used CPU time, or has not within the bound.

    The fork storm sleeps while its child runs, so what children use counts as well.
    """
    looked = start = time.monotonic()
    between_s = 0.0
    waiting = [(task, task.family_ns()) for task in tasks]
    while waiting and looked - start <= bound_s:
        time.sleep(_POLL_S)
        waiting = [(task, used_ns) for task, used_ns in waiting if task.family_ns() == used_ns]
        now = time.monotonic()
        between_s, looked = max(between_s, now - looked), now
    return Wait(after, looked - start, between_s, tuple(task.whereabouts() for task, _used_ns in waiting))


def start_tasks(crew: Crew) -> list[Task]:
    """Tasks that are always runnable: one pinned to each CPU, the last CPU first, one free for each, and one more."""
    cpus = sorted(os.sched_getaffinity(0), reverse=True)
    pinned = [crew.start(f"pinned to CPU {cpu}", work.pinned(cpu, work.hog)) for cpu in cpus]
    return pinned + [crew.start("free", work.hog) for _ in range(len(cpus) + 1)]


def last_cpu() -> int:
    """The CPU that is taken away: the last one, since the first can seldom go."""
    return max(os.sched_getaffinity(0) | {int(path.name[3:]) for path in _CPUS.glob("cpu[0-9]*")})


def switch_cpu(online: str) -> None:
    """Take the last CPU away ("0") or give it back ("1"); raise OSError if the kernel refuses."""
    (_CPUS / f"cpu{last_cpu()}" / "online").write_text(online)
