"""What a policy costs: the same work under the default scheduler and under the policy, in turns.

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
from verifier.proving.oracle import OracleInfo, OracleResult

LOSS_BOUND = 0.10
FEWEST_PAIRS = 2
MORE_PAIRS = 5
MOST_PAIRS = 9

_REASON = (
    "Rule 30: ten per cent. The host may be busy, so only what the whole interval of the paired ratios agrees on"
    " counts, and pairs are added while they do not agree: nine below the bound are no accident, two may be."
)
IDLE_MACHINE = OracleInfo(
    "idle machine",
    30,
    LOSS_BOUND,
    "ratio",
    "the share of the default scheduler's throughput that is certainly lost, when two tasks work a millisecond in turns"
    " and wake each other",
    _REASON,
)
SATURATED_MACHINE = OracleInfo(
    "saturated machine",
    30,
    LOSS_BOUND,
    "ratio",
    "the same share with two busy tasks for each CPU and two that work in turns",
    _REASON,
)
ORACLES = (IDLE_MACHINE, SATURATED_MACHINE)

_UNIT_NS = 1_000_000
_CALIBRATION_ROUNDS = 1000
_CALIBRATION_TRIES = 8
_SETTLE_S = 0.05
_SHORTEST_WINDOW_S = 0.08
_WINDOWS = 4


@dataclass
class Probe:
    """A load of one kind, stopped unless it is measured.

    Args:
        oracle: what it is judged by.
        crew: its tasks; each counts the units it finished.
        pairs: (default, policy) throughput so far, in units a second.
    """

    oracle: OracleInfo
    crew: Crew
    pairs: list[tuple[float, float]] = field(default_factory=list)

    def throughput(self, window_s: float) -> float:
        """Let the tasks run and return how many units a second they finish, all together.

        A while passes before the clock starts: attaching a policy patches the kernel's code, which an emulator then has
        to translate again (see settle() of the guest agent).
        """
        self.signal(signal.SIGCONT)
        time.sleep(_SETTLE_S)
        before, start = self._units(), time.monotonic()
        time.sleep(window_s)
        units, elapsed_s = self._units() - before, time.monotonic() - start
        self.signal(signal.SIGSTOP)
        return units / elapsed_s

    def signal(self, number: int) -> None:
        """Send a signal to every task."""
        for task in self.crew.tasks:
            os.kill(task.pid, number)

    def _units(self) -> int:
        return sum(task.record.events for task in self.crew.tasks)


def prove(load: Load, seconds: float) -> list[OracleResult]:
    """Measure each probe under the default scheduler and under the policy until it is decided."""
    rounds = calibrate()
    window_s = max(_SHORTEST_WINDOW_S, seconds / (2 * FEWEST_PAIRS * _WINDOWS) - _SETTLE_S)
    with Crew() as idle, Crew() as saturated:
        start_turns(idle, rounds)
        start_turns(saturated, rounds)
        for _ in range(2 * len(os.sched_getaffinity(0))):
            saturated.start("busy", busy(rounds))
        probes = [Probe(IDLE_MACHINE, idle), Probe(SATURATED_MACHINE, saturated)]
        for probe in probes:
            probe.signal(signal.SIGSTOP)
        while undecided := [probe for probe in probes if not decided(probe.pairs)]:
            if not measure(load, undecided, window_s):
                return [ejected(probe.oracle) for probe in probes]
    return [judge(probe.oracle, probe.pairs) for probe in probes]


def measure(load: Load, probes: Sequence[Probe], window_s: float) -> bool:
    """Add a pair to each probe; return whether the policy stayed enabled.

    The default scheduler is measured before and after the policy, half as long each time, so that a host that slowly
    gets busier or quieter favours neither.
    """
    with load() as policy:
        before = [probe.throughput(window_s) for probe in probes]
        policy.attach()
        under = [probe.throughput(2 * window_s) for probe in probes]
        if not policy.enabled():
            return False
    after = [probe.throughput(window_s) for probe in probes]
    for probe, first, policy_s, last in zip(probes, before, under, after, strict=True):
        probe.pairs.append(((first + last) / 2, policy_s))
    return True


def decided(pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether the pairs so far tell.

    Few do if all of them are good; more if most are; and nobody is condemned before the last.
    """
    if len(pairs) < FEWEST_PAIRS:
        return False
    found, least = ratios(pairs), 1 - LOSS_BOUND
    good, mostly_good = interval(found)[0] >= least, statistics.median(found) >= least
    return good or (mostly_good and len(pairs) >= MORE_PAIRS) or len(pairs) >= MOST_PAIRS


def ratios(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Policy / default of each pair, sorted; 1 where neither finished anything."""
    return sorted(policy / default if default else 1.0 for default, policy in pairs)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """An interval for the median of sorted values, whatever their distribution.

    From the smallest to the largest it holds with probability 1 - 2 / 2^n (75 % for 3 values), from the second smallest
    to the second largest with 1 - 2 (n + 1) / 2^n (93 % for 8): order statistics, binomial with p = 1/2.
    """
    outside = 1 if len(values) >= 8 else 0
    return values[outside], values[-1 - outside]


def judge(oracle: OracleInfo, pairs: Sequence[tuple[float, float]]) -> OracleResult:
    """Compare the certain loss with the bound."""
    found = ratios(pairs)
    low, high = interval(found)
    default, policy = (statistics.median(arm) for arm in zip(*pairs, strict=True))
    detail = (
        f"{statistics.median(found):.2f} of the default scheduler's throughput ({low:.2f} to {high:.2f} in {len(pairs)}"
        f" pairs; {policy:.0f} and {default:.0f} units a second)"
    )
    return oracle.judge(max(0.0, 1 - high), detail)


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
