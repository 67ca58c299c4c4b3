"""Approvals: what is shown, that a run waits for it in any process, and that a decision counts for just that, once."""

from __future__ import annotations

import json
import multiprocessing
import os
import pwd
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from repo_store.records import RunStatus
from repo_store.store import PolicyRepository
from schedagent.approval import approvals as approval
from schedagent.approval import text as approval_text
from schedagent.approval.approvals import Approvals, decided_now, waiting
from schedagent.approval.text import show_waiting
from schedagent.core import token
from schedagent.core.approval import ApprovalRequest, ApprovalStage, Decision
from schedagent.core.errors import UsageError
from schedagent.core.policies.policy import CandidatePolicy, Plan
from schedagent.core.policies.proposal import DerivedPolicy, Origin
from tests.support import scripted_lab as scripted
from tests.support.killed_runs import kill_where_held
from tests.support.model_server import ModelServer
from tests.support.model_session import proposed
from tests.support.scripted_lab import LIBRARY, OPTIONS, Script
from tests.support.scripted_model import COMPOSED, Mind, on, plan, role_of

ME = pwd.getpwuid(os.getuid()).pw_name
YES = Decision(True, "ada", "2026-11-22T10:00:00.000+00:00")
NO = Decision(False, "ada", "2026-11-22T10:00:00.000+00:00", "the slice is too long")
PLAN = replace(OPTIONS, approve=(ApprovalStage.PLAN,))
DEPLOY = replace(OPTIONS, iterations=1, approve=(ApprovalStage.DEPLOY,))
FORKSERVER = multiprocessing.get_context("forkserver")
ANSWER_S = 30


@pytest.fixture
def asking(tmp_path) -> Script:
    """A run that asks before each of its two plans."""
    (tmp_path / "state").mkdir()
    return Script(tmp_path, options=PLAN)


@pytest.fixture
def deploying(asking) -> Script:
    """A run of one plan that asks before it issues a token."""
    return replace(asking, options=DEPLOY, signs=True)


def status(script, run_id) -> RunStatus:
    with script.repository() as repository:
        return repository.run(run_id).status


def verified(script) -> int:
    return script.log.count("verify")


def policies(shown) -> list[str]:
    return [candidate["policy"] for candidate in shown["candidates"]]


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_run_waits_before_each_plan_and_goes_on_when_it_is_approved(asking):
    run_id = asking.create()
    report = asking.drive(run_id)
    first = report["waiting"]
    assert (first["stage"], first["iteration"], first["run"]) == ("plan", 1, run_id)
    assert policies(first) == ["longest_first", "plain"]
    assert status(asking, run_id) is RunStatus.WAITING
    assert not report["complete"]
    assert verified(asking) == 0, "something was done before it was approved"

    second = asking.drive(run_id, YES)["waiting"]
    assert (second["stage"], second["iteration"]) == ("plan", 2)
    assert second["digest"] != first["digest"]
    assert verified(asking) == 2

    report = asking.drive(run_id, replace(YES, at="2026-11-22T11:00:00.000+00:00"))
    assert report["complete"]
    assert report["waiting"] is None
    assert report["best"]["policy"] == "longest_first"
    assert status(asking, run_id) is RunStatus.FINISHED
    assert asking.log.count("observe") == 1
    told = [(made["stage"], made["iteration"], made["approved"], made["by"]) for made in report["approvals"]]
    assert told == [("plan", 1, True, "ada"), ("plan", 2, True, "ada")]
    assert [made["digest"] for made in report["approvals"]] == [first["digest"], second["digest"]]


def test_what_is_shown_of_a_candidate(asking):
    [candidate, _other] = asking.drive(asking.create())["waiting"]["candidates"]
    assert candidate["origin"] == "configure"
    assert candidate["tunables"]["slice_us"]["default"] == 5000
    assert candidate["tunables"]["slice_us"]["value"] != 5000
    assert candidate["inputs"] == {"history": 4, "classes": 0}
    assert "is meant for" in candidate["reason"]
    assert candidate["source_digest"] == LIBRARY["longest_first"].source_digest
    assert candidate["diff"] == ""


