"""Models behind OpenAI-compatible endpoints; the only user of langchain-openai, which is imported at the first call.

`open_model` gives an agent its model; `Model.ask` returns a checked answer, or raises a ModelError, upon which the
caller continues without a model. The key is taken from the settings, handed to the client, and taken out of every text
that is sent, received, recorded or raised.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
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
    from langchain_core.runnables import Runnable
    from langchain_openai import ChatOpenAI

ATTEMPTS = 4
"""Times a request is sent before the endpoint counts as lost. The client honours Retry-After up to two minutes; an
endpoint that asks for a longer wait counts as lost at once."""

LONGEST_TEXT = 64_000
"""Characters of an answer that are kept, four for each of budget.LONGEST_ANSWER tokens."""

LONGEST_BODY = 8 << 20
"""Bytes of an endpoint's answer that are read."""

MOST_CALLS = 16
"""Tool calls of one answer that are kept."""

MAX_TURNS = 8
"""Requests of one question, unless the caller gives another number; a repair comes on top."""

_LONGEST_ERROR = 300
_SHORTEST_SECRET = 8
_NO_KEY = "none"
_OF_THE_STREAM = ("content-encoding", "content-length", "transfer-encoding")
_SHOWN_KEY = "[key removed]"
_REFUSED = (400, 415, 422, 501)
_NONSENSE = (ValueError, TypeError, LookupError, AttributeError)
"""What langchain-openai raises on an answer that is no chat completion."""

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

        An answer that does not fit is asked for once more. Unknown tools and bad arguments are reported to the model.

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
    settings: Settings, role: Role, *, budget: Budget | None = None, journal: Journal | None = None
) -> Model:
    """Return the model of one agent. Nothing is sent and no library is loaded before the first question.

    Args:
        budget: that all agents of the run share; None: a budget of its own, as the settings have it.
        journal: the run's transcript; None: nothing is kept.

    Raises:
        SetupError: the settings name no endpoint or no model.
    """
    name = settings.model_for(role)
    if not settings.model_base_url or not name:
        raise SetupError("no model is configured", "set OPENAI_BASE_URL, SCHEDAGENT_MODEL and OPENAI_API_KEY")
    clean = _cleaner(settings.model_api_key)
    shared = (ChatEndpoint(settings, name, clean), budget or Budget.of(settings), journal or Unrecorded())
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


class ChatEndpoint:
    """Chat completions over HTTP.

    Args:
        settings: address, key and time-out.
        model: name at the endpoint.
        clean: takes the key out of a text.
    """

    def __init__(self, settings: Settings, model: str, clean: Callable[[str], str]) -> None:
        self._settings = settings
        self._model = model
        self._clean = clean
        self._chat: ChatOpenAI | None = None

    def __repr__(self) -> str:
        return f"ChatEndpoint({self._settings.model_base_url!r})"

    def complete(self, request: ModelRequest, max_tokens: int) -> Outcome:
        """Send a request. Errors become data here, so that no exception carries it and its headers further."""
        import openai
        from langsmith import tracing_context

        address = self._settings.model_base_url
        try:
            # Nothing is traced, whatever the user's environment asks for. The library's warnings are for programmers.
            with tracing_context(enabled=False), warnings.catch_warnings(action="ignore", category=UserWarning):
                message = self._bound(request, max_tokens).invoke([_message(part) for part in request.messages])
            return self._reply(request, message)
        except openai.APIStatusError as error:
            return self._refusal(error)
        except openai.APITimeoutError:
            late = f"the model's endpoint {address} did not answer within {self._settings.model_timeout_s} s"
            return Failure("endpoint", late, "a larger SCHEDAGENT_MODEL_TIMEOUT_S waits longer")
        except openai.APIConnectionError as error:
            why = self._clean(_root(error))[:_LONGEST_ERROR]
            return Failure(
                "endpoint", f"the model's endpoint {address} cannot be reached: {why}", "check OPENAI_BASE_URL"
            )
        except (openai.OpenAIError, *_NONSENSE) as error:
            why = self._clean(f"{type(error).__name__}: {error}")[:_LONGEST_ERROR]
            return Failure("endpoint", f"the model's endpoint {address} answers nonsense: {why}")

    def _bound(self, request: ModelRequest, max_tokens: int) -> Runnable[Any, AIMessage]:
        """Return the client with everything bound that is sent besides the messages.

        Detour: the answer's schema is sent as `extra_body`, not as `response_format` or by `with_structured_output`.
        With those the client parses the answer itself: it raises on one that was cut or filtered, and on a call whose
        arguments are no JSON, so that an answer that was paid for is lost with its usage; and it refuses to send tools
        that are not strict (tests/unit/agents/llm/test_detours.py).
        """
        options: dict[str, Any] = {"max_tokens": max_tokens}
        if request.response_format:
            options["extra_body"] = {"response_format": request.response_format}
        chat = self._client()
        if request.tools:
            bound = chat.bind_tools(
                [dict(tool) for tool in request.tools], tool_choice=request.tool_choice or None, **options
            )
        else:
            bound = chat.bind(**options)
        return bound.with_retry(retry_if_exception_type=_NONSENSE, stop_after_attempt=ATTEMPTS)

    def _client(self) -> ChatOpenAI:
        from langchain_openai import ChatOpenAI
        from pydantic import SecretStr

        if self._chat is None:
            self._chat = ChatOpenAI(
                model=self._model,
                base_url=self._settings.model_base_url,
                api_key=SecretStr(self._settings.model_api_key or _NO_KEY),
                timeout=float(self._settings.model_timeout_s),
                max_retries=ATTEMPTS - 1,
                http_client=_bounded_client(self._settings.model_timeout_s),
                http_socket_options=(),  # of the client it would build itself, about which it warns behind a proxy
                use_responses_api=False,
                cache=False,
            )
        return self._chat

    def _refusal(self, error: openai.APIStatusError) -> Failure:
        code = error.status_code
        reason = error.body.get("message") if isinstance(error.body, Mapping) else error.body
        why = self._clean(str(reason or "no reason given"))[:_LONGEST_ERROR]
        message = f"the model's endpoint {self._settings.model_base_url} answers HTTP {code}: {why}"
        return Failure("refused" if code in _REFUSED else "endpoint", message, _HINTS.get(code, ""), code)

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


def _bounded_client(timeout_s: float) -> Any:
    """Return an HTTP client that ends an answer that takes too long or is too large; neither is asked for again.

    Detour: the client's own time-out is for each silence. A gateway that sends white space while it waits would hold us
    indefinitely, and no option bounds the size of an answer (tests/unit/agents/llm/test_detours.py).
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
                        too_large = f"its answer has more than {LONGEST_BODY} bytes"
                        raise openai.APIConnectionError(message=too_large, request=request)
            finally:
                response.close()
            kept = [pair for pair in response.headers.multi_items() if pair[0].lower() not in _OF_THE_STREAM]
            return type(response)(response.status_code, headers=kept, content=bytes(body), request=request)

    return Bounded()


def _message(message: Json) -> Json:
    """Return a message as langchain takes it.

    Detour: tool calls are handed over as the endpoint sent them. langchain's own reading of them raises on arguments
    that are no JSON, which a model has to see again with the complaint (tests/unit/agents/llm/test_detours.py).
    """
    calls = message.get("tool_calls")
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    return rest | {"additional_kwargs": {"tool_calls": [*calls]}} if calls else rest


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
