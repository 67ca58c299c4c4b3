"""Calls of models and their cost, from the transcripts of all runs; each line is read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from agents.llm.budget import BudgetLimits, UsageRecord
from agents.llm.transcript import read_usage, transcript_path
from repo_store.totals import RepositoryReader
from schedagent.metrics import catalog
from schedagent.metrics.family import Labels
from schedagent.metrics.parts import Readings


@dataclass
class RunUse:
    """What one run has used so far.

    Args:
        offset: how far its transcript was read, in bytes.
    """

    offset: int = 0
    calls: Counter[Labels] = field(default_factory=Counter)
    tokens: Counter[Labels] = field(default_factory=Counter)
    dollars: Counter[Labels] = field(default_factory=Counter)
    unpriced: Counter[Labels] = field(default_factory=Counter)
    failed: int = 0

    def add(self, records: Iterable[UsageRecord]) -> None:
        """Count what answers used."""
        for answer in records:
            role = (answer.role,)
            self.calls[role] += answer.calls
            self.tokens[answer.role, "input"] += answer.input_tokens
            self.tokens[answer.role, "output"] += answer.output_tokens
            if answer.cost is None:
                self.unpriced[role] += answer.calls
            else:
                self.dollars[role] += answer.cost  # type: ignore[assignment]

    def parts_of(self, limits: BudgetLimits) -> dict[Labels, float]:
        """What part of each limit is used; a limit of 0 allows nothing, so none of it can be used."""
        used = (self.calls.total(), self.tokens.total(), self.dollars.total())
        allowed = (limits.calls, limits.tokens, limits.dollars)
        return {(name,): spent / most for name, spent, most in zip(catalog.LIMITS, used, allowed, strict=True) if most}


class ModelPart:
    """The transcripts of a state folder.

    What was read of a transcript stays counted when the file is removed, until the exporter is started again.

    Args:
        state_dir: where they are.
        repository: knows which runs are not finished.
        limits: of one run.
    """

    name = "models"

    def __init__(self, state_dir: Path, repository: RepositoryReader, limits: BudgetLimits) -> None:
        self._pattern = transcript_path(state_dir, "*")
        self._repository, self._limits = repository, limits
        self._runs: dict[str, RunUse] = {}

    def read(self) -> Readings:
        """Read what is new."""
        suffix = self._pattern.name.removeprefix("*")
        for path in sorted(self._pattern.parent.glob(self._pattern.name)):
            run = self._runs.setdefault(path.name.removesuffix(suffix), RunUse())
            if path.stat().st_size != run.offset:
                records, failed, run.offset = read_usage(path, run.offset)
                run.add(records)
                run.failed += failed
        return self._sums() | {catalog.BUDGET: self._budget()}

    def _sums(self) -> Readings:
        runs = self._runs.values()
        return {
            catalog.CALLS: sum((run.calls for run in runs), Counter()),
            catalog.TOKENS: sum((run.tokens for run in runs), Counter()),
            catalog.COST: sum((run.dollars for run in runs), Counter()),
            catalog.UNPRICED: sum((run.unpriced for run in runs), Counter()),
            catalog.CALL_FAILURES: {(): sum(run.failed for run in runs)},
        }

    def _budget(self) -> dict[Labels, float]:
        alive = self._repository.open_runs()
        highest: dict[Labels, float] = {}
        for name in alive & self._runs.keys():
            for limit, part in self._runs[name].parts_of(self._limits).items():
                highest[limit] = max(part, highest.get(limit, 0.0))
        return highest
