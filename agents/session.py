"""The models of one run: one budget, one transcript, and what happened when there was no answer.

An agent asks and gets a checked answer, or None. None means: continue without a model. Why is noted beside the run, so
that the report shows it. An endpoint that is lost, or a budget that is spent, is not asked again in this process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from agents.llm.budget import Budget
from agents.llm.calling import Tool
from agents.llm.exchange import Json, Role
from agents.llm.fences import Fence
from agents.plain_text import short
from agents.prompts import prompt
from agents.schemas import one_line
from schedagent.core.errors import BudgetSpent, EndpointError, ModelError, SetupError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from agents.llm.model import Model

log = logging.getLogger(__name__)

TURNS: Mapping[Role, int] = {"observation": 3, "planning": 8, "execution": 4, "learning": 3}
"""Requests of one question, the last one without tools."""

LONGEST_SECTION = 24_000
"""Characters of one part of a question."""

T = TypeVar("T", bound="BaseModel")


class Notes(Protocol):
    """Where it is kept what happened: agents.llm.transcript.Transcript."""

    def note(self, role: Role, iteration: int, text: str) -> None:
        """Keep one sentence."""
        ...


class Reporter(Protocol):
    """Shows the user how far the work is."""

    def step(self, text: str) -> None: ...


@dataclass
class ModelSession:
    """The models of one run.

    Args:
        open_agent: gives an agent its model.
        fence: of this run.
        budget: that all agents share.
        notes: where it is kept what happened.
        reporter: hears of it at once.
        tools: what an agent may call.
        lost: why no model is asked any more; empty while one is.
    """

    open_agent: Callable[[Role], Model]
    fence: Fence
    budget: Budget
    notes: Notes
    reporter: Reporter
    tools: Callable[[Role], Sequence[Tool]] = lambda _role: ()
    lost: str = ""

    def question(self, task: str, sections: Mapping[str, str]) -> list[Json]:
        """Return the messages that ask something: our words, then data by title, inside fences, if there is any."""
        data = [self.fence.around(title, text, LONGEST_SECTION) for title, text in sections.items() if text]
        return [{"role": "user", "content": "\n\n".join([task, *data])}]

    def ask(self, role: Role, iteration: int, messages: Sequence[Json], schema: type[T]) -> T | None:
        """Return the checked answer of an agent's model; None if there is none, which is noted.

        Args:
            iteration: of the run, from 0.
            messages: see `question`.
            schema: of the answer.
        """
        if self.lost:
            self.note(role, iteration, f"no model was asked: {self.lost}")
            return None
        try:
            model = self.open_agent(role)
            self.reporter.step(f"asking {model.name} ({role})")
            answer = model.ask(
                prompt(role), messages, schema, self.tools(role), iteration=iteration, max_turns=TURNS[role]
            )
        except (ModelError, SetupError) as error:
            if isinstance(error, EndpointError | BudgetSpent):
                self.lost = in_short(error.message)
            self.note(role, iteration, f"no usable answer: {in_short(error.message)}")
            return None
        return answer.value

    def note(self, role: Role, iteration: int, text: str) -> None:
        """Keep what happened, and show it to the user."""
        log.info("%s, iteration %d: %s", role, iteration + 1, text)
        self.notes.note(role, iteration, text)
        self.reporter.step(f"{role}: {text}")


def answered(value: BaseModel) -> Json:
    """Return a model's answer as a message, so that what is wrong with it can follow."""
    return {"role": "assistant", "content": value.model_dump_json()}


def in_short(text: str) -> str:
    """Return a message as one printable line that is fit for a note."""
    return short(one_line(text), 240)
