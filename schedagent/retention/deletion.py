"""Deleting runs that a person names: each whole, with its files, unless something rests on it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from agents.llm.transcript import transcript_path
from repo_store.store import PolicyRepository
from schedagent.client.daemon import DaemonClient
from schedagent.core.errors import DaemonAbsent, StillNeeded
from schedagent.core.settings import Settings
from schedagent.run.lifecycle import forget_steps, only_one
from schedagent.run.stored import open_stored


def delete_runs(settings: Settings, run_ids: Sequence[str], daemon: DaemonClient | None = None) -> None:
    """Delete runs with all that they measured, all of these or none.

    The repository comes first: files without their run are found by `schedagent prune`.

    Args:
        daemon: the way to schedagentd; None for the usual one.

    Raises:
        UsageError: there is no such run, or a process works on it.
        StillNeeded: something rests on one of them: a deployment, the proof of a policy, a recommendation.
        SetupError: schedagentd runs, and does not answer what is deployed.
    """
    wanted = list(dict.fromkeys(run_ids))
    with open_stored(settings) as repository, ExitStack() as locks:
        for run_id in wanted:
            repository.run(run_id)
        for run_id in wanted:
            locks.enter_context(only_one(settings, run_id))
        _refuse_deployed(repository, wanted, daemon or DaemonClient())
        repository.delete_runs(wanted)
        for run_id in wanted:
            transcript_path(settings.state_dir, run_id).unlink(missing_ok=True)
        forget_steps(settings, wanted)


def _refuse_deployed(repository: PolicyRepository, run_ids: Sequence[str], daemon: DaemonClient) -> None:
    try:
        status = daemon.ask("status")
    except DaemonAbsent:
        return
    deployed = {status[name]["digest"]: status[name]["deployment"] for name in ("active", "waiting") if status[name]}
    for run_id in run_ids:
        for digest in _verified(repository, run_id) & deployed.keys():
            raise StillNeeded(
                f"nothing was deleted: run {run_id} verified what deployment {deployed[digest]} runs",
                "end it first: schedagent rollback",
            )


def _verified(repository: PolicyRepository, run_id: str) -> set[str]:
    """Return the digests of the objects that a run had verified."""
    candidates = [entry for number in repository.iterations(run_id) for entry in repository.candidates(run_id, number)]
    reports = [repository.verification(run_id, candidate.key) for candidate in candidates]
    return {report.artifact_digest for report in reports if report}
