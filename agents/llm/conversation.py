"""One question to a model until there is an answer that fits its schema: tool calls, one repair, fall-backs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_args

from agents.llm.answers import Read, T, read_answer, repair_request, strict_schema
from agents.llm.budget import Budget, UsageRecord, total
from agents.llm.calling import LONGEST_RESULT, Tool, call_tool
from agents.llm.exchange import (
    ANSWER_TOOL,
    Endpoint,
    Failure,
    Form,
    Json,
    ModelRequest,
    Outcome,
    Reply,
    Role,
    ToolCall,
)
from agents.llm.fences import Fence
from agents.llm.transcript import Exchange, Journal
from schedagent.core.errors import BudgetSpent, ModelError

FORMS: tuple[Form, ...] = get_args(Form)

_NOW_ANSWER = "No more tools can be called. Give your final answer now."
V = TypeVar("V")


@dataclass(frozen=True)
class ModelAnswer(Generic[V]):
    """A checked answer.

    Args:
        value: fits the schema.
        usage: of all exchanges that led to it.
        repaired: the first answer did not fit.
        called: names of the tools that were called, in order; those that do not exist, too.
    """

    value: V
    usage: UsageRecord
    repaired: bool
    called: tuple[str, ...]


@dataclass
class Asker:
    """What the conversations of one agent share.

    Args:
        role: of the agent.
        model: name at the endpoint.
        endpoint: None in a replay.
        clean: takes the key out of a text.
        form: how schemas are asked for; later forms are tried until one is accepted.
        settled: one was.
    """

    role: Role
    model: str
    endpoint: Endpoint | None
    budget: Budget
    journal: Journal
    clean: Callable[[str], str]
    form: Form = "json_schema"
    settled: bool = False

    @property
    def fence(self) -> Fence:
        """The fence of this run."""
        return Fence(self.journal.mark)

    def exchange(self, request: ModelRequest) -> Exchange:
        """Recall or send a request. What fails is in the outcome; only a replay raises, ReplayDiverged."""
        recalled = self.journal.recall(request)
        if recalled:
            return recalled
        number = self.journal.begin(request)
        outcome = self._send(request)
        record = self.budget.add(request, outcome.usage) if isinstance(outcome, Reply) else None
        self.journal.end(number, outcome, record)
        return Exchange(number, request, outcome, record)

    def _send(self, request: ModelRequest) -> Outcome:
        assert self.endpoint is not None, "a replay begins no request"
        try:
            longest = self.budget.admit(request)
        except BudgetSpent as error:
            return Failure("budget", error.message, error.hint)
        return self.endpoint.complete(request, longest)


class Conversation(Generic[T]):
    """One question. See model.Model.ask for the arguments."""

    def __init__(
        self,
        asker: Asker,
        system: str,
        messages: Sequence[Json],
        schema: type[T],
        tools: Sequence[Tool],
        iteration: int,
    ) -> None:
        self._asker = asker
        self._system = system
        self._schema = schema
        self._tools = tuple(tools)
        self._iteration = iteration
        self._messages: list[Json] = [
            {"role": str(message["role"]), "content": asker.clean(str(message["content"]))} for message in messages
        ]
        self._records: list[UsageRecord] = []
        self._called: list[str] = []

    def run(self, max_turns: int) -> ModelAnswer[T]:
        """Let the model call tools in all turns but the last, then take its answer."""
        for _turn in range(max_turns - 1):
            exchange, reply = self._exchange(tools=True)
            if _is_answer(reply):
                return self._answer(reply)
            self._answer_calls(exchange, reply)
        self._add_user(_NOW_ANSWER)
        _exchange, reply = self._exchange(tools=False)
        if not _is_answer(reply):
            raise ModelError(f"{self._who} called tools in each of {max_turns} turns and gave no answer")
        return self._answer(reply)

    @property
    def _who(self) -> str:
        return f"model {self._asker.model}, asked by {self._asker.role},"

    def _answer(self, reply: Reply) -> ModelAnswer[T]:
        """Take an answer; one that does not fit is asked for again, once."""
        read = self._read(reply)
        if read.value is not None:
            return self._accepted(read.value, repaired=False)
        self._repair(reply, read.wrong)
        _exchange, reply = self._exchange(tools=False)
        again = self._read(reply)
        if again.value is None:
            name = self._schema.__name__
            raise ModelError(f"{self._who} did not give the {name} it was asked for, twice:\n{again.wrong}")
        return self._accepted(again.value, repaired=True)

    def _accepted(self, value: T, repaired: bool) -> ModelAnswer[T]:
        return ModelAnswer(value, total(self._records), repaired, tuple(self._called))

    def _read(self, reply: Reply) -> Read[T]:
        read = read_answer(_answer_text(reply), self._schema)
        if read.value is None and reply.finish_reason == "length":
            return Read(None, f"{read.wrong}\n- it is too long and was cut")
        return read

    # --- one exchange -----------------------------------------------------------------------------------------------

    def _exchange(self, *, tools: bool) -> tuple[Exchange, Reply]:
        """Send the conversation so far; raise the ModelError of an endpoint that fails."""
        asker = self._asker
        while True:
            exchange = asker.exchange(self._request(tools))
            outcome = exchange.outcome
            assert outcome is not None, "an exchange that was cut short is not recalled"
            if isinstance(outcome, Reply):
                break
            if outcome.kind != "refused" or asker.settled or asker.form == FORMS[-1]:
                raise outcome.error()
            asker.form = FORMS[FORMS.index(asker.form) + 1]
        asker.settled = True
        if exchange.record:
            self._records.append(exchange.record)
        return exchange, outcome

    def _request(self, tools: bool) -> ModelRequest:
        asker = self._asker
        schema, strict = strict_schema(self._schema)
        offered = [tool.schema() for tool in self._tools] if asker.form != "plain" else []
        choice, form = "", None
        if asker.form == "json_schema":
            choice = "none" if offered and not tools else ""
            form = {"type": "json_schema", "json_schema": {"name": ANSWER_TOOL, "schema": schema, "strict": strict}}
        elif asker.form == "tool":
            function = {
                "name": ANSWER_TOOL,
                "description": "Give your final answer.",
                "parameters": schema,
                "strict": strict,
            }
            offered = [*(offered if tools else []), {"type": "function", "function": function}]
        system = {"role": "system", "content": asker.clean("\n\n".join([self._system, *self._rules(schema)]))}
        messages = (system, *self._messages)
        return ModelRequest(asker.role, self._iteration, asker.model, messages, tuple(offered), form, choice)

    def _rules(self, schema: dict[str, Any]) -> list[str]:
        """Return the rules that the system prompt adds to the agent's own part."""
        rules = [self._asker.fence.rule()]
        if self._asker.form == "tool":
            rules.append(f"Give your final answer by calling the tool {ANSWER_TOOL}.")
        elif self._asker.form == "plain":
            text = json.dumps(schema, separators=(",", ":"))
            rules.append(f"Answer with nothing but one JSON object that fits this schema:\n{text}")
        return rules

    # --- messages ---------------------------------------------------------------------------------------------------

    def _add_user(self, text: str) -> None:
        if self._called:
            self._messages.append({"role": "user", "content": text})

    def _add_reply(self, reply: Reply) -> None:
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reply.tool_calls
        ]
        self._messages.append({"role": "assistant", "content": reply.text, **({"tool_calls": calls} if calls else {})})

    def _answer_calls(self, exchange: Exchange, reply: Reply) -> None:
        """Call what the model wants called; a result that was recorded with the call is taken from there."""
        self._add_reply(reply)
        for place, call in enumerate(reply.tool_calls):
            result = exchange.results.get(place)
            if result is None:
                result = self._called_now(call)
                self._asker.journal.tool_result(exchange.number, place, call.name, result)
            self._called.append(call.name)
            self._messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

    def _called_now(self, call: ToolCall) -> str:
        result = self._asker.clean(call_tool(self._tools, call))
        return self._asker.fence.around(f"result of {call.name}", result, LONGEST_RESULT)

    def _repair(self, reply: Reply, wrong: str) -> None:
        """Add the answer and what does not fit in it; an answer that came as a call is answered as one."""
        self._add_reply(reply)
        request = repair_request(self._asker.clean(wrong), self._schema)
        if not reply.tool_calls:
            self._messages.append({"role": "user", "content": request})
        for call in reply.tool_calls:
            content = request if call.name == ANSWER_TOOL else "not called"
            self._messages.append({"role": "tool", "tool_call_id": call.id, "content": content})


def _is_answer(reply: Reply) -> bool:
    return not reply.tool_calls or any(call.name == ANSWER_TOOL for call in reply.tool_calls)


def _answer_text(reply: Reply) -> str:
    return next((call.arguments for call in reply.tool_calls if call.name == ANSWER_TOOL), reply.text)
