"""Finished runs with all that a report shows: guards, expected gains, two modes, usage, costs and a failed gate.

The samples are drawn with a fixed seed; the verdicts are written by hand around what they hold.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import NormalDist, fmean, stdev

from agents.observation import build_profile
from repo_store.records import RunStatus
from repo_store.store import PolicyRepository
from schedagent.core.policies.policy import CandidatePolicy, Plan
from schedagent.core.rules import GATES
from schedagent.core.trials.arm import KNOB_PREFIX
from schedagent.core.trials.lesson import Meaning
from schedagent.core.trials.objective import Direction, Guard, Metric
from schedagent.core.trials.race import own_blocks
from schedagent.core.trials.trial import (
    DEFAULT_ARM,
    Block,
    Expected,
    GuardVerdict,
    Hardware,
    Outcome,
    Sample,
    Verdict,
)
from schedagent.core.trials.usage import CommandUsage, MachineCosts, Usage
from schedagent.core.trials.workload import Goal, WorkloadCommand
from schedagent.core.verification import GateResult, GateStatus, VerificationReport
from schedagent.report.as_json import to_json
from schedagent.report.build import build_report
from schedagent.run.options import RunOptions
from tests.support.scripted_lab import long_tail

EMULATED = Hardware("Example CPU <fast & cheap>", 2, 2048, "vm-tcg", "7.3.4-amd64")
BARE = replace(EMULATED, lab="vm-kvm")
COSTS = MachineCosts(8.3, 21_400.0, 1_350.0)
BUILD = WorkloadCommand("make -j", "/srv/project", prepare="make clean")
REQUESTS = Metric("requests/s", r"requests/s: ([\d.]+)", Direction.HIGHER)
SLOWEST = Metric("request p99", r"request p99: ([\d.]+)", Direction.LOWER)
SERVICE = WorkloadCommand(
    "./serve --seconds 10 '<script>alert(1)</script>'",
    "/srv/service",
    Goal.LATENCY,
    metric=r"wake-up p99: ([\d.]+)",
    objective="wake-up p99",
    guards=(Guard(REQUESTS, 0.05), Guard(SLOWEST, 0.1)),
    units=(("wake-up p99", "s"), ("requests/s", ""), ("request p99", "s")),
)
LONGEST = CandidatePolicy("longest_first", (("slice_us", 20000),), reason="long tasks end the build")
BATCH = CandidatePolicy("batch", (("slice_us", 20000),), reason="fewer switches", expected="fewer switches")
BROKEN = CandidatePolicy("plain", reason="a baseline")
LAYERED = CandidatePolicy("layered", (("slice_us", 500),), reason="workers before hogs", refuted_by="a longer p99")
INTERACTIVE = CandidatePolicy("interactive", (("slice_us", 2000),), reason="short turns")
PAIRS, SHARED = 12, 4
NICE = f"{KNOB_PREFIX}nice"
PASSED = tuple(GateResult(gate, GateStatus.PASSED, "fine", 1.25) for gate in GATES)
_START = datetime(2026, 11, 30, 2, 0, tzinfo=UTC)


def build_run(repository: PolicyRepository, *, run_id: str = "20261130-020000-aaaaaa") -> str:
    """Store a build in an emulated machine: one policy won a race and is better, one only switches less, one failed a
    gate, and a knob ran beside them.
    """
    run_id = repository.create_run(BUILD, EMULATED, settings=asdict(RunOptions()), run_id=run_id)
    repository.save_profile(run_id, _profile())
    repository.save_costs(run_id, COSTS)
    repository.save_meaning(run_id, Meaning("It compiles a project.", "Less time."))
    repository.save_plan(run_id, 0, Plan((LONGEST, BATCH, BROKEN), "a few long tasks end it", "batch helped before"))
    source = random.Random(1)
    arms = {DEFAULT_ARM: (3.2, 1.0), LONGEST.key: (2.45, 0.84), BATCH.key: (2.5, 0.785), NICE: (3.1, 0.99)}
    blocks = [_block(number, arms, source) for number in range(SHARED + 1)]
    own = {arm: arms[arm] for arm in (DEFAULT_ARM, LONGEST.key)}
    blocks += [_block(number, own, source) for number in range(SHARED + 1, SHARED + PAIRS + 1)]
    _store(repository, run_id, blocks, (LONGEST, BATCH))
    for candidate, gain, outcome in ((LONGEST, 0.91, Outcome.BETTER), (BATCH, 0.99, Outcome.NO_USEFUL_GAIN)):
        judged = own_blocks(blocks, candidate.key) or blocks[1:]
        judged = [block for block in judged if block.sample(candidate.key)]
        ratio, low, high = _interval(judged, candidate.key, lambda sample: sample.value)
        expected = Expected(gain, gain - 0.02, gain + 0.02, min(gain + 0.005, 1.0), ratio)
        guards = (_worst_run(judged, candidate.key),)
        reason = (
            "a gain of at least 7.0%, probably 9.0%, in 12 pairs"
            if gain < 0.95
            else "a gain of 3% is excluded in the race, in 4 shared blocks"
        )
        verdict = Verdict(outcome, ratio, low, high, 0.975, len(judged), 0, reason, guards, expected)
        repository.save_verdict(run_id, 0, candidate.key, verdict)
    gates = (*PASSED[:2], GateResult(GATES[2], GateStatus.FAILED, "a path loses the task <b>", 0.2))
    repository.save_verification(run_id, VerificationReport(BROKEN.policy, BROKEN.key, "d", "7.3.4", gates))
    return _finish(repository, run_id)


def service_run(repository: PolicyRepository, *, run_id: str = "20261130-030000-bbbbbb") -> str:
    """Store a service under KVM: one policy trades throughput for latency, the other has a slow mode."""
    run_id = repository.create_run(SERVICE, BARE, settings=asdict(RunOptions()), run_id=run_id)
    repository.save_profile(run_id, _profile())
    repository.save_plan(run_id, 0, Plan((LAYERED, INTERACTIVE), "workers wait behind hogs"))
    source = random.Random(2)
    arms = {DEFAULT_ARM: (10.0, 1.0), LAYERED.key: (10.0, 1.0), INTERACTIVE.key: (10.0, 1.0)}
    blocks = [_block(number, arms, source, partial(_served, number)) for number in range(PAIRS + 1)]
    _store(repository, run_id, blocks, (LAYERED, INTERACTIVE))
    for candidate, outcome in ((LAYERED, Outcome.TRADE_OFF), (INTERACTIVE, Outcome.BETTER)):
        ratio, low, high = _interval(blocks[1:], candidate.key, lambda sample: sample.value)
        guards = tuple(
            _guard(
                blocks[1:], candidate.key, guard.metric.name, _reading(guard.metric.name), guard.margin, guard.metric
            )
            for guard in SERVICE.guards
        )
        broken = [guard.name for guard in guards if not guard.held]
        reason = f"better, but it breaks a guard: {', '.join(broken)}" if broken else "at least 70 % less wake-up p99"
        verdict = Verdict(outcome, ratio, low, high, 0.975, PAIRS, 0, reason, guards)
        repository.save_verdict(run_id, 0, candidate.key, verdict)
    return _finish(repository, run_id)


def _profile():
    """Ten tasks that come to an end one after the other; the longest runs alone."""
    points = tuple((0.25 * step, max(1, 10 - step)) for step in range(13))
    return replace(build_profile(long_tail()), parallelism=points)


def _block(number, arms, source, served=None) -> Block:
    """One run of each arm; (wall time in seconds, CPU time by the default's) of each."""
    samples = []
    order = list(arms)
    source.shuffle(order)
    for place, arm in enumerate(order):
        wall_s, work = arms[arm]
        wall_s *= source.lognormvariate(0, 0.015)
        cpu_ns = int(5.4e9 * work * source.lognormvariate(0, 0.01)) if served is None else int(wall_s * 1.7e9)
        value, values = served(arm, source) if served else (wall_s, {})
        samples.append(
            Sample(
                arm,
                value,
                int(wall_s * 1e9),
                cpu_ns,
                0,
                (_START + timedelta(minutes=number, seconds=10 * place)).isoformat(timespec="seconds"),
                int(1e8 * source.lognormvariate(0, 0.02)),
                values=values,
                usage=_usage(work, cpu_ns, source),
            )
        )
    return Block(number, tuple(samples))


def _served(number, arm, source):
    """Wake-up p99 in seconds, and what the guards watch; in each fourth of its runs interactive is slow."""
    latency, requests, slowest = {
        DEFAULT_ARM: (0.0042, 170.0, 0.0152),
        LAYERED.key: (0.0004, 92.0, 0.0278),
        INTERACTIVE.key: (0.0004, 182.0, 0.0148),
    }[arm]
    if arm == INTERACTIVE.key and number % 4 == 2:
        latency = 0.03
    noise = [source.lognormvariate(0, 0.08) for _value in range(3)]
    return latency * noise[0], {REQUESTS.name: requests * noise[1], SLOWEST.name: slowest * noise[2]}


def _usage(work, cpu_ns, source) -> Usage:
    voluntary, involuntary = int(4000 * work * source.lognormvariate(0, 0.02)), int(9000 * work**2)
    commands = (
        CommandUsage("cc1", 40, int(cpu_ns * 0.9), 2_100_000_000, voluntary // 2, involuntary),
        CommandUsage("make", 1, int(cpu_ns * 0.05), 90_000_000, voluntary // 2, 0),
    )
    return Usage(voluntary, involuntary, commands, 900_000, 1000, 0, output_bytes=2048)


def _reading(name):
    return lambda sample: sample.values[name]


def _logs(blocks, arm, value):
    return [math.log(value(block.sample(arm)) / value(block.sample(DEFAULT_ARM))) for block in blocks]


def _interval(blocks, arm, value):
    """A ratio with a normal 95 % interval: the judge has a rule of its own, which is tested elsewhere."""
    logs = _logs(blocks, arm, value)
    half = NormalDist().inv_cdf(0.975) * stdev(logs) / math.sqrt(len(logs))
    return tuple(math.exp(fmean(logs) + shift) for shift in (0, -half, half))


def _guard(blocks, arm, name, value, margin, metric=None) -> GuardVerdict:
    ratio, low, high = _interval(blocks, arm, value)
    held = low > 1 - margin if metric and metric.direction is Direction.HIGHER else high < 1 + margin
    return GuardVerdict(name, ratio, low, high, margin, held)


def _worst_run(blocks, arm) -> GuardVerdict:
    ratio = max(block.sample(arm).value for block in blocks) / max(block.sample(DEFAULT_ARM).value for block in blocks)
    return GuardVerdict("worst run", ratio, ratio, ratio, 1.0, True)


def _store(repository, run_id, blocks, candidates) -> None:
    for block in blocks:
        repository.add_block(run_id, 0, block)
    for candidate in candidates:
        report = VerificationReport(candidate.policy, candidate.key, "d" * 64, "7.3.4", PASSED, verified_by="verifier")
        repository.save_verification(run_id, report)


def _finish(repository, run_id) -> str:
    stored = to_json(build_report(repository, run_id))
    repository.finish_run(run_id, RunStatus.FINISHED, stored)
    return run_id
