"""Models behind OpenAI-compatible endpoints; the only user of langchain-openai, which is imported at the first call.

`open_model` gives an agent its model; `Model.ask` gives back a checked answer, or raises a ModelError, upon which the
caller goes on without a model. The key is taken from the settings, handed to the client, and taken out of every text
that is sent, received, recorded or raised.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from agents.llm.answers import T
from agents.llm.budget import Budget, BudgetLimits
from agents.llm.calling import Tool
from agents.llm.conversation import Asker, Conversation, ModelAnswer
from agents.llm.exchange import (
    Failure,
    Form,
    Json,
    ModelRequest,
    Outcome,
    Reply,
    Role,
    ToolCall,
    Usage,
    estimated_tokens,
)
from agents.llm.fences import Fence
from agents.llm.transcript import Journal, Replay, Unrecorded
from schedagent.core.errors import SetupError
from schedagent.core.settings import Settings

if TYPE_CHECKING:
    import openai
    from langchain_core.messages import AIMessage
    from langchain_openai import ChatOpenAI

log = logging.getLogger(__name__)

ATTEMPTS = 4
"""Times a request is sent before the endpoint counts as lost."""

LONGEST_WAIT_S = 60.0
"""Between two attempts; an endpoint that asks for more counts as lost."""

LONGEST_TEXT = 64_000
"""Characters of an answer that are kept, four for each of budget.LONGEST_ANSWER tokens."""

LONGEST_BODY = 8 << 20
"""Bytes of an endpoint's answer that are read."""

MOST_CALLS = 16
"""Tool calls of one answer that are kept."""

MAX_TURNS = 8
"""Requests of one question, unless the caller says otherwise; a repair comes on top."""

_FIRST_WAIT_S = 1.0
_LONGEST_ERROR = 300
_SHORTEST_SECRET = 8
_NO_KEY = "none"
_OF_THE_STREAM = ("content-encoding", "content-length", "transfer-encoding")
_SHOWN_KEY = "[key removed]"
_REFUSED = (400, 415, 422, 501)
_RETRIED = (408, 409, 429)
_HINTS = {
    401: "check OPENAI_API_KEY",
    403: "check OPENAI_API_KEY, and what it may use",
    404: "check OPENAI_BASE_URL and SCHEDAGENT_MODEL",
    429: "the endpoint limits how much you may use",
}


