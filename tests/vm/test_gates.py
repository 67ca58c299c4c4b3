"""The corpus through the gates: what is broken is rejected for the rule it breaks, what is correct passes.

The static gates have a test of their own, tests/unit/verifier/source/test_static_gates.py.
`make test-verifier` takes every policy through all gates, in half an hour. Here, of the broken ones that only a run
shows, nine meet the phase of their oracle (others do in test_proving_ground.py), and one of the correct ones is
proved. Of the bundled ones two are proved elsewhere, and are only loaded here.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernel_bpf.policies.library import policy_from_file
from schedagent.core.errors import HostBusy
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.rules import GATES, KERNEL, PROVING, RULES
from schedagent.core.verification import Severity, VerificationOutcome
from tests.corpus import POLICIES, complaint, corpus_verifier, judge, load_corpus
from tests.support.no_verdict import no_verdict
from verifier.lab.vm import LabPolicy
from verifier.proving.prove import PHASES, Depth
from verifier.submission import build

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

CORPUS = load_corpus()
PROVED = ("hotplug_aware",)
"""The correct policy that differs most from the bundled ones: it goes by CPUs that come and go, itself."""

PROVED_EACH_TIME = ("layered",)
"""What `make test` proves besides those of PROVED_ELSEWHERE: it differs most from them. The others take minutes."""

SHOWN = (
    *("forgets_migration_disabled", "popped_and_dropped", "drained_once_there_are_many", "wakeups_do_not_kick"),
    *("steals_through_the_pinned", "offline_queue_is_left", "strict_priority", "yield_is_punished", "burns_cycles"),
)
"""Broken policies that fail by a wide margin, one or more for each phase but those in test_proving_ground.py."""

PROVED_ELSEWHERE = {
    "fair": "test_verifier_service.py, which wants it to pass every gate",
    "longest_first": "tests/e2e/test_optimize.py and test_wheel.py, which do so too",
}
"""Bundled policies that need not be proved once more, and where they are."""


def named(entry):
    return f"{entry.kind}-{entry.name}"


@pytest.fixture(scope="module")
def all_gates():
    return corpus_verifier()


@pytest.mark.parametrize(
    "entry", [entry for entry in CORPUS if entry.kind == "broken" and entry.gate == KERNEL], ids=named
)
def test_what_the_kernel_refuses(entry, all_gates):
    assert complaint(entry, judge(entry, all_gates)) == ""


@pytest.mark.parametrize("entry", [entry for entry in CORPUS if entry.name in SHOWN], ids=named)
def test_what_only_a_run_shows(entry, all_gates):
    """An oracle that stands for the rule, or the kernel's own watchdog, notices."""
    policy = LabPolicy(CandidatePolicy(entry.name, entry.info.configured({})), all_gates.compile(entry.info))
    phases = [phase.name for phase in PHASES if entry.oracle in {oracle.name for oracle in phase.oracles}]
    try:
        answer = all_gates.benches[0].ground.prove(policy, Depth.STANDARD, phases)
    except HostBusy as error:
        no_verdict(error.message)
    failed = {result["name"] for result in answer.results if not result["ok"]}
    if not (failed or answer.exit_text) and answer.undecided:
        no_verdict(str(answer.undecided))
    assert failed & set(RULES[entry.rule].checks) or answer.exit_text, answer.results


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, marks=() if entry.name in PROVED_EACH_TIME else pytest.mark.slow)
        for entry in CORPUS
        if (entry.kind == "bundled" and entry.name not in PROVED_ELSEWHERE) or entry.name in PROVED
    ],
    ids=named,
)
def test_correct_policies_pass_every_gate_on_every_kernel(entry, all_gates):
    report = judge(entry, all_gates)
    if report.outcome is VerificationOutcome.INCOMPLETE:
        no_verdict(complaint(entry, report))
    assert complaint(entry, report) == ""
    assert {kernel.status.value for kernel in report.kernels} == {"passed"}, report.kernels


@pytest.mark.parametrize("entry", [entry for entry in CORPUS if entry.name in PROVED_ELSEWHERE], ids=named)
def test_what_is_proved_elsewhere_loads_on_every_kernel(entry, all_gates):
    for bench in all_gates.benches:
        artifact = build(entry.info, bench.target, (), all_gates.cache_dir)
        policy = LabPolicy(CandidatePolicy(entry.name, entry.info.configured({})), artifact)
        with bench.ground.cell(policy) as cell:
            assert cell.load().programs, bench.target.release


def test_a_policy_of_the_field_is_judged_as_a_whole(all_gates):
    """It leaves timeout, exit record and ranges to a loader of its own, and its init_task may run out of memory."""
    info = policy_from_file(POLICIES / "field_fifo.bpf.c")
    verifier = replace(all_gates, benches=all_gates.benches[:1])
    report = verifier.verify(CandidatePolicy(info.name, info.configured({})), info).report
    if report.undecided:
        no_verdict(report.undecided.detail)
    static = {(finding.rule, finding.severity) for gate in report.gates[:3] for finding in gate.findings}
    assert static == {(rule, Severity.NOTE) for rule in (17, 24, 26, 31)}
    assert [gate.status.value for gate in report.gates[:5]] == ["passed"] * 5
    proved = report.gates[GATES.index(PROVING)]
    assert [finding.where for finding in proved.findings] == ["weights"], proved.detail
    assert (report.safe, report.needs) == (True, ("cgroup limits", "cgroup weights", "weights"))
    assert report.lacks.startswith("It needs no loader of its own")


def test_the_corpus_is_as_large_as_it_must_be():
    kinds = [entry.kind for entry in CORPUS]
    assert kinds.count("broken") >= 60
    assert kinds.count("correct") >= 20
    assert all(
        entry.gate in GATES and entry.rule in RULES and entry.about for entry in CORPUS if entry.kind == "broken"
    )
    assert set(PROVED) <= {entry.name for entry in CORPUS if entry.kind == "correct"}
    assert set(SHOWN) <= {entry.name for entry in CORPUS if entry.kind == "broken" and entry.oracle}
    assert set(PROVED_ELSEWHERE) <= {entry.name for entry in CORPUS if entry.kind == "bundled"}
