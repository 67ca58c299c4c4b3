"""What the graph carries from node to node: ids only. Everything else is in the repository."""

from __future__ import annotations

from typing import TypedDict


class RunState(TypedDict):
    """State of one run.

    Args:
        run_id: key of everything the run has stored.
        iteration: which plan, from 0.
        rejected: whether a person rejected the plan of this iteration, or, at the end, the deployment.
        finished: whether learning decided to end.
        out_of_time: whether the budget cut something short that would have run: the trial of this iteration, or, at
            the end, a further plan.
    """

    run_id: str
    iteration: int
    rejected: bool
    finished: bool
    out_of_time: bool


def first_state(run_id: str) -> RunState:
    """Return the state of a run that has not begun."""
    return RunState(run_id=run_id, iteration=0, rejected=False, finished=False, out_of_time=False)
