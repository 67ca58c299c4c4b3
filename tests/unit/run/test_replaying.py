"""`schedagent runs replay`: a recorded run once more, without a network, a machine or a compiler."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from agents.llm.transcript import transcript_path
from repo_store.records import RunStatus
from repo_store.rewind import rewind
from repo_store.store import PolicyRepository
from schedagent.approval.approvals import waiting
from schedagent.cli import common
from schedagent.core.approval import ApprovalStage, Decision
from schedagent.core.trials.trial import Outcome
from tests.support.command_line import refused
from tests.support.killed_runs import kill_where_held
from tests.support.model_server import ModelServer
from tests.support.model_session import proposed
from tests.support.scripted_lab import Script
from tests.support.scripted_model import COMPOSED, ONE_PLAN, SPEC, Mind, decided, on, plan

YES = Decision(True, "ada", "2026-11-22T10:00:00.000+00:00")
NO = Decision(False, "ada", "2026-11-22T10:00:00.000+00:00", "only longest_first, please")
TWO_PLANS = replace(ONE_PLAN, iterations=2)


@pytest.fixture
def base(script) -> Script:
    script.settings.state_dir.mkdir()
    return replace(script, options=ONE_PLAN, ratios={"tail_first": 0.8, "longest_first": 0.9})


def recorded(script, mind, *answers) -> str:
    """A run on a model, recorded; the server is gone when this returns."""
    with ModelServer(mind) as server:
        thinking = on(script, server)
        run_id = thinking.create()
        thinking.drive(run_id)
        for answer in answers:
            thinking.drive(run_id, answer)
    return run_id


def replayed(run, run_id, status=0):
    result = run("runs", "replay", run_id, "--json")
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def content(script, run_id):
    """Everything in the repository, and the transcript."""
    with sqlite3.connect(script.settings.state_dir / "repository.sqlite") as connection:
        dump = list(connection.iterdump())
    connection.close()
    return dump, transcript_path(script.settings.state_dir, run_id).read_bytes()


def test_a_run_is_replayed_without_network_machine_or_compiler(run, base):
    run_id = recorded(base, Mind([plan(COMPOSED, proposed())]))
    run("runs", "show", run_id)  # what any command does: the library is mirrored for searching
    before, log = content(base, run_id), list(base.log)
    found = replayed(run, run_id)
    assert found == {"run": run_id, "requests": 3, "same": True, "differences": []}
    assert content(base, run_id) == before, "a replay changed what was recorded"
    assert base.log == log, "the lab or the verifier was asked"
    shown = run("runs", "replay", run_id)
    assert f"Replayed 3 requests of run {run_id}: the same as recorded." in shown.stdout
    assert "measuring the best again: 8 done" in shown.stderr


def test_two_plans_with_a_rejected_one(run, base):
    script = replace(base, options=replace(TWO_PLANS, approve=(ApprovalStage.PLAN,)))
    mind = Mind([plan(COMPOSED), plan(proposed())])
    run_id = recorded(script, mind, NO, YES)
    assert replayed(run, run_id)["same"]
    with base.repository() as repository:
        assert repository.run(run_id).status is RunStatus.FINISHED


def test_a_repaired_policy(run, base):
    faulty = replace(base, faults={"tail_first": "proving ground"}, ratios={"tail_first_1": 0.8})
    spec = SPEC | {"classes": [SPEC["classes"][0] | {"slice_us": 5000}]}
    run_id = recorded(faulty, Mind([plan(COMPOSED)], [decided("repair", spec=spec)]))
    found = replayed(run, run_id)
    assert (found["same"], found["requests"]) == (True, 4)


def test_a_run_whose_time_ran_out(run, base):
    hurried = replace(base, blocks_in_time=3, options=TWO_PLANS)
    run_id = recorded(hurried, Mind([plan(COMPOSED, proposed())]))
    assert replayed(run, run_id)["same"]


def test_a_run_whose_endpoint_died(run, base):
    mind = Mind([])

    def dying(body):
        return {"status": 401, "message": "gone"} if mind.asked else mind(body)

    run_id = recorded(base, dying)
    found = replayed(run, run_id)
    assert (found["same"], found["requests"]) == (True, 2)


def test_an_endpoint_that_came_back_for_a_later_process(run, base):
    script = replace(base, options=replace(ONE_PLAN, approve=(ApprovalStage.PLAN,)))
    mind = Mind([])
    with ModelServer(lambda body: mind(body) if mind.asked else {"status": 401, "message": "gone"}) as server:
        thinking = on(script, server)
        run_id = thinking.create()
        thinking.drive(run_id)
        mind.asked.append("it is back")
        thinking.drive(run_id, YES)
    assert mind.asked == ["it is back", "learning"]
    found = replayed(run, run_id)
    assert (found["same"], found["requests"]) == (True, 2)


def test_a_run_that_waits_is_replayed_so_far(run, base):
    run_id = recorded(replace(base, options=replace(ONE_PLAN, approve=(ApprovalStage.PLAN,))), Mind([plan(COMPOSED)]))
    assert replayed(run, run_id)["requests"] == 2
    with base.repository() as repository:
        assert waiting(repository, run_id)


def test_a_run_that_was_killed_is_replayed_so_far(run, base):
    with ModelServer(Mind([plan(COMPOSED)])) as server:
        held = replace(on(base, server), hold="after save_meaning 1")
        run_id = held.create()
        kill_where_held(held, run_id)
    found = replayed(run, run_id)
    assert (found["same"], found["requests"]) == (True, 1)


def test_a_rewound_repository_holds_what_was_known_when_the_run_began(base, tmp_path):
    first = recorded(base, Mind([plan(COMPOSED, proposed())]))
    faulty = replace(base, faults={"plain": "attach"})
    second = recorded(faulty, Mind([plan(proposed("tail_first"), proposed("plain"))]))
    third = recorded(base, Mind([plan(proposed("other", "compose", spec=SPEC | {"name": "other"}))]))
    with base.repository() as repository:
        whole = [len(repository.blocks(one, 0)) for one in (first, second, third)]
        place = Path(repository.place)
        key = (repository.run(first).workload.key, repository.run(first).hardware.key)
    rewind(place, tmp_path / "copy.sqlite", second)
    with PolicyRepository(tmp_path / "copy.sqlite") as copy:
        assert copy.profile(second) is not None
        assert (copy.meaning(second), copy.iterations(second), copy.run(second).report) == (None, [], None)
        assert {lesson.run_id for lesson in copy.lessons(*key)} == {first}
        assert {insight.run_id for insight in copy.insights(*key)} == {first}
        assert copy.antipatterns(*key) == []
        assert [made.name for made in copy.derived_policies()] == ["tail_first"]
        assert len(copy.blocks(first, 0)) == whole[0]
    with base.repository() as repository:
        assert [len(repository.blocks(one, 0)) for one in (first, second, third)] == whole


def test_later_runs_and_what_they_taught_change_nothing(run, base):
    first = recorded(base, Mind([plan(COMPOSED, proposed())]))
    recorded(base, Mind([plan(proposed("tail_first"), proposed("plain"))]))
    assert replayed(run, first)["same"]


def test_a_second_run_that_starts_from_the_first(run, base):
    recorded(base, Mind([plan(COMPOSED, proposed())]))
    second = recorded(base, Mind([plan(proposed("tail_first"), proposed("plain"))]))
    assert replayed(run, second)["same"]


def test_a_prompt_that_changed_is_found(run, base, monkeypatch):
    from agents import session

    run_id = recorded(base, Mind([plan(COMPOSED)]))
    prompt = session.prompt
    monkeypatch.setattr(session, "prompt", lambda role: prompt(role) + ("Be bold." if role == "planning" else ""))
    result = run("runs", "replay", run_id)
    said = " ".join(result.stderr.split())
    assert result.exit_code == common.EXIT_USAGE
    assert "request 2 of transcript" in said
    assert "Be bold." in said


def test_a_verdict_that_became_another_is_found(run, base, monkeypatch):
    from schedagent.run import nodes

    run_id = recorded(base, Mind([plan(proposed())]))
    judge_all = nodes.judge_all

    def stricter(*arguments, **options):
        found = judge_all(*arguments, **options)
        return {key: replace(verdict, outcome=Outcome.WORSE) for key, verdict in found.items()}

    monkeypatch.setattr(nodes, "judge_all", stricter)
    result = run("runs", "replay", run_id)
    assert result.exit_code == common.EXIT_USAGE
    assert "worse" in result.stderr


def test_requests_that_are_not_made_any_more_are_counted(run, base, monkeypatch):
    from schedagent.run.model_agents import ModelAgents

    run_id = recorded(base, Mind([plan(proposed())]))
    monkeypatch.setattr(ModelAgents, "conclude", lambda *_a, **_k: None)
    found = replayed(run, run_id, common.EXIT_NO)
    assert not found["same"]
    assert "1 of 3 recorded requests were not made" in found["differences"]
    assert any(told.startswith("the insights was ['The order decides.']") for told in found["differences"])


def test_what_cannot_be_replayed(run, base):
    refused(run("runs", "replay", "nothing"), "there is no run 'nothing'")
    refused(run("runs", "replay", base.create()), "has asked no model")
