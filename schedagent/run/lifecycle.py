"""A run's life: started, resumed, decided upon, replayed; driven through the graph from checkpoint to checkpoint."""

from __future__ import annotations

import dataclasses
import secrets
import shlex
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from agents.llm.exchange import Json
from agents.llm.transcript import Exchange, Replay, read_transcript, transcript_path
from repo_store.records import RunFailure, RunStatus
from repo_store.rewind import rewind
from repo_store.store import PolicyRepository
from schedagent.core.approval import Decision
from schedagent.core.errors import RepositoryError, SchedagentError, UsageError
from schedagent.core.installation import this_installation
from schedagent.core.process.machine_lock import LAB_LOCK
from schedagent.core.process.shell_text import quoted
from schedagent.core.retention.lock import locked
from schedagent.core.settings import REPOSITORY, Settings, hide, private_file, private_folder
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.report.conclusion import next_step
from schedagent.run import opening
from schedagent.run.options import AUTO, HOST, RunOptions
from schedagent.run.progress import Reporter
from schedagent.run.state import first_state

if TYPE_CHECKING:
    from schedagent.report.report import Report
    from schedagent.run.graph import Approvals
    from schedagent.run.nodes import RunNodes

CHECKPOINTS = "checkpoints.sqlite"
"""In the state folder: where each run that is not finished stands in the graph."""


def start_run(
    settings: Settings, workload: WorkloadCommand, options: RunOptions, reporter: Reporter, run_id: str = ""
) -> Report:
    """Run the whole loop for a new workload and return the report.

    Args:
        run_id: the run's id, for who has to know it beforehand; empty for any.
    """
    if workload.running and not options.experiment:
        raise UsageError(f"{quoted(workload.command)} ran already and is no command", "see: schedagent experiment")
    if options.on == AUTO and (reason := opening.why_vm(settings, options)):
        reporter.note(f"in the micro-VM: {reason}")
    options = opening.placed(settings, options)
    opening.sized(settings, options)  # a size that cannot be had is refused before anything is stored
    if options.on == HOST:
        reporter.note(_on_this_machine(workload, options))
    with opening.open_repository(settings) as repository:
        lab = opening.open_place(settings, options)
        nodes = opening.open_nodes(settings, repository, lab, options, reporter)
        run_id = repository.create_run(
            workload, lab.hardware, settings=asdict(options), seed=secrets.randbelow(1 << 31), run_id=run_id
        )
        return drive(settings, nodes, repository, run_id, reporter)


def _on_this_machine(workload: WorkloadCommand, options: RunOptions) -> str:
    """Say before anything runs that it does so here, and how often."""
    if options.experiment:
        window_s, for_s = options.experiment["window_s"], options.experiment["for_s"]
        return (
            f"on this machine: {workload.command} is not restarted; policies are in charge of the whole machine for"
            f" {window_s:g} s at a time, the default scheduler in between, for at most {for_s / 60:g} min"
        )
    runs = 2 * (options.rules.minimum_pairs + 1) + 2
    undone = (
        "after --prepare each time" if workload.prepare else "with nothing that undoes a run: there is no --prepare"
    )
    return (
        f"on this machine: the command will run at least {runs} times, more with each candidate, in"
        f" {workload.directory}, on its real files, {undone}"
    )


def resume_run(settings: Settings, run_id: str, reporter: Reporter) -> Report:
    """Continue a run that was cut short, after its last completed step, and return the report.

    Raises:
        UsageError: there is no such run, it is finished, or it was measured on other hardware than this.
    """
    with opening.open_repository(settings) as repository:
        nodes = opening.reopen_nodes(settings, repository, run_id, reporter)
        return drive(settings, nodes, repository, run_id, reporter)


