"""What the graph carries from node to node: ids only. Everything else is in the repository."""

from __future__ import annotations

from typing import TypedDict


class RunState(TypedDict):
    """State of one run.

    Args:
        run_id: key of everything the run has stored.
        iteration: which plan, from 0.
        finished: whether learning decided to end.
    """

    run_id: str
    iteration: int
    finished: bool
