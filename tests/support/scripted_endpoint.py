"""What the tests of the model plumbing share: a scripted endpoint over real HTTP, a small schema, a small tool."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from pydantic import BaseModel, Field

from agents.llm.calling import Tool
from agents.llm.model import open_model
from schedagent.core.settings import ModelPrice, Settings
from tests.support.model_server import ModelServer

KEY = "sk-do-not-tell-anybody"
QUESTION = [{"role": "user", "content": "Which policy?"}]
GOOD = {"content": {"policy": "fifo", "slice_us": 5000}}
PROSE = {"content": "I would try fifo."}
LIST_POLICIES = {"tool_calls": [{"name": "list_policies", "arguments": {"words": "batch"}}]}
PRICES = (ModelPrice("small", 2.0, 8.0),)


class Choice(BaseModel):
    """The answer that is asked for."""

    policy: str = Field(description="its name", max_length=40)
    slice_us: int = Field(ge=100, le=100_000, default=5000)


class Words(BaseModel):
    """Arguments of the tool."""

    words: str


def list_policies(calls: list[str], result: str = "fifo\nbatch") -> Tool:
    """Return a tool that notes its calls."""

    def call(arguments: Words) -> str:
        calls.append(arguments.words)
        return result

    return Tool("list_policies", "Search the policy library.", Words, call)


def settings_for(server: ModelServer | None, **changed: Any) -> Settings:
    """Return settings that name the server, or a port where nobody listens."""
    url = server.url if server else "http://127.0.0.1:9/v1"
    chosen = {"model_base_url": url, "model_name": "small", "model_api_key": KEY, "model_timeout_s": 10} | changed
    return Settings(Path("/nonexistent"), Path("/nonexistent"), **chosen)


@contextmanager
def waits_skipped() -> Iterator[list[float]]:
    """Let the client's waits between attempts take no time; yields what they would have taken, in seconds."""
    waits: list[float] = []
    clock = SimpleNamespace(time=time.time, sleep=waits.append)
    with mock.patch("openai._base_client.time", clock), mock.patch("tenacity.nap.time", clock):
        yield waits


def ask(server: ModelServer | None, *, tools=(), schema=Choice, max_turns=8, iteration=0, waits=None, **opened):
    """Ask one question of a fresh model; waits between attempts take no time, and are appended to `waits`."""
    settings = opened.pop("settings", None) or settings_for(server)
    model = open_model(settings, "planning", **opened)
    with waits_skipped() as skipped:
        try:
            return model.ask("You plan.", QUESTION, schema, tools, max_turns=max_turns, iteration=iteration)
        finally:
            if waits is not None:
                waits += skipped
