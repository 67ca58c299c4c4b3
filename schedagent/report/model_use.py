"""What a run used of models and what happened meanwhile, out of its transcript, for the report."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from agents.llm.budget import summary, total
from agents.llm.transcript import Exchange, read_notes, read_transcript


def model_use(path: Path) -> dict[str, Any] | None:
    """Return it as JSON values; None without a transcript: then the run has no model.

    Args:
        path: of the transcript.

    Raises:
        RepositoryError: the transcript cannot be read, or is damaged.
    """
    if not path.exists():
        return None
    _header, exchanges = read_transcript(path)
    records = [exchange.record for exchange in exchanges if exchange.record]
    return {
        "used": summary(records),
        "total": _counts(total(records)),
        "steps": [
            {"role": role, "iteration": iteration + 1} | _counts(total([one.record for one in group if one.record]))
            for (iteration, role), group in groupby(sorted(exchanges, key=_step), key=_step)
        ],
        "notes": [asdict(note) | {"iteration": note.iteration + 1} for note in read_notes(path)],
    }


def _step(exchange: Exchange) -> tuple[int, str]:
    return exchange.request.iteration, exchange.request.role


def _counts(record: Any) -> dict[str, Any]:
    told = asdict(record)
    del told["role"]
    return told
