"""Carrying a plan out: step by step, each whole, so that it may be cut short anywhere and done again.

The repository comes first and the files of its runs after it: a file without its run is found by the next plan, a run
without its files would lack something. Files of derived policies go first: they are written again if they are missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from repo_store.records import RunStatus
from repo_store.store import PolicyRepository
from schedagent.core.errors import RepositoryError, UsageError
from schedagent.core.retention.folder import remove
from schedagent.core.retention.limits import RETENTION
from schedagent.core.retention.lock import locked
from schedagent.core.settings import Settings
from schedagent.retention import caches, state
from schedagent.retention.plan import Plan
from schedagent.run.lifecycle import only_one
from schedagent.run.opening import DERIVED_POLICIES
from schedagent.run.progress import Reporter

_AT_ONCE = 100
"""Runs in one transaction, so that others can write between two; and things from one line of progress to the next."""


@dataclass(frozen=True)
class Pruned:
    """What came of a plan.

    Args:
        removed: how many things are gone, by kind.
        repository_bytes: size of the repository's file before and after.
        space_kept: why the file could not be made smaller; empty if it was.
    """

    removed: Mapping[str, int]
    repository_bytes: tuple[int, int]
    space_kept: str = ""


def carry_out(settings: Settings, plan: Plan, reporter: Reporter) -> Pruned:
    """Remove what was planned to go, unless it has become needed since.

    Raises:
        UsageError: another prune works on this state folder.
        RepositoryError: the repository or the checkpoints cannot be written.
        KeyboardInterrupt: the user stopped it; what is left goes the next time.
    """
    try:
        with _only_prune(settings), reporter.live():
            return _Pruning(settings, plan, reporter).run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("What is left goes the next time: schedagent prune") from None


@contextmanager
def _only_prune(settings: Settings) -> Iterator[None]:
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(settings.state_dir / "prune.lock", wait=False))
        except UsageError:
            raise UsageError(f"another prune works on {settings.state_dir}", "wait until it has ended") from None
        yield


class _Pruning:
    """One plan, as far as it is carried out."""

    def __init__(self, settings: Settings, plan: Plan, reporter: Reporter) -> None:
        self._settings = settings
        self._plan = plan
        self._reporter = reporter
        self._removed = dict.fromkeys(plan.kinds, 0)

    def run(self) -> Pruned:
        """Carry it out."""
        size, why = (0, 0), ""
        path = self._settings.repository_path
        if path.is_file():
            before = _size(path)
            with PolicyRepository(path) as repository:
                self._prune_runs(repository)
                self._prune_records(repository)
                self._prune_files(repository)
                if self._changed:
                    why = self._give_back(repository)
            size = before, _size(path)
        for kind in self._plan.kinds:
            self._prune_cache(kind)
        return Pruned(self._removed, size, why)

    def _names(self, kind: str) -> list[str]:
        return [entry.name for entry in self._plan.kinds.get(kind, ())]

    def _prune_runs(self, repository: PolicyRepository) -> None:
        """Delete runs; one that a process works on stays."""
        names = self._names("runs")
        statuses = repository.statuses()
        for start in range(0, len(names), _AT_ONCE):
            self._reporter.count("deleting runs", start, len(names))
            with ExitStack() as held:
                free = [run_id for run_id in names[start : start + _AT_ONCE] if self._is_free(held, run_id, statuses)]
                gone = repository.prune_runs(free, self._plan.question)
                for run_id in gone:
                    remove(state.runs_folder(self._settings), f"{run_id}.lock")
                self._removed["runs"] += len(gone)

    def _is_free(self, held: ExitStack, run_id: str, statuses: Mapping[str, RunStatus]) -> bool:
        """Take the lock of a run that somebody could work on; return whether nobody does."""
        if statuses.get(run_id) is RunStatus.FINISHED:
            return True
        try:
            held.enter_context(only_one(self._settings, run_id))
        except UsageError:
            return False
        return True

    def _prune_records(self, repository: PolicyRepository) -> None:
        """Forget what else is in the repository."""
        question = self._plan.question
        if names := self._names("outputs"):
            self._reporter.step("forgetting what workloads printed")
            self._removed["outputs"] = repository.prune_outputs(names, question)
        if names := self._names("policies"):
            folder = self._settings.state_dir / DERIVED_POLICIES
            for name in names:
                remove(folder, f"{name}.bpf.c")
                remove(folder, f"{name}.toml")
            self._removed["policies"] = len(repository.prune_policies(names, question))
        if names := self._names("antipatterns"):
            self._removed["antipatterns"] = repository.prune_antipatterns(names, question)
        if names := self._names("recommendations"):
            self._removed["recommendations"] = repository.prune_recommendations(names, question)

    def _prune_files(self, repository: PolicyRepository) -> None:
        """Remove files of runs that are gone now, and what is left of their steps."""
        statuses = repository.statuses()
        paths = self._names("transcripts")
        self._count("transcripts", state.remove_transcripts(self._settings, paths, statuses, self._plan.stays))
        self._count("locks", state.remove_locks(self._settings, self._names("locks")))
        ended = [name for name in self._names("checkpoints") if statuses.get(name) in (None, RunStatus.FINISHED)]
        if ended:
            state.forget_checkpoints(self._settings, ended)
            self._removed["checkpoints"] = len(ended)

    def _prune_cache(self, kind: str) -> None:
        paths = self._names(kind)
        self._count(kind, caches.remove_unused(self._settings, kind, paths, self._plan.question))

    def _count(self, kind: str, removed: Iterator[str]) -> None:
        planned, what = len(self._names(kind)), f"removing {RETENTION[kind].what}"
        for done, _path in enumerate(removed):
            if done % _AT_ONCE == 0:  # a pipe gets a line for each
                self._reporter.count(what, done, planned)
            self._removed[kind] += 1

    @property
    def _changed(self) -> bool:
        stored = ("runs", "outputs", "policies", "antipatterns", "recommendations")
        return any(self._removed.get(kind) for kind in stored)

    def _give_back(self, repository: PolicyRepository) -> str:
        """Make the file smaller; return why that could not be."""
        self._reporter.step("making the repository smaller")
        try:
            repository.give_back_space()
        except RepositoryError as error:
            return error.message
        return ""


def _size(database: Path) -> int:
    """Return the size of an SQLite file, with what was not yet written into it."""
    log = database.with_name(f"{database.name}-wal")
    return sum(path.stat().st_size for path in (database, log) if path.exists())
