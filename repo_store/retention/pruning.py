"""Taking out of the repository what is old and needed by nothing; each step is whole, and asks again what is needed."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import delete, update

from repo_store.database.engine import mapped_errors
from repo_store.database.tables import RecommendationRow, RequestRow, SampleRow
from repo_store.retention.deletion import DeletionStore, delete_whole, forget_policies, portions
from repo_store.retention.unneeded import (
    Question,
    Stays,
    Unneeded,
    antipattern_name,
    lost_policies,
    old_recommendations,
    stale_antipatterns,
    unneeded,
    why_runs_stay,
)


class PruningStore(DeletionStore):
    """What is old leaves the repository here. Whatever has become needed since it was planned to go stays."""

    def unneeded(self, question: Question) -> Unneeded:
        """Return what is old and needed by nothing."""
        with self._session() as session:
            return unneeded(session, question)

    def prune_runs(self, ids: Collection[str], question: Question) -> frozenset[str]:
        """Delete runs whole; return those that are gone. The caller holds their locks."""
        with self._transaction() as session:
            gone = frozenset(ids) - why_runs_stay(session, question).keys()
            delete_whole(session, sorted(gone))
        return gone

    def prune_outputs(self, ids: Collection[str], question: Question) -> int:
        """Forget what the workload printed in the trials of runs of which only the figures are needed; return how many
        runs these are."""
        with self._transaction() as session:
            stays = why_runs_stay(session, question)
            thin = sorted(run_id for run_id in ids if stays.get(run_id) is Stays.LESSON)
            for some in portions(thin):
                session.execute(update(SampleRow).where(SampleRow.run_id.in_(some)).values(output_tail=""))
        return len(thin)

    def prune_policies(self, names: Collection[str], question: Question) -> frozenset[str]:
        """Forget derived policies; return those that are gone."""
        with self._transaction() as session:
            gone = lost_policies(session, question, ()) & set(names)
            forget_policies(session, gone)
        return gone

    def prune_antipatterns(self, names: Collection[str], question: Question) -> int:
        """Forget failures; return how many are gone."""
        with self._transaction() as session:
            failures = [row for row in stale_antipatterns(session, question, ()) if antipattern_name(row) in names]
            for row in failures:
                session.delete(row)
        return len(failures)

    def prune_recommendations(self, ids: Collection[str], question: Question) -> int:
        """Forget recommendations with their requests; return how many are gone."""
        with self._transaction() as session:
            gone = sorted(row.id for row in old_recommendations(session, question) if row.id in ids)
            for some in portions(gone):
                session.execute(delete(RequestRow).where(RequestRow.recommendation_id.in_(some)))
                session.execute(delete(RecommendationRow).where(RecommendationRow.id.in_(some)))
        return len(gone)

    def give_back_space(self) -> None:
        """Make the file as small as what is in it; others may read meanwhile, and writers wait.

        PostgreSQL does so by itself.

        Raises:
            RepositoryError: the disk is too full for the copy that this needs, or another process writes for long.
        """
        if self._engine.dialect.name != "sqlite":
            return
        with mapped_errors(self.place):
            connection = self._engine.raw_connection()
            try:
                for statement in ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
                    connection.cursor().execute(statement)
            finally:
                connection.close()