def test_resuming_a_waiting_run_only_shows_it_again(asking):
    run_id = asking.create()
    first = asking.drive(run_id)["waiting"]
    assert asking.drive(run_id)["waiting"] == first
    assert status(asking, run_id) is RunStatus.WAITING
    assert asking.log.count("observe") == 1
    with asking.repository() as repository:
        assert len(repository.approvals(run_id)) == 1


def test_a_rejected_plan_is_not_carried_out_and_its_reason_reaches_the_next(asking, monkeypatch):
    from agents.planner import rules as offline

    seen, plan = [], offline.plan
    monkeypatch.setattr(offline, "plan", lambda *a, **k: seen.append(k["tried"]) or plan(*a, **k))
    run_id = asking.create()
    first = asking.drive(run_id)["waiting"]
    second = asking.drive(run_id, NO)["waiting"]
    assert second["iteration"] == 2
    assert set(policies(second)) == {"turns"}, "what was rejected was planned again"
    assert verified(asking) == 0
    assert [verdict.reason for _candidate, verdict in seen[-1]] == [
        "not tried: rejected by ada: the slice is too long"
    ] * 2

    report = asking.drive(run_id, YES)
    rejected, tried = report["iterations"]
    assert [found["verdict"]["pairs"] for found in rejected["candidates"]] == [0, 0]
    assert [found["verdict"]["outcome"] for found in rejected["candidates"]] == ["inconclusive"] * 2
    assert "rejected by ada: the slice is too long" in rejected["candidates"][0]["verdict"]["reason"]
    assert tried["candidates"][0]["verdict"]["pairs"] >= 6
    assert verified(asking) == len(tried["candidates"])
    assert policies(first) == [found["policy"] for found in rejected["candidates"]]


def test_a_model_is_told_why_its_plan_was_rejected(asking):
    mind = Mind([plan(COMPOSED), plan(proposed("plain"))])
    with ModelServer(mind) as server:
        thinking = on(asking, server)
        run_id = thinking.create()
        first = thinking.drive(run_id)["waiting"]
        thinking.drive(run_id, NO)
        asked = [body for body in server.chats if role_of(body) == "planning"][1]["messages"][1]["content"]
    [composed] = first["candidates"]
    assert composed["spec"]["name"] == "tail_first"
    assert (composed["origin"], composed["expected"]) == ("compose", "the long task ends earlier")
    assert "not tried: rejected by ada: the slice is too long" in asked.partition("history of this run>>>")[2]
    assert mind.asked == ["observation", "planning", "planning"], "a call was paid for trials that never were"


def test_rejections_are_bounded_by_the_iterations(asking):
    run_id = asking.create()
    asking.drive(run_id)
    asking.drive(run_id, NO)
    report = asking.drive(run_id, replace(NO, because="no more"))
    assert report["complete"]
    assert report["best"] is None
    assert verified(asking) == asking.log.count("run") - 1 == 0
    assert status(asking, run_id) is RunStatus.FINISHED
    with asking.repository() as repository:
        assert not repository.antipatterns("", scripted.HARDWARE.key)


def test_a_rejected_winner_of_an_earlier_run_is_not_forgotten(asking):
    earlier = replace(asking, options=OPTIONS)
    earlier.drive(earlier.create())
    rejecting = asking.create()
    asking.drive(rejecting)
    asking.drive(rejecting, NO)
    asking.drive(rejecting, NO)
    plan = earlier.drive(earlier.create())["iterations"][0]
    assert plan["candidates"][0]["policy"] == "longest_first"
    assert "won in an earlier run" in plan["candidates"][0]["reason"]


def test_a_plan_without_candidates_asks_nothing(asking, monkeypatch):
    from agents.planner import rules as offline

    monkeypatch.setattr(offline, "plan", lambda *_a, **_k: Plan((), "nothing can help"))
    report = asking.drive(asking.create())
    assert report["complete"]
    assert report["approvals"] == []


