"""The transcript: what it holds and how it reads; a run that goes on pays nothing twice; replays."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time

import pytest

from agents.llm.budget import Budget, BudgetLimits
from agents.llm.model import open_model, replay_model
from agents.llm.transcript import Note, Replay, Transcript, read_notes, read_transcript, render, transcript_path
from schedagent.core.errors import BudgetSpent, EndpointError, ReplayDiverged, RepositoryError
from tests.support.model_server import ModelServer
from tests.support.paths import ROOT
from tests.support.scripted_endpoint import (
    GOOD,
    LIST_POLICIES,
    PRICES,
    PROSE,
    QUESTION,
    Choice,
    ask,
    list_policies,
    settings_for,
)

SCRIPT = [LIST_POLICIES, {"content": "I say \x1b[31mfifo"}, GOOD]


@pytest.fixture
def path(tmp_path):
    return transcript_path(tmp_path, "r1")


def record(path, script=SCRIPT, tools=True, **asked):
    """Ask one question and keep it in the transcript; return the answer and the server."""
    with ModelServer(script) as server, Transcript(path, "r1") as journal:
        offered = [list_policies([])] if tools else []
        settings = settings_for(server, model_prices=PRICES)
        return ask(server, settings=settings, tools=offered, journal=journal, **asked), server


def replay(path, system="You plan.", schema=Choice, tools=(), iteration=0):
    return replay_model(Replay(path), "planning").ask(system, QUESTION, schema, tools, iteration=iteration)


# --- what it holds --------------------------------------------------------------------------------------------------


def test_every_exchange_is_kept_for_its_owner_only(path):
    answer, server = record(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["event"] for event in events] == [
        *("run", "request", "answer", "tool", "request", "answer", "request", "answer")
    ]
    header, exchanges = read_transcript(path)
    assert header["run"] == "r1"
    assert header["mark"] in server.chats[0]["messages"][0]["content"]
    assert sum(exchange.record.cost for exchange in exchanges) == pytest.approx(answer.usage.cost)
    assert exchanges[0].results[0].startswith("<<<DATA")
    for sent, exchange in zip(server.chats, exchanges, strict=True):
        assert [said["role"] for said in sent["messages"]] == [said["role"] for said in exchange.request.messages]
        assert sent["messages"][-1]["content"] == exchange.request.messages[-1]["content"]
        assert sent["response_format"] == exchange.request.response_format
        assert tuple(sent["tools"]) == exchange.request.tools


def test_errors_are_kept(path):
    with pytest.raises(EndpointError):
        record(path, [{"status": 403, "message": "not you"}])
    [exchange] = read_transcript(path)[1]
    assert "403: not you" in exchange.outcome.message


def test_people_can_read_it(path):
    record(path)
    with Transcript(path, "r1") as journal:
        journal.begin(read_transcript(path)[1][0].request)
    text = "\n".join(render(*read_transcript(path)))
    assert "1: planning, iteration 0, to small" in text
    assert text.count("[user] Which policy?") == 2, "a conversation that goes on is not repeated"
    assert '[calls list_policies] {"words": "batch"}' in text
    assert "[result 0] <<<DATA" in text
    assert text.count("I say \\x1b[31mfifo") == 1
    assert "\x1b" not in text
    assert "[cut short: no answer was received]" in text
    assert len("\n".join(render(*read_transcript(path), longest=20))) < len(text)


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RepositoryError, match="cannot be opened"):
        Transcript(transcript_path(tmp_path, "r1"), "r1")


def test_link_is_not_followed(path, tmp_path):
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RepositoryError, match="cannot be opened"):
        Transcript(path, "r1")


def test_transcript_of_another_run_is_refused(path):
    record(path)
    with pytest.raises(RepositoryError, match="belongs to run r1, not to r2"):
        Transcript(path, "r2")


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0], "{", *lines[1:]],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[1].replace("Which policy?", "Which key?"), *lines[2:]],
        lambda lines: [lines[0], "[]", *lines[1:]],
        lambda lines: [lines[0], lines[1], '{"event": "answer", "number": 1}'],
        lambda _lines: [],
    ],
)
def test_damage_is_named(path, damage):
    record(path)
    path.write_text("".join(f"{line}\n" for line in damage(path.read_text().splitlines())))
    with pytest.raises(RepositoryError, match=r"damaged|empty"):
        read_transcript(path)


# --- going on -------------------------------------------------------------------------------------------------------


def cut_behind(path, events: int) -> None:
    """Leave what a process had written that was killed in the middle of the line behind so many events."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:events]) + lines[events][:30])


@pytest.mark.parametrize(("events", "paid_again"), [(2, 3), (3, 2), (4, 2), (5, 2), (6, 1), (7, 1)])
def test_what_was_answered_is_not_paid_again(path, events, paid_again):
    whole, _server = record(path)
    cut_behind(path, events)
    calls: list[str] = []
    with ModelServer(SCRIPT[3 - paid_again :]) as server, Transcript(path, "r1") as journal:
        budget = Budget(BudgetLimits(9, 10**6, 9), PRICES, spent=journal.earlier)
        answer = ask(server, tools=[list_policies(calls)], journal=journal, budget=budget)
    assert len(server.chats) == paid_again
    assert answer == whole
    assert len(budget.records) == 3, "both processes together paid each call once"
    assert calls == (["batch"] if events < 4 else []), "a result that was recorded is not made again"


