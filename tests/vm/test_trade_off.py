"""A policy that trades throughput for latency is called a trade-off, and no gain without a price (VERDICT.md, 1)."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest

from kernel_bpf.policies.library import policy_from_file
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.readings.presets import settle
from schedagent.core.settings import load_settings
from schedagent.core.trials.arm import SHORT_SLICE
from schedagent.core.trials.judge import Terms, TrialRules
from schedagent.core.trials.race import judge_all, wanted
from schedagent.core.trials.trial import Block, Outcome
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.run.opening import open_lab, open_verifier
from tests.support.paths import FIXTURES
from verifier.lab.vm import LabPolicy

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

SLICE_OF_ITSELF = (
    "import ctypes, struct; b = ctypes.create_string_buffer(56);"
    "ctypes.CDLL(None).syscall(315, 0, b, 56, 0); print('slice', struct.unpack('=IIQiIQQQII', b.raw)[5])"
)
"""sched_getattr(2) on itself."""


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messages")
    shutil.copytree(FIXTURES / "messages", folder, dirs_exist_ok=True)
    subprocess.run(["make", "-s", "-C", str(folder)], check=True)
    return WorkloadCommand("./messages 6 2 2000", str(folder))


@pytest.mark.slow
def test_latency_that_throughput_pays_for_is_a_trade_off(workload):
    lab = open_lab(load_settings())
    info = policy_from_file(FIXTURES / "policies" / "reserves_a_cpu.bpf.c")
    candidate = CandidatePolicy(info.name, info.configured({}))
    policy = LabPolicy(candidate, open_verifier(load_settings()).compile(info))
    sample, _ = lab.observe(workload)
    settled = settle(workload, sample.output_tail, recognise=True)
    assert settled.workload.preset == "schbench"
    assert [guard.metric.name for guard in settled.workload.guards] == ["requests/s", "request p99"]
    terms, blocks = Terms(settled.workload, TrialRules(), cpus=lab.cpus), []
    with lab.session(settled.workload) as session:
        while wanted(blocks, [candidate.key], terms):
            runs = [lambda: session.run_default(policy), lambda: session.run_candidate(policy)]
            blocks.append(Block(len(blocks), tuple(run() for run in random.Random(len(blocks)).sample(runs, 2))))
    [verdict] = judge_all(blocks, [candidate.key], terms).values()
    assert verdict.outcome is Outcome.TRADE_OFF, verdict
    assert verdict.high < 1, "the latency itself is better"
    assert "request p99 is" in verdict.reason or "requests/s is" in verdict.reason


def test_a_knob_reaches_every_task_of_the_workload(workload, tmp_path):
    (tmp_path / "own.py").write_text(SLICE_OF_ITSELF)
    command = WorkloadCommand(f"sh -c 'chrt -p $$'; python3 {tmp_path}/own.py", workload.directory)
    info = policy_from_file(FIXTURES / "policies" / "aa_disguise.bpf.c")
    beside = LabPolicy(CandidatePolicy(info.name), open_verifier(load_settings()).compile(info))
    with open_lab(load_settings()).session(command) as session:
        plain, turned = session.run_default(beside), session.run_knob(SHORT_SLICE, beside)
    assert turned.arm == "knob:a slice of 0.5 ms"
    assert f"slice {1000 * SHORT_SLICE.slice_us}" in turned.output_tail
    assert f"slice {1000 * SHORT_SLICE.slice_us}" not in plain.output_tail