def test_what_a_made_policy_changes_is_shown(asking, tmp_path):
    sources = {name: tmp_path / f"{name}.bpf.c" for name in ("old", "changed", "new", "said")}
    for source, text in zip(sources.values(), ("one\ntwo\n", "one\nthree\n", "four\n", "six\n"), strict=True):
        source.write_text(text, encoding="utf-8")
    old = replace(LIBRARY["plain"], name="old", source=sources["old"])
    library = {
        "old": old,
        "changed": replace(old, name="changed", source=sources["changed"], origin=Origin.PATCH, parent="old"),
        "new": replace(old, name="new", source=sources["new"], origin=Origin.GENERATE),
        "said": replace(old, name="said", source=sources["said"], origin=Origin.COMPOSE),
    }
    made = (
        CandidatePolicy("changed", reason="r", origin=Origin.PATCH, expected="a tenth less", refuted_by="no change"),
        CandidatePolicy("new", origin=Origin.GENERATE),
        CandidatePolicy("said", origin=Origin.COMPOSE),
    )
    spec = {"name": "said", "goal": "in turn"}
    run_id = asking.create()
    with asking.repository() as repository:
        repository.keep_policy(DerivedPolicy("said", Origin.COMPOSE, "", "six\n", "", spec, run_id, "now"))
        repository.save_plan(run_id, 0, Plan(made, "because"))
        request = Approvals(repository, run_id, library, (ApprovalStage.PLAN,)).request(ApprovalStage.PLAN, 0)
        patched, generated, composed = request.shown["candidates"]
        assert "-two\n+three\n" in patched["diff"]
        assert "old.bpf.c" in patched["diff"]
        assert (patched["parent"], patched["expected"]) == ("old", "a tenth less")
        assert "+four\n" in generated["diff"]
        assert (composed["spec"], composed["diff"]) == (spec, "")
        sources["said"].write_text("seven")
        again = Approvals(repository, run_id, library, (ApprovalStage.PLAN,)).request(ApprovalStage.PLAN, 0)
        assert again.digest != request.digest
        with pytest.raises(UsageError, match="is not in the library any more"):
            Approvals(repository, run_id, {}, (ApprovalStage.PLAN,)).request(ApprovalStage.PLAN, 0)


def test_what_is_shown_of_made_policies_in_words(capsys):
    candidate = {
        **{
            "policy": "changed",
            "origin": "patch",
            "policy_origin": "patched",
            "parent": "old",
            "declares": ["weights"],
            "reads": ["comm", "uid"],
        },
        **{"description": "d", "reason": "r", "expected": "less", "refuted_by": "more", "spec": {"goal": "g"}},
        **{"tunables": {"slice_us": {"value": 1, "default": 2}}, "inputs": {"history": 3}, "diff": "-a\n+b\n"},
    }
    plan = {"run": "x", "workload": "make", "reason": "b", "learned": "l", "allows": "all", "candidates": [candidate]}
    show_waiting({"stage": "plan", "iteration": 1, "digest": "0" * 64, **plan})
    said = capsys.readouterr().out
    for words in (
        *("changed (patch, a policy that was patched of old)", 'What it does: "d"', "Why: r", 'Expected: "less"'),
        *('Refuted by: "more"', "Does not mean to satisfy: weights", "slice_us = 1 (default 2)", '"goal": "g"'),
        "Goes by: comm, uid",
        *("history: 3 measured entries", "-a", "+b", "Learned earlier: l", "0" * 64),
    ):
        assert words in said


def test_what_is_shown_cannot_steer_a_terminal(asking, capsys):
    report = asking.drive(asking.create())
    shown = report["waiting"]
    shown["reason"] = "[bold]\x1b[2Jgone \u202e :100:"
    show_waiting(shown)
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "[bold]\\x1b[2Jgone \\u202e :100:" in said


# --- a decision counts for exactly what was shown, once --------------------------------------------------------------


def test_nothing_is_decided_twice(asking):
    run_id = asking.create()
    asking.drive(run_id)
    with asking.repository() as repository:
        [(asked, _)] = repository.approvals(run_id)
        repository.decide_approval(run_id, asked.digest, YES)
        with pytest.raises(UsageError, match=f"this was approved by ada at {re.escape(YES.at)}"):
            repository.decide_approval(run_id, asked.digest, NO)
        with pytest.raises(UsageError, match="does not wait for the approval of 0123"):
            repository.decide_approval(run_id, "0123" * 16, NO)
        assert repository.approvals(run_id) == [(asked, YES)]
    with pytest.raises(UsageError, match="does not wait for an approval; its last question was approved by ada"):
        asking.drive(run_id, YES)
    assert asking.drive(run_id)["waiting"]["iteration"] == 2, "the stored decision was not followed"


