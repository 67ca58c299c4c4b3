"""What a policy costs: the same work under the default scheduler and under the policy, alternately.

Work comes in units of equal CPU time, and what counts is how many of them all tasks finish within a window: a policy
that gives one task more and another less loses nothing here, one that spends time on itself or lets a CPU idle does.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from verifier.proving.crew import Body, Crew, Record
from verifier.proving.ground import Load
from verifier.proving.oracle import OracleInfo, OracleResult, Undecided

LOSS_BOUND = 0.10
FEWEST_GOOD = 2
"""So many pairs within the bound, confirmed by the best windows of all, show that the throughput is kept."""

FEWEST_PAIRS = 5
"""So many pairs, all beyond the bound, and the best windows too, show that it is lost."""

MOST_PAIRS = 7
"""More would not settle what so many undisturbed pairs leave open."""

QUIET_SHARE = 0.45
"""A pair counts if the default scheduler reached this share of what the CPUs can do, each on its own.

Two hardware threads of one core reach 0.6 of it together; less means that the host gave its CPUs to others. A policy
with one queue for all was seen to suffer more from that than the default scheduler does: on such a host (0.3 of what
the CPUs can do) our fifo reached half of its throughput. A queue's lock held by a CPU that stands still would explain
that; it was not shown.
"""

_REASON = (
    "Rule 30: ten per cent. The host may be busy, so a loss counts only if the whole interval of the paired ratios and"
    " the best of all windows show it: five bad pairs are no accident. Two pairs within the bound end the measurement,"
    " if the best of all windows agree: a host that is busy just beside the default scheduler makes good pairs, too."
    " Pairs of a busy host do not count. What shows neither loss nor none has no verdict: the gate is incomplete."
)
IDLE_MACHINE = OracleInfo(
    "idle machine",
    30,
    LOSS_BOUND,
    "ratio",
    "the share of the default scheduler's throughput that is certainly lost, when two tasks alternate each millisecond"
    " and wake each other",
    _REASON,
)
SATURATED_MACHINE = OracleInfo(
    "saturated machine",
    30,
    LOSS_BOUND,
    "ratio",
    "the same share with two busy tasks for each CPU and two that alternate",
    _REASON,
)
ORACLES = (IDLE_MACHINE, SATURATED_MACHINE)

_OUTSIDE = 1
_UNIT_NS = 1_000_000
_CALIBRATION_ROUNDS = 1000
_CALIBRATION_TRIES = 8
_UNITS_PER_S = 1e9 / _UNIT_NS
_SETTLE_UNITS = 30
_SETTLE_S = _SETTLE_UNITS / _UNITS_PER_S
_SETTLE_LIMIT_S = 0.5
_POLL_S = 0.005
_SHORTEST_WINDOW_S = 0.08
_WINDOWS = 8
_PATIENCE = 7.0
"""Of the usual time: only what a busy host, or a costly policy, leaves undecided takes so long."""


@dataclass
class Probe:
    """A load of one kind, stopped unless it is measured.

    Args:
        oracle: what it is judged by.
        crew: its tasks; each counts the units it finished.
        parallel: how many of its tasks can run at once.
        pairs: (default, policy) throughput so far, in units a second.
        disturbed: how many more pairs there were, while the host was busy.
    """

    oracle: OracleInfo
    crew: Crew
    parallel: int
    pairs: list[tuple[float, float]] = field(default_factory=list)
    disturbed: int = 0

    def throughput(self, window_s: float) -> float:
        """Let the tasks run and return how many units a second they finish, all together.

        Some units pass before the clock starts: attaching a policy patches the kernel's code, which an emulator then
        has to translate again (see settle() of the guest agent).
        """
        self.signal(signal.SIGCONT)
        settled, latest = self._units() + _SETTLE_UNITS * self.parallel, time.monotonic() + _SETTLE_LIMIT_S
        while self._units() < settled and time.monotonic() < latest:
            time.sleep(_POLL_S)
        before, start = self._units(), time.monotonic()
        time.sleep(window_s)
        units, elapsed_s = self._units() - before, time.monotonic() - start
        self.signal(signal.SIGSTOP)
        return units / elapsed_s

    def signal(self, number: int) -> None:
        """Send a signal to every task."""
        for task in self.crew.tasks:
            os.kill(task.pid, number)

    def add(self, default: float, policy: float) -> None:
        """Keep a pair, unless the host was busy while it was measured."""
        if default >= QUIET_SHARE * self.parallel * _UNITS_PER_S:
            self.pairs.append((default, policy))
        else:
            self.disturbed += 1

    def decided(self) -> bool:
        """Whether the throughput is kept, or there are as many undisturbed pairs as there may be."""
        return self._kept() or len(self.pairs) >= MOST_PAIRS

    def judge(self) -> OracleResult | Undecided:
        """Compare the certain loss with the bound; without evidence that it is within or beyond it, give no verdict."""
        undisturbed = f"{len(self.pairs)} pairs; {self.disturbed} more were disturbed by a busy host"
        if not self.pairs:
            return Undecided(self.oracle.name, undisturbed)
        paired = ratios(self.pairs)
        low, high = interval(paired)
        default, policy = self._best()
        loss = max(0.0, 1 - max(high, policy / default))
        detail = (
            f"{statistics.median(paired):.2f} of the default scheduler's throughput"
            f" ({low:.2f} to {high:.2f} in {undisturbed}); at best {policy:.0f} and {default:.0f} units a second"
        )
        lost = len(paired) >= FEWEST_PAIRS and loss > LOSS_BOUND
        if not (self._kept() or lost):
            few = len(paired) < FEWEST_PAIRS
            why = "too few pairs" if few else "neither a loss nor that there is none is shown"
            return Undecided(self.oracle.name, f"{why}: {detail}")
        return self.oracle.judge(loss, f"{loss:.2f} certainly lost: {detail}")

    def _kept(self) -> bool:
        """Whether enough pairs show that no more than the bound is lost, and the best windows agree."""
        good = sum(ratio >= 1 - LOSS_BOUND for ratio in ratios(self.pairs))
        if good < FEWEST_GOOD:
            return False
        default, policy = self._best()
        return policy >= (1 - LOSS_BOUND) * default

    def _best(self) -> tuple[float, float]:
        """The best throughput of the undisturbed pairs under the default scheduler and under the policy."""
        return max(default for default, _policy in self.pairs), max(policy for _default, policy in self.pairs)

    def _units(self) -> int:
        return sum(task.record.events for task in self.crew.tasks)


def prove(load: Load, seconds: float) -> Sequence[OracleResult | Undecided]:
    """Measure each probe under the default scheduler and under the policy until it is decided, or time is up.

    On a host too busy to show anything in _PATIENCE times the usual time, there is no verdict.
    """
    rounds = calibrate()
    window_s = max(_SHORTEST_WINDOW_S, seconds / (2 * _WINDOWS) - _SETTLE_S)
    with Crew() as idle, Crew() as saturated:
        start_turns(idle, rounds)
        start_turns(saturated, rounds)
        for _ in range(2 * len(os.sched_getaffinity(0))):
            saturated.start("busy", busy(rounds))
        probes = [Probe(IDLE_MACHINE, idle, 1), Probe(SATURATED_MACHINE, saturated, len(os.sched_getaffinity(0)))]
        for probe in probes:
            probe.signal(signal.SIGSTOP)
        deadline = time.monotonic() + _PATIENCE * seconds
        while (undecided := [probe for probe in probes if not probe.decided()]) and time.monotonic() < deadline:
            if not measure(load, undecided, window_s):
                return [ejected(probe.oracle) for probe in probes]
    return [probe.judge() for probe in probes]


def measure(load: Load, probes: Sequence[Probe], window_s: float) -> bool:
    """Add two pairs to each probe; return whether the policy stayed enabled.

    One pair is what came before the policy with its first windows, the other what came after it with its last ones: a
    host that gets busier or quieter favours neither. Of two windows the better one counts, since a busy host only ever
    makes things slower. Loading costs as much time as all windows together, so a load gives two pairs.
    """
    with load() as policy:
        before = best(probes, window_s)
        policy.attach()
        first, last = best(probes, window_s), best(probes, window_s)
        if not policy.enabled():
            return False
    after = best(probes, window_s)
    for number, probe in enumerate(probes):
        probe.add(before[number], first[number])
        probe.add(after[number], last[number])
    return True


def best(probes: Sequence[Probe], window_s: float) -> list[float]:
    """The better throughput of two windows for each probe, in units a second."""
    return [max(probe.throughput(window_s), probe.throughput(window_s)) for probe in probes]


def ratios(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Policy / default of each pair, sorted; 1 where neither finished anything."""
    return sorted(policy / default if default else 1.0 for default, policy in pairs)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """An interval for the median of sorted values, whatever their distribution.

    From the smallest to the largest it holds with probability 1 - 2 / 2^n (75 % for 3 values), from the second smallest
    to the second largest with 1 - 2 (n + 1) / 2^n (87 % for 7): order statistics, binomial with p = 1/2.
    """
    outside = _OUTSIDE if len(values) >= MOST_PAIRS else 0
    return values[outside], values[-1 - outside]


