"""Benches of the verdict: what it says where nothing changed (A/A), and on a batch with a long tail.

Run by hand on a quiet machine: make bench. Figures are printed; what is asserted are counts and ratios.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from kernel_bpf.policies.library import policy_from_file
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.settings import load_settings
from schedagent.core.trials.judge import Terms, TrialRules, decided, judge_arm, pairs_of
from schedagent.core.trials.trial import Block, Outcome, Verdict
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.run.opening import open_lab, open_verifier
from tests.support.paths import FIXTURES
from verifier.lab.vm import LabPolicy, TrialSession

TRIALS = 20
SHORT_MS, LONG_MS, SHORTS = 200, 1500, 9

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "longtail"
    shutil.copytree(FIXTURES / "longtail", folder)
    subprocess.run(["make", "-s", "-C", str(folder)], check=True)
    return folder


def test_the_default_in_disguise_is_called_no_difference(batch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Acceptance: at least 19 of 20 A/A trials end without a claim."""
    settings = load_settings()
    lab = open_lab(settings)
    info = policy_from_file(FIXTURES / "policies" / "aa_disguise.bpf.c")
    disguise = LabPolicy(CandidatePolicy(info.name), open_verifier(settings).compile(info))
    workload = WorkloadCommand("./batch.sh 9 100 700", str(batch))
    outcomes: Counter[Outcome] = Counter()
    terms = Terms(workload, TrialRules(), cpus=lab.cpus, costs=lab.costs())
    runs = 0
    with lab.session(workload) as session:
        session.run_default()
        for number in range(TRIALS):
            verdict, measured = one_trial(session, disguise, terms)
            runs += measured
            outcomes[verdict.outcome] += 1
            with capsys.disabled():
                print(f"A/A {number + 1:2}: {verdict.outcome.value:14} {verdict.ratio:.3f} "
                      f"[{verdict.low:.3f}, {verdict.high:.3f}] {verdict.pairs} pairs", flush=True)  # fmt: skip
    with capsys.disabled():
        print(f"{runs / TRIALS:.1f} runs a trial; {dict(outcomes)}")
    claims = sum(outcomes[claim] for claim in (Outcome.BETTER, Outcome.TRADE_OFF, Outcome.WORSE))
    assert TRIALS - claims >= 19, outcomes


def one_trial(session: TrialSession, policy: LabPolicy, terms: Terms) -> tuple[Verdict, int]:
    """One A/A trial by the rules of a real one; with the number of its runs."""
    blocks: list[Block] = []
    while True:
        order = random.sample([lambda: session.run_default(policy), lambda: session.run_candidate(policy)], 2)
        blocks.append(Block(len(blocks) + 1, tuple(run() for run in order)))
        verdict = judge_arm(pairs_of(blocks, policy.candidate.key), terms)
        if decided(verdict) or len(blocks) >= terms.rules.maximum_pairs:
            return verdict, 2 * len(blocks)


def test_longest_first_beats_the_default_on_a_long_tail(
    batch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Acceptance: found by the offline planner, at least 20 % better, the whole interval below 0.85."""
    command = f"./batch.sh {SHORTS} {SHORT_MS} {LONG_MS}"
    done = subprocess.run(
        [sys.executable, "-m", "schedagent", "optimize", "--workload", command, "--dir", str(batch), "--json",
         "--iterations", "1"],
        env={**os.environ, "SCHEDAGENT_STATE": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)
    by_policy = {candidate["policy"]: candidate for candidate in report["iterations"][0]["candidates"]}
    verdict = by_policy["longest_first"]["verdict"]
    with capsys.disabled():
        print(json.dumps({name: candidate["verdict"] for name, candidate in by_policy.items()}, indent=1))
    assert report["profile"]["kind"] == "batch-long-tail"
    assert verdict["outcome"] == "better"
    assert verdict["ratio"] < 0.8
    assert verdict["high"] < 0.85