def decide_run(settings: Settings, run_id: str, decision: Decision, digest: str, reporter: Reporter) -> Report:
    """Store what a person decided on what a run waits for, continue the run, and return the report.

    Args:
        digest: of what was shown, or how it begins; empty for whatever waits.

    Raises:
        UsageError: it waits for nothing, for something else, or another process works on it; or as `resume_run`.
    """
    with opening.open_repository(settings) as repository:
        nodes = opening.reopen_nodes(settings, repository, run_id, reporter)
        with only_one(settings, run_id):
            opening.approvals_of(repository, run_id, nodes).decide(decision, digest)
        return drive(settings, nodes, repository, run_id, reporter)


def read_run_transcript(settings: Settings, run_id: str) -> tuple[Json, tuple[Exchange, ...]]:
    """Return what a run has asked models: the head of its transcript, and the exchanges.

    Raises:
        UsageError: there is no such run, or it asked no model.
        RepositoryError: the transcript is damaged.
    """
    with opening.open_repository(settings) as repository:
        repository.run(run_id)
        path = _existing_transcript(settings, repository, run_id)
    return read_transcript(path)


def replay_run(settings: Settings, run_id: str, reporter: Reporter) -> dict[str, Any]:
    """Run the agents of a recorded run again on what was recorded, and return what is different now.

    Raises:
        UsageError: there is no such run, it asked no model, or it is an experiment.
        ReplayDiverged: something is asked that was not asked then.
    """
    from schedagent.run import replay as replaying

    with opening.open_repository(settings) as repository, TemporaryDirectory(prefix="schedagent-replay-") as name:
        if repository.run(run_id).workload.running:
            raise UsageError(
                f"run {run_id} is an experiment, which cannot be replayed",
                f"see what it found: schedagent runs show {run_id}",
            )
        folder = Path(name)
        recording = replaying.Recording(repository, run_id)
        replay = Replay(_existing_transcript(settings, repository, run_id))
        rewind(Path(repository.place), folder / REPOSITORY, run_id)
        with PolicyRepository(folder / REPOSITORY) as copy:
            library = opening.open_run_library(dataclasses.replace(settings, state_dir=folder), copy, run_id)
            nodes = replaying.replay_nodes(recording, replay, copy, library, reporter)
            approvals = replaying.RecordedApprovals(recording.decisions)
            with closing(nodes), replaying.up_to_the_end(recording, replay):
                run_graph(folder / CHECKPOINTS, nodes, approvals, run_id, reporter)
            return replaying.compare(recording, replay, copy)


def _existing_transcript(settings: Settings, repository: PolicyRepository, run_id: str) -> Path:
    """Return the transcript of a run; raise UsageError if it has none: it never had one, or prune removed it."""
    path = transcript_path(settings.state_dir, run_id)
    if path.exists():
        return path
    if _may_be_pruned(repository, run_id):
        raise UsageError(
            f"run {run_id} has asked no model, or prune kept only its figures: there is no {path}",
            f"what is left of it: {this_installation().command('runs', 'show', run_id)}",
        )
    raise UsageError(f"run {run_id} has asked no model: there is no {path}")


def _may_be_pruned(repository: PolicyRepository, run_id: str) -> bool:
    """Whether nothing is there of what the workload printed: prune forgets it together with the transcript."""
    blocks = chain.from_iterable(repository.blocks(run_id, number) for number in repository.iterations(run_id))
    outputs = [sample.output_tail for block in blocks for sample in block.samples]
    return bool(outputs) and not any(outputs)


def drive(settings: Settings, nodes: RunNodes, repository: PolicyRepository, run_id: str, reporter: Reporter) -> Report:
    """Take a run through the graph, from its last checkpoint if it has one, and return the report.

    If the run has to wait for an approval, the report holds what for, under "waiting".

    Raises:
        UsageError: the run is finished, or another process works on it.
        RepositoryError: the repository or the checkpoint file cannot be used.
        KeyboardInterrupt: the user stopped it; the argument names the command that continues it.
    """
    checkpoints = settings.state_dir / CHECKPOINTS
    LAB_LOCK.task = f"run {run_id}"
    with only_one(settings, run_id):
        repository.resume_run(run_id)
        with closing(nodes), early_ends_noted(repository, run_id), usable(checkpoints):
            run_graph(checkpoints, nodes, opening.approvals_of(repository, run_id, nodes), run_id, reporter)
    return report_of(settings, repository, run_id)


