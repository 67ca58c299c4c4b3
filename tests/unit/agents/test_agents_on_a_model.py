"""What each agent asks a model and takes from its answer, over real HTTP: meaning, plan, repair, insights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agents.claims import REMOVED
from agents.learning import conclude
from agents.llm.transcript import read_notes
from agents.observation import interpret
from agents.planning import Known, propose_with_model
from agents.repair import ModelRepairer
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.policies.proposal import DerivedPolicy, Origin
from schedagent.core.trials.lesson import Antipattern, Insight, Meaning
from schedagent.core.trials.trial import Outcome
from schedagent.core.verification import Finding, GateResult, GateStatus, Severity, VerificationReport
from tests.support.model_server import ModelServer
from tests.support.model_session import HARDWARE, LIBRARY, PROFILE, WORKLOAD, Maker, proposed, session_on, verdict
from tests.support.scripted_endpoint import KEY

KNOWN = Known(WORKLOAD, HARDWARE, PROFILE, None, tuple(LIBRARY.values()), limit=2)
SOURCE = "one\ntwo\nthree\n"
SPEC = {"name": "mine", "goal": "g", "classes": [{"name": "all"}]}


def said(server: ModelServer, number: int = -1) -> str:
    """All that was sent with a request, as one text."""
    return "\n".join(message["content"] or "" for message in server.chats[number]["messages"])


def notes(folder) -> list[str]:
    return [note.text for note in read_notes(folder / "runs" / "run.transcript.jsonl")]


# --- observation ----------------------------------------------------------------------------------------------------


def test_a_profile_is_put_into_words(tmp_path):
    told = {"meaning": "A batch with one long task, 7.0 times the others.", "goal": "Start it first, 3x faster."}
    with ModelServer([{"content": told}]) as server, session_on(server, tmp_path) as session:
        meaning = interpret(session, WORKLOAD, HARDWARE, PROFILE)
    assert meaning == Meaning(
        "A batch with one long task, 7.0 times the others.", f"Start it first, {REMOVED}x faster."
    )
    asked = said(server)
    assert asked.startswith("You are the Observation agent")
    assert "<<<DATA" in asked
    assert "longest task (spin 1400)" in asked


def test_without_an_endpoint_there_are_no_words_and_nobody_is_asked_again(tmp_path):
    with session_on(None, tmp_path) as session:
        assert interpret(session, WORKLOAD, HARDWARE, PROFILE) is None
        assert "cannot be reached" in session.lost
        assert propose_with_model(session, Maker(), KNOWN, 0) is None
    assert len(notes(tmp_path)) == 2
    assert notes(tmp_path)[1].startswith("no model was asked: the model's endpoint")


def test_a_bad_answer_is_no_reason_to_give_up_the_model(tmp_path):
    prose = {"content": "I would rather talk."}
    good = {"content": {"meaning": "m", "goal": "g"}}
    with ModelServer([prose, prose, good]) as server, session_on(server, tmp_path) as session:
        assert interpret(session, WORKLOAD, HARDWARE, PROFILE) is None
        assert interpret(session, WORKLOAD, HARDWARE, PROFILE) == Meaning("m", "g")
    assert "did not give the Described" in notes(tmp_path)[0]


# --- planning -------------------------------------------------------------------------------------------------------


def planned(*proposals, reason="because"):
    return {"content": {"reason": reason, "proposals": list(proposals)}}


def test_a_plan_is_made_of_proposals(tmp_path):
    tunables = [{"name": "slice_us", "value": 9000}]
    answer = planned(proposed(tunables=tunables), proposed("mine", "compose", spec=SPEC), reason="1.40 s, or 99 s")
    builder = Maker()
    with ModelServer([answer]) as server, session_on(server, tmp_path) as session:
        plan = propose_with_model(session, builder, KNOWN, 0)
    first, second = plan.candidates
    assert (first.policy, first.tunables, first.origin) == ("longest_first", (("slice_us", 9000),), Origin.CONFIGURE)
    assert (first.expected, first.refuted_by) == ("the long task ends earlier", "no shorter makespan")
    assert second.origin is Origin.COMPOSE
    assert builder.asked[1].spec == SPEC
    assert plan.reason == f"1.40 s, or {REMOVED} s"
    assert "library>>>\nlongest_first: d For batch-long-tail" in said(server)


def test_what_is_known_is_in_the_question(tmp_path):
    failure = Antipattern("turns", "k", (), "", "h", "attach", "ejected", "2026-01-01")
    insight = Insight("The long task decides.", ("k",), "r", "2026-01-01")
    tried = [(CandidatePolicy("fifo", expected="less waiting"), verdict(Outcome.WORSE, 1.2))]
    known = Known(
        WORKLOAD, HARDWARE, PROFILE, Meaning("words", "aim"), (), (), [failure], [insight], ["near: x won"], tried
    )
    with ModelServer([planned(proposed())]) as server, session_on(server, tmp_path) as session:
        plan = propose_with_model(session, Maker(), known, 1)
    asked = said(server)
    for told in ("meaning: words", "turns failed at attach", "The long task decides.", "near: x won", "worse, candid"):
        assert told in asked
    assert plan.learned == "the model was shown earlier runs (failures 1, insights 1, similar runs 1)"


def test_proposals_that_cannot_be_made_are_answered_back_once(tmp_path):
    first = planned(proposed("cannot", "patch", diff="@@"), proposed("fifo"))
    with ModelServer([first, planned(proposed("turns"))]) as server, session_on(server, tmp_path) as session:
        plan = propose_with_model(session, Maker(), KNOWN, 0)
    assert [candidate.policy for candidate in plan.candidates] == ["fifo", "turns"]
    told = server.chats[1]["messages"][-1]["content"]
    assert "proposal 1 (patch cannot): the diff does not apply: hunk 1, line 7" in told
    assert "take the lines as they are" in told
    assert json.loads(server.chats[1]["messages"][-2]["content"])["proposals"][1]["policy"] == "fifo"
    assert notes(tmp_path) == ["proposal 1 (patch cannot) cannot be made: the diff does not apply: hunk 1, line 7"]


def test_proposals_that_can_never_be_made_end_in_no_plan(tmp_path):
    wrong = planned(proposed("cannot"))
    with ModelServer([wrong, wrong, wrong]) as server, session_on(server, tmp_path) as session:
        assert propose_with_model(session, Maker(), KNOWN, 0) is None
    assert len(server.chats) == 2
    assert notes(tmp_path)[-1] == "none of its proposals could be made"


@pytest.mark.parametrize(
    "number", ["1e999", "-Infinity", "NaN", "1.5", '"many"', "null", "9" * 5000, '"\\ud800"', "[]"]
)
def test_one_bad_proposal_leaves_the_others(tmp_path, number):
    tunable = {"name": "slice_us", "value": 48151623}
    answer = json.dumps(
        {"reason": "r", "proposals": [proposed("fifo", tunables=[tunable]), proposed("fair"), proposed("plain")]}
    ).replace("48151623", number)
    known = replace(KNOWN, limit=3)
    with ModelServer([{"content": answer}, {"content": {"reason": "r", "proposals": []}}]) as server:
        with session_on(server, tmp_path) as session:
            plan = propose_with_model(session, Maker(), known, 0)
        assert [candidate.policy for candidate in plan.candidates] == ["fair", "plain"]
        assert len(server.chats) == 2, "the model hears of it, once"
        assert "proposal 1: - tunables.0.value: Input should be" in said(server)
    assert [note for note in notes(tmp_path) if note.startswith("proposal 1 cannot be read: - tunables.0.value")]


def test_a_model_may_propose_nothing(tmp_path):
    with ModelServer([planned(reason="It is serial.")]) as server, session_on(server, tmp_path) as session:
        plan = propose_with_model(session, Maker(), KNOWN, 0)
    assert (plan.candidates, plan.reason) == ((), "It is serial.")


def test_what_was_tried_failed_or_stands_there_twice_is_refused(tmp_path):
    fifo, turns = CandidatePolicy("fifo"), CandidatePolicy("turns")
    failure = Antipattern("turns", turns.key, (), "", "h", "attach", "ejected", "2026-01-01")
    known = Known(
        WORKLOAD, HARDWARE, PROFILE, None, (), antipatterns=[failure], tried=[(fifo, verdict(Outcome.WORSE))], limit=4
    )
    answer = planned(proposed("fifo"), proposed("turns"), proposed("plain"), proposed("plain"))
    with ModelServer([answer, planned()]) as server, session_on(server, tmp_path) as session:
        plan = propose_with_model(session, Maker(), known, 1)
    assert [candidate.policy for candidate in plan.candidates] == ["plain"]
    told = server.chats[1]["messages"][-1]["content"]
    assert "this run has tried it: worse" in told
    assert "it failed at attach in an earlier run: ejected" in told
    assert "the same as an earlier proposal" in told


# --- execution ------------------------------------------------------------------------------------------------------


def rejection() -> VerificationReport:
    lost = Finding(18, Severity.ERROR, "enqueue", "mine.bpf.c", 2, "a path neither inserts nor stores the task")
    gate = GateResult("scheduling logic", GateStatus.FAILED, "1 error", findings=(lost,))
    return VerificationReport("mine", "ab" * 8, "cd" * 32, "7.3.4", (gate,))


def repairer(session, builder, origin=Origin.GENERATE) -> ModelRepairer:
    spec = SPEC if origin is Origin.COMPOSE else None
    made = DerivedPolicy("mine", origin, "", SOURCE, "", spec, "run", "2026-01-01")
    return ModelRepairer(session, builder, {"mine": made}.get, PROFILE, 0)


def decided(decision, **changed):
    return {"content": {"decision": decision, "reason": "it lost a task", **changed}}


MINE = CandidatePolicy("mine", origin=Origin.GENERATE, expected="e", refuted_by="r")


@pytest.mark.parametrize(
    ("change", "origin"), [({"diff": "@@ -1"}, Origin.PATCH), ({"source": "int x;"}, Origin.GENERATE)]
)
def test_a_rejected_source_is_repaired(tmp_path, change, origin):
    builder = Maker()
    with ModelServer([decided("repair", **change)]) as server, session_on(server, tmp_path) as session:
        decision = repairer(session, builder).after_gate(MINE, rejection())
    assert decision.repaired.origin is origin
    [asked] = builder.asked
    assert (asked.policy, asked.expected, asked.refuted_by, asked.reason) == ("mine", "e", "r", "it lost a task")
    told = said(server)
    assert "rule 18" in told
    assert "lines around the findings" in told
    assert "   2 two" in told
    assert '"spec"' not in json.dumps(server.chats[0]["response_format"]), "what it cannot use is not paid for"


def test_a_rejected_spec_is_repaired_as_a_spec(tmp_path):
    builder = Maker()
    with ModelServer([decided("repair", spec=SPEC | {"goal": "h"})]) as server, session_on(server, tmp_path) as session:
        decision = repairer(session, builder, Origin.COMPOSE).after_gate(MINE, rejection())
    assert decision.repaired.origin is Origin.COMPOSE
    assert builder.asked[0].spec["goal"] == "h"
    assert json.dumps(SPEC) in said(server)
    assert SOURCE not in said(server), "it did not write the C"


def test_an_abandoned_policy_is_noted(tmp_path):
    with ModelServer([decided("abandon")]) as server, session_on(server, tmp_path) as session:
        decision = repairer(session, Maker()).after_gate(MINE, rejection())
    assert (decision.repaired, decision.retry) == (None, False)
    assert notes(tmp_path) == ["mine: abandon: it lost a task"]


def test_what_a_gate_rejected_is_not_tried_as_it_is(tmp_path):
    with ModelServer([decided("retry")]) as server, session_on(server, tmp_path) as session:
        decision = repairer(session, Maker()).after_gate(MINE, rejection())
    assert not decision.retry


def test_a_repair_that_cannot_be_made_is_asked_for_once_more(tmp_path):
    class Strict(Maker):
        def make(self, proposal, profile):
            return super().make(proposal if self.asked else replace(proposal, policy="cannot"), profile)

    turns = [decided("repair", diff="@@ -9"), decided("repair", diff="@@ -1")]
    with ModelServer(turns) as server, session_on(server, tmp_path) as session:
        decision = repairer(session, Strict()).after_gate(MINE, rejection())
    assert decision.repaired
    assert "hunk 1, line 7" in server.chats[1]["messages"][-1]["content"]
    assert "the repair of mine cannot be made" in notes(tmp_path)[0]


def test_a_repair_that_changes_nothing_is_none(tmp_path):
    nothing = decided("repair")
    with ModelServer([nothing, nothing]) as server, session_on(server, tmp_path) as session:
        decision = repairer(session, Maker()).after_gate(MINE, rejection())
    assert decision.repaired is None
    assert "it changes nothing" in notes(tmp_path)[0]


@pytest.mark.parametrize(
    ("answer", "lost", "repaired", "retry"),
    [
        (decided("retry"), True, False, True),
        (decided("retry"), False, False, False),
        (decided("proceed"), True, False, False),
        (decided("repair", diff="@@ -1"), False, True, False),
    ],
)
def test_after_a_trial(tmp_path, answer, lost, repaired, retry):
    with ModelServer([answer]) as server, session_on(server, tmp_path) as session:
        decision = repairer(session, Maker()).after_trial(MINE, "runnable task stall", lost=lost)
    assert (bool(decision.repaired), decision.retry) == (repaired, retry)
    assert "runnable task stall" in said(server)


def test_policies_of_the_library_are_not_repaired(tmp_path):
    with ModelServer([]) as server, session_on(server, tmp_path) as session:
        found = repairer(session, Maker())
        assert found.after_gate(CandidatePolicy("fifo"), rejection()).repaired is None
        assert found.after_trial(CandidatePolicy("fifo"), "stall", lost=False).repaired is None
    assert server.chats == []


# --- learning -------------------------------------------------------------------------------------------------------


def test_insights_need_evidence_that_was_measured(tmp_path):
    tried = [(CandidatePolicy("fifo"), verdict(Outcome.WORSE, 1.2)), (CandidatePolicy("turns"), verdict(pairs=0))]
    key, other = (candidate.key for candidate, _verdict in tried)
    insights = [
        {"text": "Turns hurt the long task by 20 %.", "evidence": [key, key]},
        {"text": "Both are bad.", "evidence": [key, other]},
        {"text": "I measured it myself.", "evidence": ["feedfeedfeedfeed"]},
    ]
    with ModelServer([{"content": {"insights": insights}}]) as server, session_on(server, tmp_path) as session:
        found = conclude(session, tried, {key}, meaning=None, run_id="run", iteration=0)
    [insight] = found
    assert (insight.text, insight.evidence) == (f"Turns hurt the long task by {REMOVED} %.", (key,))
    assert insight.run_id == "run"
    assert notes(tmp_path) == ["an insight was refused: its evidence was not measured"]


def test_without_a_trial_nobody_is_asked(tmp_path):
    with ModelServer([]) as server, session_on(server, tmp_path) as session:
        tried = [(CandidatePolicy("fifo"), verdict(Outcome.FAILED, pairs=0))]
        assert conclude(session, tried, (), meaning=None, run_id="run", iteration=0) == ()
    assert server.chats == []


# --- all ------------------------------------------------------------------------------------------------------------


def test_the_same_question_of_a_later_process_is_not_sent(tmp_path):
    with ModelServer([planned(proposed())]) as server:
        for _process in range(2):
            with session_on(server, tmp_path) as session:
                plan = propose_with_model(session, Maker(), KNOWN, 0)
                assert [candidate.policy for candidate in plan.candidates] == ["longest_first"]
    assert len(server.chats) == 1
    assert KEY not in (tmp_path / "runs" / "run.transcript.jsonl").read_text()
