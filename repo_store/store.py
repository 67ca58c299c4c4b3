"""The policy repository: stores what each step of a run produced, and gives it back in domain types."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from repo_store.approvals import ApprovalStore
from repo_store.database.engine import open_engine
from repo_store.knowledge import KnowledgeStore
from repo_store.policies import PolicyStore
from repo_store.results import ResultStore
from repo_store.retention.deletion import DeletionStore
from repo_store.runs import RunStore
from repo_store.service_records import ServiceRecords


class PolicyRepository(RunStore, ResultStore, ApprovalStore, KnowledgeStore, PolicyStore, DeletionStore):
    """One database of runs, measurements and what was learned from them. Threads and processes may share it.

    Args:
        url_or_path: path of an SQLite file, created if missing, or an SQLAlchemy URL.

    Raises:
        RepositoryError: it cannot be opened, is damaged, or was written by a newer schedagent. Every method may
            raise it too: the disk is full, another process holds the lock for too long, the file is damaged.
    """

    def __init__(self, url_or_path: str | Path) -> None:
        super().__init__(open_engine(url_or_path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; nothing is lost without it."""
        self._engine.dispose()

    @property
    def service(self) -> ServiceRecords:
        """What the agent service keeps here."""
        return ServiceRecords(self._engine)
