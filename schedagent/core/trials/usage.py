"""What one run used and left behind besides its time: counted by the lab's kernel, never read from the output."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CommandUsage:
    """All tasks of one command name in one run.

    Args:
        comm: command name at exit.
        tasks: how many.
        cpu_ns: CPU time.
        run_delay_ns: time spent runnable but waiting for a CPU.
        voluntary_switches, involuntary_switches: context switches.
    """

    comm: str
    tasks: int
    cpu_ns: int
    run_delay_ns: int
    voluntary_switches: int
    involuntary_switches: int


@dataclass(frozen=True)
class Usage:
    """What one run used.

    Args:
        voluntary_switches, involuntary_switches: of all its tasks.
        commands: its tasks by command name, most CPU time first; the rare ones together under an empty name.
        psi_cpu_us, psi_io_us, psi_memory_us: growth of "some ... total" in /proc/pressure; -1 if unknown.
        left_behind: command names of processes that outlived the shell, sorted; they were killed.
        left_cpu_ns: CPU time these had used by then; it is part of no other figure.
        output_bytes: how much the run printed, all of it.
        full: what ran full: "memory", or a path of the throw-away layer; empty if nothing did.
        failure: why the lab says that the run cannot be compared; empty: it can, whatever its exit status is; None: its
            exit status decides.
        others_share: part of the machine's CPU time that went to others than the workload; 0 where nothing else runs.
        loader_cpu_ns: CPU time of the program that loaded the policy, if it did that itself; part of no other figure.
    """

    voluntary_switches: int
    involuntary_switches: int
    commands: tuple[CommandUsage, ...] = ()
    psi_cpu_us: int = -1
    psi_io_us: int = -1
    psi_memory_us: int = -1
    left_behind: tuple[str, ...] = ()
    left_cpu_ns: int = 0
    output_bytes: int = 0
    full: str = ""
    failure: str | None = None
    loader_cpu_ns: int = 0
    others_share: float = 0.0


@dataclass(frozen=True)
class MachineCosts:
    """What separates an emulated machine from the hardware beneath it.

    Args:
        kappa: how many times as long a fixed piece of work takes in the lab as on the host; 1 where they are the same.
        lab_switch_ns: cost of a context switch in the lab, in lab time.
        host_switch_ns: the same on the host.
    """

    kappa: float
    lab_switch_ns: float
    host_switch_ns: float
