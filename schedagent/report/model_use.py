"""What a run used of models and what happened meanwhile, out of its transcript, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from agents.llm.budget import summary, total
from agents.llm.transcript import Exchange, read_notes, read_transcript


@dataclass(frozen=True)
class ModelCounts:
    """Some calls of models, summed up.

    Args:
        model: who answered.
        calls: answered requests.
        input_tokens, output_tokens: sent and answered.
        cost: dollars; None if the price is not known.
        estimated: whether tokens had to be estimated.
    """

    model: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    estimated: bool


@dataclass(frozen=True)
class ModelStep:
    """What one agent used in one iteration, counted from 1; otherwise as ModelCounts."""

    role: str
    iteration: int
    model: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    estimated: bool


@dataclass(frozen=True)
class ModelNote:
    """What an agent did without an answer, or refused of one; iterations count from 1."""

    role: str
    iteration: int
    text: str


@dataclass(frozen=True)
class ModelUse:
    """What a run used of models. Its fields are those of its JSON.

    Args:
        used: all of it in words.
        total: the same in numbers.
        steps: by iteration and agent.
        notes: in the order they were made.
    """

    used: str
    total: ModelCounts
    steps: tuple[ModelStep, ...]
    notes: tuple[ModelNote, ...]


def model_use(path: Path) -> ModelUse | None:
    """Sum up a transcript; None if there is none: then the run has no model.

    Raises:
        RepositoryError: the transcript cannot be read, or is damaged.
    """
    if not path.exists():
        return None
    _header, exchanges = read_transcript(path)
    steps = groupby(sorted(exchanges, key=_step), key=_step)
    return ModelUse(
        summary([exchange.record for exchange in exchanges if exchange.record]),
        ModelCounts(**_counts(exchanges)),
        tuple(ModelStep(role, iteration + 1, **_counts(tuple(group))) for (iteration, role), group in steps),
        tuple(ModelNote(note.role, note.iteration + 1, note.text) for note in read_notes(path)),
    )


def stored_model_use(values: Mapping[str, Any]) -> ModelUse:
    """Return what a stored report contains of it: its transcript may have been deleted since."""
    from pydantic import TypeAdapter

    return TypeAdapter(ModelUse).validate_python(values)


def _step(exchange: Exchange) -> tuple[int, str]:
    return exchange.request.iteration, exchange.request.role


def _counts(exchanges: Sequence[Exchange]) -> dict[str, Any]:
    counts = asdict(total([exchange.record for exchange in exchanges if exchange.record]))
    del counts["role"]
    return counts
