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
from schedagent.core.trials.judge import TrialRules, judge, precise_enough
from schedagent.core.trials.trial import Outcome, Verdict
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.run.opening import open_lab, open_verifier
from tests.support.paths import FIXTURES
from verifier.lab.vm import LabPolicy, TrialSession

TRIALS = 20
SHORT_MS, LONG_MS, SHORTS = 200, 1400, 9

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "longtail"
    shutil.copytree(FIXTURES / "longtail", folder)
    subprocess.run(["make", "-s", "-C", str(folder)], check=True)
    return folder


def test_the_default_in_disguise_is_called_no_difference(batch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Acceptance: at least 19 of 20 A/A trials end as "no difference"."""
    settings = load_settings()
    lab = open_lab(settings)
    info = policy_from_file(FIXTURES / "policies" / "aa_disguise.bpf.c")
    disguise = LabPolicy(CandidatePolicy(info.name), open_verifier(settings).compile(info))
    workload = WorkloadCommand("./batch.sh 9 100 700", str(batch))
    outcomes: Counter[Outcome] = Counter()
    with lab.session(workload) as session:
        session.run_default()
        for number in range(TRIALS):
            verdict = one_trial(session, disguise)
            outcomes[verdict.outcome] += 1
            with capsys.disabled():
                print(f"A/A {number + 1:2}: {verdict.outcome.value:14} {verdict.ratio:.3f} "
                      f"[{verdict.low:.3f}, {verdict.high:.3f}] {verdict.pairs} pairs", flush=True)  # fmt: skip
    assert outcomes[Outcome.NO_DIFFERENCE] >= 19, outcomes


def one_trial(session: TrialSession, policy: LabPolicy) -> Verdict:
    """One A/A trial by the rules of a real one."""
    rules = TrialRules()
    pairs: list[tuple[float, float]] = []
    while True:
        values = {}
        for arm in random.sample(["default", "candidate"], 2):
            sample = session.run_default(policy) if arm == "default" else session.run_candidate(policy)
            assert not sample.failure, sample
            values[arm] = sample.value
        pairs.append((values["default"], values["candidate"]))
        verdict = judge(pairs, minimum_effect=rules.minimum_effect, minimum_pairs=rules.minimum_pairs)
        if precise_enough(verdict, rules.minimum_effect) or len(pairs) >= rules.maximum_pairs:
            return verdict


def test_longest_first_beats_the_default_on_a_long_tail(
    batch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Acceptance: found by the offline planner, whole interval below 0.90, within 12 % of the lower bound."""
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
    assert verdict["high"] < 0.90