class Model:
    """A model as one agent sees it."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    @property
    def name(self) -> str:
        """What the endpoint calls it."""
        return self._asker.model

    @property
    def fence(self) -> Fence:
        """Fences data for the prompts of this run."""
        return self._asker.fence

    def ask(
        self,
        system: str,
        messages: Sequence[Json],
        schema: type[T],
        tools: Sequence[Tool] = (),
        *,
        iteration: int = 0,
        max_turns: int = MAX_TURNS,
    ) -> ModelAnswer[T]:
        """Ask until there is an answer that fits the schema.

        An answer that does not fit is asked for once more. Unknown tools and bad arguments are told to the model.

        Args:
            system: the agent's prompt; what fences mean is added.
            messages: the question, each with `role` (user or assistant) and `content`; data in it is fenced.
            schema: of the answer.
            tools: what the model may call; their results reach it inside fences.
            iteration: of the run; the same question in another iteration is another one.
            max_turns: requests at most, the last one without tools; a repair comes on top.

        Raises:
            EndpointError: the endpoint is down, refuses, or answers nonsense.
            BudgetSpent: calls, tokens or money of the run are used up.
            ModelError: no fitting answer, twice; or tool calls without end.
            ReplayDiverged: in a replay: this was not asked when it was recorded.
        """
        return Conversation(self._asker, system, messages, schema, tools, iteration).run(max_turns)


def open_model(
    settings: Settings,
    role: Role,
    *,
    budget: Budget | None = None,
    journal: Journal | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Model:
    """Return the model of one agent. Nothing is sent and no library is loaded before the first question.

    Args:
        budget: that all agents of the run share; None: a budget of its own, as the settings have it.
        journal: the run's transcript; None: nothing is kept.
        sleep: waits between attempts, in seconds.

    Raises:
        SetupError: the settings name no endpoint or no model.
    """
    name = settings.model_for(role)
    if not settings.model_base_url or not name:
        raise SetupError("no model is configured", "set OPENAI_BASE_URL, SCHEDAGENT_MODEL and OPENAI_API_KEY")
    clean = _cleaner(settings.model_api_key)
    endpoint = ChatEndpoint(settings, clean, sleep)
    shared = (endpoint, budget or Budget.of(settings), journal or Unrecorded())
    return Model(Asker(role, name, *shared, clean, form=cast("Form", settings.model_answers)))


def replay_model(replay: Replay, role: Role) -> Model:
    """Return a model that answers what was recorded, for debugging. It needs no settings, no network and no tools."""
    name, form = replay.asked_by(role)
    budget = Budget(BudgetLimits(0, 0, 0.0))
    return Model(Asker(role, name, None, budget, replay, _cleaner(""), form))


def _cleaner(key: str) -> Callable[[str], str]:
    """Return what takes the key, and characters that cannot be sent, out of a text."""

    def clean(text: str) -> str:
        sendable = text.encode("utf-8", "replace").decode("utf-8")
        return sendable.replace(key, _SHOWN_KEY) if len(key) >= _SHORTEST_SECRET else sendable

    return clean


# --- the endpoint ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Attempt:
    """One attempt: what came of it, whether another may help, and how long the endpoint asks to wait before."""

    outcome: Outcome
    again: bool = False
    retry_after_s: float | None = None


class ChatEndpoint:
    """Chat completions over HTTP.

    Args:
        settings: address, key and time-out.
        clean: takes the key out of a text.
        sleep: waits, in seconds.
    """

    def __init__(self, settings: Settings, clean: Callable[[str], str], sleep: Callable[[float], None]) -> None:
        self._settings = settings
        self._clean = clean
        self._sleep = sleep
        self._clients: dict[str, ChatOpenAI] = {}

    def __repr__(self) -> str:
        return f"ChatEndpoint({self._settings.model_base_url!r})"

    def complete(self, request: ModelRequest, max_tokens: int) -> Outcome:
        """Send a request, again if that may help and the endpoint does not ask for too long a wait."""
        for number in range(1, ATTEMPTS + 1):
            attempt = self._attempt(request, max_tokens)
            wait_s = _backoff_s(number) if attempt.retry_after_s is None else attempt.retry_after_s
            if not attempt.again or number == ATTEMPTS or wait_s > LONGEST_WAIT_S:
                break
            assert isinstance(attempt.outcome, Failure), "answers are final"
            log.info("%s; again in %.1f s", attempt.outcome.message, wait_s)
            self._sleep(wait_s)
        return attempt.outcome

    def _attempt(self, request: ModelRequest, max_tokens: int) -> _Attempt:
        """Send it once. Errors become data here, so that no exception carries the request and its headers further."""
        import openai
        from langsmith import tracing_context

        address = self._settings.model_base_url
        try:
            with tracing_context(enabled=False):  # whatever the user's environment says
                message = self._client(request.model).invoke(
                    [_message(message) for message in request.messages], **_options(request, max_tokens)
                )
            return _Attempt(self._reply(request, message))
        except openai.APIStatusError as error:
            return self._status(error)
        except openai.APITimeoutError:
            told = f"the model's endpoint {address} did not answer within {self._settings.model_timeout_s} s"
            return _Attempt(Failure("endpoint", told, "a larger SCHEDAGENT_MODEL_TIMEOUT_S waits longer"), again=True)
        except openai.APIConnectionError as error:
            why = self._clean(_root(error))[:_LONGEST_ERROR]
            told = f"the model's endpoint {address} cannot be reached: {why}"
            return _Attempt(Failure("endpoint", told, "check OPENAI_BASE_URL"), again=True)
        except (openai.OpenAIError, ValueError, TypeError, LookupError, AttributeError) as error:
            # What langchain-openai raises on an answer that is no chat completion.
            why = self._clean(f"{type(error).__name__}: {error}")[:_LONGEST_ERROR]
            return _Attempt(Failure("endpoint", f"the model's endpoint {address} answers nonsense: {why}"), again=True)

    def _status(self, error: openai.APIStatusError) -> _Attempt:
        code = error.status_code
        said = error.body.get("message") if isinstance(error.body, Mapping) else error.body
        why = self._clean(str(said or "no reason given"))[:_LONGEST_ERROR]
        told = f"the model's endpoint {self._settings.model_base_url} answers HTTP {code}: {why}"
        failure = Failure("refused" if code in _REFUSED else "endpoint", told, _HINTS.get(code, ""), code)
        again = code not in _REFUSED and (code in _RETRIED or code >= 500)
        return _Attempt(failure, again, _seconds(error.response.headers.get("retry-after", "")))

    def _reply(self, request: ModelRequest, message: AIMessage) -> Reply:
        """Return what came back, cut to what is kept."""
        text = self._clean(_text(message))
        calls = [
            ToolCall(str(call.get("id") or f"call_{place}"), self._clean(name), self._clean(arguments))
            for place, (call, name, arguments) in enumerate(_calls(message)[:MOST_CALLS])
        ]
        kept = tuple(ToolCall(c.id, c.name[:_LONGEST_ERROR], c.arguments[:LONGEST_TEXT]) for c in calls)
        longer = len(text) > LONGEST_TEXT or any(len(call.arguments) > LONGEST_TEXT for call in calls)
        finish = "length" if longer else str(message.response_metadata.get("finish_reason") or "")
        return Reply(text[:LONGEST_TEXT], kept, finish, _usage(request, message, text, calls))

    def _client(self, model: str) -> ChatOpenAI:
        from langchain_openai import ChatOpenAI
        from pydantic import SecretStr

        if model not in self._clients:
            self._clients[model] = ChatOpenAI(
                model=model,
                base_url=self._settings.model_base_url,
                api_key=SecretStr(self._settings.model_api_key or _NO_KEY),
                timeout=float(self._settings.model_timeout_s),
                http_client=_bounded_client(self._settings.model_timeout_s),
                http_socket_options=(),  # of the client it would build itself, about which it warns behind a proxy
                max_retries=0,  # ours are recorded and bounded
                use_responses_api=False,
                cache=False,
            )
        return self._clients[model]


def _bounded_client(timeout_s: float) -> Any:
    """Return an HTTP client that ends an answer that takes too long or is too large.

    The SDK's time-out is for each silence: a gateway that sends white space while it waits would hold us for ever.
    """
    import openai

    class Bounded(openai.DefaultHttpxClient):
        def send(self, request: Any, **options: Any) -> Any:
            until = time.monotonic() + timeout_s
            response = super().send(request, **{**options, "stream": True})
            body = bytearray()
            try:
                for piece in response.iter_bytes():
                    body += piece
                    if time.monotonic() > until:
                        raise openai.APITimeoutError(request)
                    if len(body) > LONGEST_BODY:
                        told = f"its answer has more than {LONGEST_BODY} bytes"
                        raise openai.APIConnectionError(message=told, request=request)
            finally:
                response.close()
            kept = [pair for pair in response.headers.multi_items() if pair[0].lower() not in _OF_THE_STREAM]
            return type(response)(response.status_code, headers=kept, content=bytes(body), request=request)

    return Bounded()


def _options(request: ModelRequest, max_tokens: int) -> dict[str, Any]:
    """Return what is sent besides the messages.

    The response format goes past the client as `extra_body`: its own way of sending one wants every tool to be strict,
    and raises on an answer that was cut.
    """
    optional: dict[str, Any] = {"tools": list(request.tools), "tool_choice": request.tool_choice}
    if request.response_format:
        optional["extra_body"] = {"response_format": request.response_format}
    return {"max_tokens": max_tokens, **{name: value for name, value in optional.items() if value}}


def _message(message: Json) -> Any:
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

    content = message["content"]
    if message["role"] == "assistant":
        calls = {"tool_calls": list(message["tool_calls"])} if message.get("tool_calls") else {}
        return AIMessage(content=content, additional_kwargs=calls)
    if message["role"] == "tool":
        return ToolMessage(content=content, tool_call_id=message["tool_call_id"])
    return SystemMessage(content=content) if message["role"] == "system" else HumanMessage(content=content)


def _text(message: AIMessage) -> str:
    return str(message.text) or str(message.additional_kwargs.get("refusal") or "")


def _calls(message: AIMessage) -> list[tuple[Mapping[str, Any], str, str]]:
    """Return the tool calls with name and arguments as JSON text; those whose arguments are no JSON come last."""
    import json

    good = [(call, str(call["name"]), json.dumps(call["args"])) for call in message.tool_calls]
    bad = [(call, str(call["name"] or ""), str(call["args"] or "")) for call in message.invalid_tool_calls]
    return [*good, *bad]


def _usage(request: ModelRequest, message: AIMessage, text: str, calls: Sequence[ToolCall]) -> Usage:
    reported = message.usage_metadata
    if reported and reported["input_tokens"] + reported["output_tokens"] > 0:
        return Usage(max(0, reported["input_tokens"]), max(0, reported["output_tokens"]))
    answered = estimated_tokens(text + "".join(call.name + call.arguments for call in calls))
    return Usage(request.estimated_tokens, answered, estimated=True)


def _root(error: BaseException) -> str:
    """Return the words of what lies behind an error: three libraries wrap the socket's."""
    while error.__cause__:
        error = error.__cause__
    return str(error) or type(error).__name__


def _backoff_s(attempt: int) -> float:
    """Return how long to wait after this attempt: 1, 2, 4 s, up to a quarter less, so that clients part."""
    return _FIRST_WAIT_S * 2.0 ** (attempt - 1) * random.uniform(0.75, 1.0)


def _seconds(retry_after: str) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110, 10.2.3: a number or a date); None if it says nothing."""
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
