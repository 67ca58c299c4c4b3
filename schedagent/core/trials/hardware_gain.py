"""What of a gain measured in an emulated machine carries over to hardware. Pure.

An emulator makes everything slower, but not by the same factor: the instructions of a program take `kappa` times as
long as on the host, a task switch many times more than that. So whoever switches less gains in the lab what hardware
would not give. The time of a run splits into three parts that scale differently:

    T = CPU / (n * u)          n CPUs, each used for the fraction u of the run; CPU: CPU time, T: wall time
    CPU = W + c_lab * (V + I)  W: the work itself; V, I: voluntary and involuntary switches; c_lab: cost of one

All of it is lab time. On hardware the same work takes W / kappa of host time. A task gives up its CPU voluntarily
because of what the work does (a pipe, a lock, the end of a child): as often as in the lab. It is taken off its CPU
by the clock, when its slice is over: as often per second, so kappa times less often during the same work. With
c_host, the cost of a switch there:

    CPU_hw = W / kappa + c_host * (V + I / kappa) = W / kappa * (1 + phi)
    phi    = kappa * c_host * (V + I / kappa) / W,   W = CPU - c_lab * (V + I)

phi is the share of switches beside the work, a pure number: kappa turns the host's time into the lab's. Both arms do
the same work and use the CPUs on hardware as they did in the lab (d: default, c: candidate):

    R_hw = T_hw,c / T_hw,d = (u_d / u_c) * (1 + phi_c) / (1 + phi_d)

Assumed, and to be kept in mind where it does not hold:

* *The same work in both arms.* What differs in CPU time and is no switch (caches of the host, translation of code,
  noise) is taken for an artefact and left out. A run that works for a fixed time instead of a fixed amount has no R_hw.
* *Idle time scales with the work*, as it does where tasks wait for each other. Sleeps and devices do not scale: work
  that mostly waits for them is used less on hardware.
* *A switch costs the same under each policy*, and one that preempts as much as one that blocks. Both costs are lower
  bounds, of processes that touch little memory: tasks of 256 KiB each paid some ten times as much in the lab
  (tests/bench/test_hardware_gain.py). Hence CPU times are not simply corrected by c_lab: the ratio rests on the use of
  the CPUs, and c_lab only makes W in phi smaller. What a policy itself costs is left to the verifier's overhead gate.
* *Order and placement have the effect they had in the lab*: nothing is said of caches, SMT or NUMA there.

Two figures need fewer assumptions. *Utilisation only*, u_d / u_c: switches cost nothing. *Raw*, T_c / T_d: they cost
what the emulator makes of them. R_hw lies between them if W is the same in both arms, V and I both grow or both
shrink, a switch costs the lab at least 2 * kappa * c_host, and the arm that switches less spends less on involuntary
switches than on its work: the usual case. It can lie outside: preemptions saved at the price of wake-ups are worth
less on hardware than either figure says, because the clock preempts there less often per work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from schedagent.core.trials.trial import Sample
from schedagent.core.trials.usage import MachineCosts


@dataclass(frozen=True)
class HardwareRatio:
    """Time of the candidate / time of the default, of one pair of runs.

    Args:
        ratio: expected on hardware.
        utilisation: if a switch cost nothing.
        raw: as measured in the lab.
    """

    ratio: float
    utilisation: float
    raw: float


def expected(default: Sample, candidate: Sample, costs: MachineCosts, cpus: int) -> HardwareRatio | None:
    """Return the ratio of run times to expect on hardware; None if these samples do not tell.

    Args:
        default, candidate: two runs of the same work that succeeded, in one block.
        costs: of the lab in which both ran.
        cpus: CPUs of the lab; above 0.

    They do not tell if a sample has no usage (of an older version), took no time, or if switches alone would have
    used up all its CPU time: then the cost of a switch is not that of this run, and the model does not hold. Nor do
    they with costs that no emulated machine has.
    """
    default_phi, candidate_phi = _switch_share(default, costs), _switch_share(candidate, costs)
    if default_phi is None or candidate_phi is None or not _plausible(costs) or cpus < 1:
        return None
    utilisation = _utilisation(default, cpus) / _utilisation(candidate, cpus)
    ratio = utilisation * (1 + candidate_phi) / (1 + default_phi)
    return HardwareRatio(ratio, utilisation, candidate.wall_ns / default.wall_ns)


def _plausible(costs: MachineCosts) -> bool:
    """Whether these are finite costs of a machine that is no faster than the one it runs on."""
    known = all(math.isfinite(cost) for cost in (costs.kappa, costs.lab_switch_ns, costs.host_switch_ns))
    return known and costs.kappa >= 1 and costs.lab_switch_ns >= 0 and costs.host_switch_ns >= 0


def _utilisation(sample: Sample, cpus: int) -> float:
    """Return the fraction of the run for which each CPU was used."""
    return sample.cpu_ns / (cpus * sample.wall_ns)


def _switch_share(sample: Sample, costs: MachineCosts) -> float | None:
    """Return phi: what switches would add to the work on hardware, as a fraction of it; None if nothing is known."""
    usage = sample.usage
    if usage is None or sample.wall_ns <= 0 or sample.cpu_ns <= 0:
        return None
    voluntary, involuntary = usage.voluntary_switches, usage.involuntary_switches
    work_ns = sample.cpu_ns - costs.lab_switch_ns * (voluntary + involuntary)
    if not work_ns > 0:
        return None
    return costs.kappa * costs.host_switch_ns * (voluntary + involuntary / costs.kappa) / work_ns
