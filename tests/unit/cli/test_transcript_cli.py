"""`schedagent runs show RUN --transcript`: what a run asked models, for people and as JSON."""

from __future__ import annotations

import json

import pytest

from agents.llm.transcript import Transcript, transcript_path
from schedagent.cli import common
from tests.support.command_line import refused
from tests.support.model_server import ModelServer
from tests.support.scripted_endpoint import LIST_POLICIES, ask, list_policies, settings_for

ANSWER = {"content": {"policy": "fifo", "slice_us": 5000}}
STEERING = {"content": "I say \x1b[31mfifo [bold] :100:"}


@pytest.fixture
def recorded(script) -> str:
    """A run with a transcript: a tool is called, an answer repaired."""
    script.settings.state_dir.mkdir()
    run_id = script.create()
    path = transcript_path(script.settings.state_dir, run_id)
    with ModelServer([LIST_POLICIES, STEERING, ANSWER]) as server, Transcript(path, run_id) as journal:
        ask(server, settings=settings_for(server), tools=[list_policies([])], journal=journal)
    return run_id


def test_people_read_it(run, recorded):
    shown = run("runs", "show", recorded, "--transcript")
    assert shown.exit_code == 0
    assert f"Transcript of run {recorded}, begun " in shown.stdout
    assert "[calls list_policies]" in shown.stdout
    assert "[answer] I say \\x1b[31mfifo [bold] :100:" in shown.stdout


def test_as_json(run, recorded):
    told = json.loads(run("runs", "show", recorded, "--transcript", "--json").stdout)
    assert told["run"] == recorded
    first, second, third = told["exchanges"]
    assert [found["role"] for found in told["exchanges"]] == ["planning"] * 3
    assert first["outcome"]["tool_calls"][0]["name"] == "list_policies"
    assert "fifo\nbatch" in first["results"][0]
    assert second["outcome"]["text"] == STEERING["content"]
    assert third["used"]["calls"] == 1
    assert third["body"]["messages"][0]["role"] == "system"


def test_a_run_that_asked_no_model(run, script):
    script.settings.state_dir.mkdir()
    refused(run("runs", "show", script.create(), "--transcript"), "has asked no model: there is no /")
    refused(run("runs", "show", "nothing", "--transcript"), "there is no run 'nothing'")


def test_a_damaged_transcript(run, script, recorded):
    transcript_path(script.settings.state_dir, recorded).write_text("nonsense\n")
    refused(run("runs", "show", recorded, "--transcript"), "line 1 is damaged", common.EXIT_FAILED)