def test_killed_in_the_middle_of_a_call(path):
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.support.scripted_endpoint import *; from agents.llm.transcript import Transcript\n"
        "settings = settings_for(None, model_base_url=sys.argv[2])\n"
        "ask(None, settings=settings, tools=[list_policies([])], journal=Transcript(Path(sys.argv[1]), 'r1'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    slow = [LIST_POLICIES, {**PROSE, "delay_s": 60}]
    with (
        ModelServer(slow) as server,
        subprocess.Popen([sys.executable, "-c", program, str(path), server.url], env=environment) as asking,
    ):
        until = time.monotonic() + 30
        while len(server.chats) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        asking.kill()
    assert len(server.chats) == 2
    answer, goes_on = record(path, [GOOD])
    assert (answer.value.policy, answer.called, len(goes_on.chats)) == ("fifo", ("list_policies",), 1)
    assert goes_on.chats[0] == server.chats[1], "it goes on with the very question it was killed in"


def test_whole_question_is_recalled_without_a_network(path):
    whole, _server = record(path)
    with Transcript(path, "r1") as journal:
        assert ask(None, tools=[list_policies([])], journal=journal) == whole
    assert path.read_text().count('"event": "request"') == 3


def test_same_question_is_asked_again_in_one_process_and_in_another_iteration(path):
    with ModelServer([GOOD] * 9) as server:
        with Transcript(path, "r1") as journal:
            model = open_model(settings_for(server), "planning", journal=journal)
            model.ask("s", QUESTION, Choice)
            model.ask("s", QUESTION, Choice)
        with Transcript(path, "r1") as journal:
            model = open_model(settings_for(server), "planning", journal=journal)
            for _ in range(3):
                model.ask("s", QUESTION, Choice)
            model.ask("s", QUESTION, Choice, iteration=1)
    assert len(server.chats) == 4


def test_failure_is_asked_again_later(path):
    with pytest.raises(EndpointError):
        record(path, [{"status": 403}])
    answer, server = record(path, [GOOD])
    assert len(server.chats) == 1
    assert replay(path, tools=[list_policies([])]) == answer, "a replay takes the better end of both"


def test_endpoint_without_schemas_is_recalled_too(path):
    whole, _server = record(path, [{"status": 400}, {"tool_calls": [{"name": "answer", "arguments": GOOD["content"]}]}])
    with ModelServer([{"status": 400}]) as server, Transcript(path, "r1") as journal:
        assert ask(server, tools=[list_policies([])], journal=journal) == whole
    assert replay(path, tools=[list_policies([])]).value == whole.value


def test_replay_asks_in_the_form_of_the_recording(path):
    with ModelServer([GOOD]) as server, Transcript(path, "r1") as journal:
        settings = settings_for(server, model_answers="plain", model_name="other")
        whole = ask(server, settings=settings, journal=journal)
    assert replay(path) == whole


# --- replay ---------------------------------------------------------------------------------------------------------


def test_replay_equals(path):
    whole, _server = record(path)
    calls: list[str] = []
    assert replay(path, tools=[list_policies(calls)]) == whole
    assert calls == [], "results of tools are replayed too"


def test_errors_are_replayed(path):
    with pytest.raises(EndpointError) as recorded:
        record(path, [{"status": 403, "message": "not you"}], tools=False)
    with pytest.raises(EndpointError, match="403: not you") as replayed:
        replay(path)
    assert (replayed.value.status, replayed.value.hint) == (403, recorded.value.hint)


def test_spent_budget_is_replayed(path):
    with pytest.raises(BudgetSpent) as recorded:
        record(path, [PROSE], tools=False, budget=Budget(BudgetLimits(1, 10**6, 9)))
    with pytest.raises(BudgetSpent) as replayed:
        replay(path)
    assert str(replayed.value) == str(recorded.value)


def test_replay_says_where_it_diverges(path):
    record(path, [GOOD], tools=False)
    with pytest.raises(
        ReplayDiverged, match=r"message 0 \(system\) differs: at character \d+, .*You plan\..*You guess\."
    ):
        replay(path, system="You guess.")
    with pytest.raises(ReplayDiverged, match="its iteration is 0, asked now: 4"):
        replay(path, iteration=4)
    with pytest.raises(ReplayDiverged, match="tools or answer schema differ"):
        replay(path, tools=[list_policies([])])


def test_replay_ends_where_the_recording_does(path):
    record(path, [GOOD], tools=False)
    model = replay_model(Replay(path), "planning")
    model.ask("You plan.", QUESTION, Choice)
    with pytest.raises(ReplayDiverged, match="ends before this request"):
        model.ask("You plan.", QUESTION, Choice)


def test_request_that_was_cut_short_is_left_out_of_a_replay(path):
    whole, _server = record(path, [GOOD], tools=False)
    with Transcript(path, "r1") as journal:
        journal.begin(read_transcript(path)[1][0].request)
    assert replay(path) == whole


def test_notes_are_kept_once_beside_the_exchanges(tmp_path):
    path = transcript_path(tmp_path, "run")
    for _process in range(2):
        with Transcript(path, "run") as journal:
            journal.note("planning", 0, "planned by rules")
            journal.note("planning", 1, "planned by rules")
    assert read_notes(path) == (Note("planning", 0, "planned by rules"), Note("planning", 1, "planned by rules"))
    assert read_transcript(path)[1] == ()
    with path.open("a") as file:
        file.write('{"event": "note"}\n')
    with pytest.raises(RepositoryError, match="line 4 is damaged"):
        read_notes(path)
