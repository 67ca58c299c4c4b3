"""Tools a model may call, and answering its calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.llm.answers import problems, strict_schema
from agents.llm.exchange import Json, ToolCall
from schedagent.core.errors import SchedagentError

if TYPE_CHECKING:
    from pydantic import BaseModel

LONGEST_RESULT = 12_000
"""Characters of a tool's result that a model gets to see: about 3000 tokens."""


@dataclass(frozen=True)
class Tool:
    """One thing a model may ask for.

    Args:
        name: letters, digits and underscores.
        description: for the model: what it does, and when to use it.
        arguments: model of the arguments; its field descriptions reach the model, too.
        call: takes the checked arguments and returns a text. What it raises as SchedagentError reaches the model.
        read_only: whether calling it changes nothing.
        slow: whether it takes seconds or more, and reports its progress meanwhile.
    """

    name: str
    description: str
    arguments: type[BaseModel]
    call: Callable[[Any], str]
    read_only: bool = True
    slow: bool = False

    def schema(self) -> Json:
        """Return it as chat completions describes a tool."""
        parameters, strict = strict_schema(self.arguments)
        function = {"name": self.name, "description": self.description, "parameters": parameters, "strict": strict}
        return {"type": "function", "function": function}


def call_tool(tools: Sequence[Tool], call: ToolCall) -> str:
    """Call the named tool and return its result; an unknown name or bad arguments give an error text."""
    return try_tool(tools, call).text


@dataclass(frozen=True)
class ToolAnswer:
    """What calling a tool came to.

    Args:
        text: its result, or what went wrong.
        failed: whether something did.
    """

    text: str
    failed: bool = False


def try_tool(tools: Sequence[Tool], call: ToolCall) -> ToolAnswer:
    """Call the named tool and return what that came to."""
    from pydantic import ValidationError

    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        names = ", ".join(tool.name for tool in tools) or "none"
        return ToolAnswer(f"error: there is no tool {call.name[:64]!r}; there are: {names}", failed=True)
    try:
        arguments = tool.arguments.model_validate_json(call.arguments or "{}")
    except ValidationError as error:
        return ToolAnswer(f"error: the arguments of {tool.name} are not accepted:\n{problems(error)}", failed=True)
    try:
        return ToolAnswer(tool.call(arguments))
    except SchedagentError as error:
        return ToolAnswer(f"error: {error}", failed=True)