@pytest.fixture
def own_source(tmp_path, monkeypatch) -> Path:
    """A source of longest_first that can change."""
    source = tmp_path / "longest_first.bpf.c"
    source.write_text("as it was shown")
    monkeypatch.setitem(LIBRARY, "longest_first", replace(LIBRARY["longest_first"], source=source))
    return source


def test_what_changed_since_it_was_shown_is_not_approved(asking, own_source):
    run_id = asking.create()
    before = asking.drive(run_id)["waiting"]
    own_source.write_text("something else")
    with pytest.raises(UsageError, match="has changed since it was shown") as caught:
        asking.drive(run_id, YES)
    assert f"schedagent runs show {run_id}" in caught.value.hint
    assert verified(asking) == 0
    with asking.repository() as repository:
        [(asked, decision)] = repository.approvals(run_id)
    assert decision is None
    assert asked.digest != before["digest"]
    assert asking.drive(run_id, YES)["waiting"]["iteration"] == 2
    assert verified(asking) == 2


def test_what_changed_after_it_was_approved_is_asked_for_again(asking, own_source):
    run_id = asking.create()
    asking.drive(run_id)
    with asking.repository() as repository:
        repository.decide_approval(run_id, waiting(repository, run_id).digest, YES)
    own_source.write_text("something else")
    assert asking.drive(run_id)["waiting"]["iteration"] == 1
    assert verified(asking) == 0
    later = replace(NO, at="2026-11-22T12:00:00.000+00:00")
    assert asking.drive(run_id, later)["waiting"]["iteration"] == 2
    assert verified(asking) == 0, "an approval of something else counted"


def test_without_its_checkpoints_a_run_asks_nothing_again(asking):
    run_id = asking.create()
    asking.drive(run_id)
    asking.drive(run_id, NO)
    for path in asking.settings.state_dir.glob("checkpoints.sqlite*"):
        path.unlink()
    assert asking.drive(run_id)["waiting"]["iteration"] == 2
    assert asking.log.count("observe") == 1
    assert verified(asking) == 0


def test_a_request_is_the_same_after_it_was_stored(asking):
    shown = {"run": "x", "ratio": 0.1 + 0.2, "whole": 1.0, "text": "é\n", "large": 1 << 63, "none": None}
    request = ApprovalRequest(ApprovalStage.DEPLOY, 3, shown)
    run_id = asking.create()
    with asking.repository() as repository:
        repository.ask_approval(run_id, request)
        [(stored, _)] = repository.approvals(run_id)
    assert stored == request
    assert stored.digest == request.digest
    others = [
        replace(request, stage=ApprovalStage.PLAN),
        replace(request, iteration=2),
        replace(request, shown={"run": "x"}),
    ]
    assert len({request.digest, *(other.digest for other in others)}) == 4


def test_a_decision_names_the_user_of_the_process(monkeypatch):
    for variable in ("USER", "LOGNAME", "SUDO_USER"):
        monkeypatch.setenv(variable, "somebody")
    assert decided_now(True).by == ME
    assert decided_now(False, " too \n long ").because == "too long"
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_001)
    assert decided_now(True).by == "user 4000000001"


@pytest.mark.parametrize("because", ["", " \n", "x" * 1001, "a\x1b[2J"])
def test_reasons_that_cannot_be_kept(because):
    with pytest.raises(UsageError, match="--because is"):
        decided_now(False, because)


# --- the token of the winner -----------------------------------------------------------------------------------------


