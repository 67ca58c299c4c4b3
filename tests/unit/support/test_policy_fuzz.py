"""The grammar fuzzer draws what it says: the same policies for a seed, every second one with the fault it names."""

import itertools
from dataclasses import replace

import pytest

from kernel_bpf.build.compile import compile_policy
from schedagent.core.rules import COMPILE, LOGIC, PROVING, SOURCE
from schedagent.core.verification import Finding, GateResult, GateStatus, Severity, VerificationReport
from tests.policy_fuzz.conditions import CONDITIONS
from tests.policy_fuzz.drawing import Drawn, drawn
from tests.policy_fuzz.faults import CHANNELS, HARMS, Fault
from tests.policy_fuzz.plain_faults import PLAIN
from tests.policy_fuzz.result import Ending, Trial, failed, table, write_wrong

SAMPLE = list(itertools.islice(drawn(7), 3000))


def test_a_seed_stands_for_its_policies():
    again = list(itertools.islice(drawn(7), 50))
    assert [each.draft.text() for each in again] == [each.draft.text() for each in SAMPLE[:50]]
    assert [each.draft.text() for each in itertools.islice(drawn(8), 50)] != [each.draft.text() for each in again]


def test_every_second_one_has_a_fault_and_the_others_none():
    assert all((each.fault is None) == (number % 2 == 0) for number, each in enumerate(SAMPLE))
    assert all(each.draft == each.innocent for each in SAMPLE if each.fault is None)
    assert all(each.draft.text() != each.innocent.text() for each in SAMPLE if each.fault)


def test_every_block_of_the_faults_is_drawn():
    faults = [each.fault for each in SAMPLE if each.fault]
    assert {fault.kind for fault in faults if not fault.channel} == {plain.kind for plain in PLAIN}
    harms = {harm.__name__.replace("_", " ") for harm in HARMS}
    assert {fault.kind for fault in faults if fault.channel} == harms
    assert len({fault.channel for fault in faults if fault.channel}) == len(set(CHANNELS))
    assert len({fault.condition for fault in faults if fault.channel}) >= len(set(CONDITIONS)) - 1


def test_dispatch_means_the_task_that_ran_and_nothing_else_that_begins_with_its_letter():
    draft = replace(SAMPLE[0].draft, slice_ns="(passes >> 30 && p->scx.weight < pace(p) ? 1 : 2)")
    assert "(passes >> 30 && prev->scx.weight < pace(prev) ? 1 : 2)" in draft.text()


@pytest.mark.parametrize("number", range(7, 11))
def test_what_is_drawn_compiles(number, real_target, tmp_path):
    info = SAMPLE[number].write(tmp_path)
    assert compile_policy(info.source, info.name, real_target, cache_dir=tmp_path).object_bytes


def report(*errors, gate=LOGIC, detail="errors", passed=False, proved=False):
    gates = [GateResult(each, GateStatus.PASSED, "") for each in (SOURCE, COMPILE, LOGIC)]
    if passed:
        gates.append(GateResult(PROVING, GateStatus.PASSED if proved else GateStatus.NOT_REQUESTED, ""))
    else:
        findings = tuple(Finding(rule, Severity.ERROR, "enqueue", "", 0, "*/ no") for rule in errors)
        gates = [*gates[:-1], GateResult(gate, GateStatus.FAILED, detail, 0.0, findings)]
    return VerificationReport("t", "k", "d", "r", tuple(gates))


def trial(fault, verdict):
    innocent = SAMPLE[0].innocent
    return Trial(Drawn(innocent, innocent, fault), verdict)


def test_endings_tell_what_was_seen_from_what_was_missed():
    assert trial(None, report(passed=True)).ending is Ending.INNOCENT
    assert trial(None, report(24)).ending is Ending.FALSE_ALARM
    assert trial(Fault("lost"), report(18)).ending is Ending.REFUSED
    assert trial(Fault("lost"), report(passed=True)).ending is Ending.PASSED
    assert trial(Fault("late", static=False), report(passed=True)).ending is Ending.LEFT
    assert trial(Fault("late", static=False), report(passed=True, proved=True)).ending is Ending.PASSED
    assert trial(Fault("lost"), report(gate=SOURCE, detail="t.bpf.c does not compile: ...")).ending is Ending.NO_C


def test_only_an_unsafe_fault_or_a_false_alarm_fails_a_run():
    missed = report(passed=True)
    assert failed([trial(Fault("lost"), missed)])
    assert failed([trial(None, report(24))])
    assert not failed([trial(Fault("long slice", unsafe=False), missed), trial(Fault("lost"), report(18))])


def test_the_table_has_the_figures_and_survivors_are_kept(tmp_path):
    missed = trial(Fault("late key", "uid", "a record"), report(passed=True))
    alarm = trial(None, report(24))
    text = table([missed, trial(Fault("lost"), report(18)), alarm])
    assert "planted faults: 2, 2 of them unsafe: 1 refused, 0 left to a run, 1 passed" in text
    assert "correct policies: 1, 1 refused" in text
    write_wrong(alarm, tmp_path / "kept")
    [kept] = (tmp_path / "kept").iterdir()
    head, _end, source = kept.read_text().partition(" */\n")
    assert "false alarm (rule 24)" in head
    assert "*/" not in head
    assert source == SAMPLE[0].innocent.text()
