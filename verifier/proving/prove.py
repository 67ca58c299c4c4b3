"""The order of the phases, the depths they can be run at, and the run itself."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

from kernel_bpf.load.sched_ext import LoadedPolicy, kernel_state
from schedagent.core.errors import KernelRejected
from verifier.proving import (
    conservation,
    coverage,
    crowd,
    groups,
    lifecycle,
    limits,
    mix,
    overhead,
    shape,
    shares,
    soak,
    work,
)
from verifier.proving.crew import Crew, ForkRefused
from verifier.proving.ground import NO_ELDERS, PLAIN, Clock, Conditions, Ground, Load, attached_ground, end
from verifier.proving.oracle import OracleInfo, OracleResult, Undecided

WATCHDOG_MS = 3000
"""While a policy is on the proving ground its timeout_ms is at most this, so that a lost task shows sooner.

The kernel looks every half of it (scx_watchdog_workfn() in kernel/sched/ext.c): after 4.5 s at the latest. Well above
the starvation bound, which the oracles measure themselves.
"""

CGROUPS = "cgroups"
"""The phase of rule 31, for policies that have a callback for a limit of cgroups."""

COVERAGE = "coverage"
"""The round under the copy with probes, among the seconds of the phases."""

STALL = re.compile(r"failed to run for ([0-9.]+)s")
"""From check_rq_for_timeouts() in kernel/sched/ext.c: how long the task that ended the policy had waited."""


class Depth(Enum):
    """How long a policy is proved, in seconds of all phases together; see `Phase.seconds` for the least of each."""

    QUICK = 8.0
    STANDARD = 13.5
    THOROUGH = 60.0
    DEEP = 90.0
    """With the soak besides: what a token that is valid for longer than a day takes."""


@dataclass(frozen=True)
class Phase:
    """A part of the proof.

    Args:
        name: for the choice of phases, and for the report.
        seconds: how long it runs at standard depth; other depths scale it.
        least_s: it cannot tell good from bad in less.
        oracles: those it may give results of.
        depth: the least depth at which it is run, unless it is asked for by name.
        strangers: it is run at every depth on policies whose author is not known to mean well.
        elsewhere: it takes a machine of its own, booted another time, with one CPU more.
        under_load: runs on a policy that is attached for it.
        ending: takes over the attached policy, and ends it; its last argument is ground.Conditions.stretch.
        alone: loads and attaches for itself, as often as it likes.
    """

    name: str
    seconds: float
    least_s: float
    oracles: tuple[OracleInfo, ...]
    depth: Depth = Depth.QUICK
    strangers: bool = False
    elsewhere: bool = False
    under_load: Callable[[Ground, float], Sequence[OracleResult | Undecided]] | None = None
    ending: Callable[[LoadedPolicy, float, float], list[OracleResult]] | None = None
    alone: Callable[[Load, float], Sequence[OracleResult | Undecided]] | None = None

    def share(self, seconds: float) -> float:
        """How long it runs if all phases together have `seconds`."""
        return max(self.least_s, self.seconds * seconds / Depth.STANDARD.value)


PHASES = (
    Phase("work conservation", 0.9, 0.8, conservation.ORACLES, under_load=conservation.prove),
    Phase("mix", 3.1, 3.1, mix.ORACLES, under_load=mix.prove),
    Phase(
        "moved clock", 0.8, 0.8, (groups.MOVED_CLOCK,), Depth.THOROUGH, strangers=True, under_load=groups.prove_later
    ),
    Phase("shares", 1.6, 1.6, shares.ORACLES, under_load=shares.prove),
    Phase("pinned crowd", 0.6, 0.6, crowd.ORACLES, under_load=crowd.prove),
    Phase(CGROUPS, 3.0, 3.0, limits.ORACLES, Depth.STANDARD, under_load=limits.prove),
    Phase("soak", 20.0, 8.0, soak.ORACLES, Depth.DEEP, under_load=soak.prove),
    Phase("CPU hotplug", 0.5, 0.4, (lifecycle.CPU_HOTPLUG,), ending=lifecycle.cpu_hotplug),
    Phase("overhead", 1.9, 1.6, overhead.ORACLES, alone=overhead.prove),
    Phase("reload loop", 0.7, 0.0, (lifecycle.RELOAD_LOOP,), alone=lifecycle.reload_loop),
    Phase("provoked stall", 1.0, 0.0, (lifecycle.PROVOKED_STALL,), alone=lifecycle.provoked_stall),
    Phase(
        "groups", 0.8, 0.8, (groups.GROUPS,), Depth.THOROUGH, strangers=True, elsewhere=True, under_load=groups.prove
    ),
)
"""In the order they are run: those under load follow each other, so that one attached policy serves them all (loading
one takes an emulated machine half a second or more), and the one that ends it comes after them."""

SHAPED_PHASES = (
    Phase("spread", 1.2, 1.0, shape.SPREAD_ORACLES, under_load=shape.prove_spread),
    Phase(
        "domains", shape.LEAST_DOMAINS_S, shape.LEAST_DOMAINS_S, shape.DOMAIN_ORACLES, under_load=shape.prove_domains
    ),
    Phase("CPU hotplug in a domain", 0.4, 0.4, shape.HOTPLUG_ORACLES, ending=shape.cpu_hotplug),
)
"""What is run on a guest of another shape; their oracles are those of the phases above."""

ORACLES: Mapping[str, OracleInfo] = {info.name: info for phase in PHASES for info in phase.oracles}


@dataclass
class Proof:
    """What a run has shown so far.

    Args:
        exit_text: why the kernel ejected the policy; empty if it never did.
        results: of the oracles.
        undecided: oracles that saw too little for a verdict, with what is missing; they have no result.
        events: growth of the counters in /sys/kernel/sched_ext/root/events under load.
        seconds: how long each phase took.
        stalled_s: longest time that a CPU of this machine stood still, whoever was at fault.
        marks: what of it ran.
    """

    exit_text: str = ""
    results: list[OracleResult] = field(default_factory=list)
    undecided: dict[str, str] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    stalled_s: float = 0.0
    marks: coverage.Marks = field(default_factory=coverage.Marks)


def chosen(names: Sequence[str]) -> list[Phase]:
    """The phases of these names, in their order; raise KeyError for a name that no phase has.

    COVERAGE names none of them, but the round that goes before them.
    """
    known = {phase.name: phase for phase in (*PHASES, *SHAPED_PHASES)}
    wanted = {known[name].name for name in names if name != COVERAGE}
    return [phase for phase in known.values() if phase.name in wanted]


def phases_at(depth: Depth, *, strange: bool = False) -> list[Phase]:
    """Those that are run at this depth; `strange`: on a policy that neither is bundled nor was composed here."""
    return [phase for phase in PHASES if phase.depth.value <= depth.value or (strange and phase.strangers)]


def prove(
    load: Load,
    seconds: float,
    names: Sequence[str],
    conditions: Conditions = PLAIN,
    copy: coverage.Copy | None = None,
) -> Proof:
    """Take a policy through phases; the first that ends in an ejection is the last.

    Args:
        load: gives the policy to the kernel's verifier.
        seconds: for all phases together, if all are run.
        names: of the phases.
        conditions: of this proof.
        copy: with probes; None if there is none.

    Raises:
        KernelRejected: the policy does not load or attach.
    """
    proof = Proof()
    phases = chosen(names)
    with Crew() as metronomes:
        beats = [metronomes.start(f"metronome {cpu}", work.metronome(cpu)) for cpu in os.sched_getaffinity(0)]
        try:
            if copy:
                run_copy(proof, copy, seconds)
            prove_attached(proof, load, [phase for phase in phases if not phase.alone], seconds, conditions)
            for phase in phases:
                if phase.alone and not proof.exit_text and kernel_state().state == "disabled":
                    run(proof, conditions.clock, phase, partial(phase.alone, load, phase.share(seconds)))
        except ForkRefused as error:
            others = [result for result in proof.results if result.name != mix.FORKS.name]
            proof.results = [*others, mix.FORKS.fail(0.0, f"a task of the proving ground could not start: {error}")]
        proof.stalled_s = max(task.record.longest_s() for task in beats)
    return proof


def run_copy(proof: Proof, copy: coverage.Copy, seconds: float) -> None:
    """Run the copy first: what it reaches late, by a clock or a counter, the oracles see from then on."""
    began = time.monotonic()
    coverage.run_copy(proof.marks, copy, max(1.0, seconds / Depth.STANDARD.value))
    proof.seconds[COVERAGE] = round(time.monotonic() - began, 3)


def prove_attached(proof: Proof, load: Load, phases: Sequence[Phase], seconds: float, conditions: Conditions) -> None:
    """Attach the policy once, run these phases one after the other, and note whether it stayed."""
    if not phases:
        return
    cpus = sorted(os.sched_getaffinity(0))
    needed = any(info in (groups.GROUPS, groups.MOVED_CLOCK) for phase in phases for info in phase.oracles)
    early = groups.elders(cpus, conditions.worn) if needed else nullcontext(NO_ELDERS)
    with early as elders, load() as policy:
        policy.attach()
        prove_under_load(proof, phases, seconds, attached_ground(conditions, elders))
        for phase in phases:
            if phase.ending and policy.enabled():
                run(
                    proof,
                    conditions.clock,
                    phase,
                    partial(phase.ending, policy, phase.share(seconds), conditions.stretch),
                )
                return
        proof.exit_text = end(policy)
    stalled = STALL.search(proof.exit_text)
    if stalled and not any(result.name == mix.STARVATION.name for result in proof.results):
        proof.results.append(mix.STARVATION.fail(float(stalled[1]), f"the kernel ejected it: {proof.exit_text}"))


def prove_under_load(proof: Proof, phases: Sequence[Phase], seconds: float, ground: Ground) -> None:
    """Run these phases as long as the policy is in charge."""
    before = kernel_state().events
    shaped = all(phase in SHAPED_PHASES for phase in phases)  # on the flat guest it was looked at closely
    outside = (coverage.left_out() if shaped else coverage.outsiders(ground)) if ground.enabled() else ""
    if outside:
        raise KernelRejected(f"the policy does not schedule every task: {outside}")
    for phase in phases:
        if phase.under_load and ground.enabled():
            run(proof, ground.conditions.clock, phase, partial(phase.under_load, ground, phase.share(seconds)))
    if not ground.enabled():  # what passed may have done so under the default scheduler
        proof.results = [result for result in proof.results if not result.ok]
    if ground.enabled():
        proof.marks.count()
    proof.events = {name: count - before.get(name, 0) for name, count in kernel_state().events.items()}


def run(proof: Proof, clock: Clock, phase: Phase, judged: Callable[[], Sequence[OracleResult | Undecided]]) -> None:
    """Run one phase and keep what it showed."""
    began_s = clock.now_s()
    for result in judged():
        if isinstance(result, Undecided):
            proof.undecided[result.name] = result.reason
        else:
            proof.results.append(result)
    proof.seconds[phase.name] = round(clock.now_s() - began_s, 3)
