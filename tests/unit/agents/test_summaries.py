"""The summaries that agents start from: what is in them, how long they are, and that numbers of a model are not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from agents.claims import REMOVED, Figures, without_claims
from agents.llm.exchange import estimated_tokens
from agents.prompts import prompt
from agents.schemas import LONGEST_LINE, Described, Planned, one_line
from agents.summaries import (
    COMMANDS,
    LESSONS,
    excerpts_text,
    lessons_text,
    library_text,
    meaning_text,
    profile_text,
    rejection_text,
    tried_text,
    workload_text,
)
from kernel_bpf.policies.library import load_library
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.trials.lesson import Lesson, Meaning
from schedagent.core.trials.objective import Direction, Guard, Metric
from schedagent.core.trials.trial import Outcome
from schedagent.core.trials.workload import Goal
from schedagent.core.verification import (
    Finding,
    GateResult,
    GateStatus,
    OracleResult,
    Severity,
    Step,
    VerificationReport,
)
from tests.support.model_session import HARDWARE, PROFILE, WORKLOAD, verdict

LOST = Finding(
    18,
    Severity.ERROR,
    "enqueue",
    "mine.bpf.c",
    7,
    "a path neither inserts nor stores the task",
    (Step("mine.bpf.c", 5, "if (!slot)"), Step("mine.bpf.c", 7, "return")),
)
NO_KICK = Finding(20, Severity.WARNING, "enqueue", "mine.bpf.c", 9, "no kick", cleared_by="work conservation")


def report(*gates: GateResult, oracles=()) -> VerificationReport:
    return VerificationReport("mine", "ab" * 8, "cd" * 32, "7.3.4", gates, oracles=oracles)


def test_profile_is_told_in_a_few_hundred_tokens():
    text = profile_text(PROFILE)
    assert estimated_tokens(text) < 350
    assert "kind: batch-long-tail" in text
    assert "spin 1400 | 1 | 1.4" in text
    assert "some task waited for: CPU 0.0001 s, I/O 0 s, memory 0 s" in text


def test_only_the_heaviest_commands_are_told():
    many = replace(PROFILE, commands=PROFILE.commands * 20)
    assert f"and {len(many.commands) - COMMANDS} more commands" in profile_text(many)
    assert profile_text(many).count(" | ") == profile_text(PROFILE).count(" | ") * 1 or len(PROFILE.commands) < COMMANDS


def test_what_is_not_known_is_said():
    text = profile_text(replace(PROFILE, parallelism=(), psi_cpu_some_s=-1, psi_io_some_s=-1, psi_memory_some_s=-1))
    assert "runnable tasks not sampled" in text
    assert "the kernel has no PSI" in text
    assert "3 events were lost" in profile_text(replace(PROFILE, lost_events=3))


def test_workload_is_told_with_what_is_compared():
    assert "goal: makespan, less of wall time" in workload_text(WORKLOAD, HARDWARE)
    rate = replace(WORKLOAD, goal=Goal.THROUGHPUT, metric="rps: ([0-9]+)")
    assert "throughput, more of the number that 'rps: ([0-9]+)' finds" in workload_text(rate, HARDWARE)
    named = replace(rate, objective="requests/s", guards=(Guard(Metric("p99", "x", Direction.LOWER), 0.05),))
    assert "throughput, more of requests/s\nmust not get worse: p99 (margin 5 %)\n" in workload_text(named, HARDWARE)


def test_library_is_told_in_a_line_each():
    library = load_library()
    text = library_text(library.values())
    assert len(text.splitlines()) == len(library)
    assert estimated_tokens(text) < 90 * len(library)
    assert "slice_us 500..100000 (10000)" in text


def test_history_holds_key_verdict_and_expectation():
    candidate = CandidatePolicy("fifo", (("slice_us", 5),), expected="less waiting", refuted_by="no gain")
    failed = replace(verdict(Outcome.FAILED, math.nan, 0), reason="gate 'compile' failed: no such file")
    text = tried_text([(candidate, verdict()), (candidate, failed)])
    assert f"{candidate.key} configure fifo slice_us=5: better, candidate / default 0.800" in text
    assert "expected: less waiting Refuted by: no gain" in text
    assert "no such file" in text


def test_lessons_are_the_latest_and_winners_come_first():
    def lesson(policy, outcome, ratio, at, slice_us=1):
        tunables = (("slice_us", slice_us),)
        return Lesson("w", "h", policy, "k", tunables, outcome, ratio, ratio, ratio, 8, "r", at)

    old = lesson("fifo", Outcome.BETTER, 0.5, "2026-01-01")
    new = lesson("fifo", Outcome.WORSE, 1.5, "2026-01-02")
    won = lesson("longest_first", Outcome.BETTER, 0.7, "2026-01-01")
    lines = lessons_text([new, old, won]).splitlines()
    assert [line.split()[0] for line in lines] == ["longest_first", "fifo"]
    assert "worse" in lines[1]
    many = [lesson("fifo", Outcome.WORSE, 1.5, "2026-01-02", number) for number in range(30)]
    assert len(lessons_text(many).splitlines()) == LESSONS


def test_a_rejection_holds_what_a_repair_needs_and_no_more():
    gate = GateResult("scheduling logic", GateStatus.FAILED, "1 error", findings=(LOST, NO_KICK))
    text = rejection_text(report(gate))
    assert "mine.bpf.c:7: rule 18 (in enqueue): a path neither" in text
    assert "mine.bpf.c:5 if (!slot)" in text
    assert "repair: end such a path with an insert" in text
    assert "no kick" not in text, "warnings are for the proving ground"
    assert estimated_tokens(text) < 200


def test_a_rejection_by_the_proving_ground_holds_its_figures():
    gate = GateResult("proving ground", GateStatus.FAILED, "starvation: 9 s")
    bad = OracleResult("starvation", 29, False, 9.0, 1.0, "s", "a task waited")
    good = replace(bad, name="weights", ok=True)
    text = rejection_text(report(gate, oracles=(bad, good)))
    assert "oracle starvation (rule 29): 9, bound 1 s. a task waited" in text
    assert "weights" not in text


def test_a_long_log_loses_its_middle():
    gate = GateResult("kernel verifier", GateStatus.FAILED, "first\n" + "x" * 50_000 + "\nlast")
    text = rejection_text(report(gate))
    assert len(text) < 2000
    assert "first" in text
    assert text.endswith("last")
    assert "characters left out" in text


def test_a_passed_report_has_no_rejection():
    assert rejection_text(report(GateResult("compile", GateStatus.PASSED, ""))) == ""
    assert excerpts_text(report(GateResult("compile", GateStatus.PASSED, "")), "a\nb") == ""


def test_excerpts_number_the_lines_around_a_finding():
    gate = GateResult("scheduling logic", GateStatus.FAILED, "", findings=(LOST, NO_KICK))
    source = "\n".join(f"line {number}" for number in range(1, 40))
    lines = excerpts_text(report(gate), source).splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(4, 11))
    assert excerpts_text(report(gate), "short") == ""


def test_meaning_may_be_missing():
    assert meaning_text(None) == ""
    assert "goal: g" in meaning_text(Meaning("m", "g"))


# --- numbers, lines, prompts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It takes 3.20 s on 2 CPUs.", "It takes 3.20 s on 2 CPUs."),
        ("It takes 3.2 s.", "It takes 3.2 s."),
        ("It is long. It is 45 % faster, 3x in all.", f"It is long. {REMOVED}"),
        ("p99 of gcc12 in v1.2.3", "p99 of gcc12 in v1.2.3"),
        ("ratio 0.5,0.6", REMOVED),
        ("", ""),
    ],
)
def test_sentences_with_figures_that_were_not_measured_are_taken_out(text, kept):
    assert without_claims(text, Figures(plain=frozenset({3.2, 2.0}))) == kept


def test_texts_become_one_printable_line():
    assert one_line("a\n\x1b[31mred\u202e  b ") == "a [31mred b"
    assert len(one_line("x" * 5000)) == LONGEST_LINE
    answer = Described.model_validate({"meaning": "two\nlines\x07", "goal": "g"})
    assert answer.meaning == "two lines"


@pytest.mark.parametrize(
    ("role", "most"), [("observation", 350), ("planning", 900), ("execution", 400), ("learning", 300)]
)
def test_prompts_are_short(role, most):
    assert estimated_tokens(prompt(role)) < most
    assert prompt(role).startswith(f"You are the {role.capitalize()} agent of schedagent")


def test_a_plan_is_bounded():
    one = {"origin": "configure", "policy": "fifo", "reason": "", "expected": "", "refuted_by": ""}
    with pytest.raises(ValueError, match="at most 8"):
        Planned.model_validate({"reason": "", "proposals": [one] * 9})
