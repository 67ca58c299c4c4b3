"""kill -9 while a model answers, and anywhere else: the resumed run goes on, and pays for no answer twice."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from agents.llm.transcript import read_transcript, transcript_path
from tests.support.killed_runs import ANSWER_S, FORKSERVER, kill_where_held
from tests.support.model_server import ModelServer
from tests.support.scripted_lab import Script
from tests.support.scripted_model import COMPOSED, ONE_PLAN, SPEC, Mind, by_policy, decided, on, plan, role_of

LOOK = {"tool_calls": [{"name": "show_policy", "arguments": {"policy": "plain", "part": "source"}}]}
REPAIRED = SPEC | {"starvation_ms": 150, "classes": [SPEC["classes"][0] | {"patience_ms": 100}]}


@pytest.fixture
def script(tmp_path) -> Script:
    (tmp_path / "state").mkdir()
    faults = {"tail_first": "proving ground"}  # so that the run holds a repair, too
    return Script(tmp_path, options=ONE_PLAN, ratios={"tail_first_1": 0.8}, faults=faults)


class Steady:
    """A model that says the same whenever it is asked the same; it takes for ever over one role's first answer."""

    def __init__(self, slow: str = "") -> None:
        self.mind = Mind([LOOK, plan(COMPOSED)], [decided("repair", spec=REPAIRED)])
        self.said: dict[str, dict] = {}
        self.slow = slow
        self.thinking = threading.Event()

    def __call__(self, body):
        key = json.dumps(body)
        first = key not in self.said
        if first:
            self.said[key] = self.mind(body)
        if first and role_of(body) == self.slow:
            self.slow = ""
            self.thinking.set()
            return {**self.said[key], "delay_s": 60}
        return self.said[key]


def assert_good(report) -> None:
    assert report["best"]["policy"] == "tail_first_1"
    assert by_policy(report)["tail_first_1"]["repairs"] == by_policy(report)["tail_first"]["key"]
    assert [insight["text"] for insight in report["insights"]] == ["The order decides."]
    assert report["model"]["notes"] == []


def asked_twice(server) -> list[str]:
    """The roles of the questions that were sent more than once."""
    counts = Counter(json.dumps(body) for body in server.chats)
    return [role_of(json.loads(body)) for body, count in counts.items() if count > 1]


@pytest.mark.parametrize("role", ["observation", "planning", "execution", "learning"])
def test_killed_while_a_model_answers(script, role):
    model = Steady(role)
    with ModelServer(model) as server:
        thinking = on(script, server)
        run_id = thinking.create()
        child = FORKSERVER.Process(target=thinking.in_child, args=(run_id,))
        child.start()
        assert model.thinking.wait(ANSWER_S)
        time.sleep(0.1)  # the client waits for the answer now
        child.kill()
        child.join()
        report = thinking.drive(run_id)
        assert asked_twice(server) == [role], "an answer was paid for twice, or the cut one was not asked for again"
    assert_good(report)
    _header, exchanges = read_transcript(transcript_path(thinking.settings.state_dir, run_id))
    assert [one.request.role for one in exchanges if one.outcome is None] == [role]
    assert report["model"]["total"]["calls"] == 5


@pytest.mark.parametrize(
    "where",
    [
        *("before save_meaning 1", "after save_meaning 1", "after keep_policy 1", "before save_plan 1"),
        *("verify 1", "after save_verification 1", "before save_repair 1", "after save_repair 1", "verify 2"),
        *("after add_block 3", "before add_insight 1", "after add_insight 1", "before finish_run 1"),
    ],
)
def test_killed_anywhere_else(script, where):
    with ModelServer(Steady()) as server:
        held = replace(on(script, server), hold=where)
        run_id = held.create()
        kill_where_held(held, run_id)
        report = on(script, server).drive(run_id)
        assert asked_twice(server) == []
    assert_good(report)
    assert report["model"]["total"]["calls"] == len(server.chats) == 5


def test_what_a_killed_process_used_counts(script):
    with ModelServer(Steady()) as server:
        held = replace(on(script, server, model_max_calls=3), hold="verify 1")
        run_id = held.create()
        kill_where_held(held, run_id)
        report = on(script, server, model_max_calls=3).drive(run_id)
    assert len(server.chats) == 3
    assert report["model"]["total"]["calls"] == 3
    assert any("3 calls, is used up" in note["text"] for note in report["model"]["notes"])
    assert report["best"] is None
