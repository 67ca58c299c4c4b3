"""What watching costs: CPU time of an idle machine's second with a load of switches, with and without each tier.

    pytest -m bench -s tests/bench/test_observer.py

The load makes about 20,000 switches a second: pairs of processes that pass a byte to and fro, paced so that the machine
is not saturated. Pairs of seconds are interleaved in random order, one bare and one watched; what the load used, in CPU
time, is compared: the tracing programs run in its own time. What the observer's process uses besides is added. Needs
root, and a kernel with BTF.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time

import pytest

from kernel_bpf.observe.sched_probe import SchedProbe, Scope, may_trace
from schedagent.observing import sampling
from schedagent.observing.measure import Order, observe
from schedagent.observing.scope import Target

pytestmark = [pytest.mark.bench, pytest.mark.skipif(not may_trace(), reason="tracing takes root")]

PAIRS, SECONDS = 16, 2.0
ROUNDS_PER_S = 2500
"""Of each of PROCESSES pairs; a round has two switches or more on each side."""
PROCESSES = 2


@pytest.fixture
def load():
    """Two pairs that pass a byte to and fro, a burst of rounds each millisecond; yields their pids."""
    pids = [pid for _pair in range(PROCESSES) for pid in _pair_of_processes()]
    time.sleep(0.5)
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _pair_of_processes() -> tuple[int, int]:
    there, back = os.pipe(), os.pipe()
    answering = os.fork()
    if answering == 0:
        while True:
            os.read(there[0], 1)
            os.write(back[1], b"x")
    asking = os.fork()
    if asking == 0:
        burst, begin, done = ROUNDS_PER_S // 250, time.monotonic(), 0
        while True:
            for _round in range(burst):
                os.write(there[1], b"x")
                os.read(back[0], 1)
            done += burst
            time.sleep(max(0.0, begin + done / ROUNDS_PER_S - time.monotonic()))
    for end in (*there, *back):
        os.close(end)
    return answering, asking


def used_s(pids: list[int]) -> float:
    """CPU time of processes, in seconds."""
    return sum(sampling._schedstat(pid)[0] for pid in pids) * 1e-9


def second_of(pids: list[int], watched) -> tuple[float, float]:
    """CPU time of the load in a while, and switches of the machine, per second."""
    with watched:
        begin, used, switched = time.monotonic(), used_s(pids), sampling.switches()
        time.sleep(SECONDS)
        length = time.monotonic() - begin
        return (used_s(pids) - used) / length, (sampling.switches() - switched) / length


class Bare:
    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        pass


def test_the_probe_costs_little(load):
    differences, rates = [], []
    for number in range(PAIRS):
        order = [False, True]
        random.Random(number).shuffle(order)
        seconds = {traced: second_of(load, SchedProbe.attach(Scope()) if traced else Bare()) for traced in order}
        differences.append(seconds[True][0] - seconds[False][0])
        rates.append(seconds[True][1])
    mean, error = statistics.mean(differences), statistics.stdev(differences) / PAIRS**0.5
    rate = statistics.mean(rates)
    cost = f"{100 * mean:.2f} % of a CPU (+- {200 * error:.2f}) at {rate:.0f} switches/s"
    print(f"\nprobe: {cost}, {1e9 * mean / rate:.0f} ns each")
    assert mean * 20_000 / rate - 2 * error < 0.05


@pytest.mark.parametrize(("tier", "most"), [(0, 0.005), (1, 0.02), (2, 0.02)])
def test_reading_costs_little(load, tier, most):
    profile = observe(Order(Target(), 20.0, tier)).profile
    print(f"\ntier {tier}: reading took {100 * profile.cost_cpus:.2f} % of a CPU over {profile.seconds:.0f} s")
    assert profile.cost_cpus < most
