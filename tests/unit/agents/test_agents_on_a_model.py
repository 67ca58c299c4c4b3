"""What each agent asks a model and takes from its answer, over real HTTP: meaning, plan, repair, insights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agents.claims import REMOVED
from agents.learning import Trials, conclude
from agents.llm.transcript import read_notes
from agents.observation import interpret
from agents.planning import Known, propose_with_model
from agents.repair import ModelRepairer
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.policies.proposal import DerivedPolicy, Origin
from schedagent.core.trials.judge import Terms, TrialRules
from schedagent.core.trials.lesson import Antipattern, Insight, Meaning
from schedagent.core.trials.trial import Block, Outcome, Sample
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
    assert meaning == Meaning("A batch with one long task, 7.0 times the others.", REMOVED)
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
    answer = planned(
        proposed(tunables=tunables), proposed("mine", "compose", spec=SPEC), reason="It takes 1.40 s. Or 99 s."
    )
    builder = Maker()
    with ModelServer([answer]) as server, session_on(server, tmp_path) as session:
        plan = propose_with_model(session, builder, KNOWN, 0)
    first, second = plan.candidates
    assert (first.policy, first.tunables, first.origin) == ("longest_first", (("slice_us", 9000),), Origin.CONFIGURE)
    assert (first.expected, first.refuted_by) == ("the long task ends earlier", "no shorter makespan")
    assert second.origin is Origin.COMPOSE
    assert builder.asked[1].spec == SPEC
    assert plan.reason == f'"It takes 1.40 s. {REMOVED}"'
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
    assert (plan.candidates, plan.reason) == ((), '"It is serial."')


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
    assert (asked.policy, asked.expected, asked.refuted_by, asked.reason) == ("mine", "e", "r", '"it lost a task"')
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
    assert notes(tmp_path) == ['mine: abandon: "it lost a task"']


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


def trial(*ratios):
    """Blocks of the default and two candidates with these ratios of its time, and more CPU time the less time."""
    keys = [candidate.key for candidate in CANDIDATES]
    blocks = []
    for number in range(9):
        samples = [sample(arm, ratio * (1 + number / 1000)) for arm, ratio in zip(["", *keys], ratios, strict=True)]
        blocks.append(Block(number, tuple(samples)))
    return blocks


def sample(arm, seconds):
    return Sample(arm, seconds, round(seconds * 1e9), round(1e9 / seconds), 0, "2026-01-01", 5)


CANDIDATES = [CandidatePolicy("fifo"), CandidatePolicy("turns")]
FIFO, TURNS = (candidate.key for candidate in CANDIDATES)


def claimed(arm, relation, than, metric="wall time"):
    return {"arm": arm, "relation": relation, "than": than, "metric": metric}


def concluded(folder, *insights):
    """What is kept of these insights about a trial in which fifo was worse, and turns as good as the default."""
    tried = [
        (CANDIDATES[0], verdict(Outcome.WORSE, 1.2)),
        (CANDIDATES[1], verdict(Outcome.NO_DIFFERENCE, 1.0, reason="no more than 6% either way")),
    ]
    trials = Trials(tried, trial(1.0, 1.2, 1.0), Terms(WORKLOAD, TrialRules()))
    with ModelServer([{"content": {"insights": list(insights)}}]) as server, session_on(server, folder) as session:
        return conclude(session, trials, meaning=None, run_id="run", iteration=0), said(server)


REFUSED = "an insight was refused: the samples do not show what it claims"


@pytest.mark.parametrize(
    ("arm", "relation", "than", "metric", "words"),
    [
        (FIFO, "worse", "default", "wall time", "the default is better than fifo no tunables in wall time"),
        ("default", "better", FIFO, "wall time", "the default is better than fifo no tunables in wall time"),
        (TURNS, "same", "default", "wall time", "turns no tunables is no different from the default in wall time"),
        (TURNS, "better", FIFO, "wall time", "turns no tunables is better than fifo no tunables in wall time"),
        (FIFO, "better", TURNS, "CPU time", "fifo no tunables is better than turns no tunables in CPU time"),
        (FIFO, "better", "default", "CPU time", "fifo no tunables is better than the default in CPU time"),
    ],
)
def test_an_insight_is_what_the_samples_show(tmp_path, arm, relation, than, metric, words):
    insights, asked = concluded(tmp_path, {"text": "So it is.", "claims": [claimed(arm, relation, than, metric)]})
    [insight] = insights
    assert (insight.text, insight.words, insight.run_id) == ("So it is.", "So it is.", "run")
    assert insight.measured.replace(" no tunables", "") == words.replace(" no tunables", "")
    assert set(insight.evidence) == {arm, than} - {"default"}
    assert "CPU time (less is better)" in asked


@pytest.mark.parametrize(
    ("arm", "relation", "than", "metric"),
    [
        (FIFO, "better", "default", "wall time"),
        (FIFO, "same", "default", "wall time"),
        (TURNS, "better", "default", "wall time"),
        (TURNS, "worse", "default", "wall time"),
        (FIFO, "better", TURNS, "wall time"),
        (FIFO, "same", TURNS, "CPU time"),
        (FIFO, "better", FIFO, "wall time"),
        (FIFO, "worse", "default", "happiness"),
        ("feedfeedfeedfeed", "worse", "default", "wall time"),
        ("", "worse", "", "wall time"),
    ],
)
def test_an_insight_that_the_samples_do_not_show_is_refused(tmp_path, arm, relation, than, metric):
    true = claimed(FIFO, "worse", "default")
    insights, _asked = concluded(
        tmp_path, {"text": "So it is.", "claims": [true, claimed(arm, relation, than, metric)]}
    )
    assert insights == ()
    assert notes(tmp_path) == [REFUSED]


def test_an_insight_keeps_no_sentence_with_an_invented_figure(tmp_path):
    """The held-out one: a real key, and what its planner expected is no measurement."""
    worse = [claimed(FIFO, "worse", "default")]
    insights, _asked = concluded(
        tmp_path,
        {"text": "It hurt. We measured it forty-five percent slower in 12 pairs.", "claims": worse},
        {"text": "Measured twice as slow.", "claims": worse},
        {"text": "It costs about 20 %, in 8 pairs.", "claims": worse},
    )
    measured = "the default is better than fifo in wall time"
    assert [insight.words for insight in insights] == ["It hurt.", "", "It costs about 20 %, in 8 pairs."]
    assert [insight.measured for insight in insights] == [measured] * 3
    assert insights[1].text == measured


def test_one_bad_insight_leaves_the_others(tmp_path):
    good = {"text": "So it is.", "claims": [claimed(FIFO, "worse", "default")]}
    insights, _asked = concluded(tmp_path, {"text": "x", "claims": []}, {"text": "y"}, good)
    assert [insight.text for insight in insights] == ["So it is."]
    assert [note.partition(":")[0] for note in notes(tmp_path)] == [
        "insight 1 cannot be read",
        "insight 2 cannot be read",
    ]


def test_without_a_trial_nobody_is_asked(tmp_path):
    with ModelServer([]) as server, session_on(server, tmp_path) as session:
        tried = [(CandidatePolicy("fifo"), verdict(Outcome.FAILED, pairs=0))]
        trials = Trials(tried, (), Terms(WORKLOAD, TrialRules()))
        assert conclude(session, trials, meaning=None, run_id="run", iteration=0) == ()
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