def test_a_token_is_handed_out_only_after_approval(deploying):
    run_id = deploying.create()
    report = deploying.drive(run_id)
    shown = report["waiting"]
    assert (shown["stage"], shown["candidate"]["policy"]) == ("deploy", "longest_first")
    assert shown["verdict"]["outcome"] == "better"
    assert shown["measured"]["ratio"] == pytest.approx(0.8, abs=0.02)
    assert shown["verification"]["statuses"] == {"passed": 7}
    assert (shown["allows"]["scope"], shown["allows"]["kernel"], shown["allows"]["times"]) == ("full", "7.3.4", 1)
    assert report["deployment"] is None
    assert token.TOKEN_PREFIX + "." not in json.dumps(report)
    assert status(deploying, run_id) is RunStatus.WAITING

    report = deploying.drive(run_id, YES)
    handed_out = report["deployment"]
    said = token.decode(handed_out["token"])
    assert (said.artifact_digest, said.kernel_release) == (shown["allows"]["object"], "7.3.4")
    assert (handed_out["policy"], handed_out["approved_by"]) == ("longest_first", "ada")
    assert report["complete"]
    assert report["best"]["policy"] == "longest_first"


def test_without_approval_the_run_ends_without_a_token(deploying):
    run_id = deploying.create()
    deploying.drive(run_id)
    report = deploying.drive(run_id, NO)
    assert report["complete"]
    assert report["best"]["policy"] == "longest_first", "that it was better is still true"
    assert report["deployment"] is None
    assert token.TOKEN_PREFIX + "." not in json.dumps(report)
    assert report["approvals"][0]["because"] == "the slice is too long"
    assert status(deploying, run_id) is RunStatus.FINISHED
    with deploying.repository() as repository:
        assert approval.deployment(repository, run_id) is None


def test_a_run_that_has_to_ask_hands_nothing_out_while_it_waits(deploying):
    run_id = deploying.create()
    deploying.drive(run_id)
    with deploying.repository() as repository:
        assert approval.deployment(repository, run_id) is None


@pytest.mark.parametrize(
    "changes",
    [{"ratios": {}}, {"signs": False}, {"faults": {"longest_first": "proving ground"}}],
    ids=["nothing better", "no key", "rejected by a gate"],
)
def test_where_no_token_would_be_handed_out_nothing_is_asked(deploying, changes):
    script = replace(deploying, **changes)
    report = script.drive(script.create())
    assert report["complete"]
    assert report["deployment"] is None
    assert report["approvals"] == []


def test_whoever_does_not_ask_for_approvals_gets_the_token(deploying):
    script = replace(deploying, options=replace(OPTIONS, iterations=1))
    report = script.drive(script.create())
    assert token.decode(report["deployment"]["token"]).kernel_release == "7.3.4"
    assert report["deployment"]["approved_by"] == ""
    assert report["approvals"] == []


def test_that_time_ran_out_is_still_known_after_the_wait(deploying):
    two_plans = replace(deploying, options=replace(DEPLOY, iterations=2))
    hurried = replace(two_plans, blocks_in_time=9)
    run_id = hurried.create()
    assert hurried.drive(run_id)["waiting"]
    assert two_plans.drive(run_id, YES)["out_of_time"]


def test_time_that_ran_out_when_all_was_decided_ended_nothing(deploying):
    hurried = replace(deploying, blocks_in_time=9)
    run_id = hurried.create()
    assert hurried.drive(run_id)["waiting"]
    assert not deploying.drive(run_id, YES)["out_of_time"]


def test_both_can_be_asked_for(asking):
    script = replace(
        asking, signs=True, options=replace(OPTIONS, iterations=1, approve=(ApprovalStage.PLAN, ApprovalStage.DEPLOY))
    )
    run_id = script.create()
    assert script.drive(run_id)["waiting"]["stage"] == "plan"
    assert script.drive(run_id, YES)["waiting"]["stage"] == "deploy"
    assert script.drive(run_id, YES)["deployment"]["approved_by"] == "ada"


# --- kill -9 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before ask_approval 1", "after ask_approval 1"])
def test_killed_while_it_asks(asking, where):
    run_id = asking.create()
    kill_where_held(replace(asking, hold=where), run_id)
    if where.startswith("before"):
        with pytest.raises(UsageError, match="does not wait for an approval") as caught:
            asking.drive(run_id, YES)
        assert f"schedagent resume {run_id}" in caught.value.hint
        assert asking.drive(run_id)["waiting"]["iteration"] == 1
    assert asking.drive(run_id, YES)["waiting"]["iteration"] == 2
    assert verified(asking) == 2
    assert asking.log.count("observe") == 1


