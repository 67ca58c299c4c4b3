"""What the class of a finding means: for whom it counts, what it stops, and by which word it is accepted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from schedagent.core.policies.policy import DECLARABLE, PolicyInfo, Standing, is_acceptable
from schedagent.core.rules import RULES, FindingClass
from schedagent.core.verification import Finding, OracleResult, Severity, worst_first
from verifier import classes
from verifier.proving.prove import ORACLES

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
UNSAFE = Finding(18, ERROR, "enqueue", "x.bpf.c", 9, "lost")
UNFAIR = Finding(22, ERROR, "stopping", "x.bpf.c", 3, "not charged by weight")
KICKLESS = Finding(20, WARNING, "enqueue", "x.bpf.c", 5, "no kick", cleared_by="work conservation")
HOUSE = Finding(26, ERROR, "", "", 0, "no timeout")
READS = Finding(32, NOTE, "enqueue", "x.bpf.c", 4, "comm decides", word="reads:comm")
INFO = PolicyInfo("x", "d", (), "a", "l", (), (), Path("x.bpf.c"))


def test_the_worst_come_first():
    mixed = [HOUSE, READS, KICKLESS, UNFAIR, replace(UNSAFE, rule=1), UNSAFE]
    assert worst_first(mixed) == (replace(UNSAFE, rule=1), UNSAFE, READS, UNFAIR, KICKLESS, HOUSE)


@pytest.mark.parametrize("standing", list(Standing))
def test_house_rules_are_asked_of_ours_and_noted_of_others(standing):
    (settled,) = classes.settled([HOUSE], standing, ())
    assert settled.severity is (NOTE if standing is Standing.FOREIGN else ERROR)


@pytest.mark.parametrize("standing", list(Standing))
def test_what_is_unsafe_counts_for_everybody_whatever_is_declared(standing):
    assert classes.settled([UNSAFE], standing, DECLARABLE) == (UNSAFE,)
    assert not classes.tolerable([UNSAFE, UNFAIR], standing)


def test_what_is_unfair_counts_until_it_is_declared_or_accepted():
    assert classes.settled([UNFAIR, KICKLESS], Standing.FOREIGN, ()) == (UNFAIR, KICKLESS)
    declared = classes.settled([UNFAIR, KICKLESS], Standing.FOREIGN, ("weights", "work conservation"))
    assert [(each.severity, each.cleared_by) for each in declared] == [(NOTE, ""), (NOTE, "")]
    assert classes.settled([UNFAIR], Standing.FOREIGN, ("pinned crowd",)) == (UNFAIR,), "another word"


def test_only_a_persons_policy_goes_on_after_a_static_gate_that_failed():
    tolerant = [standing for standing in Standing if classes.tolerable([UNFAIR, HOUSE], standing)]
    assert tolerant == [Standing.FOREIGN]


def test_a_token_takes_a_word_for_all_that_is_unfair_or_looked_at():
    assert classes.needed([UNFAIR, KICKLESS, READS, HOUSE, UNSAFE], (), INFO) == (
        *("reads:comm", "weights", "work conservation"),
    )
    assert classes.needed([KICKLESS], ("work conservation",), INFO) == (), "an oracle cleared it"
    accepting = INFO.accepting(["weights", "reads:comm"])
    assert (accepting.declares, accepting.reads) == (("weights",), ("comm",))
    assert classes.needed([UNFAIR, READS], (), accepting) == ()
    unknown = replace(UNFAIR, rule=6, classed=FindingClass.UNFAIR)
    assert classes.needed([unknown], (), INFO) == ("rule 6",), "no oracle measures it, so nobody can accept it"


def test_every_oracle_of_an_unfair_rule_can_be_declared_and_no_other():
    measured = {
        name: classes.measured(OracleResult(name, info.rule, False, 2.0, 1.0, "s", ""))
        for name, info in ORACLES.items()
    }
    unfair = {name for name, finding in measured.items() if finding.finding_class is FindingClass.UNFAIR}
    assert unfair == set(DECLARABLE)
    assert all(measured[name].accepted_as == name for name in unfair)
    assert not any(measured[name].accepted_as for name in measured.keys() - unfair)
    assert FindingClass.HOUSE not in {finding.finding_class for finding in measured.values()}


def test_only_these_words_are_accepted():
    assert all(map(is_acceptable, (*DECLARABLE, "reads:comm", "reads:time since load")))
    assert not any(map(is_acceptable, ("starvation", "comm", "reads:", "reads:anything", "rule 18", "")))


def test_every_rule_says_its_class_and_why():
    for rule in RULES.values():
        assert rule.class_text.startswith(f"{rule.finding_class}: ")
        assert bool(rule.classed_for) == (rule.finding_class is not FindingClass.UNSAFE), rule.number