def ejected(oracle: OracleInfo) -> OracleResult:
    """The result if the policy did not last."""
    return oracle.judge(1.0, "the policy did not stay enabled while it was measured")


def calibrate() -> int:
    """How many rounds of work() take about _UNIT_NS here: the quickest of a few tries, for the host may be busy."""
    tries_ns = []
    for _ in range(_CALIBRATION_TRIES):
        start_ns = time.monotonic_ns()
        work(_CALIBRATION_ROUNDS)
        tries_ns.append(time.monotonic_ns() - start_ns)
    return max(1, _CALIBRATION_ROUNDS * _UNIT_NS // min(tries_ns))


def work(rounds: int) -> None:
    """One unit: arithmetic that touches no memory to speak of."""
    value = 1
    for _ in range(rounds):
        value = value * 48271 % 2147483647


def busy(rounds: int) -> Body:
    """Work without a pause."""

    def body(record: Record) -> NoReturn:
        while True:
            work(rounds)
            record.events += 1

    return body


def start_turns(crew: Crew, rounds: int) -> None:
    """Start two tasks that hand each other a token: who has it works one unit, the other sleeps."""
    (first_in, first_out), (second_in, second_out) = os.pipe(), os.pipe()
    os.write(first_out, b"t")
    crew.start("turns", turns(rounds, first_in, second_out))
    crew.start("turns", turns(rounds, second_in, first_out))
    for end in (first_in, first_out, second_in, second_out):
        os.close(end)


def turns(rounds: int, reader: int, writer: int) -> Body:
    """Wait for the token, work one unit, pass it on."""

    def body(record: Record) -> NoReturn:
        while True:
            token = os.read(reader, 1)
            work(rounds)
            record.events += 1
            os.write(writer, token)

    return body
