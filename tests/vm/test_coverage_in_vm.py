"""What never ran is seen on a real kernel: the copy with probes loads and runs, and the kernel counts its queues."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schedagent.core.errors import KernelRejected
from schedagent.core.policies.policy import CandidatePolicy, Standing
from tests.corpus import corpus_verifier, load_corpus
from verifier.coverage.measure import measured
from verifier.lab.vm import LabPolicy
from verifier.object.reader import read_object
from verifier.proving.prove import COVERAGE, Depth

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

POLICIES = {entry.name: entry.info for entry in load_corpus()}


@pytest.fixture(scope="module")
def verifier():
    return corpus_verifier(static_only=True)


def round_of(verifier, info):
    """Run the copy of a policy; return the answer, and the judgement as if a model had written the policy."""
    artifact = verifier.compile(info)
    measure = measured(artifact.object_bytes, read_object(artifact.object_bytes), info)
    assert measure.copy, measure.why
    policy = LabPolicy(CandidatePolicy(info.name, info.configured({})), artifact, copy=measure.copy)
    answer = verifier.benches[0].ground.prove(policy, Depth.STANDARD, [COVERAGE])
    return answer, measure.judge(answer, Standing.DERIVED, ())


def test_of_a_bundled_policy_all_ran_that_counts(verifier):
    answer, judgement = round_of(verifier, POLICIES["fifo"])
    assert judgement.findings == (), judgement.findings
    assert 0 < judgement.coverage.ran < judgement.coverage.branches
    assert set(answer.passed) < set(answer.kept)
    assert len(answer.entered) == 3
    assert all(count > 0 for _queue, count in answer.entered)
    assert answer.seconds[COVERAGE] > 0


def test_victims_whom_the_proof_lacks_are_missed_in_their_branch_and_in_their_queues(verifier):
    _answer, judgement = round_of(verifier, POLICIES["unseen_uid_1000"])
    messages = [finding.message for finding in judgement.findings]
    assert {finding.rule for finding in judgement.findings} == {33}
    assert any("uid" in message for message in messages), messages
    assert sum("no task ever entered" in message for message in messages) == 3


def test_a_policy_that_leaves_the_tasks_in_the_fair_class_is_not_attached(verifier, tmp_path):
    """Whatever the static gates say of the flag: what runs here is not what would run there."""
    flag = "\t.flags = (u64)SCX_OPS_SWITCH_PARTIAL,\n\t.timeout_ms"
    source = tmp_path / "fifo.bpf.c"
    source.write_text(POLICIES["fifo"].source.read_text().replace("\t.timeout_ms", flag, 1))
    info = replace(POLICIES["fifo"], source=source)
    policy = LabPolicy(CandidatePolicy("fifo", info.configured({})), verifier.compile(info))
    with pytest.raises(KernelRejected, match=r"does not schedule every task: .*switch_all is 0"):
        verifier.benches[0].ground.prove(policy, Depth.STANDARD, ["work conservation"])
