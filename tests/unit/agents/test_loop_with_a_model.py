"""The whole loop with a scripted lab and a scripted model over real HTTP: what it plans, repairs, learns and costs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agents.llm.transcript import transcript_path
from repo_store.records import RunStatus
from tests.support.model_server import ModelServer
from tests.support.model_session import proposed
from tests.support.scripted_lab import HARDWARE, WORKLOAD, Script
from tests.support.scripted_model import COMPOSED, DESCRIBED, ONE_PLAN, SPEC, Mind, by_policy, on, plan, role_of

SOURCE = """\
/* Longer turns. 500 to 100000. */
const volatile u64 slice_us = 5000;
struct sched_ext_ops {name} = {{ .name = "{name}" }};
"""


@pytest.fixture
def script(tmp_path) -> Script:
    (tmp_path / "state").mkdir()
    return Script(tmp_path, options=ONE_PLAN, ratios={"tail_first": 0.8, "longest_first": 0.9})


def test_a_composed_policy_wins(script):
    mind = Mind([plan(COMPOSED, proposed())])
    with ModelServer(mind) as server:
        thinking = on(script, server)
        report = thinking.drive(thinking.create())
    assert mind.asked == ["observation", "planning", "learning"]
    assert report["meaning"] == DESCRIBED
    assert report["best"]["policy"] == "tail_first"
    found = by_policy(report)["tail_first"]
    assert (found["origin"], found["prediction"]) == ("compose", "the long task ends earlier")
    assert [insight["text"] for insight in report["insights"]] == ["The order decides."]
    assert report["insights"][0]["evidence"] == [found["key"]]
    assert report["model"]["used"].startswith("3 calls, ")
    assert [step["role"] for step in report["model"]["steps"]] == ["learning", "observation", "planning"]
    assert report["model"]["notes"] == []
    with script.repository() as repository:
        assert repository.run(report["run"]).status is RunStatus.FINISHED
        assert [made.name for made in repository.derived_policies()] == ["tail_first"]
    assert json.dumps(report)


def test_without_a_model_nothing_is_asked_and_nothing_written(script):
    run_id = script.create()
    report = script.drive(run_id)
    assert report["model"] is None
    assert report["meaning"] is None
    assert not transcript_path(script.settings.state_dir, run_id).exists()
    assert report["best"]["policy"] == "longest_first"


def test_what_won_is_offered_to_later_runs_and_what_was_only_made_is_not(script):
    loser = proposed("tail_last", "compose", spec=SPEC | {"name": "tail_last"})
    with ModelServer(Mind([plan(COMPOSED, loser), plan(proposed("tail_first"))])) as server:
        thinking = on(script, server)
        thinking.drive(thinking.create())
        second = thinking.drive(thinking.create())
        library = server.chats[-2]["messages"][1]["content"].partition("library>>>")[2]
    assert "tail_first (composed)" in library
    assert "tail_last" not in library
    assert by_policy(second)["tail_first"]["origin"] == "configure"
    asked = server.chats[-2]["messages"][1]["content"]
    assert "exact match" in asked
    assert "The order decides." in asked


def test_the_next_plan_knows_what_the_first_one_led_to(script):
    twice = replace(script, options=replace(ONE_PLAN, iterations=2))
    mind = Mind([plan(proposed("plain")), plan(COMPOSED)])
    with ModelServer(mind) as server:
        thinking = on(twice, server)
        report = thinking.drive(thinking.create())
        asked = [body for body in server.chats if role_of(body) == "planning"][1]["messages"][1]["content"]
    history = asked.partition("history of this run>>>")[2]
    assert "plain slice_us=5000: no difference" in history
    assert "expected: the long task ends earlier" in history
    assert mind.asked == ["observation", "planning", "learning", "planning", "learning"]
    assert len(report["iterations"]) == 2


def test_a_rejected_policy_is_repaired(script):
    faulty = replace(script, faults={"tail_first": "proving ground"}, ratios={"tail_first_1": 0.8})
    repaired = {"decision": "repair", "reason": "slices were too long", "spec": SPEC | {"starvation_ms": 150}}
    repaired["spec"]["classes"] = [SPEC["classes"][0] | {"patience_ms": 100}]
    mind = Mind([plan(COMPOSED)], [{"content": repaired}])
    with ModelServer(mind) as server:
        thinking = on(faulty, server)
        report = thinking.drive(thinking.create())
        asked = next(body for body in server.chats if role_of(body) == "execution")
    assert mind.asked == ["observation", "planning", "execution", "learning"]
    assert "this was seen" in asked["messages"][-1]["content"]
    assert report["best"]["policy"] == "tail_first_1"
    found = by_policy(report)
    assert found["tail_first"]["verdict"]["outcome"] == "failed"
    assert found["tail_first_1"]["repairs"] == found["tail_first"]["key"]
    assert found["tail_first_1"]["reason"] == '"slices were too long"'


@pytest.mark.parametrize("dies", ["observation", "planning", "learning"])
def test_when_the_endpoint_dies_the_run_goes_on_by_rules(script, dies):
    mind = Mind([plan(COMPOSED)])

    def dying(body):
        return {"status": 401, "message": "gone"} if role_of(body) == dies or "dead" in mind.asked else mind(body)

    with ModelServer(dying) as server:
        thinking = on(script, server)
        report = thinking.drive(thinking.create())
    assert report["complete"]
    planned = by_policy(report)
    assert ("tail_first" in planned) is (dies == "learning")
    told = [(note["role"], note["text"]) for note in report["model"]["notes"]]
    assert told[0][0] == dies
    assert "no usable answer: the model's endpoint" in told[0][1]
    if dies != "learning":
        assert ("planning", "planned by rules") in told
        assert report["best"]["policy"] == "longest_first"
    assert "HTTP 401" in (script.folder / "progress").read_text()
    roles = [role_of(body) for body in server.chats]
    assert roles[-1] == dies, "a dead endpoint is not asked again"


@pytest.mark.parametrize(("limit", "value"), [("model_max_calls", 1), ("model_max_tokens", 2500)])
def test_when_the_budget_is_spent_the_run_goes_on_by_rules(script, limit, value):
    with ModelServer(Mind([plan(COMPOSED)])) as server:
        thinking = on(script, server, **{limit: value})
        report = thinking.drive(thinking.create())
    assert len(server.chats) == 1
    assert report["meaning"] == DESCRIBED
    assert report["model"]["total"]["calls"] == 1
    assert report["best"]["policy"] == "longest_first"
    assert any("is used up" in note["text"] for note in report["model"]["notes"])


@pytest.mark.parametrize("fault", ["lost", "lost while verified", ""])
def test_a_model_whose_budget_is_spent_steers_no_more(script, fault):
    """What it made and nothing was shown of is not planned by rules: its machine was lost, or it was no better."""
    first, second = (proposed(name, "generate", source=SOURCE.format(name=name)) for name in ("a_first", "b_first"))
    twice = replace(
        script,
        options=replace(ONE_PLAN, iterations=2, candidates=2),
        ratios={"longest_first": 0.97},
        faults={"a_first": fault, "b_first": fault} if fault else {},
    )
    mind = Mind([plan(first, second)])
    with ModelServer(mind) as server:
        thinking = on(twice, server, model_max_calls=2)
        report = thinking.drive(thinking.create())
    assert set(by_policy(report)) == {"a_first", "b_first"}
    assert mind.asked == ["observation", "planning"]
    assert {"longest_first", "plain"} == set(by_policy(report, 1))


def test_the_report_tells_the_cost(script):
    from schedagent.core.settings import ModelPrice

    with ModelServer(Mind([plan(COMPOSED)])) as server:
        thinking = on(script, server, model_prices=(ModelPrice("small", 2.0, 8.0),))
        report = thinking.drive(thinking.create())
    text = script.shown(report["run"])
    assert f"Model: {report['model']['used']}." in text
    assert "$0.0" in report["model"]["used"]
    assert 'In a model\'s words: "A batch whose longest task decides." Goal: "' in text
    assert 'is better than the default in wall time; a model\'s words: "The order decides."' in text
    assert HARDWARE.kernel_release in text
    assert WORKLOAD.command in text