def report_of(settings: Settings, repository: PolicyRepository, run_id: str) -> Report:
    """Return the report of a run, finished or not.

    Raises:
        UsageError: there is no such run.
    """
    from schedagent.report.build import read_report

    return read_report(repository, run_id, transcript_path(settings.state_dir, run_id))


def run_graph(checkpoints: Path, nodes: RunNodes, approvals: Approvals, run_id: str, reporter: Reporter) -> None:
    """Run the graph to its end, or to where it waits for an approval.

    A checkpoint follows each node; the last one is deleted at the end.
    """
    from langgraph.checkpoint.sqlite import SqliteSaver  # 0.7 s that few commands need
    from langsmith import tracing_context

    from schedagent.run.graph import build_graph

    config: Any = {"configurable": {"thread_id": run_id}}
    for beside in private_file(checkpoints).parent.glob(f"{checkpoints.name}-*"):
        hide(beside)  # what SQLite adds gets the mode of the file; what an earlier version left has another one
    with SqliteSaver.from_conn_string(str(checkpoints)) as saver, tracing_context(enabled=False), reporter.live():
        graph = build_graph(nodes, approvals, saver)
        begun = bool(graph.get_state(config).values)
        reporter.stage(f"run {run_id}" + (" continues" if begun else ""))
        ended = graph.invoke(None if begun else first_state(run_id), config, durability="sync")
        if "__interrupt__" in ended:
            reporter.stage("waiting for an approval")
        else:
            saver.delete_thread(run_id)


def forget_steps(settings: Settings, run_ids: Iterable[str]) -> None:
    """Delete the checkpoints of runs that are gone."""
    from langgraph.checkpoint.sqlite import SqliteSaver

    path = settings.state_dir / CHECKPOINTS
    if path.exists():
        with usable(path), SqliteSaver.from_conn_string(str(path)) as saver:
            for run_id in run_ids:
                saver.delete_thread(run_id)


@contextmanager
def early_ends_noted(repository: PolicyRepository, run_id: str) -> Iterator[None]:
    """Store that a run failed, and why, or that it was interrupted; give the user the command that continues it."""
    command = f"schedagent resume {run_id}"
    try:
        yield
    except SchedagentError as error:
        _store_ending(repository, run_id, RunStatus.FAILED, RunFailure(error.message, error.hint, error.resumable))
        if error.resumable:
            error.hint = next_step(error.hint, run_id)
        raise
    except KeyboardInterrupt:
        _store_ending(repository, run_id, RunStatus.INTERRUPTED)
        raise KeyboardInterrupt(f"Nothing that was measured is lost. Continue: {command}") from None


def _store_ending(
    repository: PolicyRepository, run_id: str, status: RunStatus, failure: RunFailure | None = None
) -> None:
    with suppress(RepositoryError):  # the disk is full, as the first error says, which the user sees
        repository.finish_run(run_id, status, failure=failure)


@contextmanager
def usable(checkpoints: Path) -> Iterator[None]:
    """Turn an unusable checkpoint file into an error that says what to do: the repository holds every result."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        hint = "check the disk and the permissions of its folder"
        if getattr(error, "sqlite_errorname", "") in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
            hint = f"delete it, no result is in it: rm {shlex.quote(str(checkpoints))}*"
        raise RepositoryError(f"the checkpoint file {checkpoints} cannot be used: {error}", hint) from error


@contextmanager
def only_one(settings: Settings, run_id: str) -> Iterator[None]:
    """Make sure no other process works on this run; raise UsageError if one does."""
    folder = private_folder(settings.state_dir / "runs")
    with ExitStack() as held:
        try:
            held.enter_context(locked(private_file(folder / f"{run_id}.lock"), wait=False))
        except UsageError:
            raise UsageError(f"another process is working on run {run_id}", "wait for it, or stop it first") from None
        yield
