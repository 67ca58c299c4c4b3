"""One exchange with a model as plain data: what is sent, what comes back, and what an endpoint is.

Messages, tools and answer formats are the JSON objects of the chat completions interface, so that a transcript shows
what was sent, word by word.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

from schedagent.core.errors import BudgetSpent, EndpointError, ModelError

Json = Mapping[str, Any]
Role = Literal["observation", "planning", "execution", "learning"]

Form = Literal["json_schema", "tool", "plain"]
"""How an answer's schema is asked for: as response format; as a tool to be called; in words, without any tools."""

ANSWER_TOOL = "answer"
"""The tool by which an answer is given in the form "tool"."""

_CHARS_PER_TOKEN = 4
"""Of English and C, for the usual tokenizers; only used where an endpoint reports no usage, and before it did."""


@dataclass(frozen=True)
class ModelRequest:
    """What is sent.

    Args:
        role: the agent that asks.
        iteration: of the run, 0 before the first.
        model: name at the endpoint.
        messages, tools, response_format, tool_choice: as chat completions has them; empty or None: not sent.
    """

    role: Role
    iteration: int
    model: str
    messages: tuple[Json, ...]
    tools: tuple[Json, ...] = ()
    response_format: Json | None = None
    tool_choice: str = ""

    @property
    def body(self) -> dict[str, Any]:
        """Everything the model sees."""
        optional = {"tools": self.tools, "response_format": self.response_format, "tool_choice": self.tool_choice}
        sent = {name: value for name, value in optional.items() if value}
        return {"model": self.model, "messages": self.messages, **sent}

    @property
    def form(self) -> Form:
        """How the answer's schema is asked for."""
        if self.response_format:
            return "json_schema"
        return "tool" if any(tool["function"]["name"] == ANSWER_TOOL for tool in self.tools) else "plain"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the body: two requests with one digest ask the same."""
        canonical = json.dumps(self.body, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def estimated_tokens(self) -> int:
        """How many tokens this is, about."""
        return estimated_tokens(json.dumps(self.body, ensure_ascii=False))


@dataclass(frozen=True)
class ToolCall:
    """A tool the model wants called.

    Args:
        id: the model's, repeated with the result.
        arguments: JSON text, not checked yet.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Usage:
    """Tokens of one exchange, as the endpoint reports them, or estimated if it does not."""

    input_tokens: int
    output_tokens: int
    estimated: bool = False


@dataclass(frozen=True)
class Reply:
    """What came back. `finish_reason` is the endpoint's: stop, tool_calls, length, ..."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    usage: Usage


@dataclass(frozen=True)
class Failure:
    """Why nothing usable came back: an error as data, so that it can be recorded and raised again.

    Args:
        kind: refused: the endpoint does not take such a request (HTTP 400, 415, 422, 501); endpoint: it is down,
            forbids it, or answers nonsense; budget: nothing was sent, because the budget is used up.
        status: HTTP status, None without an answer.
    """

    kind: Literal["refused", "endpoint", "budget"]
    message: str
    hint: str = ""
    status: int | None = None

    def error(self) -> ModelError:
        """Return the exception of the same meaning."""
        if self.kind == "budget":
            return BudgetSpent(self.message, self.hint)
        return EndpointError(self.message, self.hint, self.status)


Outcome = Reply | Failure


class Endpoint(Protocol):
    """Where requests go."""

    def complete(self, request: ModelRequest, max_tokens: int) -> Outcome:
        """Send a request and wait for its answer, which may have `max_tokens` at most."""
        ...


def estimated_tokens(text: str) -> int:
    """Return how many tokens a text is, about."""
    return math.ceil(len(text) / _CHARS_PER_TOKEN)
