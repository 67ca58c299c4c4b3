"""The corpus through the gates: what is broken is rejected for the rule it breaks, what is correct passes.

The same as `make test-verifier`, one test per policy.
"""

from __future__ import annotations

import pytest

from schedagent.core.rules import GATES, RULES
from tests.corpus import complaint, corpus_verifier, judge, load_corpus

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

CORPUS = load_corpus()


@pytest.fixture(scope="module")
def static_gates():
    return corpus_verifier(static_only=True)


@pytest.fixture(scope="module")
def all_gates():
    return corpus_verifier()


@pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_static_gates(entry, static_gates):
    """No machine: what the object shows is found here, and correct policies have no error."""
    assert complaint(entry, judge(entry, static_gates)) == ""


@pytest.mark.parametrize(
    "entry", [entry for entry in CORPUS if not entry.static], ids=lambda entry: f"{entry.kind}-{entry.name}"
)
def test_all_gates(entry, all_gates):
    """In the machine: what only a run shows is found there, and correct policies pass to the end on every kernel."""
    report = judge(entry, all_gates)
    assert complaint(entry, report) == ""
    if entry.kind == "bundled":
        assert {kernel.status.value for kernel in report.kernels} == {"passed"}, report.kernels


def test_the_corpus_is_as_large_as_it_must_be():
    kinds = [entry.kind for entry in CORPUS]
    assert kinds.count("broken") >= 60
    assert kinds.count("correct") >= 20
    assert all(
        entry.gate in GATES and entry.rule in RULES and entry.about for entry in CORPUS if entry.kind == "broken"
    )