@pytest.mark.parametrize("where", ["before decide_approval 1", "after decide_approval 1"])
def test_killed_while_it_is_decided(asking, where):
    run_id = asking.create()
    asking.drive(run_id)
    kill_where_held(replace(asking, hold=where), run_id, NO)
    if where.startswith("before"):
        report = asking.drive(run_id, NO)
    else:
        with pytest.raises(UsageError, match="its last question was rejected by ada: the slice is too long"):
            asking.drive(run_id, YES)
        report = asking.drive(run_id)
    assert report["waiting"]["iteration"] == 2
    assert verified(asking) == 0
    assert [made["approved"] for made in report["approvals"]] == [False]


def test_killed_behind_an_approval_nothing_is_asked_again(asking):
    run_id = asking.create()
    asking.drive(run_id)
    kill_where_held(replace(asking, hold="run 5"), run_id, YES)
    assert status(asking, run_id) is RunStatus.RUNNING
    report = asking.drive(run_id)
    assert report["waiting"]["iteration"] == 2
    assert len(report["approvals"]) == 1


def test_killed_behind_the_approval_of_the_token(deploying):
    run_id = deploying.create()
    deploying.drive(run_id)
    kill_where_held(replace(deploying, hold="before finish_run 1"), run_id, YES)
    assert deploying.drive(run_id)["deployment"]["approved_by"] == "ada"


# --- the repository --------------------------------------------------------------------------------------------------


def test_a_repository_of_before_there_were_approvals(asking):
    run_id = asking.create()
    path = asking.settings.state_dir / "repository.sqlite"
    with sqlite3.connect(path) as connection:
        for table in ("costs", "approvals", "requests", "recommendations", "baselines", "readings"):
            connection.execute(f"DROP TABLE {table}")
        for change in (
            *('samples DROP COLUMN "values"', "samples DROP COLUMN usage"),
            *("verdicts DROP COLUMN guards", "verdicts DROP COLUMN expected"),
            *("insights DROP COLUMN claims", "candidates DROP COLUMN program"),
            "runs DROP COLUMN failure",
            "derived_policies RENAME COLUMN origin TO way",
            "derived_policies RENAME TO made_policies",
            "candidates RENAME COLUMN origin TO way",
            "candidates RENAME COLUMN repairs TO mends",
            *(f"verifications ADD COLUMN {name} TEXT" for name in ("artifact_digest", "kernel_release", "token_text")),
        ):
            connection.execute(f"ALTER TABLE {change}")
        connection.execute("UPDATE alembic_version SET version_num = '0002'")
    connection.close()
    with PolicyRepository(path) as repository:
        assert repository.approvals(run_id) == []
        assert repository.run(run_id).id == run_id
    assert asking.drive(run_id)["waiting"]


def test_asking_for_something_else_replaces_the_question(asking):
    run_id = asking.create()
    with asking.repository() as repository:
        repository.ask_approval(run_id, ApprovalRequest(ApprovalStage.PLAN, 0, {"run": run_id}))
        repository.ask_approval(run_id, ApprovalRequest(ApprovalStage.PLAN, 0, {"run": run_id, "more": 1}))
        [(asked, decision)] = repository.approvals(run_id)
        assert asked.shown == {"run": run_id, "more": 1}
        assert decision is None
        assert repository.run(run_id).status is RunStatus.WAITING


def test_what_never_ran_is_shown_to_whoever_approves():
    verification = {
        "gates": [], "statuses": {"passed": 7}, "oracles": {"held": 15, "of": 15}, "kernels": {}, "warnings": [],
        "coverage": "9 of 12 branches ran", "never_ran": ["fifo.bpf.c:31: rule 33: this branch was never taken"],
    }  # fmt: skip
    measured = {"ratio": 0.8, "low": 0.7, "high": 0.9, "confidence": 0.95}
    lines = list(approval_text._proved({"outcome": "better", "reason": "r", "pairs": 9}, measured, verification))
    assert "      coverage: 9 of 12 branches ran" in lines
    assert "      never ran: fifo.bpf.c:31: rule 33: this branch was never taken" in lines
